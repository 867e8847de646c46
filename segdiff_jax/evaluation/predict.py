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
from segdiff_jax.evaluation.predictor import Predictor, Trace, View, seen, seen_back, views_of
from segdiff_jax.evaluation.windows import WindowedPredictor
from segdiff_jax.models import is_diffusion


class SupervisedPredictor(Predictor):
    """One pass for each image or, with `sampler.flips` and `rotations`, for each of its views."""

    def __init__(self, model: nn.Module, sampler: ConfigDict):
        """As `make_predictor`."""
        self._views = views_of(sampler)
        passes, channels = {"__call__": len(self._views)}, getattr(model, "out_channels", 1)
        super().__init__(sampler, len(self._views), passes, channels)
        self._segment = parallel.pmap_map(functools.partial(segment, model, self._views), 1)

    def _sample(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None],
        trace: Trace | None,
        places: np.ndarray | None,
    ) -> np.ndarray:
        masks = parallel.unshard(self._segment(variables, parallel.shard(images)))
        return seen_back(masks, self._views)


class EnsemblePredictor(Predictor):
    """The mean of several models' probabilities, such as of a diffusion and a supervised one.

    Each gives one sample, 2 p - 1; `variables` are a sequence of those of each.

    Fu et al. 2023 (MELBA 2023:016) found this ensemble the best of what they compared.
    """

    def __init__(self, members: Sequence[Predictor], sampler: ConfigDict):
        """Takes what its members say.

        Args:
            members: for images of the same size.
            sampler: its threshold is taken, and its temperature for the mean.
        """
        super().__init__(sampler, 1, {})
        self._members, self._ensemble = members, "mean"
        self.batch_size = min(member.batch_size for member in members)

    def _sample(
        self,
        variables: Any,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Callable[[float], None],
        trace: Trace | None,
        places: np.ndarray | None,
    ) -> np.ndarray:
        means = []
        for k, (member, own) in enumerate(zip(self._members, variables, strict=True)):
            so_far = lambda share, k=k: progress((k + share) / len(self._members))
            samples = member(own, images, ids, so_far)
            probabilities = (member.combine(samples[:, i]).probability for i in range(len(images)))
            means.append([2 * probability - 1 for probability in probabilities])
        return np.array(means, np.float32)

    def seeded(self, seed: int) -> Predictor:
        """As `Predictor.seeded`."""
        other = super().seeded(seed)
        other._members = [member.seeded(seed) for member in self._members]
        return other


def make_predictor(
    model: nn.Module,
    process: Process,
    sampler: ConfigDict,
    seed: int,
    window: int = 0,
) -> Predictor:
    """The predictor of a network. Compiles nothing yet.

    Args:
        model: a diffusion model, with `encode_image` and `denoise`, or a supervised one.
        process: of the training of a diffusion model; it is respaced here.
        sampler: `config.sampler`; of it, supervised models read flips, rotations, ensemble,
            temperature, threshold, overlap and max_batch only.
        seed: of the samples.
        window: the side in pixels of the windows in which images are segmented; 0: whole.
    Raises:
        ValueError: naming a field of `sampler` that does not fit.
    """
    if is_diffusion(model):
        predictor = DiffusionPredictor(model, process, sampler, seed)
    else:
        predictor = SupervisedPredictor(model, sampler)
    return WindowedPredictor(predictor, window, sampler) if window else predictor


def segment(model: nn.Module, views: Sequence[View], variables: Any, images: Array) -> Array:
    """Masks of each view of u8[B, S, S, 3]: f32[B, views, S, S] or, of classes, [B, V, S, S, K].

    They are 2 p - 1 = tanh(logits / 2).
    """
    logits = model.apply(variables, seen(images, views))
    logits = logits if logits.shape[-1] > 1 else logits[..., 0]
    return jnp.tanh(logits / 2).reshape(-1, len(views), *logits.shape[1:])
