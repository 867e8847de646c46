"""What all predictors share: from a batch of images to samples of their masks."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.evaluation.ensemble import (
    ENSEMBLES,
    Combined,
    resize_samples,
    standard_deviation,
    temper,
    to_mask,
    vote_disagreement,
)

# How a vote sees the image: so many quarter turns, then flipped along these axes.
View = tuple[int, tuple[int, ...]]
FLIPS = (), (1,), (0,), (0, 1)
# Called with t, x_t f32[B, S, S] or, of several classes, f32[B, S, S, K] and the estimate of x_0,
# from x_T on; clean masks are -1 or +1.
Trace = Callable[[int, np.ndarray, np.ndarray], None]


class Predictor:
    """From images to samples of their masks, on all devices; `make_predictor` chooses which.

    Attributes:
        batch_size: most images of one call, a multiple of the number of devices.
        passes: by method of the network, how often it runs for one image; of an ensemble, none.
    """

    def __init__(
        self, sampler: ConfigDict, samples: int, passes: dict[str, int], channels: int = 1
    ):
        """Checks what all kinds read of `sampler`.

        Args:
            samples: of an image that are made at once.
            passes: see above.
            channels: of a mask.
        """
        self.passes = passes
        check_choice(sampler, "ensemble", ENSEMBLES)
        if sampler.ensemble == "staple" and channels > 1:
            raise ValueError(
                "sampler.ensemble='staple' is of masks of two classes: with data.classes, choose "
                "'mean' or 'vote'"
            )
        check_positive(sampler, "max_batch")
        if not 0 < sampler.threshold < 1:
            raise ValueError(f"sampler.threshold={sampler.threshold} must be between 0 and 1")
        if not sampler.temperature > 0:
            raise ValueError(f"sampler.temperature={sampler.temperature} must be above 0")
        self._ensemble, self._threshold = sampler.ensemble, sampler.threshold
        self._temperature = sampler.temperature
        self.batch_size = parallel.round_up(1) * max(1, sampler.max_batch // samples)

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None] = lambda share: None,
        trace: Trace | None = None,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples every image.

        Args:
            variables: of the network.
            images: u8[B, S, S, 3], B a multiple of the number of devices.
            ids: B names; an image's noise follows from the seed, its name and the vote alone.
            progress: called with the share of the work that is done, now and then.
            trace: of a diffusion model, is shown how the first vote of the images, or of the first
                ones of them, comes about.
            places: i32[B, 2], row and column of each image in a larger one of its name, whose noise
                it shares; None: they are whole.
        Returns:
            f32[V, B, S, S] or, of several classes, f32[V, B, S, S, K], where clean masks are -1 or
            +1; V is `sampler.votes` of a diffusion model, the number of views of a supervised one,
            and of an ensemble that of its members.
        Raises:
            ValueError: if not even one sample a device fits into `sampler.max_memory`.
        """
        return self._sample(variables, images, ids, progress, trace, places)

    def _sample(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None],
        trace: Trace | None,
        places: np.ndarray | None,
    ) -> np.ndarray:
        raise NotImplementedError

    def seeded(self, seed: int) -> "Predictor":
        """The same, with other noise, of which nothing is compiled again."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def combine(self, samples: np.ndarray) -> Combined:
        """One image's samples f32[V, H, W] or f32[V, H, W, K] as one mask."""
        probability = temper(ENSEMBLES[self._ensemble](samples), self._temperature)
        deviation = standard_deviation(samples) if len(samples) > 1 else None
        return Combined(to_mask(probability, self._threshold), probability, deviation)

    def at_size(self, samples: np.ndarray, size: tuple[int, int]) -> Combined:
        """Likewise, as one mask of its own size (height, width)."""
        combined = self.combine(resize_samples(samples, size))
        return dataclasses.replace(combined, uncertainty=vote_disagreement(samples))


def check_choice(sampler: ConfigDict, field: str, choices: Collection[str]) -> None:
    """Raises a ValueError that names the field if its value is none of `choices`."""
    if sampler[field] not in choices:
        raise ValueError(f"sampler.{field}={sampler[field]!r}: choose one of {sorted(choices)}")


def check_positive(sampler: ConfigDict, field: str) -> None:
    """Raises a ValueError that names the field if it is under 1."""
    if sampler[field] < 1:
        raise ValueError(f"sampler.{field}={sampler[field]} must be at least 1")


def views_of(sampler: ConfigDict) -> tuple[View, ...]:
    """By `sampler.flips` and `sampler.rotations`; the first is the image as it is."""
    if sampler.rotations:
        flips = FLIPS if sampler.flips else (FLIPS[0], FLIPS[3])  # Two turns flip both ways.
        return tuple((turns, axes) for axes in flips for turns in (0, 1))
    return tuple((0, axes) for axes in (FLIPS if sampler.flips else FLIPS[:1]))


def seen(images: Array, views: Sequence[View]) -> Array:
    """u8[B, S, S, 3] -> f32[B * views, S, S, 3], normalised, each image's views in a row."""
    see = lambda image: jnp.stack([jnp.flip(jnp.rot90(image, k), axes) for k, axes in views])
    return normalise_image(jax.vmap(see)(images).reshape(-1, *images.shape[1:]))


def seen_back(masks: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """f32[B, V, S, S, ...], vote i of views[i] -> f32[V, B, S, S, ...], as the images lie."""
    back = lambda mask, k, axes: np.rot90(np.flip(mask, axes), -k)
    return np.stack([[back(mask, *v) for mask in masks[:, i]] for i, v in enumerate(views)])
