"""The optimiser and the learning rate that a config describes."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from segdiff_jax.models import prepare_optimizer, slow_encoder
from segdiff_jax.models.efficientnet import VARIANTS

Optimizer = optax.GradientTransformation
MOST_STACKED = 2**18  # elements of a leaf that is stacked with others


def learning_rate(train: ConfigDict, step: int, minutes: float) -> float:
    """The learning rate of the update after `step` updates and `minutes` of training.

    `train.learning_rate`, times a linear warm-up and, with "cosine", times (1 + cos(pi p)) / 2,
    where p is `progress` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5).
    """
    # Counted from 1, so that the first step already moves.
    rate = train.learning_rate * min(1.0, (step + 1) / (train.warmup_steps + 1))
    if train.schedule == "constant":
        return rate
    done = min(1.0, progress(train, step, minutes))
    return rate * (1 + math.cos(math.pi * done)) / 2


def progress(train: ConfigDict, step: int, minutes: float) -> float:
    """The share of `train.num_steps` or `train.max_minutes` that is done, whichever is larger."""
    limit = train.max_minutes
    return max(step / train.num_steps, minutes / limit if limit else 0.0)


def make_optimizer(
    train: ConfigDict, model: nn.Module | None = None, steps_per_epoch: float = 1.0
) -> Optimizer:
    """`train.optimizer` after clipping the global norm of the gradient (0: off).

    An update whose gradient holds NaN or infinity is zero, except after `train.max_skipped` such
    updates in a row.

    "adamw" is AdamW (Loshchilov and Hutter 2019). "muon" is Muon for kernels (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon): the averaged gradient with its singular values brought to
    about 1, times 0.2 sqrt(max(n, m)), so that it moves as far as AdamW does (Liu et al. 2025,
    arXiv 2502.16982, eq. 4); a convolution is an (h w C_in) x C_out matrix. All other parameters
    get AdamW with Nesterov momentum.

    Its own rate is 1; `apply_gradients` multiplies by `learning_rate`. A `model` may need more, see
    `models.prepare_optimizer`; `steps_per_epoch` are the updates in one pass over the images.
    """
    if train.optimizer == "adamw":
        optimizer = optax.adamw(1.0, weight_decay=train.weight_decay)
    else:
        optimizer = muon(
            1.0,
            weight_decay=train.weight_decay,
            adam_weight_decay=train.weight_decay,
            muon_weight_dimension_numbers=_as_matrices,
            consistent_rms=0.2,
        )
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    tx = prepare_optimizer(model, optax.chain(clip, optimizer), steps_per_epoch)
    tx = on_stacks(optax.apply_if_finite(tx, train.max_skipped))
    if getattr(model, "image_encoder", "") not in VARIANTS:
        return tx

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(updates, state, params)
        return slow_encoder(model, updates, train.encoder_rate), state

    return optax.GradientTransformation(tx.init, update)


def nonfinite_in_a_row(opt_state: Any) -> Array:
    """i32[], how many gradients up to the last one held NaN or infinity."""
    return getattr(opt_state, "notfinite_count", jnp.zeros((), jnp.int32))


def on_stacks(tx: Optimizer) -> Optimizer:
    """The same updates, computed on `stacks` of the parameters."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        new, state = tx.update(stacks(updates), state, stacks(params))
        rest = {name: iter(stack) for name, stack in new.items()}
        next_of = lambda path, leaf: next(rest[_stack_name(path, leaf)])
        return jax.tree_util.tree_map_with_path(next_of, updates), state

    return optax.GradientTransformation(lambda params: tx.init(stacks(params)), update)


def stacks(tree: Any) -> dict[str, Array]:
    """The leaves by their stack: small ones of equal name and shape together, others alone.

    A network has hundreds of small leaves. Operations on each of them take long to trace, to
    compile, to load (XLA on CPU loads a kept program in a time that grows with the square of its
    operations) and, on a CPU, to run.
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

    The axes before a convolution's four or a dense layer's two count matrices.
    """
    matrices = dict.fromkeys(stacked)
    for name, stack in stacked.items():
        if name.startswith("kernel "):
            rows = tuple(range(-min(stack.ndim - 1, 4), -1))
            matrices[name] = MuonDimensionNumbers(rows, -1)
    return matrices
