"""The norms of all networks: in float32, whatever the dtype of the rest."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

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


def make_norm(groups: int, axis_name: str | None = None) -> Norm:
    """(train, name) -> GroupNorm of so many groups or, if 0, `batch_norm`."""
    if groups:
        group_norm = functools.partial(nn.GroupNorm, groups, use_fast_variance=False)
        return lambda train, name: group_norm(epsilon=1e-5, dtype=jnp.float32, name=name)
    return lambda train, name: batch_norm(train, axis_name)(name=name)
