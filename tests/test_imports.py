"""The rules of docs/architecture.md that a program can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "segdiff_jax").rglob("*.py"))
# Who may import whom, across folders; `loop` alone sits on top of `training` and `evaluation`.
ALLOWED = {
    "diffusion": set(),
    "models": set(),
    "data": {"lock"},
    "parallel": set(),
    "lock": set(),
    "command": {"parallel", "training"},
    "checkpoint": {"training", "parallel"},
    "training": {"diffusion", "data"},
    "training.check": {"data", "parallel"},
    "training.changes": {"models"},
    "training.stop": {"parallel"},
    "training.loop": {
        "diffusion",
        "models",
        "data",
        "evaluation",
        "parallel",
        "checkpoint",
        "lock",
    },
    "evaluation": {"diffusion", "models", "data", "parallel", "lock"},
    "trained": {"diffusion", "models", "data", "evaluation", "checkpoint", "parallel"},
    "__init__": {"trained"},
    "export": {"command", "diffusion", "models", "evaluation", "trained"},
    "import_torch": {"command", "models", "checkpoint"},
    "export_torch": {"command", "diffusion", "models", "checkpoint"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_down(path):
    parts = path.relative_to(ROOT / "segdiff_jax").with_suffix("").parts
    place = ".".join(parts) if ".".join(parts) in ALLOWED else parts[0]
    for name in imports(path):
        module = name.split(".")
        assert module[0] not in ("configs", "train", "sample"), name
        if module[0] == "segdiff_jax" and place in ALLOWED and module[1] != parts[0]:
            assert module[1] in ALLOWED[place], f"{place} may not import {name}"


@pytest.mark.parametrize(
    "word, owners",
    [
        (r"jax\.pmap|jax\.\w*device|jax\.process_", ["parallel.py"]),
        (r"\borbax", ["checkpoint.py"]),
        (r"DEFINE_", ["command.py"]),
        (r"lax\.scan\(", ["samplers.py", "steps.py"]),  # Time; microbatches.
    ],
)
def test_one_owner(word, owners):
    assert [p.name for p in FILES if re.search(word, p.read_text())] == owners


def test_the_tables_need_no_jax_and_nothing_needs_tensorflow():
    code = (
        "import sys, segdiff_jax.diffusion.schedule; assert 'jax' not in sys.modules;"
        "import segdiff_jax.training.loop, sample; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_mains_are_short():
    for name in ("train.py", "sample.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80, name
