"""Training on masks of several classes: the losses, the networks' channels, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import compare
from segdiff_jax.diffusion.process import Process, make_process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.models import make_model, variables_like
from segdiff_jax.training import loop
from segdiff_jax.training.losses import bce_dice
from segdiff_jax.training.steps import diffusion_loss

NAMES = ("skin", "lesion", "core")


def test_bce_dice_is_the_mean_of_each_channels():
    rng = np.random.default_rng(0)
    logits = jnp.float32(3 * rng.standard_normal((4, 6, 5, 3)))
    mask = jnp.float32(rng.random(logits.shape))
    terms = bce_dice(logits, mask)
    alone = [bce_dice(logits[..., k : k + 1], mask[..., k : k + 1]) for k in range(3)]
    for name in ("bce", "dice"):
        expected = np.mean([term[name] for term in alone], axis=0)
        assert terms[name].shape == (4,)
        np.testing.assert_allclose(terms[name], expected, rtol=1e-6)
    p = 1 / (1 + np.exp(-np.float64(logits)))
    dice = np.abs(p - mask).sum((1, 2)) / (p.sum((1, 2)) + mask.sum((1, 2)) + 1)
    np.testing.assert_allclose(terms["dice"], dice.mean(axis=-1), rtol=1e-5)


def test_input_channels():
    schedule = make_schedule("linear", 100)
    assert Process(schedule).input_channels == 1
    assert Process(schedule, mask_channels=3).input_channels == 3
    process = Process(schedule, self_conditioning=True, mask_channels=3)
    assert process.input_channels == 6
    x_t = jnp.ones((2, 4, 4, 3))
    seen = process.network_input(x_t, jnp.int32([1, 2]), 0.5 * x_t)
    np.testing.assert_array_equal(seen[0, 0, 0], [1, 1, 1, 0.5, 0.5, 0.5])


class Certain:
    """Log odds of 50 times the mask that it was given; as a network, without parameters."""

    def __init__(self, mask):
        self.mask = mask

    def apply(self, variables, x_t, image, t, train=False):
        assert x_t.shape == self.mask.shape
        return 50 * self.mask


def test_the_right_classes_have_no_loss(tiny_config):
    labels = np.random.default_rng(0).integers(0, 3, (4, 8, 8))
    mask = 2 * jax.nn.one_hot(labels, 3) - 1
    process = make_process(tiny_config().diffusion, 3)
    inputs = jnp.zeros((4, 8, 8, 3)), mask, jnp.int32([0, 3, 50, 99]), jnp.ones_like(mask)
    right, _ = diffusion_loss(Certain(mask), process, {}, *inputs)
    wrong, _ = diffusion_loss(Certain(jnp.roll(mask, 1, axis=-1)), process, {}, *inputs)
    for name in ("bce", "dice"):
        np.testing.assert_allclose(right[name], 0, atol=1e-6)
        assert (np.asarray(wrong[name]) > 0.5).all()


@pytest.mark.parametrize("name", ["unet", "medt"])
def test_supervised_networks_have_a_channel_for_each_class(name):
    model = make_model(ConfigDict(compare.SUPERVISED[name] | {"out_channels": 3}))
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    output = jax.eval_shape(model.apply, variables_like(model, 32), image)
    assert output.shape == (2, 32, 32, 3)


def several(config):
    config.data.dataset, config.data.classes = "paired_folder", NAMES
    config.model.out_channels = 3
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.out_channels": 1}, "model.out_channels=1 does not fit data.classes=.*=3"),
        ({"data.classes": ("a", "b", "c", "d")}, "model.out_channels=3 does not .*out_channels=4"),
        ({"data.classes": ("a", "b")}, "data.classes=.* must be 3 to 255 names"),
        ({"data.mask_values": (0, 1)}, r"data.mask_values=\(0, 1\) must be 3 different numbers"),
        ({"data.dataset": "isic/2016"}, "data.classes=.* are of one's own masks"),
        ({"data.extra_datasets": ("isic/2017",)}, "data.extra_datasets=.*isic/2017"),
        ({"sampler.variance": "learned_range"}, "'learned_range' is learned for masks of two"),
        ({"sampler.ensemble": "staple"}, "sampler.ensemble='staple' is of masks of two classes"),
        ({"data.classes": ()}, "model.out_channels=3 must be 1 or, with a variance, 2; or that of"),
    ],
)
def test_what_does_not_fit_is_named(tiny_config, tmp_path, fields, message):
    config = several(tiny_config())
    loop.Run(config, tmp_path)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        loop.Run(config, tmp_path)


def test_a_supervised_network_of_two_classes_has_one_channel(tiny_config, tmp_path):
    config = tiny_config()
    config.objective = "supervised"
    config.model = ConfigDict(compare.SUPERVISED["unet"] | {"channels": (8, 16)})
    config.model.out_channels = 3
    with pytest.raises(ValueError, match="model.out_channels=3 must be 1: several classes are"):
        loop.Run(config, tmp_path)
    loop.Run(several(config), tmp_path)
