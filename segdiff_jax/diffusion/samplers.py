"""Reverse diffusion: one function per solver's step, and the only loop over time.

A step goes from x_t to x_s, s being the next less noisy step of the schedule (x_0 after the last).
All arrays are f32[B, H, W, C]; `t` is an i32 scalar that indexes the schedule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.diffusion.process import Prediction, at, log_variance, posterior_mean
from segdiff_jax.diffusion.schedule import Schedule


def ddpm_step(
    schedule: Schedule,
    prediction: Prediction,
    x_t: Array,
    t: Array,
    noise: Array,
    variance: str = "fixed_large",
) -> Array:
    """One ancestral step: x_s ~ N(posterior mean, variance) (Ho et al. 2020, algorithm 2).

    Args:
        noise: standard normal, ignored at t = 0.
        variance: see `process.log_variance`.
    Returns:
        x_s.
    """
    mean = posterior_mean(schedule, prediction.x_start, x_t, t)
    log_var = log_variance(schedule, variance, t, x_t.ndim, prediction.variance_values)
    return mean + jnp.where(t > 0, jnp.exp(0.5 * log_var), 0.0) * noise


def ddim_step(
    schedule: Schedule,
    prediction: Prediction,
    x_t: Array,
    t: Array,
    noise: Array,
    eta: float = 0.0,
) -> Array:
    """One DDIM step (Song et al. 2021, eq. 12 and 16).

    Args:
        noise: standard normal, ignored at t = 0 and where eta is 0.
        eta: 0 is deterministic; 1 is as noisy as DDPM with the posterior's variance.
    Returns:
        x_s.
    """
    abar_s = schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt(schedule.posterior_variance)
    mean = (
        at(np.sqrt(abar_s), t, x_t.ndim) * prediction.x_start
        + at(np.sqrt(1 - abar_s - sigma**2), t, x_t.ndim) * prediction.eps
    )
    return mean + at(sigma, t, x_t.ndim) * noise if eta else mean


STEPS = {"ddpm": ddpm_step, "ddim": ddim_step}
# Where x_T is drawn from a noise function: no step's number, so that x_T does not depend on theirs.
START = 2**31 - 1


def gaussian_noise(keys: Array, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Noise that each example draws from its own key, so that batching does not change it.

    Args:
        keys: key[B], one per example.
        shape: of one example.
    Returns:
        A function from an i32 scalar to standard normal f32[B, *shape].
    """

    def noise_fn(t: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    return noise_fn


def sample(
    denoise_fn: Callable[[Array, Array], Prediction],
    x_T: Array,
    schedule: Schedule,
    step_fn: Callable[..., Array],
    noise_fn: Callable[[Array], Array],
) -> Array:
    """Steps from x_T back to x_0 through every step of the schedule, in one `lax.scan`.

    Args:
        denoise_fn: (x_t, t) -> Prediction.
        x_T: f32[B, H, W, C], standard normal.
        schedule: the chain to walk, usually respaced.
        step_fn: one of `STEPS`, with its options bound.
        noise_fn: t -> f32[B, H, W, C], see `gaussian_noise`.
    Returns:
        f32[B, H, W, C], x_0.
    """

    def body(x_t, t):
        return step_fn(schedule, denoise_fn(x_t, t), x_t, t, noise_fn(t)), None

    x_0, _ = jax.lax.scan(body, x_T, jnp.arange(len(schedule), dtype=jnp.int32)[::-1])
    return x_0
