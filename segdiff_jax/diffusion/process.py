"""The forward process q, and what the output of a network says about x_0.

`x_start`, `x_t`, `eps`, `v` and the network's `output` are f32[B, H, W, C]. A timestep `t` is i32[]
or i32[B] and indexes the tables of the schedule. Clean masks are from -b to +b (`input_scale`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.diffusion.schedule import Schedule, make_schedule

PREDICTIONS = ("eps", "x0", "v")
WEIGHTS = ("simple", "min_snr")
MIN_SNR_GAMMA = 5.0
VARIANCES = ("fixed_large", "fixed_small", "learned_range")
OF_LOGITS = "bce", "bce_dice"  # losses of the logits of x_0


class Prediction(NamedTuple):
    """What the network says about a noisy mask."""

    x_start: Array  # the estimate of the clean mask
    eps: Array  # the noise that leads from x_start to x_t
    variance_values: Array | None = None  # in [-1, 1], for a learned variance


def at(table: np.ndarray, t: Array, ndim: int) -> Array:
    """`table[t]` in float32, shaped to broadcast against an array of `ndim` axes."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _signal_and_noise(schedule: Schedule, t: Array, ndim: int) -> tuple[Array, Array]:
    """sqrt(abar_t) and sqrt(1 - abar_t), shaped as by `at`."""
    abar = schedule.alphas_cumprod
    return at(np.sqrt(abar), t, ndim), at(np.sqrt(1 - abar), t, ndim)


def q_sample(schedule: Schedule, x_start: Array, t: Array, eps: Array) -> Array:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4)."""
    if x_start.shape != eps.shape:
        raise ValueError(f"x_start has shape {x_start.shape} but eps has {eps.shape}")
    signal, noise = _signal_and_noise(schedule, t, eps.ndim)
    return signal * x_start + noise * eps


def posterior_mean(schedule: Schedule, x_start: Array, x_t: Array, t: Array) -> Array:
    """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
    coef1 = at(schedule.posterior_mean_coef1, t, x_t.ndim)
    coef2 = at(schedule.posterior_mean_coef2, t, x_t.ndim)
    return coef1 * x_start + coef2 * x_t


