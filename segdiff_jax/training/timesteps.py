"""Which timesteps are trained: as often each, more of the noisy end, or by their losses."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from ml_collections import ConfigDict

TIMESTEP_SAMPLERS = ("uniform", "loss_second_moment")
HISTORY = 10  # losses kept of each timestep
UNIFORM_SHARE = 0.001  # of the draws, so that every timestep is drawn


@struct.dataclass
class History:
    """The last losses of each timestep.

    Attributes:
        losses: f32[T, 10], in any order.
        counts: i32[T], how many there were.
    """

    losses: Array
    counts: Array


def make_history(config: ConfigDict) -> History | None:
    """Before the first step; None if `diffusion.timestep_sampler` needs none.

    Raises:
        ValueError: for an unknown name.
    """
    name, T = config.diffusion.timestep_sampler, config.diffusion.num_timesteps
    if name not in TIMESTEP_SAMPLERS:
        raise ValueError(f"diffusion.timestep_sampler={name!r}: choose one of {TIMESTEP_SAMPLERS}")
    if name == "uniform" or config.objective == "supervised":
        return None
    return History(jnp.zeros((T, HISTORY), jnp.float32), jnp.zeros(T, jnp.int32))


def uniform_timesteps(u: Array, num_timesteps: int, power: float = 1.0) -> Array:
    """t = floor(T u^power): 1 is uniform, less trains more at the noisy end.

    Args:
        u: f32[B], uniform in [0, 1).
    Returns:
        i32[B].
    """
    return jnp.minimum(jnp.int32(num_timesteps * u**power), num_timesteps - 1)


def timestep_probabilities(history: History) -> Array:
    """p_t in proportion to sqrt(E[L_t^2]) (Nichol and Dhariwal 2021, eq. 18).

    E is the mean of the last 10 losses; before every timestep has had as many, p is uniform. A
    thousandth of it always is.

    Returns:
        f32[T], whose sum is 1.
    """
    T = len(history.counts)
    moment = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    p = (1 - UNIFORM_SHARE) * moment / jnp.sum(moment) + UNIFORM_SHARE / T
    return jnp.where(jnp.all(history.counts >= HISTORY), p, 1 / T)


def loss_aware_timesteps(u: Array, history: History) -> tuple[Array, Array]:
    """Timesteps drawn by `timestep_probabilities`, and the importance of the losses there.

    Args:
        u: f32[B], uniform in [0, 1).
    Returns:
        i32[B] and f32[B], 1 / (T p_t), by which losses are multiplied, so that their mean is
        expected to be that of uniform timesteps.
    """
    p = timestep_probabilities(history)
    t = jnp.sum(u[:, None] >= jnp.cumsum(p)[None, :], axis=1, dtype=jnp.int32)
    t = jnp.minimum(t, len(p) - 1)  # The sum of all may be rounded to less than 1.
    return t, 1 / (len(p) * p[t])


def add_to_history(history: History, index: Array, t: Array, losses: Array) -> History:
    """The history with a batch's losses, for which the oldest ones of their timesteps go.

    Args:
        index: i32[B], each example's place in the batch; the losses are taken in this order.
        t: i32[B].
        losses: f32[B].
    """
    order = jnp.argsort(index)
    t, losses = t[order], losses[order]
    same, place = t[:, None] == t[None, :], jnp.arange(len(t))
    earlier = jnp.sum(same & (place[:, None] > place[None, :]), axis=1)
    later = jnp.sum(same & (place[:, None] < place[None, :]), axis=1)
    slot = (history.counts[t] + earlier) % HISTORY
    slot = jnp.where(later < HISTORY, slot, HISTORY)  # Out of bounds: dropped.
    kept = history.losses.at[t, slot].set(losses, mode="drop")
    return History(kept, history.counts.at[t].add(1))
