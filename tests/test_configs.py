"""Every config file: it loads, its network is built, and it trains two steps."""

import importlib
import json
from pathlib import Path

import jax
import pytest

from configs import default
from segdiff_jax.models import make_model, params_like
from segdiff_jax.training.loop import flatten, train
from tests.conftest import ROOT, tiny_overrides

NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
PARAMETERS = {
    "default": 3_405_345,
    "isic2016": 159_838_209,
    "isic2016_64": 3_405_345,
    "synthetic": 3_405_345,
}


def get(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    config = get(name)
    leaves = params_like(make_model(config.model), 64)

    assert sum(x.size for x in jax.tree.leaves(leaves)) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, tiny_config, tmp_path):
    config, data = tiny_overrides(get(name)), tiny_config().data
    config.data.update(dataset=data.dataset, manual_dir=data.manual_dir, dir=data.dir)
    config.validation.every = 0  # test_loop.py validates; here it would compile for each.
    train(config, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 2
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_config_opens_with_its_command(name):
    text = Path(ROOT / "configs" / f"{name}.py").read_text()
    assert name == "default" or f"--config=configs/{name}.py" in text.split('"""')[1]


def test_every_field_is_commented_and_read():
    lines = (ROOT / "configs" / "default.py").read_text().splitlines()
    source = "".join(
        p.read_text() for p in [*(ROOT / "segdiff_jax").rglob("*.py"), ROOT / "sample.py"]
    )
    for name in flatten(json.loads(default.get_config().to_json())):
        field = name.split(".")[-1]
        assert f".{field}" in source or f'"{field}"' in source or f"{field}:" in source, name
    sections = [line for line in lines if " = ConfigDict()" in line]
    assert len(sections) == 8
