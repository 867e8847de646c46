"""Reverse diffusion: one function per solver's step, and the only loop over time.

A step function takes a `Step` and returns x_s. s is the next less noisy step; the last gives x_0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.diffusion.process import Prediction, at, log_variance, posterior_mean
from segdiff_jax.diffusion.schedule import Schedule


class Step(NamedTuple):
    """What a solver's step starts from; arrays are f32[B, H, W, C]."""

    schedule: Schedule  # the chain
    prediction: Prediction  # what the network says about x_t
    x_t: Array
    t: Array  # i32[], indexes the schedule
    noise: Array  # standard normal, ignored at t = 0
    previous: Array | None = None  # the x_start of the step before

    def at(self, table: np.ndarray) -> Array:
        """The schedule's `table` at t, see `process.at`."""
        return at(table, self.t, self.x_t.ndim)


def ddpm_step(step: Step, variance: str = "fixed_large") -> Array:
    """x_s ~ N(posterior mean, `log_variance`), an ancestral step (Ho et al. 2020, algorithm 2)."""
    schedule, prediction, x_t, t, noise, _ = step
    mean = posterior_mean(schedule, prediction.x_start, x_t, t)
    log_var = log_variance(schedule, variance, t, x_t.ndim, prediction.variance_values)
    return mean + jnp.where(t > 0, jnp.exp(0.5 * log_var), 0.0) * noise


def ddim_step(step: Step, eta: float = 0.0) -> Array:
    """One DDIM step (Song et al. 2021, eq. 12 and 16).

    `eta` 0 is deterministic; 1 is as noisy as DDPM with the posterior's variance.
    """
    abar_s, (x_start, eps, _) = step.schedule.alphas_cumprod_prev, step.prediction
    sigma = eta * np.sqrt(step.schedule.posterior_variance)
    mean = step.at(np.sqrt(abar_s)) * x_start + step.at(np.sqrt(1 - abar_s - sigma**2)) * eps
    return mean + step.at(sigma) * step.noise if eta else mean


def dpm_solver_pp_2m_step(step: Step) -> Array:
    """One step of the second-order multistep DPM-Solver++ (Lu et al. 2022, algorithm 2).

    With lambda = log(sqrt(abar) / sqrt(1 - abar)), h its growth in this step and r the growth in
    the step before, divided by h:

        D   = x_0(x_t) + (x_0(x_t) - previous) / (2 r)
        x_s = sqrt((1 - abar_s) / (1 - abar_t)) x_t + sqrt(abar_s) (1 - exp(-h)) D

    The first step has no predecessor and the last has h infinite: there D is x_0(x_t), which
    makes the step DDIM's. The solver is deterministic and ignores the noise.
    """
    abar_t, abar_s = step.schedule.alphas_cumprod, step.schedule.alphas_cumprod_prev
    ratio = np.sqrt((1 - abar_s) / (1 - abar_t))
    lam = 0.5 * np.log(abar_t / (1 - abar_t))
    h = lam[:-1] - lam[1:]  # Of the steps from t = 1, 2, ...
    half_over_r = np.zeros_like(abar_t)
    half_over_r[1:-1] = h[:-1] / (2 * h[1:])
    x_start = step.prediction.x_start
    estimate = x_start + step.at(half_over_r) * (x_start - step.previous)
    # sqrt(abar_s) exp(-h) = ratio sqrt(abar_t), which is finite at the last step too.
    gain = np.sqrt(abar_s) - ratio * np.sqrt(abar_t)
    return step.at(ratio) * step.x_t + step.at(gain) * estimate


STEPS = {"ddpm": ddpm_step, "ddim": ddim_step, "dpm_solver_pp_2m": dpm_solver_pp_2m_step}
# The number for which a noise function draws x_T; no step has it.
START = 2**31 - 1


def gaussian_noise(keys: Array, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """t -> standard normal f32[B, *shape].

    Each example draws from its own key in key[B], so that batching does not change it.
    """
    return _noise(lambda key: jax.random.normal(key, shape), keys)


def uniform_noise(keys: Array, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """The same, uniform from 0 to 1, both excluded."""
    return _noise(lambda key: jax.random.uniform(key, shape, minval=1e-6), keys)


def _noise(draw: Callable[[Array], Array], keys: Array) -> Callable[[Array], Array]:
    """t -> what `draw` gives for the key of each example and t."""
    return lambda t: jax.vmap(lambda key: draw(jax.random.fold_in(key, t)))(keys)


def field_noise(keys: Array, pixels: Array, channels: int) -> Callable[[Array], Array]:
    """t -> standard normal f32[B, H, W, C] that belongs to the pixels of a large image.

    `keys`: key[B]; `pixels`: u32[B, H, W], a number for each pixel of the image. Windows share it.
    """
    draw = lambda key, pixel: jax.random.normal(jax.random.fold_in(key, pixel), (channels,))
    draw_rows = jax.vmap(jax.vmap(draw, (None, 0)), (None, 0))
    draw_all = lambda key, pixels, t: draw_rows(jax.random.fold_in(key, t), pixels)
    return lambda t: jax.vmap(draw_all, (0, 0, None))(keys, pixels, t)


def sample(
    denoise_fn: Callable[[Array, Array, Array], Prediction],
    x_T: Array,
    schedule: Schedule,
    step_fn: Callable[[Step], Array],
    noise_fn: Callable[[Array], Array],
    timesteps: Array | None = None,
    previous: Array | None = None,
) -> tuple[Array, Array]:
    """Steps from x_T back to x_0, in one `lax.scan`; returns x_0 and the x_start of the last step.

    `denoise_fn` is (x_t, t, previous) -> Prediction, and x_T is f32[B, H, W, C], standard normal.
    `schedule` is usually respaced; `step_fn` is one of `STEPS`, with its options bound. `previous`
    is the x_start of the step before; None: zero, as at the start of a chain. `timesteps`, i32[N],
    are the steps of one part of the chain, descending; None: all. The next part starts from what
    this one returns, as its `x_T` and `previous`.
    """

    def body(carry, t):
        x_t, previous = carry
        prediction = denoise_fn(x_t, t, previous)
        x_s = step_fn(Step(schedule, prediction, x_t, t, noise_fn(t), previous))
        return (x_s, prediction.x_start), None

    if timesteps is None:
        timesteps = jnp.arange(len(schedule), dtype=jnp.int32)[::-1]
    if previous is None:
        previous = jnp.zeros_like(x_T)
    return jax.lax.scan(body, (x_T, previous), timesteps)[0]
