"""The training step: pure, and written for one device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.data.augment import Augmentation, random_patch
from segdiff_jax.data.normalise import normalise_image, normalise_mask
from segdiff_jax.diffusion.process import Process, at, q_sample
from segdiff_jax.training.losses import bce_dice, gaussian_losses
from segdiff_jax.training.state import TrainState, apply_gradients, nonfinite_in_a_row, stacks
from segdiff_jax.training.timesteps import (
    History,
    add_to_history,
    loss_aware_timesteps,
    uniform_timesteps,
)

Batch = dict[str, Array]
Losses = dict[str, Array]  # The terms, whose sum is minimised: f32[B] each.


def diffusion_loss(
    model: nn.Module,
    process: Process,
    params: Any,
    image: Array,
    mask: Array,
    t: Array,
    eps: Array,
    keys: Array | None = None,
    recycling: bool = False,
    batch_stats: Any = None,
    loss: str = "mse",
    variance: str = "fixed_large",
) -> tuple[Losses, Any]:
    """The loss of each example at one timestep (Amit et al. 2021, eq. 6).

    Args:
        process: says what the network predicts: eps, v, the mask or its log odds.
        image: f32[B, H, W, 3], normalised.
        mask: f32[B, H, W, C], from -1 to +1.
        t: i32[B], in [0, T).
        eps: f32[B, H, W, C], standard normal.
        keys: key[B], one per example, for dropout, recycling and self-conditioning; None: no
            dropout and no estimate to see. Recycling needs them.
        recycling: x_t is made of the mask that the network itself predicts from pure noise, as
            when sampling (Fu et al. 2023, MELBA 2023:016, section 3.3), at the price of one more
            forward pass.
        batch_stats: the average statistics of batch norm; None or empty: there are none. With keys,
            the batch's own are used.
        loss, variance: see `losses.gaussian_losses`; log odds are scored by BCE + Dice.
    Returns:
        The terms of `losses`, f32[B] each, and the statistics of this batch.
    """
    x_start = process.input_scale * mask
    fold = jax.vmap(jax.random.fold_in, (0, None))

    def apply(params, x_t, t, estimate=None):
        inputs = process.network_input(x_t, t, estimate), image, t
        if batch_stats:
            variables, train = {"params": params, "batch_stats": batch_stats}, keys is not None
            output, updates = model.apply(variables, *inputs, train=train, mutable=["batch_stats"])
            return output, updates["batch_stats"]
        return apply_without_statistics(params, inputs), batch_stats

    def apply_without_statistics(params, inputs):
        if keys is None or not getattr(model, "dropout", 0.0):
            return model.apply({"params": params}, *inputs, train=False)
        x_t, image, t = inputs
        features = model.apply({"params": params}, image, method="encode_image")

        def denoise_one(key, *inputs):
            inputs, rngs = [x[None] for x in inputs], {"dropout": key}
            options = {"train": True, "rngs": rngs, "method": "denoise"}
            return model.apply({"params": params}, *inputs, **options)[0]

        return jax.vmap(denoise_one)(keys, x_t, features, t)

    def own_estimate(x_t, t):
        output, _ = apply(jax.lax.stop_gradient(params), x_t, t)
        return process.predict(output, x_t, t).x_start

    noisy = x_start
    if recycling:
        draw = lambda key: jax.random.normal(key, x_start.shape[1:])
        x_T = jax.vmap(draw)(fold(keys, 1))
        noisy = own_estimate(x_T, jnp.full_like(t, len(process.schedule) - 1))
        noisy = jnp.clip(noisy, -process.input_scale, process.input_scale)
    x_t, estimate = q_sample(process.schedule, noisy, t, eps), None
    if process.self_conditioning and keys is not None:
        known = jax.vmap(jax.random.bernoulli)(fold(keys, 2))
        estimate = jnp.where(known[:, None, None, None], own_estimate(x_t, t), 0.0)
    output, updated = apply(params, x_t, t, estimate)
    if process.logits:
        return bce_dice(output, (mask + 1) / 2), updated
    return gaussian_losses(process, loss, variance, output, x_start, x_t, t, eps), updated


def diffusion_losses(
    params: Any,
    batch_stats: Any,
    image: Array,
    mask: Array,
    keys: Array,
    history: History | None = None,
    *,
    model: nn.Module,
    process: Process,
    weights: np.ndarray | None = None,
    recycling: bool = False,
    timestep_power: float = 1.0,
    loss: str = "mse",
    variance: str = "fixed_large",
) -> tuple[Any, ...]:
    """`diffusion_loss` at a timestep and with a noise drawn for each example.

    Args:
        keys: key[B, 3], of the timestep, of the noise, and of what `diffusion_loss` draws.
        history: draws timesteps by their losses, see `timesteps.loss_aware_timesteps`; None: by
            `timestep_power`.
        weights: f[T], the factor of the loss at each timestep, see `Process.loss_weights`; None: 1.
        timestep_power: see `timesteps.uniform_timesteps`.
        loss, variance: as of `diffusion_loss`.
    Returns:
        As `diffusion_loss`, and, of a history, for it, the timesteps i32[B] and their losses
        f32[B]; the terms themselves are multiplied by their importance then.
    """
    u = jax.vmap(jax.random.uniform)(keys[:, 0])
    if history is None:
        t = uniform_timesteps(u, len(process.schedule), timestep_power)
    else:
        t, importance = loss_aware_timesteps(u, history)
    eps = jax.vmap(lambda k: jax.random.normal(k, mask.shape[1:]))(keys[:, 1])
    inputs = image, mask, t, eps, keys[:, 2], recycling, batch_stats, loss, variance
    losses, batch_stats = diffusion_loss(model, process, params, *inputs)
    if weights is not None:
        losses = jax.tree.map(lambda term: at(weights, t, 1) * term, losses)
    if history is None:
        return losses, batch_stats
    drawn = t, sum(losses.values())
    return jax.tree.map(lambda term: importance * term, losses), batch_stats, *drawn


def supervised_losses(
    params: Any, batch_stats: Any, image: Array, mask: Array, keys: Array, *, model: nn.Module
) -> tuple[Losses, Any]:
    """BCE + Dice of the log odds that `model` makes of the image.

    Returns:
        As `diffusion_loss`.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updates = model.apply(variables, image, train=True, mutable=["batch_stats"])
    return bce_dice(logits, (mask + 1) / 2), updates.get("batch_stats", batch_stats)


