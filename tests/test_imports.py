"""The rules of docs/architecture.md that a program can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "segdiff_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up. A file may import its own folder and the folders below it.
LAYERS = [
    "runtime",
    "diffusion",
    "models",
    "data",
    "schema",
    "config",
    "check",
    "original",
    "methods",
    "inference",
    "evaluation",
    "training",
    "__init__",
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    place = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        module = name.split(".")
        assert module[0] not in ("configs", "train", "sample"), name
        if module[0] == "segdiff_jax":
            assert LAYERS.index(module[1]) <= LAYERS.index(place), f"{place} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_take_at_most_eight_parameters(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count - ([a.arg for a in arguments.args[:1]] == ["self"]) <= 8, node.name


@pytest.mark.parametrize(
    "word, owners",
    [
        (r"\bjax(\.| import .*)(pmap|\w*device|process_)", ["parallel.py"]),
        (r"\borbax", ["checkpoint.py"]),
        (r"DEFINE_", ["command.py"]),
        # Time; images of a batch, on CPU; microbatches.
        (r"lax\.scan\(", ["samplers.py", "cpu_gradients.py", "steps.py"]),
    ],
)
def test_one_owner(word, owners):
    assert [p.name for p in FILES if re.search(word, p.read_text())] == owners


def test_the_tables_need_no_jax_and_nothing_needs_tensorflow():
    """Nor does an import need fcntl, which Windows does not have."""
    code = (
        "import sys; sys.modules['fcntl'] = None;"
        "import segdiff_jax.diffusion.schedule; assert 'jax' not in sys.modules;"
        "import segdiff_jax.training.loop, sample; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_mains_are_short():
    for name in ("train.py", "sample.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80, name
