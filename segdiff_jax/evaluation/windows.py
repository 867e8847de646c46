"""Images larger than the network's size, segmented window by window."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.evaluation.predictor import Predictor, Trace


class WindowedPredictor(Predictor):
    """Samples of whole images, blended from those of overlapping windows.

    Called with one size of images, u8[B, H, W, 3], whose samples are f32[V, B, H, W]. There is no
    trace: each window has a chain of its own.

    Where windows overlap, a vote's noise is the same in each: it belongs to the pixel of the image,
    see `samplers.field_noise`.
    """

    def __init__(self, member: Predictor, size: int, sampler: ConfigDict):
        """Compiles nothing.

        Args:
            member: makes samples of windows.
            size: S, the side of a window in pixels.
            sampler: its `overlap` is read, and what all predictors read.
        Raises:
            ValueError: if the overlap is not from 0 to below 1.
        """
        super().__init__(sampler, sampler.max_batch, member.passes)
        if not 0 <= sampler.overlap < 1:
            raise ValueError(f"sampler.overlap={sampler.overlap} must be from 0 to below 1")
        self._member, self._size, self._overlap = member, size, sampler.overlap
        self._native = sampler.native
        self.batch_size = 1  # Images, which may differ in size; the windows make a batch.

    def seeded(self, seed: int) -> Predictor:
        """As `Predictor.seeded`."""
        other = super().seeded(seed)
        other._member = self._member.seeded(seed)
        return other

    def _sample(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None],
        trace: Trace | None,
        places: np.ndarray | None,
    ) -> np.ndarray:
        size, (height, width) = self._size, images.shape[1:3]
        starts = (window_starts(length, size, self._overlap) for length in (height, width))
        windows = list(itertools.product(range(len(images)), *starts))
        count = self._member.batch_size
        if not self._native:  # Else each number of windows would be compiled.
            count = min(count, parallel.round_up(len(windows)))
        weight, total, done = window_weight(size), None, 0
        weights = np.zeros((height, width), np.float32)
        for group, valid in padded_batches(iter(windows), count):
            cut = np.stack([images[i, y : y + size, x : x + size] for i, y, x in group])
            names, at = [ids[i] for i, _, _ in group], np.array(group)[:, 1:]
            before = done / len(windows)
            part = valid.sum() / len(windows)
            so_far = lambda share, b=before, p=part: progress(b + p * share)
            samples = self._member(variables, cut, names, so_far, places=at)
            if total is None:
                total = np.zeros((len(samples), *images.shape[:3], *samples.shape[4:]), np.float32)
                if samples.ndim == 5:  # Of several classes.
                    weight, weights = weight[..., None], weights[..., None]
            for n in np.flatnonzero(valid):
                i, y, x = group[n]
                total[:, i, y : y + size, x : x + size] += weight * samples[:, n]
                if i == 0:
                    weights[y : y + size, x : x + size] += weight
            done += valid.sum()
        return total / weights


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the windows of `size` along a side of `length` pixels start: the first at 0, the last
    at its end, evenly, as few as overlap by at least the share `overlap` of their size."""
    stride = max(1, int(size * (1 - overlap)))
    count = 1 + int(np.ceil((length - size) / stride))
    return [round(start) for start in np.linspace(0, length - size, count).tolist()]


def window_weight(size: int) -> np.ndarray:
    """f32[S, S]: a Gaussian about the centre whose deviation is S / 8, as in nnU-Net (Isensee et
    al. 2021), but at least 1e-3, so that the corners of an image have a weight, too."""
    offset = (np.arange(size) - (size - 1) / 2) / (size / 8)
    side = np.exp(-0.5 * offset**2)
    return np.maximum(np.outer(side, side), 1e-3).astype(np.float32)


def window_size(data: ConfigDict, sampler: ConfigDict) -> int:
    """The side of the windows in which images are segmented, in pixels; 0: they are whole."""
    return data.image_size if data.full_size or sampler.native else 0


def input_size(
    data: ConfigDict, sampler: ConfigDict
) -> int | Callable[[tuple[int, int]], tuple[int, int]]:
    """To what images are resized before they are segmented.

    Returns:
        The side of a square in pixels or, with `sampler.native`, a function from an image's
        (height, width): its own, or enlarged until a window fits in.
    """
    if not sampler.native:
        return data.full_size or data.image_size

    def own_size(size: tuple[int, int]) -> tuple[int, int]:
        scale = max(1.0, data.image_size / min(size))
        height, width = (max(data.image_size, round(scale * side)) for side in size)
        return height, width

    return own_size
