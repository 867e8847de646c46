"""Reverse diffusion: one function per solver's step, and the only loop over time.

A step(schedule, prediction, x_t, t, noise, previous) goes from x_t to x_s, where s is the next less
noisy step of the schedule (x_0 after the last). `prediction` is the network's for x_t, `noise` is
standard normal and ignored at t = 0, `previous` is the x_start of the step before. Arrays are
f32[B, H, W, C]; `t` is i32[] and indexes the schedule.
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
    previous: Array | None = None,
    variance: str = "fixed_large",
) -> Array:
    """x_s ~ N(posterior mean, variance), an ancestral step (Ho et al. 2020, algorithm 2).

    `variance`: see `process.log_variance`.
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
    previous: Array | None = None,
    eta: float = 0.0,
) -> Array:
    """One DDIM step (Song et al. 2021, eq. 12 and 16).

    `eta` 0 is deterministic; 1 is as noisy as DDPM with the posterior's variance.
    """
    abar_s = schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt(schedule.posterior_variance)
    mean = (
        at(np.sqrt(abar_s), t, x_t.ndim) * prediction.x_start
        + at(np.sqrt(1 - abar_s - sigma**2), t, x_t.ndim) * prediction.eps
    )
    return mean + at(sigma, t, x_t.ndim) * noise if eta else mean


def dpm_solver_pp_2m_step(
    schedule: Schedule,
    prediction: Prediction,
    x_t: Array,
    t: Array,
    noise: Array,
    previous: Array,
) -> Array:
    """One step of the second-order multistep DPM-Solver++ (Lu et al. 2022, algorithm 2).

    With lambda = log(sqrt(abar) / sqrt(1 - abar)), h its growth in this step and r the growth in
    the step before, divided by h:

        D   = x_0(x_t) + (x_0(x_t) - previous) / (2 r)
        x_s = sqrt((1 - abar_s) / (1 - abar_t)) x_t + sqrt(abar_s) (1 - exp(-h)) D

    The first step has no predecessor and the last has h infinite: there D is x_0(x_t), which
    makes the step DDIM's. The solver is deterministic and ignores the noise.
    """
    abar_t, abar_s = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    ratio = np.sqrt((1 - abar_s) / (1 - abar_t))
    lam = 0.5 * np.log(abar_t / (1 - abar_t))
    h = lam[:-1] - lam[1:]  # Of the steps from t = 1, 2, ...
    half_over_r = np.zeros_like(abar_t)
    half_over_r[1:-1] = h[:-1] / (2 * h[1:])
    x_start = prediction.x_start
    estimate = x_start + at(half_over_r, t, x_t.ndim) * (x_start - previous)
    # sqrt(abar_s) exp(-h) = ratio sqrt(abar_t), which is finite at the last step too.
    gain = np.sqrt(abar_s) - ratio * np.sqrt(abar_t)
    return at(ratio, t, x_t.ndim) * x_t + at(gain, t, x_t.ndim) * estimate


STEPS = {"ddpm": ddpm_step, "ddim": ddim_step, "dpm_solver_pp_2m": dpm_solver_pp_2m_step}
# The number for which a noise function draws x_T; no step has it.
START = 2**31 - 1


def gaussian_noise(keys: Array, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """t -> standard normal f32[B, *shape].

    Each example draws from its own key in key[B], so that batching does not change it.
    """

    def noise_fn(t: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    return noise_fn


def field_noise(keys: Array, pixels: Array, channels: int) -> Callable[[Array], Array]:
    """t -> standard normal f32[B, H, W, C] that belongs to the pixels of a large image.

    Windows of the image share it: `pixels` u32[B, H, W] has a number for each pixel of the image.
    `keys`: key[B].
    """

    def noise_fn(t: Array) -> Array:
        def one(key, pixels):
            draw = lambda pixel: jax.random.normal(jax.random.fold_in(key, pixel), (channels,))
            return jax.vmap(jax.vmap(draw))(pixels)

        return jax.vmap(one)(jax.vmap(jax.random.fold_in, (0, None))(keys, t), pixels)

    return noise_fn


def sample(
    denoise_fn: Callable[[Array, Array, Array], Prediction],
    x_T: Array,
    schedule: Schedule,
    step_fn: Callable[..., Array],
    noise_fn: Callable[[Array], Array],
    timesteps: Array | None = None,
    previous: Array | None = None,
) -> tuple[Array, Array]:
    """Steps from x_T back to x_0, in one `lax.scan`.

    A chain may be walked in parts, each beginning with what the part before returned.

    Args:
        denoise_fn: (x_t, t, previous) -> Prediction.
        x_T: standard normal; in a later part, where the one before ended.
        schedule: the chain to walk, usually respaced.
        step_fn: one of `STEPS`, with its options bound.
        noise_fn: t -> f32[B, H, W, C].
        timesteps: i32[N], descending, the steps of this part; None: all of the schedule.
        previous: the x_start of the step before. None: zero, as at the start of a chain; in the
            middle of one, the multistep solver would take zero for the step before.
    Returns:
        x_0, or x_s where the part ends, and the x_start of its last step.
    """

    def body(carry, t):
        x_t, previous = carry
        prediction = denoise_fn(x_t, t, previous)
        x_s = step_fn(schedule, prediction, x_t, t, noise_fn(t), previous)
        return (x_s, prediction.x_start), None

    if timesteps is None:
        timesteps = jnp.arange(len(schedule), dtype=jnp.int32)[::-1]
    if previous is None:
        previous = jnp.zeros_like(x_T)
    return jax.lax.scan(body, (x_T, previous), timesteps)[0]
