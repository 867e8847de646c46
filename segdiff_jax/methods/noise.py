"""The noise that samples are made of."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.diffusion.samplers import field_noise, gaussian_noise
from segdiff_jax.methods.interface import Draw
from segdiff_jax.methods.views import View

ROW = 2**16  # between the numbers of two pixels of a column


def sample_noise(
    draw: Draw, views: tuple[View, ...], size: tuple[int, int], channels: int
) -> Callable[[Array], Array]:
    """t i32[] -> standard normal f32[B * V, H, W, C], where `size` is (H, W).

    It follows from the keys of the samples. In windows of a larger image, it belongs to the pixels
    of that image, see `samplers.field_noise`.
    """
    keys = draw.keys.reshape(-1)
    if draw.corners is None:
        return gaussian_noise(keys, (*size, channels))
    corner = (draw.corners[:, 0] * ROW + draw.corners[:, 1])[:, None, None, None]
    pixels = jnp.asarray(pixel_numbers(size[0], views))[draw.views] + corner
    return field_noise(keys, pixels.reshape(-1, *size), channels)


def pixel_numbers(size: int, views: tuple[View, ...]) -> np.ndarray:
    """u32[F, S, S], row * ROW + column of each pixel, as each view shows them."""
    rows, columns = np.mgrid[:size, :size].astype(np.uint32)
    pixels = rows * ROW + columns
    return np.stack([np.flip(np.rot90(pixels, k), axes) for k, axes in views])
