"""The ranges that the networks see; jitted with the step that needs them."""

import jax.numpy as jnp
from jax import Array


def normalise_image(image: Array) -> Array:
    """u8 or f32 in [0, 255] -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def normalise_mask(mask: Array) -> Array:
    """u8, a lesion above 127 -> f32, -1 or +1."""
    return jnp.where(mask > 127, 1.0, -1.0)
