"""The variational bound of a mask's negative log likelihood, in bits per pixel.

L = L_0 + ... + L_T (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 4). t counts from 0; the term
at t belongs to the step from x_t to x_{t-1}, at t = 0 to the mask itself. Shapes and ranges are as
in `diffusion.process`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from segdiff_jax.diffusion.process import (
    Prediction,
    Process,
    log_variance,
    posterior_mean,
    q_sample,
)

PIXELS = (1, 2, 3)
HALF_BIN = 1 / 255  # of the 256 values of 8 bits, from -1 to +1
LEAST_PROBABILITY = 1e-12
LEAST_TAIL = 2.0**-25  # less than that beside 1 is nothing in float32


class Bound(NamedTuple):
    """The bound and its parts, for the S steps of the schedule."""

    total: Array  # f32[B], bits per pixel, `prior` and all of `vb`
    prior: Array  # f32[B], `prior_term`
    vb: Array  # f32[B, S], `vb_term` at each step t
    x_start_mse: Array  # f32[B, S], mean squared error of the estimated mask, as +-1
    eps_mse: Array  # f32[B, S], mean squared error of the noise which leads from it to x_t


def normal_kl(mean1: ArrayLike, log_v1: ArrayLike, mean2: ArrayLike, log_v2: ArrayLike) -> Array:
    """KL(N(mean1, v1) || N(mean2, v2)) in nats, element by element.

    (log v2/v1 + (v1 + (mean1 - mean2)^2) / v2 - 1) / 2 (Nichol and Dhariwal 2021, eqs. 6 and 7).
    """
    ratio = jnp.exp(log_v1 - log_v2)
    distance = jnp.square(mean1 - mean2) * jnp.exp(-log_v2)
    return 0.5 * (log_v2 - log_v1 + ratio + distance - 1)


def normal_cdf(x: Array) -> Array:
    """(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, within 0.0003 of the standard normal's.

    As in the original and in GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).
    """
    # As a sigmoid, since XLA's tanh is too rough for the tails.
    return jax.nn.sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def discretised_log_likelihood(x: Array, mean: Array, log_scale: Array) -> Array:
    """log p(x), where N(mean, scale^2) is cut into 256 values, 8 bits (Ho et al. 2020, eq. 13).

    In nats; x is from -1 to +1, and arguments broadcast. The outermost bins, of which masks are
    made, reach to infinity. No probability is less than 1e-12, and less than 3e-8 in those bins
    counts as 1e-12: the original takes the upper tail from 1 in float32.
    """
    upper = (x - mean + HALF_BIN) * jnp.exp(-log_scale)
    lower = (x - mean - HALF_BIN) * jnp.exp(-log_scale)
    tail = jnp.where(x > 0, normal_cdf(-lower), normal_cdf(upper))
    tail = jnp.where(tail < LEAST_TAIL, 0.0, tail)
    p = jnp.where(jnp.abs(x) > 0.999, tail, normal_cdf(upper) - normal_cdf(lower))
    return jnp.log(jnp.maximum(p, LEAST_PROBABILITY))


def vb_term(
    process: Process, variance: str, prediction: Prediction, x_start: Array, x_t: Array, t: Array
) -> Array:
    """The bound's term at t (Nichol and Dhariwal 2021, eqs. 5 and 6).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 0, -log p(x_0 | x_1) of the mask's values
    as 8 bits. f32[B], bits per pixel. `variance` of p: see `log_variance`.
    """
    schedule, b = process.schedule, process.input_scale
    true_mean = posterior_mean(schedule, x_start, x_t, t)
    true_log_var = log_variance(schedule, "fixed_small", t, x_t.ndim)
    mean = posterior_mean(schedule, prediction.x_start, x_t, t)
    log_var = log_variance(schedule, variance, t, x_t.ndim, prediction.variance_values)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    decoder = -discretised_log_likelihood(x_start / b, mean / b, 0.5 * log_var - np.log(b))
    return jnp.where(t == 0, _bits_per_pixel(decoder), _bits_per_pixel(kl))


def prior_term(process: Process, x_start: Array) -> Array:
    """KL(q(x_T | x_0) || N(0, 1)) (Nichol and Dhariwal 2021, eq. 7): f32[B], bits per pixel."""
    abar = process.schedule.alphas_cumprod[-1]
    return _bits_per_pixel(normal_kl(np.sqrt(abar) * x_start, np.log(1 - abar), 0.0, 0.0))


def variational_bound(
    process: Process, variance: str, denoise_fn: Callable, x_start: Array, noise_fn: Callable
) -> Bound:
    """The whole bound, each term at one noisy mask (Nichol and Dhariwal 2021, eq. 4).

    `denoise_fn` is (x_t, t i32[]) -> Prediction. `variance`: see `log_variance`; `noise_fn`: see
    `samplers.gaussian_noise`. The schedule of the process may be respaced.
    """

    def terms(t):
        noise = noise_fn(t)
        x_t = q_sample(process.schedule, x_start, t, noise)
        prediction = denoise_fn(x_t, t)
        error = (prediction.x_start - x_start) / process.input_scale
        return (
            vb_term(process, variance, prediction, x_start, x_t, t),
            jnp.mean(jnp.square(error), PIXELS),
            jnp.mean(jnp.square(prediction.eps - noise), PIXELS),
        )

    steps = jnp.arange(len(process.schedule), dtype=jnp.int32)
    vb, x_start_mse, eps_mse = (x.T for x in jax.lax.map(terms, steps))
    prior = prior_term(process, x_start)
    return Bound(prior + vb.sum(1), prior, vb, x_start_mse, eps_mse)


def _bits_per_pixel(nats: Array) -> Array:
    return jnp.mean(nats, PIXELS) / np.log(2)
