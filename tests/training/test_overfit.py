"""Every model learns four images by heart, by the steps and the driver of a real run."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import compare, isic2016_64
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.data.pipeline import resize_image, resize_labels
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.inference.combine import segment
from segdiff_jax.inference.driver import Driver
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.schema import MODELS
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import make_train_step
from tests.conftest import tiny_overrides

SIZE = 32


def test_all_are_compared():
    assert [compare.get_config(name).model.name for name in MODELS] == list(MODELS)
    assert compare.get_config("segdiff") == isic2016_64.get_config()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_overfits_four_images(name):
    config = tiny_overrides(compare.get_config(name))
    config.data.image_size = SIZE
    config.sampler.flips = False  # Mirror images are not what it learned.
    drawn = [draw(number, 64)[:2] for number in range(4)]
    images = np.stack([resize_image(image, SIZE) for image, _ in drawn])
    truth = np.stack([resize_labels(np.uint8(mask > 0), (SIZE, SIZE)) for _, mask in drawn]) > 127
    batch = {"image": images, "mask": 255 * np.uint8(truth), "index": np.arange(4)}
    method, tx = make_method(config), make_optimizer(config.train)
    augment = lambda keys, image, mask: (image.astype("float32"), mask.astype("float32"))
    step = make_train_step(config, method, tx)
    step = jax.jit(dataclasses.replace(step, augment=augment, ema_decay=0.9), donate_argnums=0)
    state = jax.jit(lambda: create_state(init_variables(method, 0), tx))()
    for i in range(80):
        rate = np.float32(0.02 * (1 - i / 80))
        state, _ = step(state, batch, jax.random.key(0), rate)
    samples = Driver(method, 4)(state.averaged(), images, list("abcd"))
    masks = [segment(samples[:, i]).mask for i in range(4)]
    ious = [segmentation_scores(m, t[..., 0])["iou"] for m, t in zip(masks, truth, strict=True)]
    assert np.mean(ious) > 0.95, ious
