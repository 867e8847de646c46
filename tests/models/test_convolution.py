"""The fast convolutions and norm against those of jax and Flax that they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segdiff_jax.models import cpu_gradients
from segdiff_jax.models.convolution import Conv, UpsampleConv
from segdiff_jax.models.norms import GroupNorm
from segdiff_jax.models.rrdb import DenseBlock


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def output_and_gradient(module, variables, x, before=lambda x: x):
    """Of a cubic loss, by the parameters and by x."""

    def loss(params, x):
        output = module.apply({"params": params}, before(x))
        return jnp.sum(output**3), output

    value_and_grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, output), gradients = jax.jit(value_and_grad)(variables["params"], x)
    return output, gradients


def check_same(ours, expected):
    scale = lambda x: float(jnp.abs(x).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / scale(b), b / scale(b), atol=1e-5),
        ours,
        expected,
    )


@pytest.mark.parametrize("most_parts", [16, 2])
@pytest.mark.parametrize("options", [{}, {"strides": 2}], ids=["plain", "strided"])
def test_the_gradient_by_parts_is_that_of_the_batch(monkeypatch, options, most_parts):
    monkeypatch.setattr(cpu_gradients, "MOST_PARTS", most_parts)
    ours, x = Conv(33, **options), draw(0, 3, 32, 34, 32)
    theirs = nn.Conv(33, (3, 3), padding=1, **options)
    variables = jax.jit(ours.init)(jax.random.key(1), x)
    check_same(output_and_gradient(ours, variables, x), output_and_gradient(theirs, variables, x))


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 32, 32, 32)])
def test_upsampling_is_nearest_and_then_convolution(shape):
    x = draw(0, *shape)
    large = lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    ours, theirs = UpsampleConv(32), nn.Conv(32, (3, 3), padding=1)
    variables = jax.jit(theirs.init)(jax.random.key(1), large(x))
    params = variables["params"] | {"bias": draw(2, 32)}
    own = jax.eval_shape(ours.init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
    expected = output_and_gradient(theirs, {"params": params}, x, large)
    check_same(output_and_gradient(ours, {"params": params}, x), expected)


def test_upsampling_computes_in_its_dtype():
    x = draw(0, 1, 4, 4, 8).astype(jnp.bfloat16)
    module = UpsampleConv(8, jnp.bfloat16)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    assert variables["params"]["kernel"].dtype == jnp.float32
    output = module.apply(variables, x)
    expected = UpsampleConv(8).apply(variables, x.astype(jnp.float32))
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(output), expected, atol=0.03)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("corner", [0.0, 30.0])
def test_group_norm_is_that_of_flax(groups, corner):
    x = 5 + draw(0, 2, 32, 16, 12)
    x = x.at[:, 0, 0].add(corner)  # An outlier as in dark corners.
    ours, theirs = GroupNorm(groups), nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
    params = {"scale": draw(1, 12), "bias": draw(2, 12)}
    own = jax.eval_shape(ours.init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
    check_same(
        output_and_gradient(ours, {"params": params}, x),
        output_and_gradient(theirs, {"params": params}, x),
    )
    assert ours.apply({"params": params}, x.astype(jnp.bfloat16)).dtype == jnp.float32


class Dense(nn.Module):
    """A dense block by Flax's convolutions and concatenation."""

    growth: int

    @nn.compact
    def __call__(self, x):
        features = x
        for i in range(1, 5):
            grown = nn.Conv(self.growth, (3, 3), padding=1, name=f"conv{i}")(features)
            features = jnp.concatenate([features, nn.leaky_relu(grown, 0.2)], axis=-1)
        return 0.2 * nn.Conv(x.shape[-1], (3, 3), padding=1, name="conv5")(features) + x


@pytest.mark.parametrize("growth, most_bytes", [(8, 2**20), (8, 1000), (4, 2**20)])
def test_the_dense_block_and_its_gradient(monkeypatch, growth, most_bytes):
    monkeypatch.setattr(cpu_gradients, "MOST_BYTES", most_bytes)  # Parts of two rows, if small.
    x, ours, theirs = draw(0, 2, 12, 10, 8), DenseBlock(growth), Dense(growth)
    shapes = jax.eval_shape(theirs.init, jax.random.key(1), x)
    own = jax.eval_shape(ours.init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, shapes)
    leaves, tree = jax.tree.flatten(shapes)
    variables = [0.2 * draw(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    variables = jax.tree.unflatten(tree, variables)
    expected = output_and_gradient(theirs, variables, x)
    check_same(output_and_gradient(ours, variables, x), expected)
