"""What all predictors share: from a batch of images to samples of their masks."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.evaluation.ensemble import ENSEMBLES, to_mask

# The axes of an image or mask along which each of its mirror images is flipped.
FLIPS = (), (1,), (0,), (0, 1)


class Predictor:
    """From images to samples of their masks, on all devices; `make_predictor` chooses which.

    Attributes:
        batch_size: most images of one call, a multiple of the number of devices.
        passes: by method of the network, how often it runs for one image; of an ensemble, none.
    """

    def __init__(self, sampler: ConfigDict, samples: int, passes: dict[str, int]):
        """Checks what all kinds read of `sampler`; `samples` of an image are made at once."""
        self.passes = passes
        check_choice(sampler, "ensemble", ENSEMBLES)
        check_positive(sampler, "max_batch")
        if not 0 < sampler.threshold < 1:
            raise ValueError(f"sampler.threshold={sampler.threshold} must be between 0 and 1")
        self._ensemble, self._threshold = sampler.ensemble, sampler.threshold
        self.batch_size = parallel.round_up(1) * max(1, sampler.max_batch // samples)

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None] = lambda share: None,
    ) -> np.ndarray:
        """Samples every image.

        Args:
            variables: of the network.
            images: u8[B, S, S, 3], B a multiple of the number of devices.
            ids: B names; an image's noise follows from the seed, its name and the vote alone.
            progress: called with the share of the work that is done, now and then.
        Returns:
            f32[V, B, S, S], where clean masks are -1 or +1.
        """
        raise NotImplementedError

    def combine(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One image's samples f32[V, H, W] as probability f32[H, W] and mask bool[H, W]."""
        probability = ENSEMBLES[self._ensemble](samples)
        return probability, to_mask(probability, self._threshold)


def check_choice(sampler: ConfigDict, field: str, choices: Collection[str]) -> None:
    """Raises a ValueError that names the field if its value is none of `choices`."""
    if sampler[field] not in choices:
        raise ValueError(f"sampler.{field}={sampler[field]!r}: choose one of {sorted(choices)}")


def check_positive(sampler: ConfigDict, field: str) -> None:
    """Raises a ValueError that names the field if it is under 1."""
    if sampler[field] < 1:
        raise ValueError(f"sampler.{field}={sampler[field]} must be at least 1")


def mirrored(images: Array, flips: int) -> Array:
    """u8[B, S, S, 3] -> f32[B * flips, S, S, 3], normalised; `flips` is how many of `FLIPS`."""
    mirrors = jax.vmap(lambda image: jnp.stack([jnp.flip(image, axes) for axes in FLIPS[:flips]]))
    return normalise_image(mirrors(images).reshape(-1, *images.shape[1:]))


def mirrored_back(masks: np.ndarray, flips: Sequence[int]) -> np.ndarray:
    """f32[B, V, S, S], vote i of the flips[i]-th of `FLIPS` -> f32[V, B, S, S], flipped back."""
    return np.stack(
        [[np.flip(mask, FLIPS[k]) for mask in masks[:, i]] for i, k in enumerate(flips)]
    )
