"""Masks that are drawn from the probability of each pixel, for `sampler.samples_from`.

    label = argmax_k log p_k + g_k

With noise g of Gumbel's distribution, a pixel has class k with probability p_k: the Gumbel-max
trick (Maddison et al. 2014, arXiv 1411.0030, section 2). "levels" draws one g for all pixels of a
mask: with two classes, these are the level sets {p > u}, u uniform in [0, 1], each inside the next.
"pixels" draws a g for each pixel. Any model has such samples, so those of a network have to beat
them.
"""

import zlib
from typing import NamedTuple

import numpy as np


class Drawing(NamedTuple):
    """What is drawn: "levels" or "pixels", how many masks, and how many pixels of the network."""

    source: str
    count: int
    pixels: tuple[int, int]  # height and width


def drawn_labels(probability: np.ndarray, how: Drawing, id: str, seed: int) -> np.ndarray:
    """Masks u8[count, H, W] drawn from f32[H, W, C]; `id` is the image's.

    A mask follows from id, seed and its number alone. "pixels" draws for the pixels of the network,
    however large the image is.
    """
    size, channels = probability.shape[:2], probability.shape[2]
    shape = how.pixels if how.source == "pixels" else (1, 1)
    rows, columns = (np.arange(new) * old // new for old, new in zip(shape, size, strict=True))
    rng = np.random.default_rng((seed, zlib.crc32(id.encode())))
    with np.errstate(divide="ignore"):  # A class of probability 0 has -inf, and is never drawn.
        logs = np.log(probability) if channels > 1 else None
    masks = np.empty((how.count, *size), np.uint8)
    for mask in masks:
        if logs is None:  # The difference of two g is logistic: p > u says the same, and is fast.
            mask[:] = probability[..., 0] > rng.random(shape, np.float32)[rows[:, None], columns]
        else:
            noise = rng.gumbel(size=(*shape, channels)).astype(np.float32)
            mask[:] = np.argmax(logs + noise[rows[:, None], columns], axis=-1)
    return masks
