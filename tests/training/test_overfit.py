"""Every model learns four images by heart, by the steps and the predictors of a real run."""

import functools

import jax
import numpy as np
import pytest

from configs import compare, isic2016_64
from segdiff_jax.data.pipeline import resize_image, resize_mask
from segdiff_jax.data.synthetic_lesions.drawing import draw
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.evaluation.predict import make_predictor
from segdiff_jax.models import MODELS, init_variables, make_model
from segdiff_jax.training.state import create_state, make_optimizer
from segdiff_jax.training.steps import make_losses_fn, train_step
from tests.conftest import tiny_overrides

SIZE = 32


def test_all_are_compared():
    assert set(compare.MODELS) == set(MODELS)
    assert compare.get_config("segdiff") == isic2016_64.get_config()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("segdiff", "medsegdiff", "medt")]


@pytest.mark.parametrize("name", ["unet", *SLOW])
def test_overfits_four_images(name):
    config = tiny_overrides(compare.get_config(name))
    config.sampler.flips = False  # Mirror images are not what it learned.
    drawn = [draw(number, 64)[:2] for number in range(4)]
    images = np.stack([resize_image(image, SIZE) for image, _ in drawn])
    truth = np.stack([resize_mask(255 * np.uint8(mask > 0), SIZE) for _, mask in drawn]) > 127
    batch = {"image": images, "mask": 255 * np.uint8(truth)[..., None], "index": np.arange(4)}
    model, process = make_model(config.model), make_process(config.diffusion)
    losses_fn = make_losses_fn(config, model, process)
    tx = make_optimizer(config)
    augment = lambda keys, image, mask: (image.astype("float32"), mask.astype("float32"))
    step = functools.partial(train_step, losses_fn=losses_fn, tx=tx, augment=augment, ema_decay=0.9)
    step = jax.jit(step, donate_argnums=0)
    state = jax.jit(lambda: create_state(init_variables(model, 0, SIZE), tx))()
    for i in range(80):
        rate = np.float32(0.02 * (1 - i / 80))
        state, _ = step(state, batch, jax.random.key(0), rate)
    predictor = make_predictor(model, process, config.sampler, 0)
    samples = predictor(state.averaged(), images, list("abcd"))
    masks = [predictor.combine(samples[:, i]).mask for i in range(4)]
    ious = [segmentation_scores(m, t)["iou"] for m, t in zip(masks, truth, strict=True)]
    assert np.mean(ious) > 0.95, ious
