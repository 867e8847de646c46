"""Images larger than the network's size, segmented window by window."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.runtime import parallel

Progress = Callable[[float], None]  # called with the share of the work that is done


class Inputs(NamedTuple):
    """Images to sample masks of."""

    images: np.ndarray  # u8[B, H, W, 3]
    names: np.ndarray  # u32[B], see `driver.image_names`
    corners: np.ndarray | None = None  # u32[B, 2] of windows, see `methods.interface.Draw`

    def part(self, which: slice) -> "Inputs":
        return jax.tree.map(lambda x: x[which], self)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Overlapping squares of an image; `overlap` and `native`: see `config.sampler`.

    Where windows overlap, the noise of a sample is the same in each: it belongs to the pixel of
    the image, see `samplers.field_noise`.
    """

    size: int  # S, the side of a window in pixels
    overlap: float
    native: bool = False

    def blend(
        self, sample: Callable[..., np.ndarray], inputs: Inputs, count: int, progress: Progress
    ) -> np.ndarray:
        """Samples f32[V, B, H, W, C] of whole images, blended from their windows.

        `sample` takes at most `count` windows: (inputs, progress) -> f32[V, n, S, S, C].
        """
        images, size = inputs.images, self.size
        starts = [window_starts(length, size, self.overlap) for length in images.shape[1:3]]
        windows = list(itertools.product(range(len(images)), *starts))
        if not self.native:  # Else each number of windows would be compiled.
            count = parallel.batch_size(count, len(windows))
        weight, total = window_weight(size)[..., None], None
        weights = np.zeros((*images.shape[1:3], 1), np.float32)
        for y, x in itertools.product(*starts):
            weights[y : y + size, x : x + size] += weight
        groups = -(-len(windows) // count)
        for g, (group, valid) in enumerate(padded_batches(iter(windows), count)):
            cut = np.stack([images[i, y : y + size, x : x + size] for i, y, x in group])
            places = np.array(group, np.uint32)
            so_far = lambda share, g=g: progress((g + share) / groups)
            samples = sample(Inputs(cut, inputs.names[places[:, 0]], places[:, 1:]), so_far)
            if total is None:
                shape = len(samples), *images.shape[:3], samples.shape[-1]
                total = np.zeros(shape, np.float32)
            for n in np.flatnonzero(valid):
                i, y, x = group[n]
                total[:, i, y : y + size, x : x + size] += weight * samples[:, n]
        return total / weights


def make_windows(data: ConfigDict, sampler: ConfigDict) -> Windows | None:
    """The windows in which images are segmented; None: they are whole."""
    windows = Windows(data.image_size, sampler.overlap, sampler.native)
    return windows if data.full_size or sampler.native else None


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """The fewest starts, in pixels, of windows that overlap by this share or more along a side."""
    stride = max(1, int(size * (1 - overlap)))
    count = 1 + int(np.ceil((length - size) / stride))
    return [round(start) for start in np.linspace(0, length - size, count).tolist()]


def window_weight(size: int) -> np.ndarray:
    """f32[S, S], a Gaussian with standard deviation S / 8, as in nnU-Net (Isensee et al. 2021)."""
    offset = (np.arange(size) - (size - 1) / 2) / (size / 8)
    side = np.exp(-0.5 * offset**2)
    # The corners of an image need a weight too.
    return np.maximum(np.outer(side, side), 1e-3).astype(np.float32)
