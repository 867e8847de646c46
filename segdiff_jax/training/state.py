"""What a training step reads and writes, and the optimiser that a config describes."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from segdiff_jax.training.timesteps import History

MOST_STACKED = 2**18  # elements of a leaf that is stacked with others


@struct.dataclass
class TrainState:
    """What changes from step to step.

    Attributes:
        step: i32[], updates done.
        params, ema_params: f32 trees, the second a moving average of the first.
        opt_state: of the optimiser.
        batch_stats: f32 tree, the same moving average of the statistics of each batch, for batch
            norm; empty for models without.
        timestep_history: of `timesteps`, where timesteps are drawn by their losses; else None.
    """

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any
    batch_stats: Any
    timestep_history: History | None = None

    def averaged(self) -> dict[str, Any]:
        """The variables that are evaluated and sampled."""
        return {"params": self.ema_params, "batch_stats": self.batch_stats}


def create_state(
    variables: dict[str, Any],
    tx: optax.GradientTransformation,
    timestep_history: History | None = None,
) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema_params = jax.tree.map(jnp.copy, params)
    step, opt_state = jnp.zeros((), jnp.int32), tx.init(params)
    return TrainState(step, params, ema_params, opt_state, batch_stats, timestep_history)


def apply_gradients(
    state: TrainState,
    grads: Any,
    batch_stats: Any,
    tx: optax.GradientTransformation,
    ema_decay: float,
    ema_warmup: bool = True,
    rate: Array | float = 1.0,
    gate_rate: Array | float = 1.0,
) -> TrainState:
    """One update of the parameters, `rate` times that of `tx`, and of the moving averages.

    `batch_stats` are the statistics of this batch alone.
    The gates of gated attention (parameters named "gates") move by `gate_rate` times that.

    With `ema_warmup` the decay of update n (counted from 0) is min(ema_decay, (1 + n) / (10 + n)):
    without it, a short run is evaluated on its random initial parameters.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    finite = nonfinite_in_a_row(opt_state) == 0
    keep = lambda new, old: jnp.where(finite, new, old)  # With its update, a batch is left out.
    batch_stats = jax.tree.map(keep, batch_stats, state.batch_stats)

    def scale(path, update):
        return (rate * gate_rate if path[-1].key == "gates" else rate) * update

    updates = jax.tree_util.tree_map_with_path(scale, updates)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.asarray(ema_decay, jnp.float32)
    if ema_warmup:
        decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    new = {"params": params, "batch_stats": batch_stats}
    averaged = optax.incremental_update(new, state.averaged(), 1 - decay)
    return state.replace(
        step=state.step + 1,
        params=params,
        ema_params=averaged["params"],
        opt_state=opt_state,
        batch_stats=averaged["batch_stats"],
    )


def nonfinite_in_a_row(opt_state: Any) -> Array:
    """i32[], how many gradients up to the last one held NaN or infinity; see `make_optimizer`."""
    return getattr(opt_state, "notfinite_count", jnp.zeros((), jnp.int32))


def learning_rate(config: ConfigDict, step: int, minutes: float) -> float:
    """The learning rate of an update.

    `train.learning_rate`, times a linear warm-up and, with "cosine", times (1 + cos(pi p)) / 2,
    where p is `progress` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5).

    Args:
        step: updates done before.
        minutes: of training done before.
    Raises:
        ValueError: for an unknown `train.schedule`.
    """
    train = config.train
    # Counted from 1, so that the first step already moves.
    ramp = min(1.0, (step + 1) / (train.warmup_steps + 1))
    if train.schedule == "constant":
        return train.learning_rate * ramp
    if train.schedule != "cosine":
        raise ValueError(f"train.schedule={train.schedule!r}: choose 'constant' or 'cosine'")
    done = min(1.0, progress(config, step, minutes))
    return train.learning_rate * ramp * (1 + math.cos(math.pi * done)) / 2


def progress(config: ConfigDict, step: int, minutes: float) -> float:
    """The share of `train.num_steps` or of `train.max_minutes` that is done, whichever is larger.

    Arguments are those of `learning_rate`.
    """
    limit = config.train.max_minutes
    return max(step / config.train.num_steps, minutes / limit if limit else 0.0)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """`train.optimizer` after clipping the gradient's global norm (0: off).

    An update whose gradient holds NaN or infinity is zero; but after `train.max_skipped` such
    updates in a row, it is what it is.

    "adamw" is AdamW (Loshchilov and Hutter 2019). "muon" is, for kernels, Muon (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon): the averaged gradient with its singular values brought to
    about 1, times 0.2 sqrt(max(n, m)), so that it moves as far as AdamW does (Liu et al. 2025,
    arXiv 2502.16982, eq. 4); a convolution is an (h w C_in) x C_out matrix. All other
    parameters (biases, norms, maps of FF-Parsers, tables of positions, gates) get AdamW with
    Nesterov momentum.

    Its own rate is 1, for `apply_gradients` to multiply by `learning_rate`.

    Raises:
        ValueError: for an unknown optimiser.
    """
    train = config.train
    if train.optimizer == "adamw":
        optimizer = optax.adamw(1.0, weight_decay=train.weight_decay)
    elif train.optimizer == "muon":
        optimizer = muon(
            1.0,
            weight_decay=train.weight_decay,
            adam_weight_decay=train.weight_decay,
            muon_weight_dimension_numbers=_as_matrices,
            consistent_rms=0.2,
        )
    else:
        raise ValueError(f"train.optimizer={train.optimizer!r}: choose 'adamw' or 'muon'")
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    return on_stacks(optax.apply_if_finite(optax.chain(clip, optimizer), train.max_skipped))


def on_stacks(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same updates, computed on `stacks` of the parameters."""

    def init(params: Any) -> Any:
        return tx.init(stacks(params))

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        new, state = tx.update(stacks(updates), state, stacks(params))
        rest = {name: iter(stack) for name, stack in new.items()}
        next_of = lambda path, leaf: next(rest[_stack_name(path, leaf)])
        return jax.tree_util.tree_map_with_path(next_of, updates), state

    return optax.GradientTransformation(init, update)


def stacks(tree: Any) -> dict[str, Array]:
    """The leaves by their stack: small ones of equal name and shape together, others alone.

    A network has hundreds of small leaves; operations on each of them take long to trace, to
    compile, to load and, on a CPU, to run.
    """
    leaves = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaves[_stack_name(path, leaf)].append(leaf)
    return {name: jnp.stack(of) for name, of in leaves.items()}


def _stack_name(path: tuple[Any, ...], leaf: Array) -> str:
    shape = "x".join(map(str, leaf.shape))
    owner = "" if leaf.size < MOST_STACKED else jax.tree_util.keystr(path)
    return f"{path[-1].key} {shape}{owner}"


def _as_matrices(stacked: dict[str, Array]) -> dict[str, MuonDimensionNumbers | None]:
    """Which axes of each stack of kernels are a matrix's rows and columns; None for other stacks.

    All axes before a convolution's four or a dense layer's two count matrices.
    """

    def axes(name, stack):
        if not name.startswith("kernel "):
            return None
        return MuonDimensionNumbers(tuple(range(-min(stack.ndim - 1, 4), -1)), -1)

    return {name: axes(name, stack) for name, stack in stacked.items()}
