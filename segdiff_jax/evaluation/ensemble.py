"""From the samples (votes) of one image to its probability and mask."""

import numpy as np
from PIL import Image


def mean(samples: np.ndarray) -> np.ndarray:
    """Mean over the votes of clip((x + 1) / 2, 0, 1), the original SegDiff's "majority vote".

    Args:
      samples: f32[V, H, W], masks of -1 and +1 as sampled; values may lie beyond them.
    Returns:
      f32[H, W], from 0 to 1.
    Raises:
      ValueError: if samples is not [V, H, W] with V >= 1, or holds NaN or infinity.
    """
    return _probabilities(samples).mean(axis=0)


def vote(samples: np.ndarray) -> np.ndarray:
    """Share of the votes that call a pixel lesion: each sample is made a mask before the mean.

    Arguments, return value and errors are those of `mean`.
    """
    return to_mask(_probabilities(samples)).mean(axis=0, dtype=np.float32)


ENSEMBLES = {"mean": mean, "vote": vote}


def standard_deviation(samples: np.ndarray) -> np.ndarray:
    """Standard deviation over the votes of clip((x + 1) / 2, 0, 1).

    Arguments and errors are those of `mean`.

    Returns:
      f32[H, W], from 0 (all votes agree, or there is only one) to 0.5 (they split evenly).
    """
    return _probabilities(samples).std(axis=0)


def to_mask(probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Lesion where probability > threshold; a tie is background, as the original's round(0.5) = 0.

    IoU and Dice gain from a threshold under 0.5: half of the largest Dice that the probabilities
    allow is the best one (Lipton et al. 2014, arXiv 1402.1892, theorem 1).
    """
    return probability > threshold


def resize_samples(samples: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize with half-pixel centres, antialiased where it shrinks.

    Enlarging equals the original's torch `interpolate(align_corners=False)`. Shrinking differs on
    purpose: the original skips pixels there.

    Args:
      samples: f32[V, h, w].
      size: (height, width) in pixels.
    Returns:
      f32[V, height, width].
    """
    height, width = size
    resized = (
        Image.fromarray(sample).resize((width, height), Image.Resampling.BILINEAR)
        for sample in np.asarray(samples, np.float32)
    )
    return np.stack([np.asarray(image) for image in resized])


def _probabilities(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 3 or not len(samples):
        raise ValueError(f"samples must be [votes >= 1, height, width], not {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinity: the network or the sampler diverged")
    return np.clip((samples + 1) / 2, 0, 1)
