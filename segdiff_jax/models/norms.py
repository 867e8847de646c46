"""The norms of all networks. They compute in float32, whatever the network's dtype is."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Norm = Callable[[bool, str | None], nn.Module]


def batch_norm(train: bool, axis_name: str | None) -> Callable[..., nn.Module]:
    """Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167); the axis is of the batch's devices.

    In training it normalises by the statistics of the batch, and returns them unaveraged.
    `training.state.apply_gradients` averages them over the steps, just like the parameters.
    """
    return functools.partial(
        nn.BatchNorm, not train, momentum=0.0, dtype=jnp.float32, axis_name=axis_name
    )


class GroupNorm(nn.Module):
    """Group norm (Wu and He 2018, arXiv 1803.08494), epsilon 1e-5.

    It equals Flax's, but is faster on CPU. One pass over the pixels gives mean and variance. It
    subtracts the mean of some pixels first, so that little precision is lost. It averages over the
    pixels, and then over a group's channels.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> f32[B, H, W, C]; C is a multiple of `groups`."""
        batch, *_, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,))[None]
        bias = self.param("bias", nn.initializers.zeros, (channels,))[None]

        def of_group(x):
            means = x.reshape(batch, self.groups, -1).mean(-1)
            return jnp.repeat(means, channels // self.groups, -1)

        x = x.astype(jnp.float32)
        step = max(1, min(x.shape[1:3]) // 8)
        near = jax.lax.stop_gradient(x[:, ::step, ::step].mean((1, 2)))
        x = x - near[:, None, None]
        mean, mean_square = x.mean((1, 2)), jnp.square(x).mean((1, 2))
        # The group's mean, now that `near` is subtracted.
        offset = of_group(near + mean) - near
        variance = jnp.maximum(of_group(mean_square - offset * (2 * mean - offset)), 0)
        scale = jax.lax.rsqrt(variance + 1e-5) * scale
        return x * scale[:, None, None] + (bias - offset * scale)[:, None, None]


def make_norm(groups: int, axis_name: str | None = None) -> Norm:
    """(train, name) -> a `GroupNorm` of this number of groups, or `batch_norm` for 0."""
    if groups:
        return lambda train, name: GroupNorm(groups, name=name)
    return lambda train, name: batch_norm(train, axis_name)(name=name)