def log_variance(
    schedule: Schedule, variance: str, t: Array, ndim: int, values: Array | None = None
) -> Array:
    """Log of the variance of p(x_{t-1} | x_t), to broadcast against `ndim` axes.

    "fixed_large" is beta_t and "fixed_small" the posterior's (Ho et al. 2020, section 3.2);
    "learned_range" interpolates their logs by `values`, -1 for the small and +1 for the large
    (Nichol and Dhariwal 2021, eq. 15). A ValueError if the name is unknown or `values` are missing.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance {variance!r} is unknown: choose one of {VARIANCES}")
    small = at(schedule.posterior_log_variance_clipped, t, ndim)
    if variance == "fixed_small":
        return small
    if variance == "fixed_large":
        return at(np.log(schedule.fixed_large_variance), t, ndim)
    if values is None:
        raise ValueError("'learned_range' needs a network with twice the channels of the mask")
    fraction = (values + 1) / 2
    return fraction * at(np.log(schedule.betas), t, ndim) + (1 - fraction) * small


@dataclasses.dataclass(frozen=True)
class Process:
    """How masks become noise, and how the network's output becomes a prediction.

    A smaller b, `input_scale`, hides the mask in the noise at more of the timesteps, which forces
    the network to look at the image (Chen et al. 2022, arXiv 2210.06366; Chen 2023, arXiv
    2301.10972). b = 1 without `normalise_input` is the original. With `clip`, x_start stays within
    +-b, and eps is recomputed from it: near t = T, x_start from eps amplifies the network's errors
    200 times. With `self_conditioning`, the network also sees its estimate of the clean mask from
    the step before, zero at first (Chen et al. 2023, arXiv 2208.04202, section 2.2).
    """

    schedule: Schedule  # the chain of noise levels; replaced to sample with fewer steps
    prediction: str = "eps"  # what the output estimates: "eps", "x0" or "v"
    logits: bool = False  # the output is logits of x0, and the expected mask tanh(output / 2)
    input_scale: float = 1.0
    normalise_input: bool = False  # divide x_t by its deviation, sqrt(abar_t b^2 + 1 - abar_t)
    clip: bool = False
    self_conditioning: bool = False
    mask_channels: int = 1  # C; with several classes, +b where the class is, -b elsewhere

    def __post_init__(self):
        if self.prediction not in PREDICTIONS or (self.logits and self.prediction != "x0"):
            raise ValueError(
                f"prediction {self.prediction!r} with logits={self.logits}: choose one of "
                f"{PREDICTIONS}; logits need 'x0'"
            )

    @property
    def input_channels(self) -> int:
        """Channels of the network's noisy input."""
        return self.mask_channels * (1 + self.self_conditioning)

    def network_input(self, x_t: Array, t: Array, x_start: Array | None = None) -> Array:
        """x_t as the network sees it: f32[B, H, W, C], or 2C with `self_conditioning`.

        `x_start` is the estimate of the step before; None: there was none.
        """
        inputs = x_t
        if self.normalise_input:
            abar = self.schedule.alphas_cumprod
            inputs = x_t / at(np.sqrt(abar * self.input_scale**2 + 1 - abar), t, x_t.ndim)
        if not self.self_conditioning:
            return inputs
        estimate = jnp.zeros_like(x_t) if x_start is None else x_start / self.input_scale
        estimate = jnp.clip(estimate, -1, 1)  # From eps near t = T, it may be 200 times as large.
        return jnp.concatenate([inputs, estimate], axis=-1)

    def target(self, x_start: Array, t: Array, eps: Array) -> Array:
        """What the output should be, unless it is logits: eps, v, or the mask from -1 to +1."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "v":  # Salimans and Ho 2022, section 4.
            signal, noise = _signal_and_noise(self.schedule, t, eps.ndim)
            return signal * eps - noise * x_start
        return x_start / self.input_scale

    def loss_weights(self, weight: str) -> np.ndarray:
        """The factor of the loss at each timestep: f64[T].

        "simple" is 1 (Ho et al. 2020, eq. 14). "min_snr" weights the squared error of the mask
        (as +-1) by min(SNR_t, 5) with SNR_t = b^2 abar_t / (1 - abar_t). That is divided by SNR_t
        for eps, and by SNR_t + 1 for v at b = 1 (Hang et al. 2023, arXiv 2303.09556, section 3.4).
        Logits have the factor of x0.
        """
        if weight not in WEIGHTS:
            raise ValueError(f"weight {weight!r} is unknown: choose one of {WEIGHTS}")
        abar, b = self.schedule.alphas_cumprod, self.input_scale
        if weight == "simple":
            return np.ones_like(abar)
        snr = b**2 * abar / (1 - abar)
        # The squared error of the mask where the output's is 1.
        error = {"x0": np.ones_like(snr), "eps": 1 / snr, "v": (1 - abar) / b**2}
        return np.minimum(snr, MIN_SNR_GAMMA) * error[self.prediction]

    def predict(self, output: Array, x_t: Array, t: Array) -> Prediction:
        """Reads the output for x_t (not normalised): x_start and eps that agree with x_t.

        They solve `q_sample`'s equation, or v's (Salimans and Ho 2022, appendix D). With a learned
        variance, the output has 2C channels.
        """
        output, values, b = output.astype(jnp.float32), None, self.input_scale
        if output.shape[-1] == 2 * x_t.shape[-1]:
            output, values = jnp.split(output, 2, axis=-1)
        abar, ndim = self.schedule.alphas_cumprod, x_t.ndim
        if self.prediction == "eps":
            recip, recipm1 = at(np.sqrt(1 / abar), t, ndim), at(np.sqrt(1 / abar - 1), t, ndim)
            eps, x_start = output, recip * x_t - recipm1 * output
        elif self.prediction == "v":
            signal, noise = _signal_and_noise(self.schedule, t, ndim)
            x_start = signal * x_t - noise * output
        else:
            x_start = b * (jnp.tanh(output / 2) if self.logits else output)
        if self.clip:
            x_start = jnp.clip(x_start, -b, b)
        if self.clip or self.prediction != "eps":
            eps = self._eps(x_start, x_t, t)
        return Prediction(x_start, eps, values)

    def _eps(self, x_start: Array, x_t: Array, t: Array) -> Array:
        """The noise that leads from x_start to x_t."""
        abar, ndim = self.schedule.alphas_cumprod, x_t.ndim
        return (at(np.sqrt(1 / abar), t, ndim) * x_t - x_start) / at(np.sqrt(1 / abar - 1), t, ndim)

    def level_set(self, prediction: Prediction, x_t: Array, t: Array, u: Array) -> Prediction:
        """A level set of the predicted mask's probability instead of the mean: a sample of x_0.

        With p = (x_start / b + 1) / 2 it is {p > u}, and of C > 1 classes argmax_k log p_k + g_k,
        where g = -log(-log(u)) (the Gumbel-max trick, Maddison et al. 2014, arXiv 1411.0030). `u`,
        f32[B, 1, 1, C], is uniform from 0 to 1: one threshold for all pixels. Each pixel has the
        probability p, and the masks of different u are nested. Where x_0 given x_t is so
        distributed, a chain of any number of steps is exact with these; in the limit of many small
        steps only the mean matters, so that any distribution is sampled.
        """
        p, b = (prediction.x_start / self.input_scale + 1) / 2, self.input_scale
        chosen = p > u
        if p.shape[-1] > 1:
            scores = jnp.log(jnp.clip(p, 1e-6, 1)) - jnp.log(-jnp.log(u))
            chosen = scores == scores.max(axis=-1, keepdims=True)
        x_start = jnp.where(chosen, b, -b).astype(jnp.float32)
        return prediction._replace(x_start=x_start, eps=self._eps(x_start, x_t, t))


def make_process(diffusion: Mapping[str, Any], mask_channels: int = 1) -> Process:
    """The Process that `config.diffusion` describes."""
    return Process(
        schedule=make_schedule(diffusion["schedule"], diffusion["num_timesteps"]),
        prediction=diffusion["prediction"],
        logits=diffusion["loss"] in OF_LOGITS,
        input_scale=diffusion["input_scale"],
        normalise_input=diffusion["normalise_input"],
        self_conditioning=diffusion["self_conditioning"],
        mask_channels=mask_channels,
    )
