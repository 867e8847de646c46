"""The original's losses: the squared error, a learned variance and the variational bound."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from segdiff_jax.diffusion.process import Process
from segdiff_jax.original.bound import PIXELS, vb_term


def mse(process: Process, output: Array, noised: Any) -> dict[str, Array]:
    """mean (output - target)^2 over pixels (Ho et al. 2020, eq. 14)."""
    target = process.target(noised.x_start, noised.t, noised.eps)
    chex.assert_equal_shape([output, target])
    return {"mse": jnp.mean(jnp.square(output - target), PIXELS)}


def bound_loss(name: str, variance: str) -> Callable[[Process, Array, Any], dict[str, Array]]:
    """A loss(process, output, noised), see `methods.losses`, for a variance of `log_variance`.

    "mse" is the squared error of the prediction; with a learned variance the bound's term is added,
    whose gradient reaches the variance alone (Nichol and Dhariwal 2021, eq. 16, with lambda 1 / T).
    "rescaled_mse" multiplies that term by T / 1000 (lambda 0.001, as there). "kl" is the bound's
    term alone and trains mean and variance; "rescaled_kl" multiplies it by T, so that its mean over
    t is the whole bound without the prior.
    """

    def loss(process: Process, output: Array, noised: Any) -> dict[str, Array]:
        """f32[B, H, W, C], or 2C with a learned variance -> "mse" and "vb" (bits per pixel)."""
        x_start, t, x_t = noised.x_start, noised.t, noised.x_t
        bound = lambda output: vb_term(
            process, variance, process.predict(output, x_t, t), x_start, x_t, t
        )
        T = len(process.schedule)
        if name in ("kl", "rescaled_kl"):
            return {"vb": bound(output) * (T if name == "rescaled_kl" else 1)}
        predicted, values = jnp.split(output, [x_t.shape[-1]], axis=-1)
        terms = mse(process, predicted, noised)
        if values.size:
            frozen = jnp.concatenate([jax.lax.stop_gradient(predicted), values], axis=-1)
            terms["vb"] = bound(frozen) * (T / 1000 if name == "rescaled_mse" else 1)
        return terms

    return loss
