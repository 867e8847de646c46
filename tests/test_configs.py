"""Every config file: it loads, its network is built, and it trains two steps."""

import importlib
import json
import re

import jax
import numpy as np
import pytest

from segdiff_jax.check import check
from segdiff_jax.config import complete
from segdiff_jax.inference.load import load
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.models.pretrained import from_names
from segdiff_jax.schema import MODELS
from segdiff_jax.training.loop import train
from tests.conftest import ROOT, encoder_arrays, tiny_overrides

NAMES = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py"))
NAMES.remove("compare")
NAMES.remove("saved")  # Needs a workdir: see training/test_loop.py.
NAMES[NAMES.index("cityscapes_instances")] += ":car_expanded"
NAMES += [f"compare:{model}" for model in (*MODELS, "ssn")]
NAMES += [f"synthetic_annotators:{model}" for model in ("told", "ssn", "unet")]
PARAMETERS = {
    "cityscapes_instances:car_expanded": 162_766_017,
    "compare:medsegdiff": 1_397_801,
    "compare:medt": 1_522_505,
    "compare:segdiff": 1_077_097,
    "compare:ssn": 1_942_764,
    "compare:unet": 1_942_577,
    "cvc_clinicdb": 1_077_097,
    "default": 3_405_345,
    "folder": 1_077_097,
    "isic2016": 159_838_209,
    "isic2016_128": 5_421_641,
    "isic2016_64": 1_077_097,
    "isic2016_64_hour": 1_077_097,
    "isic2016_64_paper": 1_327_377,
    "kvasir_seg": 1_077_097,
    "monuseg": 164_154_753,
    "ph2": 1_077_097,
    "synthetic": 1_077_097,
    "synthetic_annotators": 1_122_857,
    "synthetic_annotators:ssn": 1_942_764,
    "synthetic_annotators:told": 1_123_113,
    "synthetic_annotators:unet": 1_942_577,
    "vaihingen": 159_838_209,
}
# test_loop.py trains the first, the second has a test of its own, and the others have the network
# and the recipe of isic2016_64.
ELSEWHERE = (
    *("default", "isic2016_128", "compare:segdiff", "isic2016_64_hour", "folder"),
    *("cvc_clinicdb", "kvasir_seg", "ph2"),
    *(f"synthetic_annotators:{model}" for model in ("told", "ssn", "unet")),
)
TRAINED = [name for name in NAMES if name not in ELSEWHERE]
QUICK = ("compare:unet",)  # to compile
TRAINED = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TRAINED]


def get(name):
    name, *arguments = name.split(":")
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    config = get(name)
    config.data.image_size = 64
    leaves = variables_like(make_method(config))["params"]
    assert sum(x.size for x in jax.tree.leaves(leaves)) == PARAMETERS[name]


def tiny(name, tiny_config):
    config, data = tiny_overrides(get(name)), tiny_config().data
    config.data.update(dataset=data.dataset, manual_dir=data.manual_dir, dir=data.dir)
    config.data.annotators = ()  # That data set has none.
    # test_loop.py does both; here it would compile them for each.
    config.validation.every, config.train.half_size_share = 0, 0.0
    return config


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps(name, tiny_config, tmp_path):
    train(tiny(name, tiny_config), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 2
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_an_image_encoder_starts_with_its_weights(tiny_config, tmp_path):
    """Two steps leave the frozen blocks as they are in the file, and train the others."""
    config = tiny("isic2016_128", tiny_config)
    config.model.image_encoder = "efficientnet_lite0"  # It compiles faster.
    arrays = encoder_arrays("efficientnet_lite0")
    np.savez(tmp_path / "weights.npz", **arrays)
    config.model.update(encoder_weights=str(tmp_path / "weights.npz"), frozen_blocks=2)
    config.train.warmup_steps = 0
    train(config, str(tmp_path / "run"))
    expected = from_names("efficientnet_lite0", arrays, "")
    found = load(tmp_path / "run").variables["params"]["G"]["encoder"]
    far = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), found, expected)
    moved = {name for name, of in far.items() if max(jax.tree.leaves(of)) > 1e-5}
    assert "block2" in moved and not moved & {"stem", "block0", "block1"}
    assert max(jax.tree.leaves(far)) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_config_opens_with_command_machine_time_and_score(name):
    file = name.split(":")[0] + ".py"
    header = (ROOT / "configs" / file).read_text().split('"""')[1]
    assert f"--config=configs/{file}" in header
    for word in ("machine", "time", "score"):
        assert re.search(rf"\b{word}( and \w+)?: \S", header, re.IGNORECASE), word


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_right_and_comes_back_from_json(name):
    config = get(name)
    check(config)
    assert complete(json.loads(config.to_json())) == config and config.is_locked


@pytest.mark.parametrize("model", ["unet", "ssn"])
def test_a_comparison_has_the_augmentation_of_its_recipe(model):
    recipe = get("isic2016_64_hour")
    config = get(f"compare:{model},isic2016_64_hour")
    assert config.augment == recipe.augment and config.augment != get("isic2016_64").augment
    assert config.train == recipe.train
