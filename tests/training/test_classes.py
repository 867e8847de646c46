"""Training on masks of several classes: the losses, the networks' channels, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.diffusion.process import Process, make_process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.losses import bce_dice_of_mask
from segdiff_jax.runtime.errors import UserError

NAMES = ("skin", "lesion", "core")


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
    batch = {"image": jnp.zeros((4, 8, 8, 3)), "mask": mask}

    def losses(own):
        method = Diffusion(Certain(own), process, loss=bce_dice_of_mask)
        t, eps = jnp.int32([0, 3, 50, 99]), jnp.ones_like(mask)
        return method.loss_at({"params": {}}, batch, t, eps)[0]

    right, wrong = losses(mask), losses(jnp.roll(mask, 1, axis=-1))
    for name in ("bce", "dice"):
        np.testing.assert_allclose(right[name], 0, atol=1e-6)
        assert (np.asarray(wrong[name]) > 0.5).all()


@pytest.mark.parametrize("name", ["unet", "medt"])
def test_supervised_networks_have_a_channel_for_each_class(name):
    config = several(default_config(name))
    config.data.image_size = 32
    method = make_method(config)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    output = jax.eval_shape(method.model.apply, variables_like(method), image)
    assert output.shape == (2, 32, 32, 3)


def several(config):
    config.data.dataset, config.data.classes = "paired_folder", NAMES
    config.model.out_channels = 3
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.out_channels": 1}, "model.out_channels=1 does not fit data.classes=.*set 3"),
        ({"data.classes": ("a", "b", "c", "d")}, "model.out_channels=3 does not .*: set 4"),
        ({"data.classes": ("a", "b")}, "data.classes=.* must be 3 to 255 names"),
        ({"data.mask_values": (0, 1)}, r"data.mask_values=\(0, 1\) must be 3 different numbers"),
        ({"data.dataset": "isic/2016"}, "data.classes=.* needs data.dataset='paired_folder'"),
        ({"data.extra_datasets": ("isic/2017",)}, "no data.extra_datasets, .*isic/2017"),
        ({"diffusion.variance": "learned_range"}, "'learned_range' works for masks of two classes"),
        ({"sampler.ensemble": "staple"}, "sampler.ensemble='staple' combines masks of two classes"),
        (
            {"data.classes": ()},
            "model.out_channels=3 does not fit diffusion.variance='fixed_large'",
        ),
    ],
)
def test_what_does_not_fit_is_named(tiny_config, fields, message):
    config = several(tiny_config())
    check(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_supervised_network_of_two_classes_has_one_channel(tiny_config):
    config = default_config("unet")
    config.model.out_channels = 3
    with pytest.raises(UserError, match=r"out_channels=3 does not fit data.classes=\(\): set 1"):
        check(config)
    check(several(config))
