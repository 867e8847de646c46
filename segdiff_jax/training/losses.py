"""Losses, one number per example and term: f32[B, H, W, C] in, {term: f32[B]} out.

A loss is the sum of its terms.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

PIXELS = (1, 2, 3)


def mse(output: Array, target: Array) -> dict[str, Array]:
    """mean (output - target)^2 over pixels (Ho et al. 2020, eq. 14)."""
    chex.assert_equal_shape([output, target])
    return {"mse": jnp.mean(jnp.square(output - target), PIXELS)}


def bce_dice(logits: Array, mask: Array) -> dict[str, Array]:
    """Binary cross entropy plus soft Dice loss on log odds.

    Where m is 0 or 1, the Dice term is 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), with the plain
    sums of Sudre et al. 2017 and 1 added to both, so that an empty mask has a loss. Written as
    below, it is least at p = m for any share m (DML1 of Wang et al. 2023, arXiv 2303.16296).

    Args:
        logits: f32[B, H, W, C], log odds of a lesion.
        mask: f32[B, H, W, C], from 0 to 1.
    Returns:
        "bce", the mean over pixels, and "dice", sum(|p - m|) / (sum(p) + sum(m) + 1): f32[B] each.
    """
    chex.assert_equal_shape([logits, mask])
    bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask), PIXELS)
    p = jax.nn.sigmoid(logits)
    dice = jnp.sum(jnp.abs(p - mask), PIXELS) / (jnp.sum(p + mask, PIXELS) + 1)
    return {"bce": bce, "dice": dice}
