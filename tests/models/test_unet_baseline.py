"""The U-Net of Ronneberger et al. 2015."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.models import make_model, variables_like
from segdiff_jax.models.baselines.unet import RonnebergerUNet, centre, input_size
from segdiff_jax.runtime.errors import UserError

SMALL = {"channels": (4, 8, 8), "norm": "none"}


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_parameter_counts():
    # Of the paper's figure 1, plus two input channels, minus one class: 31,031,745 in the sum of
    # 3x3 convolutions, up-convolutions and the last, with biases.
    convs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    convs += [(512, 512), (512, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256)]
    convs += [(256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    ups = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    expected = sum(9 * a * b + b for a, b in convs) + sum(4 * a * b + b for a, b in ups) + 65
    assert count(variables_like(RonnebergerUNet(norm="none"), 16)) == expected == 31_031_745
    # Batch norm has two numbers a channel instead of the bias.
    with_norm = variables_like(RonnebergerUNet(), 16)
    assert count(with_norm) == expected + sum(b for _, b in convs)
    stats = sum(x.size for x in jax.tree.leaves(with_norm["batch_stats"]))
    assert stats == 2 * sum(b for _, b in convs)


@pytest.mark.parametrize("size, needed", [(388, 572), (387, 572), (64, 252), (1, 188)])
def test_valid_crops_as_in_the_paper(size, needed):
    model = RonnebergerUNet(padding="valid", norm="none")
    assert input_size(size, 4) == needed
    image = jax.ShapeDtypeStruct((1, needed, needed, 3), jnp.float32)
    segment = lambda image: model.init_with_output(
        jax.random.key(0), image, False, method="segment"
    )[0]
    assert jax.eval_shape(segment, image).shape == (1, needed - 184, needed - 184, 1)


@pytest.mark.parametrize("size", [(12, 20), (13, 18)])
def test_valid_equals_the_middle_of_the_mirrored_image(size):
    """Where no padding is seen, "same" and "valid" are the same function."""
    valid, same = (RonnebergerUNet(padding=padding, **SMALL) for padding in ("valid", "same"))
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(1, *size, 3)), jnp.float32)
    variables = jax.jit(lambda: valid.init(jax.random.key(0), image))()
    logits = jax.jit(valid.apply)(variables, image)
    assert logits.shape == (1, *size, 1)
    pads = [(input_size(s, 2) - s) // 2 for s in size]
    needed = [input_size(s, 2) for s in size]
    mirrored = np.pad(image[0], [(pads[0], 60), (pads[1], 60), (0, 0)], mode="reflect")
    mirrored = mirrored[: needed[0], : needed[1]][None]
    # Around it a wide border, in which "same" differs. With 42 pixels the poolings align: the
    # second begins at (42 + 2) / 2 + 2 = 24, an even place.
    wide = np.pad(mirrored, [(0, 0), (42, 42), (42, 42), (0, 0)])
    extra = [-n % 4 for n in wide.shape[1:3]]
    wide = np.pad(wide, [(0, 0), (0, extra[0]), (0, extra[1]), (0, 0)])
    expected = jax.jit(same.apply)(variables, wide)
    top, left = (42 + p for p in pads)
    np.testing.assert_allclose(
        logits, expected[:, top : top + size[0], left : left + size[1]], atol=1e-5
    )


def test_the_crop_is_the_middle():
    x = jnp.arange(30).reshape(1, 5, 6, 1)
    np.testing.assert_array_equal(centre(x, (3, 2))[0, ..., 0], [[8, 9], [14, 15], [20, 21]])


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_each_norm_normalises(norm):
    """With a norm, an image 10 times as contrasty leaves the logits within a factor; without: x 10.

    There are no biases at the start, so the network without norms is homogeneous.
    """
    model = RonnebergerUNet((8, 16), norm=norm)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), image))()

    @jax.jit
    def apply(image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    factor = 1.0 if norm != "none" else 10.0
    np.testing.assert_allclose(apply(10 * image), factor * apply(image), rtol=0.02, atol=2e-3)


def test_the_statistics_of_the_batch_are_handed_on_and_then_used():
    model = RonnebergerUNet((4, 8))
    image = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 8, 8, 3)), jnp.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), image))()

    @jax.jit
    def update(variables):
        logits, new = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return logits, {**variables, **new}

    before = jax.jit(model.apply)(variables, image)
    logits, variables = update(variables)
    after = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(after, logits, rtol=1e-4, atol=1e-4)
    assert np.abs(before - logits).max() > 0.1


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"norm": "group", "channels": (100,)},
            r"model\.channels=\(100,\): 100 is no multiple",
        ),
        ({"channels": (8, 8, 8, 8, 8, 8)}, "image size 16 x 16 must be divisible by 32"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        variables_like(make_model({"name": "unet", **fields}), 16)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_image_encoder_adds_its_features_to_each_level(stride):
    fields = {"image_encoder": "efficientnet_lite0", "mask_stride": stride}
    model, image = RonnebergerUNet(channels=(8, 16, 32), **fields), jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits, side = jax.eval_shape(lambda v: model.apply(v, image), variables), 64 // stride
    assert logits.shape == (2, side, side, 1)
    pyramid = variables["params"]["G"]
    widths = {name: of["kernel"].shape[1] for name, of in pyramid.items() if "level" in name}
    expected = {
        1: {"level0_of1": 8, "level1_of1": 8, **{f"level2_of{size}": 16 for size in range(2, 6)}},
        2: {"level0_of1": 8, "level1_of2": 8, **{f"level2_of{size}": 16 for size in range(3, 6)}},
    }
    assert widths == expected[stride]
    assert variables["params"]["down0_conv0"]["kernel"].shape == (3, 3, 8, 8)
    with pytest.raises(UserError, match="40 x 40 must be divisible by 32: model.image_encoder"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 40, 40, 3)))


def test_an_image_encoder_needs_the_padding_same():
    with pytest.raises(UserError, match="efficientnet_lite0' needs model.padding='same'"):
        RonnebergerUNet(image_encoder="efficientnet_lite0", padding="valid")
