"""The ranges that the networks see; jitted with the step that needs them."""

import jax.numpy as jnp
from jax import Array

from segdiff_jax.data.classes import TWO, Classes, most_likely


def normalise_image(image: Array) -> Array:
    """u8 or f32 in [0, 255] -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def normalise_mask(mask: Array, classes: Classes = TWO, soft: bool = False) -> Array:
    """Each class's share of a pixel, times 255, u8 or f32[..., C] -> f32[..., C] from -1 to +1.

    `soft` keeps the shares. Else the most likely class becomes +1 and the others -1; with two
    classes, lesion becomes +1 where its share is over one half.
    """
    if soft:
        return normalise_image(mask)
    channels = jnp.array(classes.of_channels).reshape((1,) * (mask.ndim - 1) + (-1,))
    return jnp.where(most_likely(mask, 127.5)[..., None] == channels, 1.0, -1.0)
