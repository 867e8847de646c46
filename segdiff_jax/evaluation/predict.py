"""From a network to its predictor: of a diffusion model, a supervised one, an ensemble."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.diffusion.process import Process
from segdiff_jax.evaluation.denoise import DiffusionPredictor
from segdiff_jax.evaluation.predictor import FLIPS, Predictor, mirrored, mirrored_back
from segdiff_jax.models import is_diffusion


class SupervisedPredictor(Predictor):
    """One pass for each image or, with `sampler.flips`, for each of its four mirror images."""

    def __init__(self, model: nn.Module, sampler: ConfigDict):
        """As `make_predictor`."""
        flips = len(FLIPS) if sampler.flips else 1
        super().__init__(sampler, flips, {"__call__": flips})
        self._segment = parallel.pmap_map(functools.partial(segment, model, flips), 1)

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None] = lambda share: None,
    ) -> np.ndarray:
        """As `Predictor.__call__`; V is the number of mirror images, and `ids` are not read."""
        masks = parallel.unshard(self._segment(variables, parallel.shard(images)))
        return mirrored_back(masks, range(masks.shape[1]))


class EnsemblePredictor(Predictor):
    """The mean of several models' probabilities, such as of a diffusion and a supervised one.

    Fu et al. 2023 (MELBA 2023:016) found this ensemble the best of what they compared.
    """

    def __init__(self, members: Sequence[Predictor], sampler: ConfigDict):
        """Takes what its members say.

        Args:
            members: for images of the same size.
            sampler: its threshold is taken.
        """
        super().__init__(sampler, 1, {})
        self._members, self._ensemble = members, "mean"
        self.batch_size = min(member.batch_size for member in members)

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None] = lambda share: None,
    ) -> np.ndarray:
        """As `Predictor.__call__`, with one sample a member: 2 p - 1.

        `variables` are a sequence of those of each member.
        """
        means = []
        for k, (member, own) in enumerate(zip(self._members, variables, strict=True)):
            so_far = lambda share, k=k: progress((k + share) / len(self._members))
            samples = member(own, images, ids, so_far)
            means.append([2 * member.combine(samples[:, i])[0] - 1 for i in range(len(images))])
        return np.array(means, np.float32)


def make_predictor(
    model: nn.Module,
    process: Process,
    sampler: ConfigDict,
    seed: int,
) -> Predictor:
    """The predictor of a network. Compiles nothing yet.

    Args:
        model: a diffusion model, with `encode_image` and `denoise`, or a supervised one.
        process: of the training of a diffusion model; it is respaced here.
        sampler: `config.sampler`; of it, supervised models read flips, ensemble, threshold and
            max_batch only.
        seed: of the samples.
    Raises:
        ValueError: naming a field of `sampler` that does not fit.
    """
    if is_diffusion(model):
        return DiffusionPredictor(model, process, sampler, seed)
    return SupervisedPredictor(model, sampler)


def segment(model: nn.Module, flips: int, variables: Any, images: Array) -> Array:
    """Masks of u8[B, S, S, 3] and of its mirror images: f32[B, flips, S, S].

    They are 2 p - 1 = tanh(logits / 2).
    """
    logits = model.apply(variables, mirrored(images, flips))[..., 0]
    return jnp.tanh(logits / 2).reshape(-1, flips, *logits.shape[1:])
