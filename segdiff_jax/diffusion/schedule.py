"""Noise schedules and the coefficients that follow from them: float64 numpy, no jax.

Notation (Ho et al. 2020): alpha_t = 1 - beta_t and abar_t = prod_{s<=t} alpha_s. t counts from 0 to
T - 1 (`num_timesteps`), so that `alphas_cumprod[0]` is the least noisy step.
"""

import dataclasses
import functools
import re

import numpy as np


def linear_betas(num_timesteps: int) -> np.ndarray:
    """f64[T], evenly spaced from 1e-4 to 0.02, both times 1000 / T (Ho et al. 2020, section 4)."""
    scale = 1000 / num_timesteps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"num_timesteps={num_timesteps}: the linear schedule needs more than 20 timesteps (its "
            "last beta is 20 / T); keep a longer chain and sample it in fewer steps"
        )
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def cosine_betas(num_timesteps: int) -> np.ndarray:
    """f64[T], of abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) (Nichol and Dhariwal 2021, eq. 17).

    They are at most 0.999, against a singularity at the end of the chain.
    """
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_cumprod = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}
# The spacings of `space_timesteps` with one section, by name.
SPACINGS = {"trailing": "trailing{}", "leading": "leading{}", "ddim": "ddim{}", "uniform": "{}"}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A chain of S diffusion steps and its coefficients, each f64[S].

    Attributes:
        betas: the variance that each step adds, in (0, 1].
        timesteps: i64[S], the timestep of the training chain that each step stands for, which
            the network is told. `arange(S)` unless the chain was respaced.
    """

    betas: np.ndarray
    timesteps: np.ndarray

    def __len__(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t, the share of the clean mask's variance in x_t."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """abar_{t-1}; 1 at t = 0."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7); 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """log `posterior_variance`, with the infinite first value replaced by the second."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1], variance[1:]) if len(self) > 1 else self.betas)

    @functools.cached_property
    def fixed_large_variance(self) -> np.ndarray:
        """beta_t, but the posterior's variance at t = 0 (Nichol and Dhariwal 2021, section 3.1)."""
        return np.append(np.exp(self.posterior_log_variance_clipped[0]), self.betas[1:])

    @functools.cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def make_schedule(name: str, num_timesteps: int) -> Schedule:
    """The training chain: `name` is "linear" or "cosine"; ValueError for another name or bad T."""
    if name not in BETAS or num_timesteps < 1:
        raise ValueError(
            f"schedule {name!r}, num_timesteps={num_timesteps}: choose one of {sorted(BETAS)} and "
            "at least 1"
        )
    return Schedule(BETAS[name](num_timesteps), np.arange(num_timesteps))


def space_timesteps(num_timesteps: int, spacing: str) -> np.ndarray:
    """The timesteps of a shorter chain (Nichol and Dhariwal 2021, section 4): i64[S], ascending.

    "trailing10": 10 steps that end at T - 1, none at 0 (Lin et al. 2023, table 2);
    "leading10": 10 steps from 0 by the largest stride that T allows (same table);
    "ddim10": 10 steps from 0 by the integer stride that gives 10 (the originals' DDIM);
    "10": 10 steps evenly from 0 to T - 1, both included (the originals' respacing);
    "10,15,20": the chain cut in three equal sections with 10, 15 and 20 steps.

    A ValueError says that T timesteps do not allow the steps.
    """
    kind, counts = re.fullmatch("(trailing|leading|ddim)?(.*)", spacing).groups()
    T = num_timesteps
    if kind:
        steps = _count(counts, T, spacing)
    if kind == "trailing":
        return np.round(np.arange(1, steps + 1) * T / steps).astype(np.int64) - 1
    if kind == "leading":
        return np.arange(steps) * (T // steps)
    if kind == "ddim":
        for stride in range(1, T + 1):
            if len(range(0, T, stride)) == steps:
                return np.arange(0, T, stride)
        raise ValueError(f"spacing {spacing!r}: no integer stride gives {steps} of {T} timesteps")
    sections = counts.split(",")
    small, extra = divmod(T, len(sections))
    timesteps, start = [], 0
    for i, section in enumerate(sections):
        size = small + (i < extra)
        steps = _count(section, size, spacing)
        stride = (size - 1) / (steps - 1) if steps > 1 else 1.0
        # A running sum, as in the originals: its rounding decides the ties at .5.
        timesteps.append(start + np.round(np.cumsum([0.0] + [stride] * (steps - 1))))
        start += size
    return np.concatenate(timesteps).astype(np.int64)


def _count(text: str, limit: int, spacing: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= limit:
        raise ValueError(
            f"spacing {spacing!r}: {text!r} must be a whole number of steps from 1 to {limit}"
        )
    return int(text)


def respace(schedule: Schedule, timesteps: np.ndarray) -> Schedule:
    """The chain of these timesteps, i64[S], ascending (Nichol and Dhariwal 2021, eq. 19)."""
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return Schedule(betas, schedule.timesteps[timesteps])
