"""What a training step reads and writes, and the optimiser that a config describes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from ml_collections import ConfigDict


@struct.dataclass
class TrainState:
    """Attributes: `step` i32[], updates done; `params` and `ema_params` f32 trees; `opt_state`."""

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any


def create_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the moving average starts at `params`."""
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, tx.init(params))


def apply_gradients(
    state: TrainState,
    grads: Any,
    tx: optax.GradientTransformation,
    ema_decay: float,
    ema_warmup: bool = True,
) -> TrainState:
    """One update of the parameters and of their exponential moving average.

    With `ema_warmup` the decay of update n (counted from 0) is min(ema_decay, (1 + n) / (10 + n)):
    without it, a short run is evaluated on its random initial parameters.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.asarray(ema_decay, jnp.float32)
    if ema_warmup:
        decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    return TrainState(state.step + 1, params, ema_params, opt_state)


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up to `train.learning_rate`, then constant, or a cosine to 0 at num_steps.

    Raises:
        ValueError: for an unknown `train.schedule`.
    """
    peak, warmup = config.train.learning_rate, config.train.warmup_steps
    if config.train.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.train.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(config.train.num_steps - warmup, 1))
    else:
        raise ValueError(f"train.schedule={config.train.schedule!r}: choose 'constant' or 'cosine'")
    # Counted from 1, so that the first step already moves.
    ramp = lambda step: peak * (step + 1) / (warmup + 1)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) after clipping the gradient's global norm (0: off)."""
    clip = config.train.clip_norm
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(learning_rate(config), weight_decay=config.train.weight_decay),
    )
