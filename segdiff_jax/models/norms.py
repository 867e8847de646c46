"""The norms of all networks: in float32, whatever the dtype of the rest."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Norm = Callable[[bool, str | None], nn.Module]


def batch_norm(train: bool, axis_name: str | None) -> Callable[..., nn.Module]:
    """Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167).

    In training it updates its statistics to those of the batch; `training.state.apply_gradients`
    averages them as it averages the parameters, whose activations they describe.

    Args:
        train: normalise by the statistics of the batch, instead of the given ones.
        axis_name: of the devices over which the batch is spread, if any.
    """
    return functools.partial(
        nn.BatchNorm, not train, momentum=0.0, dtype=jnp.float32, axis_name=axis_name
    )


class GroupNorm(nn.Module):
    """Group norm (Wu and He 2018, arXiv 1803.08494), epsilon 1e-5.

    Flax's own, but mean and variance come of one pass, over distances from the mean of some pixels,
    so that little cancels, and means are taken over the pixels first and then over a group's
    channels: XLA on CPU does that faster.
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
        # Of x as it now is, what the group's mean is away from zero.
        offset = of_group(near + mean) - near
        variance = jnp.maximum(of_group(mean_square - offset * (2 * mean - offset)), 0)
        scale = jax.lax.rsqrt(variance + 1e-5) * scale
        return x * scale[:, None, None] + (bias - offset * scale)[:, None, None]


def make_norm(groups: int, axis_name: str | None = None) -> Norm:
    """(train, name) -> GroupNorm of so many groups or, if 0, `batch_norm`."""
    if groups:
        return lambda train, name: GroupNorm(groups, name=name)
    return lambda train, name: batch_norm(train, axis_name)(name=name)
