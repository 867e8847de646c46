"""Losses, one number per example and term: f32[B, H, W, C] in, {term: f32[B]} out.

A loss is the sum of its terms. The losses of diffusion models are called as
loss(process, output, noised).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from segdiff_jax.diffusion.process import Process
from segdiff_jax.original.losses import bound_loss, mse

PIXELS = (1, 2, 3)


class Noised(NamedTuple):
    """A batch of noisy masks and what they are made of: f32[B, H, W, C] each, but i32[B] t."""

    mask: Array  # clean, from -1 to +1
    x_start: Array  # the same from -b to +b
    t: Array
    eps: Array
    x_t: Array


def bce_dice_of_mask(process: Process, output: Array, noised: Noised) -> dict[str, Array]:
    """`bce_dice` of the logits of x_0."""
    return bce_dice(output, (noised.mask + 1) / 2)


def bce_of_mask(process: Process, output: Array, noised: Noised) -> dict[str, Array]:
    """Binary cross entropy of the logits of x_0.

    It is least where each pixel's probability is right, given x_t and the image. So with all
    timesteps trained and many steps, samples are distributed like the masks, which Dice prevents.
    """
    return {"bce": bce(output, (noised.mask + 1) / 2)}


def bce(logits: Array, mask: Array) -> Array:
    """The mean binary cross entropy of f32[B, H, W, C]: f32[B]."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask), PIXELS)


def bce_dice(logits: Array, mask: Array) -> dict[str, Array]:
    """Binary cross entropy plus soft Dice loss.

    Where m is 0 or 1, the Dice term is 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), with the plain
    sums of Sudre et al. 2017 and 1 added to both, so that an empty mask has a loss. Written as
    below, it is least at p = m for any share m (DML1 of Wang et al. 2023, arXiv 2303.16296).
    `mask`, or m, is from 0 to 1. "dice" is the mean over the channels.
    """
    p = jax.nn.sigmoid(logits)
    dice = jnp.sum(jnp.abs(p - mask), (1, 2)) / (jnp.sum(p + mask, (1, 2)) + 1)
    return {"bce": bce(logits, mask), "dice": jnp.mean(dice, axis=1)}


LOSSES = {"mse": mse, "bce": bce_of_mask, "bce_dice": bce_dice_of_mask}
# The terms of all losses, which are columns of metrics.csv.
TERMS = "mse", "vb", "bce", "dice", "nll"


def find_loss(name: str, variance: str) -> Callable[[Process, Array, Noised], dict[str, Array]]:
    """The loss of `diffusion.loss`; the original's if it trains a variance or is a bound."""
    if variance == "learned_range" or name not in LOSSES:
        return bound_loss(name, variance)
    return LOSSES[name]
