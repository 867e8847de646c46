"""The training step: pure, and written for one device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.data.augment import augment, random_patch
from segdiff_jax.data.classes import TWO, Classes, classes_of
from segdiff_jax.data.normalise import normalise_image, normalise_mask
from segdiff_jax.methods import Method
from segdiff_jax.models import mask_stride
from segdiff_jax.training.optimizer import Optimizer, nonfinite_in_a_row, stacks
from segdiff_jax.training.state import TrainState, apply_gradients, warm_decay

Batch = dict[str, Array]
POOL = 0.2  # share of the masks whose annotator the network is not told


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One update: (state, batch, key, rate) -> (state, metrics); for the fields see schema.py."""

    method: Method
    tx: Optimizer
    augment: Callable  # (key[B], image u8, mask u8) -> image f32 and mask f32, in [0, 255]
    ema_decay: float
    classes: Classes = TWO
    soft_masks: bool = False
    microbatches: int = 1  # batch norm takes the statistics of each part, which are averaged too
    half_size: bool = False  # train on the means of 2 x 2 augmented pixels: 4 times as fast
    tells_annotator: bool = False  # the network is told who drew each mask
    patch_size: int = 0  # side of the square that is cut from each image at random; 0: all of it
    axis_name: str | None = None  # of the devices to average over, if any

    def __call__(
        self, state: TrainState, batch: Batch, key: Array, rate: Array | float
    ) -> tuple[TrainState, dict[str, Array]]:
        """The new state; f32[] "loss", its terms and "grad_norm"; and i32[] "nonfinite".

        `batch` has "image" u8[B, H, W, 3], "mask" u8[B, H, W, C] (255 times each class's share of
        the pixel) and "index" i32[B], each example's place in the global batch. With "annotators"
        i32[B, A], "mask" u8[B, H, W, A] has masks of several annotators, see `ResizedSource`. The
        noise of an example follows from its index, the step and the run's `key`: the number of
        devices does not change it. `rate` is the learning rate.
        """
        step_key = jax.random.fold_in(key, state.step)
        grad_fn = jax.value_and_grad(self._loss, has_aux=True)

        def evaluate(part: Batch) -> tuple[Any, Any]:
            (loss, (terms, batch_stats, seen)), grads = grad_fn(state.params, state, part, step_key)
            return (loss, terms, batch_stats, grads), seen

        (loss, terms, batch_stats, grads), seen = self._mean_of_parts(evaluate, batch)
        if self.axis_name is not None:  # Batch norm itself averages its statistics.
            loss, terms, grads = jax.lax.pmean((loss, terms, grads), self.axis_name)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(stacks(grads))}
        decay = warm_decay(self.ema_decay, state.step)
        state = apply_gradients(state, grads, batch_stats, self.tx, decay, rate)
        nonfinite = nonfinite_in_a_row(state.opt_state)
        if state.history is not None:
            if self.axis_name is not None:
                seen = jax.lax.all_gather(seen, self.axis_name, tiled=True)
            updated = self.method.timestep_sampler.update(state.history, *seen)
            keep = lambda new, old: jnp.where(nonfinite == 0, new, old)
            state = state.replace(history=jax.tree.map(keep, updated, state.history))
        return state, metrics | {"nonfinite": nonfinite}

    def _loss(self, params: Any, state: TrainState, part: Batch, key: Array) -> tuple[Array, Any]:
        """The mean loss of a part of the batch, its terms, batch statistics and what was seen."""
        split = lambda i: jax.random.split(jax.random.fold_in(key, i), 4)
        keys = jax.vmap(split)(part["index"])
        image, mask, annotator = part["image"], part["mask"], None
        if "annotators" in part:
            mask, annotator = draw_mask(keys[:, 0], mask, part["annotators"])
        if self.patch_size:
            image, mask = random_patch(keys[:, 0], image, mask, self.patch_size)
        image, mask = self.augment(keys[:, 0], image, mask)
        if self.half_size:
            image, mask = smaller(image, 2), smaller(mask, 2)
        mask = smaller(mask, mask_stride(self.method.model))
        mask = normalise_mask(mask, self.classes, self.soft_masks)
        variables = {"params": params, "batch_stats": state.batch_stats, "history": state.history}
        inputs = {"image": normalise_image(image), "mask": mask}
        if self.tells_annotator:
            inputs["annotator"] = annotator
        losses = self.method.losses(variables, inputs, keys[:, 1:])
        terms = jax.tree.map(jnp.mean, losses.terms)
        return sum(terms.values()), (terms, losses.batch_stats, (part["index"], *losses.seen))

    def _mean_of_parts(self, evaluate: Callable[[Batch], tuple[Any, Any]], batch: Batch) -> Any:
        """`evaluate` of the microbatches: the mean of its first result, all of its second."""
        if self.microbatches == 1:
            return evaluate(batch)
        parts = jax.tree.map(lambda x: x.reshape(self.microbatches, -1, *x.shape[1:]), batch)

        def add(total, part):
            means, seen = evaluate(part)
            return jax.tree.map(jnp.add, total, means), seen

        like, _ = jax.eval_shape(evaluate, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        total, seen = jax.lax.scan(add, zeros, parts)
        means = jax.tree.map(lambda x: x / self.microbatches, total)
        return means, jax.tree.map(lambda x: x.reshape(-1), seen)


def draw_mask(keys: Array, masks: Array, annotators: Array) -> tuple[Array, Array]:
    """One of each image's masks u8[B, H, W, A], and its annotator: u8[B, H, W, 1], i32[B].

    All masks whose `annotators` i32[B, A] are not -1 are equally likely. With probability `POOL`
    the annotator becomes 0. `augment` and `random_patch` may take the same key[B], because their
    draws differ.
    """

    def one(key, masks, annotators):
        among, pooled = (jax.random.fold_in(key, number) for number in (2, 3))
        place = jax.random.categorical(among, jnp.where(annotators < 0, -jnp.inf, 0.0))
        annotator = jnp.where(jax.random.bernoulli(pooled, POOL), 0, annotators[place])
        return jax.lax.dynamic_slice_in_dim(masks, place, 1, axis=-1), annotator

    return jax.vmap(one)(keys, masks, annotators)


def smaller(x: Array, factor: int) -> Array:
    """f32[B, H, W, C] -> f32[B, H / factor, W / factor, C], means of factor x factor pixels."""
    return x if factor == 1 else nn.avg_pool(x, (factor, factor), (factor, factor))


def make_train_step(
    config: ConfigDict, method: Method, tx: Optimizer, axis_name: str | None = None
) -> TrainStep:
    """The step that a config describes, at full size."""
    return TrainStep(
        method=method,
        tx=tx,
        augment=functools.partial(augment, config.augment.to_dict()),
        ema_decay=config.train.ema_decay,
        classes=classes_of(config.data),
        soft_masks=config.data.soft_masks,
        microbatches=config.train.microbatches,
        tells_annotator=bool(config.data.annotators),
        patch_size=config.data.image_size if config.data.full_size else 0,
        axis_name=axis_name,
    )
