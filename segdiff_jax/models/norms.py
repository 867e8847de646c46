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

    Flax's own, by means over the pixels first and over a group's channels then, which XLA on CPU
    does several times faster than those over both.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> f32[B, H, W, C]; C is a multiple of `groups`."""
        x = x.astype(jnp.float32)
        batch, *_, channels = x.shape

        def mean(x):
            means = x.mean((1, 2)).reshape(batch, self.groups, -1).mean(-1)
            return jnp.repeat(means, channels // self.groups, -1)[:, None, None]

        scale = self.param("scale", nn.initializers.ones, (channels,))[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]
        centred = x - mean(x)
        return centred * (jax.lax.rsqrt(mean(jnp.square(centred)) + 1e-5) * scale) + bias


def make_norm(groups: int, axis_name: str | None = None) -> Norm:
    """(train, name) -> GroupNorm of so many groups or, if 0, `batch_norm`."""
    if groups:
        return lambda train, name: GroupNorm(groups, name=name)
    return lambda train, name: batch_norm(train, axis_name)(name=name)
