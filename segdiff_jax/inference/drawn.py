"""Masks that are drawn from the probability of each pixel, for `sampler.samples_from`.

    label = argmax_k log p_k + g_k

With noise g of Gumbel's distribution, a pixel has class k with probability p_k: the Gumbel-max
trick (Maddison et al. 2014, arXiv 1411.0030, section 2). "levels" draws one g for all pixels of a
mask: with two classes, these are the level sets {p > u}, u uniform in [0, 1], each inside the next.
"pixels" draws a g for each pixel. Any model has such samples, so those of a network have to beat
them.
"""

import zlib

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.classes import most_likely
from segdiff_jax.inference.combine import Segmentation


def single_masks(
    samples: np.ndarray,
    pixels: tuple[int, int],
    found: Segmentation,
    sampler: ConfigDict,
    id: str,
    seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Single masks u8[V, H, W], as `sampler.samples_from` says; and how much their pixels vary.

    The network's samples f32[V, H, W, C] of the image `id`, resized from so many `pixels` (height,
    width), make the prediction `found`. The second result is `Segmentation.deviation`.
    """
    if sampler.samples_from == "network":
        return most_likely(samples, 0), found.deviation
    p, shape = found.probabilities, pixels if sampler.samples_from == "pixels" else (1, 1)
    labels = drawn_labels(p, shape, sampler.samples, id, seed)
    return labels, np.sqrt(p * (1 - p)).max(axis=-1) if len(labels) > 1 else None


def drawn_labels(
    probability: np.ndarray, shape: tuple[int, int], count: int, id: str, seed: int
) -> np.ndarray:
    """Masks u8[count, H, W] drawn from f32[H, W, C]; `id` is the image's.

    The noise has this `shape`: (1, 1) for level sets. For pixels it is the network's, however large
    the image is. A mask follows from id, seed and its number alone.
    """
    size, channels = probability.shape[:2], probability.shape[2]
    rows, columns = (np.arange(new) * old // new for old, new in zip(shape, size, strict=True))
    rng = np.random.default_rng((seed, zlib.crc32(id.encode())))
    with np.errstate(divide="ignore"):  # A class of probability 0 has -inf, and is never drawn.
        logs = np.log(probability) if channels > 1 else None
    masks = np.empty((count, *size), np.uint8)
    for mask in masks:
        if logs is None:  # The difference of two g is logistic: p > u says the same, and is fast.
            mask[:] = probability[..., 0] > rng.random(shape, np.float32)[rows[:, None], columns]
        else:
            noise = rng.gumbel(size=(*shape, channels)).astype(np.float32)
            mask[:] = np.argmax(logs + noise[rows[:, None], columns], axis=-1)
    return masks
