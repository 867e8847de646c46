"""What a training step reads and writes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from segdiff_jax.runtime.checkpoint import variable_trees
from segdiff_jax.training.optimizer import Optimizer, nonfinite_in_a_row


@struct.dataclass
class TrainState:
    """What changes from step to step."""

    step: Array  # i32[], updates done
    params: Any  # f32 tree
    ema_params: Any  # its moving average
    opt_state: Any
    batch_stats: Any  # f32 tree, batch norm's statistics, averaged like params; empty without it
    history: Any = None  # of the method's timestep sampler, if it keeps one

    def averaged(self) -> dict[str, Any]:
        """The variables that are evaluated and sampled."""
        return {"params": self.ema_params, "batch_stats": self.batch_stats}

    def trees(self) -> dict[str, Any]:
        """Name -> tree, as a checkpoint holds them."""
        rest = {"step": self.step, "params": self.params, "opt_state": self.opt_state}
        if self.history is not None:
            rest["timestep_history"] = self.history
        return variable_trees(self.averaged()) | {"rest": rest}

    def from_trees(self, trees: dict[str, Any]) -> "TrainState":
        """A state like this one with the values of `trees`."""
        rest = dict(trees["rest"])
        rest["history"] = rest.pop("timestep_history", None)
        batch_stats = trees.get("batch_stats", self.batch_stats)
        return self.replace(ema_params=trees["ema_params"], batch_stats=batch_stats, **rest)


def create_state(variables: dict[str, Any], tx: Optimizer, history: Any = None) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    step, ema_params = jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params)
    return TrainState(step, params, ema_params, tx.init(params), batch_stats, history)


def apply_gradients(
    state: TrainState, grads: Any, batch_stats: Any, tx: Optimizer, decay: Any, rate: Any = 1.0
) -> TrainState:
    """One update of the parameters and of the moving averages.

    `grads` are like the parameters, `batch_stats` the statistics of this batch alone, `decay` is
    for the averages in this update, see `warm_decay`, and `rate` multiplies the update of `tx`.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    finite = nonfinite_in_a_row(opt_state) == 0
    keep = lambda new, old: jnp.where(finite, new, old)  # A skipped batch leaves no statistics.
    batch_stats = jax.tree.map(keep, batch_stats, state.batch_stats)
    params = optax.apply_updates(state.params, jax.tree.map(lambda x: rate * x, updates))
    new = {"params": params, "batch_stats": batch_stats}
    averaged = optax.incremental_update(new, state.averaged(), 1 - decay)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state.replace(ema_params=averaged["params"], batch_stats=averaged["batch_stats"])


def warm_decay(decay: float, step: Array) -> Array:
    """min(decay, (1 + n) / (10 + n)) in update n, counted from 0.

    Without this warm-up, a short run is evaluated on its random initial parameters.
    """
    return jnp.minimum(jnp.asarray(decay, jnp.float32), (1 + step) / (10 + step))
