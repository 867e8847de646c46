"""Images larger than the network's size, segmented window by window."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.runtime import parallel


@dataclasses.dataclass(frozen=True)
class Windows:
    """Overlapping squares of an image.

    Where windows overlap, the noise of a sample is the same in each: it belongs to the pixel of
    the image, see `samplers.field_noise`.

    Attributes:
        size: S, the side of a window in pixels.
        overlap: of neighbouring windows, as a share of their side.
        native: images keep their own size, so that their numbers of windows differ.
    """

    size: int
    overlap: float
    native: bool = False

    def blend(
        self,
        sample: Callable[..., np.ndarray],
        images: np.ndarray,
        ids: Sequence[str],
        count: int,
        progress: Callable[[float], None],
    ) -> np.ndarray:
        """Samples f32[V, B, H, W, C] of whole images u8[B, H, W, 3], blended from their windows.

        `sample` takes at most `count` windows: (windows u8[n, S, S, 3], ids, progress,
        corners u32[n, 2]) -> f32[V, n, S, S, C].
        """
        size, (height, width) = self.size, images.shape[1:3]
        starts = (window_starts(length, size, self.overlap) for length in (height, width))
        windows = list(itertools.product(range(len(images)), *starts))
        if not self.native:  # Else each number of windows would be compiled.
            count = parallel.batch_size(count, len(windows))
        weight, total, done = window_weight(size)[..., None], None, 0
        weights = np.zeros((height, width, 1), np.float32)
        for group, valid in padded_batches(iter(windows), count):
            cut = np.stack([images[i, y : y + size, x : x + size] for i, y, x in group])
            corners = np.array(group, np.uint32)[:, 1:]
            before, part = done / len(windows), valid.sum() / len(windows)
            so_far = lambda share, b=before, p=part: progress(b + p * share)
            samples = sample(cut, [ids[i] for i, _, _ in group], so_far, corners)
            if total is None:
                shape = len(samples), *images.shape[:3], samples.shape[-1]
                total = np.zeros(shape, np.float32)
            for n in np.flatnonzero(valid):
                i, y, x = group[n]
                total[:, i, y : y + size, x : x + size] += weight * samples[:, n]
                if i == 0:
                    weights[y : y + size, x : x + size] += weight
            done += valid.sum()
        return total / weights


def make_windows(data: ConfigDict, sampler: ConfigDict) -> Windows | None:
    """The windows in which images are segmented; None: they are whole."""
    if data.full_size or sampler.native:
        return Windows(data.image_size, sampler.overlap, sampler.native)
    return None


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the windows along a side of `length` pixels start.

    They lie evenly from end to end, as few as overlap by at least `overlap` of their size.
    """
    stride = max(1, int(size * (1 - overlap)))
    count = 1 + int(np.ceil((length - size) / stride))
    return [round(start) for start in np.linspace(0, length - size, count).tolist()]


def window_weight(size: int) -> np.ndarray:
    """f32[S, S], a Gaussian with standard deviation S / 8, as in nnU-Net (Isensee et al. 2021).

    At least 1e-3, so that the corners of an image have a weight too.
    """
    offset = (np.arange(size) - (size - 1) / 2) / (size / 8)
    side = np.exp(-0.5 * offset**2)
    return np.maximum(np.outer(side, side), 1e-3).astype(np.float32)


def input_size(
    data: ConfigDict, sampler: ConfigDict
) -> int | Callable[[tuple[int, int]], tuple[int, int]]:
    """The size to which images are resized before they are segmented.

    The side of a square in pixels or, with `sampler.native`, a function of an image's (height,
    width): its own, or enlarged until a window fits in.
    """
    if not sampler.native:
        return data.full_size or data.image_size

    def own_size(size: tuple[int, int]) -> tuple[int, int]:
        scale = max(1.0, data.image_size / min(size))
        height, width = (max(data.image_size, round(scale * side)) for side in size)
        return height, width

    return own_size
