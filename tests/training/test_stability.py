"""Hundreds of steps of every recipe, in both precisions: no NaN, and a loss that goes down.

SEGDIFF_STEPS=3000 python -m pytest -m slow tests/training/test_stability.py takes longer.
"""

import importlib
import os

import jax
import numpy as np
import pytest

from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.training.optimizer import learning_rate, make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import make_train_step
from tests.conftest import ROOT, tiny_overrides

STEPS = int(os.environ.get("SEGDIFF_STEPS", 200))
# Config file and what is changed in its section diffusion.
RECIPES = {
    "isic2016_64": {},
    "isic2016_64_paper": {},
    "isic2016": {},
    "v": {"prediction": "v", "loss": "mse", "weight": "min_snr", "self_conditioning": True},
    "recycling": {"recycling": True, "timestep_power": 1 / 3, "self_conditioning": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_goes_down_without_nan(name, dtype):
    module = name if (ROOT / "configs" / f"{name}.py").exists() else "default"
    config = tiny_overrides(importlib.import_module(f"configs.{module}").get_config())
    config.diffusion.update(RECIPES[name])
    rate = max(1e-3, config.train.learning_rate)  # The full-size network has a smaller one.
    config.train.update(num_steps=STEPS, warmup_steps=20, learning_rate=rate)
    config.model.dtype = dtype
    method, tx = make_method(config), make_optimizer(config.train)
    pairs = [draw(number, 16)[:2] for number in range(64)]
    images, masks = map(np.stack, zip(*pairs, strict=True))
    masks = masks.reshape(64, 16, 16, 1)
    state = jax.jit(lambda: create_state(init_variables(method, 0), tx))()
    step, losses = jax.jit(make_train_step(config, method, tx), donate_argnums=0), []
    for i in range(STEPS):
        part = slice(8 * (i % 8), 8 * (i % 8) + 8)
        batch = {"image": images[part], "mask": masks[part], "index": np.arange(8)}
        rate = learning_rate(config.train, i, 0.0)
        state, metrics = step(state, batch, jax.random.key(0), rate)
        losses.append(metrics["loss"])
    losses = np.array(jax.device_get(losses))
    assert np.isfinite(losses).all()
    means = np.array([part.mean() for part in np.array_split(losses, 6)])
    assert (np.diff(means) < 0.1 * means[0]).all() and means[-1] < 0.8 * means[0], means
