"""Samples masks of batches of images on all devices, as many at a time as fit into memory."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.inference.windows import Inputs, Progress, Windows, make_windows
from segdiff_jax.methods import Method
from segdiff_jax.methods.interface import Draw, State, make_draw
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError

MOST_STEPS = 5  # that one program takes before progress is shown; more would be no faster
# Called from x_T on with t, x_t and the estimate of x_start of each image's first sample, as in
# `State`, but with clean masks of -1 or +1.
Trace = Callable[[int, np.ndarray, np.ndarray], None]


class Driver:
    """Samples the masks of a method; see `methods.interface`.

    Attributes:
        batch_size: the largest number of images of a call, a multiple of the number of devices.
        memory: bytes of a device that the largest program of the last call takes.
    """

    def __init__(
        self, method: Method, max_batch: int, max_memory: float = 0, windows: Windows | None = None
    ):
        """Compiles nothing yet; see `config.sampler` for `max_batch` and `max_memory` (GiB)."""
        self.method, self.windows = method, windows
        self._chunk = even_part(method.samples, max_batch)  # of samples; images fill it up
        self._batch = parallel.round_up(1) * max(1, max_batch // self._chunk)
        self.batch_size = 1 if windows else self._batch  # Large images may differ in size.
        self._max_bytes, self._fitting = max_memory * 2**30, {}
        steps = len(method.timesteps)
        self._part = max(n for n in range(1, MOST_STEPS + 1) if steps % n == 0)
        advance = lambda *args: method.advance(*args, self._part)
        self._encode = parallel.pmap_map(method.encode, num_whole=1, num_sharded=1)
        self._begin = parallel.pmap_map(method.begin, num_whole=0, num_sharded=2)
        self._advance = parallel.pmap_map(advance, num_whole=2, num_sharded=3, donate=(4,))
        self._finish = parallel.pmap_map(method.finish, num_whole=0, num_sharded=2)

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        seed: int = 0,
        progress: Progress = lambda share: None,
        trace: Trace | None = None,
    ) -> np.ndarray:
        """Samples every image: f32[V, B, H, W, C], where clean masks are -1 or +1.

        Images are u8[B, H, W, 3], B a multiple of the number of devices; H = W = S of the method,
        or any size with windows. The noise of an image follows from the seed, its id and the number
        of the sample alone. `trace` is shown how the first sample of the first images comes about,
        but not in windows or without a chain. A UserError says that not even one sample fits into
        `max_memory`; a FloatingPointError, that a sample holds NaN or infinity.
        """
        inputs = Inputs(images, image_names(ids))
        if self.windows:
            sample = lambda inputs, progress: self._sample(variables, inputs, seed, progress)
            samples = self.windows.blend(sample, inputs, self._batch, progress)
        else:
            samples = self._sample(variables, inputs, seed, progress, trace)
        if not np.isfinite(samples).all():
            raise FloatingPointError("samples hold NaN or infinity: network or sampler diverged")
        return samples

    def _sample(
        self, variables: Any, inputs: Inputs, seed: int, progress: Progress, trace: Any = None
    ) -> np.ndarray:
        """As above, for images of the method's size."""
        count, total, steps = len(inputs.images), self.method.samples, len(self.method.timesteps)
        if count not in self._fitting:
            self._fitting[count] = self._fit(variables, inputs)
        size, chunk, self.memory = self._fitting[count]
        samples, done = None, 0
        starts, firsts = range(0, count, size), range(0, total, chunk)
        calls = len(starts) * len(firsts) * steps // self._part
        for start in starts:
            # If they do not divide, the last images are computed twice.
            start = min(start, count - size)
            batch = slice(start, start + size)
            part = inputs.part(batch)
            features = self._encode(variables, parallel.shard(part.images))
            for first in firsts:
                numbers = np.arange(first, first + chunk)
                draw = self._draw(part, seed, numbers)
                state = self._begin(features, draw)
                shown = trace if start == first == 0 else None
                self._show(shown, steps, state, size)
                for t in range(steps - 1, -1, -self._part):
                    state = self._advance(variables, np.int32(t), features, draw, state)
                    jax.block_until_ready(state)
                    self._show(shown, t - self._part + 1, state, size)
                    done += 1
                    progress(done / calls)
                masks = parallel.unshard(self._finish(state, draw))
                if samples is None:
                    samples = np.empty((total, count, *masks.shape[2:]), np.float32)
                wanted = numbers < total
                samples[numbers[wanted], batch] = np.moveaxis(masks[:, wanted], 1, 0)
        return samples

    def _draw(self, inputs: Inputs, seed: int, numbers: np.ndarray) -> Draw:
        """The samples of these numbers, on all devices."""
        keys = sample_keys(seed, inputs.names, np.uint32(numbers))
        return parallel.shard(make_draw(keys, numbers, len(self.method.views), inputs.corners))

    def _show(self, trace: Trace | None, left: int, state: State, size: int) -> None:
        """Shows `trace`, if there is one, the first samples `left` steps before the end."""
        timesteps = self.method.timesteps
        if trace and len(timesteps):
            t = int(timesteps[left - 1]) + 1 if left else 0
            firsts = (parallel.unshard(x).reshape(size, -1, *x.shape[2:])[:, 0] for x in state)
            trace(t, *(x / self.method.process.input_scale for x in firsts))

    def _fit(self, variables: Any, inputs: Inputs) -> tuple[int, int, int]:
        """Images and samples to compute together, halved until they fit, and their bytes."""
        devices, chunk = parallel.round_up(1), self._chunk
        size = count = parallel.shard(inputs.images).shape[1]
        limit = self._max_bytes or parallel.free_bytes()
        while True:
            part = inputs.part(slice(size * devices))
            batch = parallel.shard(part.images)
            needed = parallel.program_bytes(self._encode, variables, batch)
            encodes = needed <= limit
            if encodes and len(self.method.timesteps):
                features = self._encode(variables, batch)
                draw = self._draw(part, 0, np.arange(chunk))
                args = variables, np.int32(0), features, draw, self._begin(features, draw)
                needed = max(needed, parallel.program_bytes(self._advance, *args))
            smallest = size == 1 and (chunk == 1 or not encodes)
            # What is free may change, so without a given limit the smallest part is tried.
            if needed <= limit or (smallest and not self._max_bytes):
                return size * devices, chunk, needed
            if smallest:
                raise UserError(
                    f"sampler.max_memory={self._max_bytes / 2**30:g} GiB: one image with one "
                    f"sample takes {needed / 2**30:.2f} GiB"
                )
            if encodes and chunk > 1:
                chunk = even_part(self.method.samples, -(-chunk // 2))
            else:
                size = even_part(count, -(-size // 2))


def even_part(total: int, most: int) -> int:
    """The size of the fewest parts of `total` that hold at most `most` each, all of one size."""
    return -(-total // -(-total // most))


def image_names(ids: Sequence[str]) -> np.ndarray:
    """u32[B], the CRC-32 of ids."""
    return np.array([zlib.crc32(id.encode()) for id in ids], np.uint32)


def sample_keys(seed: int | Array, names: Array, numbers: Array) -> Array:
    """key[B, V] of `image_names` u32[B] and samples u32[V], whatever their order and batches."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    of_images = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), names)
    return fold(of_images, numbers)


def make_driver(config: ConfigDict, method: Method) -> Driver:
    """A driver of a method, in windows if the config asks for them."""
    windows, sampler = make_windows(config.data, config.sampler), config.sampler
    return Driver(method, sampler.max_batch, sampler.max_memory, windows)
