"""The ranges that the networks see; jitted with the step that needs them."""

import jax.numpy as jnp
from jax import Array

from segdiff_jax.data.classes import TWO, Classes, most_likely


def normalise_image(image: Array) -> Array:
    """u8 or f32 in [0, 255] -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def normalise_mask(mask: Array, classes: Classes = TWO, soft: bool = False) -> Array:
    """Each class's share of a pixel, times 255 -> f32 from -1 to +1.

    Args:
        mask: u8 or f32[..., C].
        classes: whose channels they are.
        soft: keep the shares. Else +1 for the most likely class and -1 for the others; with two
            classes, +1 where the share of lesion is over one half.
    Returns:
        f32[..., C].
    """
    if soft:
        return normalise_image(mask)
    channels = jnp.array(classes.of_channels).reshape((1,) * (mask.ndim - 1) + (-1,))
    return jnp.where(most_likely(mask, 127.5)[..., None] == channels, 1.0, -1.0)
