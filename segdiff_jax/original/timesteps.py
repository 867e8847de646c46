"""Timesteps drawn by their losses, as the original does with "loss-second-moment"."""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import Array

HISTORY = 10  # losses kept of each timestep
UNIFORM_SHARE = 0.001  # of the draws, so that every timestep is drawn


@struct.dataclass
class History:
    """The last losses of each timestep."""

    losses: Array  # f32[T, 10], in any order
    counts: Array  # i32[T], how many there were


@dataclasses.dataclass(frozen=True)
class LossAwareTimesteps:
    """Draws timesteps with large losses more often; the history is part of the state."""

    num_timesteps: int

    def init(self) -> History:
        """The history before the first step."""
        T = self.num_timesteps
        return History(jnp.zeros((T, HISTORY), jnp.float32), jnp.zeros(T, jnp.int32))

    def draw(self, u: Array, history: History) -> tuple[Array, Array]:
        """Timesteps i32[B] by `timestep_probabilities`, from `u` f32[B], uniform in [0, 1).

        The factors f32[B] of their losses are 1 / (T p_t), so that the expectation of the mean loss
        is the same as with uniform timesteps.
        """
        p = timestep_probabilities(history)
        t = jnp.sum(u[:, None] >= jnp.cumsum(p)[None, :], axis=1, dtype=jnp.int32)
        t = jnp.minimum(t, len(p) - 1)  # The sum of all may be rounded to less than 1.
        return t, 1 / (len(p) * p[t])

    def update(self, history: History, index: Array, t: Array, losses: Array) -> History:
        """The history with a batch's losses f32[B], which replace the oldest ones of `t` i32[B].

        They are taken in the order of `index` i32[B], each example's place in the batch.
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


def timestep_probabilities(history: History) -> Array:
    """p_t in proportion to sqrt(E[L_t^2]) (Nichol and Dhariwal 2021, eq. 18).

    E is the mean of the last 10 losses. Until every timestep has had 10, p is uniform; a thousandth
    of it always is. f32[T], whose sum is 1.
    """
    T = len(history.counts)
    moment = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    p = (1 - UNIFORM_SHARE) * moment / jnp.sum(moment) + UNIFORM_SHARE / T
    return jnp.where(jnp.all(history.counts >= HISTORY), p, 1 / T)
