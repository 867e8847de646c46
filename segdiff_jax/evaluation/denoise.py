"""Samples of masks by reverse diffusion."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.diffusion.process import VARIANCES, Process
from segdiff_jax.diffusion.samplers import START, STEPS, field_noise, gaussian_noise, sample
from segdiff_jax.diffusion.schedule import respace, space_timesteps
from segdiff_jax.evaluation.predictor import (
    Predictor,
    Trace,
    View,
    check_choice,
    check_positive,
    seen,
    seen_back,
    views_of,
)

# In one program, between which progress is shown; more would be no faster.
MOST_STEPS = 5
ROW = 2**16  # between the numbers of two pixels of a column
SPACINGS = {"trailing": "trailing{}", "leading": "leading{}", "uniform": "{}"}


class DiffusionPredictor(Predictor):
    """Denoises masks, the image encoded once, votes folded into the batch.

    There is one program for the first so many steps of a chain, the next ones and so on.

    Attributes:
        memory: bytes of a device that the largest program of the last call takes.
        process, step_fn: of `advance`; the process is respaced.
    """

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        sampler: ConfigDict,
        seed: int,
    ):
        """As `make_predictor`."""
        check_choice(sampler, "name", STEPS)
        check_choice(sampler, "spacing", SPACINGS)
        check_choice(sampler, "variance", VARIANCES)
        for field in ("steps", "votes", "max_batch"):
            check_positive(sampler, field)
        if not 0 <= sampler.eta <= 1:
            raise ValueError(f"sampler.eta={sampler.eta} must be from 0 to 1")
        spacing = SPACINGS[sampler.spacing].format(sampler.steps)
        try:
            timesteps = space_timesteps(len(process.schedule), spacing)
        except ValueError as error:
            raise ValueError(f"sampler.steps={sampler.steps}: {error}") from error
        if timesteps[-1] == 0 < len(process.schedule) - 1:
            raise ValueError(
                f"sampler.steps=1 with sampler.spacing={sampler.spacing!r} would take noise for "
                "the clean mask: choose 'trailing'"
            )
        respaced = respace(process.schedule, timesteps)
        process = dataclasses.replace(process, schedule=respaced, clip=sampler.clip)
        options = {"ddim": {"eta": sampler.eta}, "ddpm": {"variance": sampler.variance}}
        step_fn = functools.partial(STEPS[sampler.name], **options.get(sampler.name, {}))
        self.process, self.step_fn = process, step_fn
        # The votes of a chunk; the images fill it up.
        self._votes, self._chunk = sampler.votes, even_part(sampler.votes, sampler.max_batch)
        self._seed = seed
        self._views = views_of(sampler)[: sampler.votes]
        passes = {"encode_image": len(self._views), "denoise": sampler.votes * sampler.steps}
        super().__init__(sampler, self._chunk, passes, process.mask_channels)
        if sampler.max_memory < 0:
            raise ValueError(f"sampler.max_memory={sampler.max_memory} must be at least 0")
        self._max_bytes, self._fitting = sampler.max_memory * 2**30, {}
        self._steps, self._scale = sampler.steps, process.input_scale
        self._timesteps = timesteps
        self._part = max(n for n in range(1, MOST_STEPS + 1) if sampler.steps % n == 0)
        self._encode = parallel.pmap_map(functools.partial(encode, model, self._views), 1)
        start = functools.partial(begin, channels=process.mask_channels)
        self._begin = parallel.pmap_map(start, 3, num_whole=0)
        run = functools.partial(advance, model, process, step_fn, self._part)
        self._advance = parallel.pmap_map(run, 6, num_whole=2, donate=(5, 6))

    def _sample(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None],
        trace: Trace | None,
        places: np.ndarray | None,
    ) -> np.ndarray:
        key = len(images), places is None
        if key not in self._fitting:
            self._fitting[key] = self._fit(variables, images, ids, places)
        size, chunk, self.memory = self._fitting[key]
        channels = self.process.mask_channels
        shape = self._votes, *images.shape[:3], *([channels] if channels > 1 else [])
        samples = np.empty(shape, np.float32)
        sizes, chunks = range(0, len(images), size), range(0, self._votes, chunk)
        parts, done = len(sizes) * len(chunks) * (self._steps // self._part), 0
        for start in sizes:
            # Where they do not divide, the last ones are some of those before, the same again.
            start = min(start, len(images) - size)
            batch = slice(start, start + size)
            features = self._encode(variables, parallel.shard(images[batch]))
            for first in chunks:
                votes = self._votes_from(first, chunk)
                place = None if places is None else places[batch]
                *inputs, x_t, previous, pixels = self._inputs(features, ids[batch], votes, place)
                shown = trace if start == first == 0 else None
                self._show(shown, self._steps, x_t, previous, size)
                for t in range(self._steps - 1, -1, -self._part):
                    state = x_t, previous, pixels
                    x_t, previous = self._advance(variables, np.int32(t), *inputs, *state)
                    jax.block_until_ready(x_t)
                    self._show(shown, t - self._part + 1, x_t, previous, size)
                    done += 1
                    progress(done / parts)
                masks = parallel.unshard(x_t) / self._scale
                masks = masks.reshape(size, chunk, *shape[2:])
                wanted = votes < self._votes
                views = [self._views[vote % len(self._views)] for vote in votes[wanted]]
                samples[votes[wanted], batch] = seen_back(masks[:, wanted], views)
        return samples

    def _votes_from(self, first: int, chunk: int) -> np.ndarray:
        """The numbers of a chunk's votes; those of a view in a row, where they divide."""
        votes, views = np.arange(first, first + chunk), len(self._views)
        return votes if chunk % views else votes.reshape(-1, views).T.reshape(-1)

    def _show(self, trace: Trace | None, steps: int, x_t: Array, x_start: Array, size: int) -> None:
        """Shows `trace`, if there is one, each image's first vote so many steps before x_0."""
        if trace:
            t = int(self._timesteps[steps - 1]) + 1 if steps else 0
            shape = x_t.shape[-3:] if x_t.shape[-1] > 1 else x_t.shape[-3:-1]
            first_votes = lambda x: parallel.unshard(x).reshape(size, -1, *shape)[:, 0]
            trace(t, *(first_votes(x) / self._scale for x in (x_t, x_start)))

    def _inputs(
        self,
        features: Array,
        ids: Sequence[str],
        votes: np.ndarray,
        places: np.ndarray | None,
    ) -> tuple[Any, ...]:
        """What `_advance` takes after the variables at the start of a chain."""
        keys = parallel.shard(example_keys(self._seed, ids, votes))
        views, pixels = votes % len(self._views), None
        if places is not None:
            seen_at = pixel_numbers(features.shape[-2], self._views)[views]
            offsets = places[:, 0] * ROW + places[:, 1]
            pixels = parallel.shard(np.uint32(offsets[:, None, None, None] + seen_at))
        views = np.broadcast_to(np.int32(views), keys.shape)
        return features, keys, views, *self._begin(features, keys, pixels), pixels

    def _fit(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        places: np.ndarray | None,
    ) -> tuple[int, int, int]:
        """Images and votes to denoise together, halved until it fits into memory, and its bytes."""
        devices, chunk = parallel.round_up(1), self._chunk
        size = count = parallel.shard(images).shape[1]
        limit = self._max_bytes or parallel.free_bytes()
        while True:
            part = slice(size * devices)
            batch, names = parallel.shard(images[part]), ids[part]
            place = None if places is None else places[part]
            needed = parallel.program_bytes(self._encode, variables, batch)
            encodes = needed <= limit
            if encodes:
                features = self._encode(variables, batch)
                inputs = self._inputs(features, names, self._votes_from(0, chunk), place)
                inputs = variables, np.int32(self._steps - 1), *inputs
                needed = max(needed, parallel.program_bytes(self._advance, *inputs))
            smallest = size == 1 and (chunk == 1 or not encodes)
            # What is free may change: then it is tried.
            if needed <= limit or (smallest and not self._max_bytes):
                return size * devices, chunk, needed
            if smallest:
                raise ValueError(
                    f"sampler.max_memory={self._max_bytes / 2**30:g} GiB: one image with one vote "
                    f"takes {needed / 2**30:.2f} GiB"
                )
            if encodes and chunk > 1:
                chunk = even_part(self._votes, -(-chunk // 2))
            else:
                size = even_part(count, -(-size // 2))


def even_part(total: int, most: int) -> int:
    """The size of the fewest parts of `total` of at most `most` each, such that they are alike."""
    return -(-total // -(-total // most))


def example_keys(seed: int, ids: Sequence[str], votes: Sequence[int]) -> Array:
    """key[B, V], one per image and vote: order and batching do not change a sample."""
    names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), names),
        np.array(votes, np.uint32),
    )


def encode(model: nn.Module, views: Sequence[View], variables: Any, images: Array) -> Array:
    """The features of each view of u8[B, S, S, 3]: [B, views, S, S, C]; see `encode_image`."""
    features = model.apply(variables, seen(images, views), method="encode_image")
    return features.reshape(len(images), len(views), *features.shape[1:])


def pixel_numbers(size: int, views: Sequence[View]) -> np.ndarray:
    """i32[views, S, S], row * ROW + column of each pixel, as each view shows them."""
    rows, columns = np.mgrid[:size, :size].astype(np.int32)
    pixels = rows * ROW + columns
    return np.stack([np.flip(np.rot90(pixels, k), axes) for k, axes in views])


def begin(
    features: Array, keys: Array, pixels: Array | None = None, channels: int = 1
) -> tuple[Array, Array]:
    """x_T and the estimate before any step, zero: f32[B * V, S, S, C] each, see `advance`."""
    x_T = _noise(keys, (*features.shape[2:4], channels), pixels)(START)
    return x_T, jnp.zeros_like(x_T)


def _noise(keys: Array, shape: tuple[int, ...], pixels: Array | None) -> Callable[[Array], Array]:
    if pixels is None:
        return gaussian_noise(keys.reshape(-1), shape)
    return field_noise(keys.reshape(-1), pixels.reshape(-1, *shape[:2]), shape[2])


def advance(
    model: nn.Module,
    process: Process,
    step_fn: Any,
    count: int,
    variables: Any,
    first: Array,
    features: Array,
    keys: Array,
    views: Array,
    x_t: Array,
    previous: Array,
    pixels: Array | None = None,
) -> tuple[Array, Array]:
    """So many steps of the chains of a batch.

    Args:
        count: the number of steps.
        first: i32[], the first step's number in the schedule.
        features: [B, F, S, S, C] of each image's views, from `encode`.
        keys: key[B, V], the noise of each vote.
        views: i32[B, V], which of the F each vote sees: if V is a multiple of F, the same number of
            votes each, in order.
        x_t: f32[B * V, S, S, C].
        previous: f32[B * V, S, S, C], the estimate x_start of the step before.
        pixels: u32[B, V, S, S], whose noise it is in a larger image; None: of this one's own.
    Returns:
        The next x_t, after the last step x_0, and the next estimate.
    """
    if keys.shape[1] % features.shape[1]:
        features = jax.vmap(lambda of_image, which: of_image[which])(features, views)
    features = features.reshape(-1, *features.shape[2:])
    timesteps = jnp.asarray(process.schedule.timesteps, jnp.int32)

    def denoise_fn(x_t, t, previous):
        network_input = process.network_input(x_t, t, previous)
        inputs = network_input, features, timesteps[t][None]
        return process.predict(model.apply(variables, *inputs, method="denoise"), x_t, t)

    noise_fn = _noise(keys, x_t.shape[1:], pixels)
    steps = first - jnp.arange(count, dtype=jnp.int32)
    return sample(denoise_fn, x_t, process.schedule, step_fn, noise_fn, steps, previous)
