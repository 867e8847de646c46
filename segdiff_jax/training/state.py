"""What a training step reads and writes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from segdiff_jax.runtime.checkpoint import variable_trees
from segdiff_jax.training.optimizer import nonfinite_in_a_row


@struct.dataclass
class TrainState:
    """What changes from step to step.

    Attributes:
        step: i32[], updates done.
        params, ema_params: f32 trees, the second a moving average of the first.
        opt_state: of the optimiser.
        batch_stats: f32 tree, the same moving average of the statistics of each batch, for batch
            norm; empty for models without it.
        history: of the method's timestep sampler; None if it keeps none.
    """

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any
    batch_stats: Any
    history: Any = None

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
        return self.replace(
            ema_params=trees["ema_params"],
            batch_stats=trees.get("batch_stats", self.batch_stats),
            history=rest.pop("timestep_history", None),
            **rest,
        )


def create_state(
    variables: dict[str, Any], tx: optax.GradientTransformation, history: Any = None
) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema_params = jax.tree.map(jnp.copy, params)
    step, opt_state = jnp.zeros((), jnp.int32), tx.init(params)
    return TrainState(step, params, ema_params, opt_state, batch_stats, history)


def apply_gradients(
    state: TrainState,
    grads: Any,
    batch_stats: Any,
    tx: optax.GradientTransformation,
    decay: Array | float,
    rate: Array | float = 1.0,
) -> TrainState:
    """One update of the parameters and of the moving averages.

    Args:
        state: before.
        grads: like its params.
        batch_stats: the statistics of this batch alone.
        tx: the optimiser.
        decay: of the moving averages in this update, see `warm_decay`.
        rate: what the update of `tx` is multiplied by.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    finite = nonfinite_in_a_row(opt_state) == 0
    keep = lambda new, old: jnp.where(finite, new, old)  # A skipped batch leaves no statistics.
    batch_stats = jax.tree.map(keep, batch_stats, state.batch_stats)
    params = optax.apply_updates(state.params, jax.tree.map(lambda x: rate * x, updates))
    new = {"params": params, "batch_stats": batch_stats}
    averaged = optax.incremental_update(new, state.averaged(), 1 - decay)
    return state.replace(
        step=state.step + 1,
        params=params,
        ema_params=averaged["params"],
        opt_state=opt_state,
        batch_stats=averaged["batch_stats"],
    )


def warm_decay(decay: float, step: Array) -> Array:
    """min(decay, (1 + n) / (10 + n)) in update n, counted from 0.

    Without this warm-up, a short run is evaluated on its random initial parameters.
    """
    return jnp.minimum(jnp.asarray(decay, jnp.float32), (1 + step) / (10 + step))