def make_losses_fn(
    config: ConfigDict, model: nn.Module, process: Process
) -> Callable[..., tuple[Any, ...]]:
    """What `config.objective` minimises, for `train_step`; `process` is of diffusion only."""
    if config.objective == "supervised":
        return functools.partial(supervised_losses, model=model)
    diffusion = config.diffusion
    return functools.partial(
        diffusion_losses,
        model=model,
        process=process,
        weights=process.loss_weights(diffusion.weight),
        recycling=diffusion.recycling,
        timestep_power=diffusion.timestep_power,
        loss=diffusion.loss,
        variance=config.sampler.variance,
    )


def make_train_step(
    config: ConfigDict,
    model: nn.Module,
    process: Process,
    tx: optax.GradientTransformation,
    axis_name: str | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """`train_step` as a config describes it; `half_size` and `frozen_gate_steps` are left open."""
    return functools.partial(
        train_step,
        losses_fn=make_losses_fn(config, model, process),
        tx=tx,
        augment=Augmentation(**config.augment),
        ema_decay=config.train.ema_decay,
        ema_warmup=config.train.ema_warmup,
        soft_masks=config.data.soft_masks,
        microbatches=config.train.microbatches,
        patch_size=config.data.image_size if config.data.full_size else 0,
        axis_name=axis_name,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    rate: Array | float,
    *,
    losses_fn: Callable[..., tuple[Any, ...]],
    tx: optax.GradientTransformation,
    augment: Callable[[Array, Array, Array], tuple[Array, Array]],
    ema_decay: float,
    ema_warmup: bool = True,
    soft_masks: bool = False,
    microbatches: int = 1,
    half_size: bool = False,
    patch_size: int = 0,
    frozen_gate_steps: int = 0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update.

    Args:
        batch: "image" u8[B, H, W, 3], "mask" u8[B, H, W, C] (255 times the share of each pixel
            that is lesion, or of each class) and "index" i32[B], each example's place in the
            global batch: its noise follows from that and the step, so the number of devices does
            not change it.
        key: of the run; the same at every step.
        rate: what the updates of `tx` are multiplied by, see `state.learning_rate`.
        losses_fn: (params, batch_stats, image f32[B, H, W, 3] normalised, mask f32[B, H, W, C] from
            -1 to +1, key[B, 3]) -> ({term: f32[B]}, batch_stats): `diffusion_losses` or
            `supervised_losses`, with the model. Of a state with a `timestep_history`, it takes
            that as well and also returns the timesteps i32[B] and their losses f32[B].
        augment: (key[B], image u8, mask u8) -> (image f32, mask f32), in [0, 255].
        soft_masks: train on the share of each pixel that is lesion, instead of on whether that is
            over one half, or on each class's share, instead of on which one is the largest.
        microbatches: gradients are averaged over this many slices of the batch, for memory; batch
            norm takes the statistics of each slice, which are averaged, too.
        half_size: train on images and masks of half the height and width, which are the means of
            2 x 2 augmented pixels: about four times as fast.
        patch_size: train on a square of this side, cut from each image at random; 0: on all of it.
        frozen_gate_steps: updates before the gates of gated attention move.
        axis_name: of the devices' axis to average over, if any.
    Returns:
        The new state and f32[] each of "loss", the terms whose sum it is and "grad_norm"; and
        "nonfinite" i32[], see `state.nonfinite_in_a_row`.
    """
    step_key = jax.random.fold_in(key, state.step)
    history = [] if state.timestep_history is None else [state.timestep_history]

    def loss_fn(params, part):
        split = lambda i: jax.random.split(jax.random.fold_in(step_key, i), 4)
        keys = jax.vmap(split)(part["index"])
        image, mask = part["image"], part["mask"]
        if patch_size:
            image, mask = random_patch(keys[:, 0], image, mask, patch_size)
        image, mask = augment(keys[:, 0], image, mask)
        if half_size:
            image, mask = (nn.avg_pool(x, (2, 2), (2, 2)) for x in (image, mask))
        image, mask = normalise_image(image), normalise_mask(mask, soft_masks)
        inputs = state.batch_stats, image, mask, keys[:, 1:]
        losses, batch_stats, *drawn = losses_fn(params, *inputs, *history)
        terms = jax.tree.map(jnp.mean, losses)
        return sum(terms.values()), ((terms, batch_stats), [part["index"], *drawn])

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def evaluate(part):
        (loss, (means, drawn)), grads = grad_fn(state.params, part)
        return (loss, *means, grads), drawn

    if microbatches == 1:
        means, drawn = evaluate(batch)
    else:
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)

        def add(total, part):
            means, drawn = evaluate(part)
            return jax.tree.map(jnp.add, total, means), drawn

        like, _ = jax.eval_shape(evaluate, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        total, drawn = jax.lax.scan(add, zeros, parts)
        means = jax.tree.map(lambda x: x / microbatches, total)
        drawn = [x.reshape(-1) for x in drawn]
    loss, terms, batch_stats, grads = means
    if axis_name is not None:  # Batch norm itself averages its statistics.
        loss, terms, grads = jax.lax.pmean((loss, terms, grads), axis_name)
    metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(stacks(grads))}
    gate_rate = jnp.where(state.step < frozen_gate_steps, 0.0, 1.0)
    options = tx, ema_decay, ema_warmup, rate, gate_rate
    state = apply_gradients(state, grads, batch_stats, *options)
    nonfinite = nonfinite_in_a_row(state.opt_state)
    if history:
        if axis_name is not None:
            drawn = jax.lax.all_gather(drawn, axis_name, tiled=True)
        keep = lambda new, old: jnp.where(nonfinite == 0, new, old)
        updated = jax.tree.map(keep, add_to_history(*history, *drawn), *history)
        state = state.replace(timestep_history=updated)
    return state, metrics | {"nonfinite": nonfinite}
