"""The ranges that the networks see; jitted with the step that needs them."""

import jax
import jax.numpy as jnp
from jax import Array


def normalise_image(image: Array) -> Array:
    """u8 or f32 in [0, 255] -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def normalise_mask(mask: Array, soft: bool = False) -> Array:
    """Share of each pixel that is lesion, times 255 -> f32, -1 or +1; `soft`: from -1 to +1.

    Of several classes, [B, H, W, K] -> f32[B, H, W, K], +1 for the class of the largest share and
    -1 for the others.
    """
    if soft:
        return normalise_image(mask)
    if mask.ndim == 4 and mask.shape[-1] > 1:
        return 2 * jax.nn.one_hot(jnp.argmax(mask, axis=-1), mask.shape[-1]) - 1
    return jnp.where(mask > 127.5, 1.0, -1.0)
