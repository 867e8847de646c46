"""Losses, one number per example and term: f32[B, H, W, C] in, {term: f32[B]} out.

A loss is the sum of its terms.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from segdiff_jax.diffusion.bound import vb_term
from segdiff_jax.diffusion.process import Process

PIXELS = (1, 2, 3)


def gaussian_losses(
    process: Process,
    loss: str,
    variance: str,
    output: Array,
    x_start: Array,
    x_t: Array,
    t: Array,
    eps: Array,
) -> dict[str, Array]:
    """The losses of a network that predicts the mean of a Gaussian and, with 2C, its variance.

    "mse" is of what the network predicts; with a learned variance there is also the bound's term,
    whose gradient reaches that variance alone (Nichol and Dhariwal 2021, eq. 16, with lambda
    1 / T). "rescaled_mse" multiplies it by T / 1000 (lambda 0.001, as there). "kl" is the bound's
    term alone, and trains mean and variance; "rescaled_kl" multiplies it by T, so that its mean
    over t is the whole bound but for the prior.

    Args:
        loss: one of these four.
        variance: of the bound's term, see `process.log_variance`.
        output: f32[B, H, W, C] or, with a learned variance, f32[B, H, W, 2C].
        x_start, x_t, eps: f32[B, H, W, C], the clean mask, the noisy one and the noise in it.
        t: i32[B].
    Returns:
        "mse" of eps, v or the mask as +-1, and "vb", in bits per pixel; or one of them.
    """
    bound = lambda output: vb_term(
        process, variance, process.predict(output, x_t, t), x_start, x_t, t
    )
    T = len(process.schedule)
    if loss in ("kl", "rescaled_kl"):
        return {"vb": bound(output) * (T if loss == "rescaled_kl" else 1)}
    predicted, values = jnp.split(output, [x_t.shape[-1]], axis=-1)
    terms = mse(predicted, process.target(x_start, t, eps))
    if values.size:
        frozen = jnp.concatenate([jax.lax.stop_gradient(predicted), values], axis=-1)
        terms["vb"] = bound(frozen) * (T / 1000 if loss == "rescaled_mse" else 1)
    return terms


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
        logits: f32[B, H, W, C], log odds of a lesion, or of each of several classes.
        mask: f32[B, H, W, C], from 0 to 1.
    Returns:
        "bce", the mean over pixels, and "dice", sum(|p - m|) / (sum(p) + sum(m) + 1): f32[B] each,
        the mean over the channels.
    """
    chex.assert_equal_shape([logits, mask])
    if logits.shape[-1] > 1:
        terms = jax.vmap(bce_dice, in_axes=-1)(logits[..., None, :], mask[..., None, :])
        return jax.tree.map(lambda term: term.mean(axis=0), terms)
    bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask), PIXELS)
    p = jax.nn.sigmoid(logits)
    dice = jnp.sum(jnp.abs(p - mask), PIXELS) / (jnp.sum(p + mask, PIXELS) + 1)
    return {"bce": bce, "dice": dice}
