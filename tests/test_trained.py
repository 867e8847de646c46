"""Loading runs of different kinds, and what cannot be an ensemble."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import default
from segdiff_jax.checkpoint import Checkpoints
from segdiff_jax.models import init_variables, make_model
from segdiff_jax.trained import ensemble_of, load_trained
from tests.conftest import tiny_overrides


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """By model, a workdir with a checkpoint of a tiny network."""
    folders = {}
    for name in ("segdiff", "unet"):
        config = tiny_overrides(default.get_config())
        if name == "unet":
            config.objective = "supervised"
            config.model = ConfigDict({"name": "unet", "channels": (8, 16)})
        model = make_model(config.model)
        variables = jax.jit(lambda model=model: init_variables(model, 0, 16))()
        folders[name] = tmp_path_factory.mktemp(name)
        saved = config.to_dict()
        if name == "segdiff":  # As of a run that did not know this field yet.
            del saved["objective"]
        with Checkpoints(folders[name]) as checkpoints:
            checkpoints.save_best(1, variables, {"config": saved, "step": 1})
    return folders


def test_a_runs_own_fields_and_the_defaults_of_the_others(workdirs):
    unet = load_trained(workdirs["unet"], default.get_config())
    assert unet.config.model.to_dict() == {"name": "unet", "channels": [8, 16]}
    assert unet.settings["model"] == "unet" and "steps" not in unet.settings
    assert sorted(unet.variables) == ["batch_stats", "params"]
    segdiff = load_trained(workdirs["segdiff"], default.get_config())
    assert segdiff.config.objective == "diffusion" and segdiff.settings["steps"] == 2


def test_an_ensemble_is_of_models_that_see_alike(workdirs):
    load = lambda name, **fields: load_trained(
        workdirs[name], default.get_config(), lambda config: config.sampler.update(fields)
    )
    alone = load("unet")
    assert ensemble_of([alone]) is alone
    both = ensemble_of([load("segdiff"), alone])
    assert both.settings["model"] == "segdiff + unet"
    assert both.settings["1. steps"] == 2 and "2. steps" not in both.settings
    images = jnp.zeros((4, 16, 16, 3), jnp.uint8)
    assert both.predictor(both.variables, images, list("abcd")).shape == (2, 4, 16, 16)
    with pytest.raises(ValueError, match=r"differ in sampler\.threshold: \[0\.5, 0\.4\]"):
        ensemble_of([load("segdiff"), load("unet", threshold=0.4)])
