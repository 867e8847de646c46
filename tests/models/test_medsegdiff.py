"""Dynamic conditioning: the FF-Parser, the gating, and what depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.models import variables_like
from segdiff_jax.models.medsegdiff import FFParser, ImageLevel, MedSegDiff
from segdiff_jax.models.norms import make_norm
from segdiff_jax.models.segdiff import SegDiff
from tests.models.test_segdiff import TINY, random_params


@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_a_map_of_ones_is_the_identity(size):
    m = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    variables = FFParser().init(jax.random.key(0), m)
    assert variables["params"]["map"].shape == (size[0], size[1] // 2 + 1, 3, 2)
    np.testing.assert_allclose(FFParser().apply(variables, m), m, atol=1e-5)


def test_the_map_scales_and_shifts_each_frequency_of_each_channel():
    x = np.arange(8)
    slow, fast = (np.cos(2 * np.pi * k * x / 8) for k in (1, 3))
    m = jnp.asarray(np.stack([slow + fast] * 2, axis=-1)[None, None].repeat(8, 1), jnp.float32)
    attentive_map = np.ones((8, 5, 2), np.complex64)
    attentive_map[:, 3, 0], attentive_map[:, 1, 1] = 0.5, 2j
    parts = jnp.asarray(np.stack([attentive_map.real, attentive_map.imag], axis=-1))
    out = FFParser().apply({"params": {"map": parts}}, m)
    shifted = np.cos(2 * np.pi * x / 8 + np.pi / 2)
    expected = np.stack([slow + fast / 2, 2 * shifted + fast], axis=-1)
    np.testing.assert_allclose(out[0, 0], expected, atol=1e-5)


def test_the_masks_features_gate_the_images():
    """Without the residual block, whose last convolution starts at zero: LN(I) LN(m) I."""
    rng = np.random.default_rng(0)
    image, mask = (jnp.asarray(rng.normal(size=(2, 4, 4, 32)), jnp.float32) for _ in "im")
    level = ImageLevel(
        channels=32,
        downsample=False,
        dropout=0.0,
        scale_shift_norm=False,
        norm=make_norm(32),
        dtype=jnp.dtype("float32"),
    )
    emb = jnp.zeros((2, 8))
    variables = jax.jit(lambda: level.init(jax.random.key(0), image, mask, emb, False))()
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = norm(image) * norm(mask) * image
    ours = jax.jit(lambda *x: level.apply(variables, *x, False))(image, mask, emb)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_level_and_every_input_reaches_the_output():
    model = MedSegDiff(**TINY)
    params, rng = random_params(model), np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(2, 16, 16, c)), jnp.float32) for c in (1, 3)]
    inputs.append(jnp.array([3.0, 70.0]))

    @jax.jit
    def gradients(params, x_t, image, t):
        loss = lambda *args: jnp.sum(model.apply({"params": args[0]}, *args[1:]) ** 2)
        return jax.grad(loss, argnums=(0, 1, 2))(params, x_t, image, t)

    for leaf in jax.tree.leaves(gradients(params, *inputs)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.slow
def test_encode_image_is_what_does_not_depend_on_the_mask_or_the_step():
    model = MedSegDiff(**TINY)
    params, rng = random_params(model), np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
    x_t, t = jnp.asarray(rng.normal(size=(2, 16, 16, 1)), jnp.float32), jnp.array([3.0, 70.0])

    @jax.jit
    def both(params):
        features = model.apply({"params": params}, image, method="encode_image")
        parts = model.apply({"params": params}, x_t, features, t, method="denoise")
        return features, parts, model.apply({"params": params}, x_t, image, t)

    features, parts, whole = both(params)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    plain = SegDiff(**TINY)
    same = jax.jit(lambda p: plain.apply({"params": p}, image, method="encode_image"))(params)
    np.testing.assert_allclose(features, same, rtol=1e-6)


def test_maps_have_the_size_of_the_image_at_each_level():
    for size in (16, 24):
        levels = variables_like(MedSegDiff(**TINY), size)["params"]
        for level in (0, 1):
            shape = levels[f"image_levels_{level}"]["ff_parser"]["map"].shape
            assert shape == (size // 2**level, size // 2**level // 2 + 1, 32, 2)
