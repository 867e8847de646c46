"""From the samples of one image to its probability and labels.

Samples are f32[V, H, W, C], where clean masks are -1 or +1; values may lie beyond. C is 1 for two
classes, lesion or not; for K classes it is K. A probability is f32[H, W, C], from 0 to 1; K classes
sum to 1. `mean`, `vote`, `temper` and `standard_deviation` take numpy and jax arrays.
"""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage, special

from segdiff_jax.data.classes import most_likely


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The prediction for one image. With a single sample, two fields are None."""

    labels: np.ndarray  # u8[H, W]; 0 is the background
    probabilities: np.ndarray  # f32[H, W, C]
    deviation: np.ndarray | None  # f32[H, W], of the samples, from 0 to 0.5
    uncertainty: float | None = None  # `disagreement` of the single masks, 0 to 1
    samples: np.ndarray | None = None  # u8[V, H, W], the labels of single masks
    small_samples: np.ndarray | None = None  # the same, see `shrink_labels`

    @property
    def mask(self) -> np.ndarray:
        """bool[H, W], lesion or not; with several classes, the labels u8[H, W]."""
        return self.labels if self.probabilities.shape[-1] > 1 else self.labels > 0

    @property
    def probability(self) -> np.ndarray:
        """f32[H, W], of lesion; with several classes, f32[H, W, K]."""
        found = self.probabilities
        return found if found.shape[-1] > 1 else found[..., 0]


def mean(samples: Any) -> Any:
    """Mean over the samples of clip((x + 1) / 2, 0, 1), the original SegDiff's "majority vote".

    With several classes, each sample is divided by its sum over the classes first.
    """
    return _probabilities(samples).mean(axis=0)


def vote(samples: Any) -> Any:
    """Share of the samples that call a pixel lesion, or give it a class: a true majority vote."""
    labels, channels = most_likely(samples, 0), samples.shape[-1]
    of_channels = np.arange(max(2, channels))[-channels:].reshape((1,) * labels.ndim + (-1,))
    return (labels[..., None] == of_channels).mean(axis=0, dtype=np.float32)


def staple(samples: np.ndarray) -> np.ndarray:
    """Probability of lesion by STAPLE (Warfield et al. 2004, IEEE TMI 23(7), equations 14 to 19).

    Expectation maximisation estimates the true mask together with the sensitivity and specificity
    of each sample. As in ITK, the prior is the share of lesion over all samples; it starts with the
    share of the samples at each pixel, and ends where no sensitivity or specificity changes by more
    than 1e-7, or after 1000 steps. At most 64 samples, of two classes.
    """
    if samples.shape[-1] > 1 or len(samples) > 64:
        raise ValueError(f"staple takes at most 64 samples of two classes, not {samples.shape}")
    masks = most_likely(samples, 0) > 0
    # Pixels on which the same samples agree are one kind, and there are few kinds.
    kinds = sum(mask.astype(np.uint64) << np.uint64(i) for i, mask in enumerate(masks))
    kinds, place, count = np.unique(kinds, return_inverse=True, return_counts=True)
    lesion = kinds[:, None] >> np.arange(len(masks), dtype=np.uint64) & np.uint64(1) == 1
    prior = masks.mean()
    if prior in (0, 1):
        return np.full((*masks.shape[1:], 1), prior, np.float32)
    probability, former = lesion.mean(axis=1), np.inf
    for _ in range(1000):
        weights = count * np.stack([probability, 1 - probability])
        hits = weights[0] @ lesion, weights[1] @ ~lesion
        # Sensitivities, then specificities; of logarithms, 0 and 1 would have none.
        quality = np.stack(hits) / weights.sum(axis=1, keepdims=True)
        right, wrong = (np.log(np.clip(q, 1e-12, 1)) for q in (quality, 1 - quality))
        of_lesion = np.log(prior) + np.where(lesion, right[0], wrong[0]).sum(axis=1)
        of_skin = np.log1p(-prior) + np.where(lesion, wrong[1], right[1]).sum(axis=1)
        probability = special.expit(of_lesion - of_skin)
        if np.abs(quality - former).max() <= 1e-7:
            break
        former = quality
    return probability[place].reshape(*masks.shape[1:], 1).astype(np.float32)


ENSEMBLES = {"mean": mean, "vote": vote, "staple": staple}


def temper(probability: Any, temperature: float) -> Any:
    """Divides the logits of f32[..., C] (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    A probability is taken to be within 1/510 and 509/510, half a step of 8-bit files, so that a
    certain one has logits too; with K classes the least is 1/510 / (K - 1). 1 changes nothing.
    """
    if temperature == 1:
        return probability
    xp = probability.__array_namespace__()
    both = _with_background(probability)
    least = 1 / 510 / (both.shape[-1] - 1)
    logs = xp.log(xp.clip(both, least, 509 / 510)) / temperature
    weights = xp.exp(logs - logs.max(axis=-1, keepdims=True))  # Softmax.
    shares = weights / weights.sum(axis=-1, keepdims=True)
    return shares[..., -probability.shape[-1] :].astype(np.float32)


def entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy of each pixel's label, in bits / log2 K: f32[H, W, C] -> f32[H, W], from 0 to 1."""
    both = _with_background(probability)
    return (special.entr(both).sum(axis=-1) / np.log(both.shape[-1])).astype(np.float32)


def standard_deviation(samples: Any) -> Any:
    """Standard deviation over the samples of clip((x + 1) / 2, 0, 1): f32[H, W].

    From 0 (all samples agree) to 0.5 (they split evenly). With several classes, the largest one.
    """
    return _probabilities(samples).std(axis=0).max(axis=-1)


def iou_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - IoU of each mask of a, bool[V, H, W], and each of b, bool[M, H, W]: f64[V, M].

    Two empty masks have distance 0.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (a, b))
    common = np.float64(a @ b.T)
    union = np.float64(a.sum(axis=1))[:, None] + b.sum(axis=1) - common
    return np.where(union > 0, 1 - common / np.maximum(union, 1), 0.0)


def disagreement(labels: np.ndarray, count: int = 2) -> float | None:
    """One minus the mean IoU of every two masks u8[V, H, W]; None if there is one.

    Two empty masks have IoU 1. With more than two classes (`count`), the IoU of two masks is the
    mean over the classes that are in either, without the background.
    """
    if len(labels) < 2:
        return None
    ious, present = np.zeros((2, len(labels), len(labels)))
    for k in range(1, count):
        masks = labels == k
        there = masks.any(axis=(1, 2))
        either = there[:, None] | there
        ious += either * (1 - iou_distances(masks, masks))
        present += either
    iou = np.where(present > 0, ious / np.maximum(present, 1), 1.0)
    return float(1 - iou[np.triu_indices(len(labels), 1)].mean())


def resize_samples(samples: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize with half-pixel centres, antialiased where it shrinks.

    f32[V, h, w, C] -> f32[V, height, width, C], `size` being (height, width). Enlarging equals the
    original's torch `interpolate(align_corners=False)`; shrinking skips no pixels, unlike there.
    """
    resized = np.empty((len(samples), *size, samples.shape[-1]), np.float32)
    for v, c in np.ndindex(len(samples), samples.shape[-1]):
        image = Image.fromarray(np.asarray(samples[v, ..., c], np.float32))
        resized[v, ..., c] = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return resized


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of bool[H, W], with its holes filled.

    Pixels are connected by their sides. ISIC's masks are such components; nnU-Net (Isensee et al.
    2021) keeps the largest one where that helps on its training images.
    """
    components, _ = ndimage.label(mask)
    largest = 1 + np.bincount(components.ravel(), minlength=2)[1:].argmax()
    return ndimage.binary_fill_holes(components == largest)


def options_of(sampler: ConfigDict) -> dict[str, Any]:
    """The options of `segment` that `config.sampler` has."""
    return {
        "ensemble": sampler.ensemble,
        "temperature": sampler.temperature,
        "threshold": sampler.threshold,
        "largest_component": sampler.largest_component,
    }


def segment(
    samples: np.ndarray,
    *,
    ensemble: str = "mean",
    temperature: float = 1.0,
    threshold: float = 0.5,
    largest_component: bool = False,
) -> Segmentation:
    """The prediction of one image's samples; for the options see `options_of`.

    `largest_component` changes the labels alone, see `keep_largest_component`.

    IoU and Dice gain from a threshold under 0.5: half of the largest Dice that the probabilities
    allow is best (Lipton et al. 2014, arXiv 1402.1892, theorem 1). Several classes have none.
    """
    probability = temper(ENSEMBLES[ensemble](samples), temperature)
    deviation = standard_deviation(samples) if len(samples) > 1 else None
    labels = most_likely(probability, threshold)
    if largest_component:
        labels = keep_largest_component(labels > 0).astype(np.uint8)
    return Segmentation(labels, probability, deviation)


def _probabilities(samples: Any) -> Any:
    probabilities = ((samples + 1) / 2).clip(0, 1)
    if samples.shape[-1] == 1:
        return probabilities
    xp = probabilities.__array_namespace__()
    total = probabilities.sum(axis=-1, keepdims=True)
    even = 1 / samples.shape[-1]
    return xp.where(total > 0, probabilities / xp.where(total > 0, total, 1), even)


def _with_background(probability: Any) -> Any:
    """f32[..., C] -> f32[..., K]: with two classes, the background's probability comes first."""
    if probability.shape[-1] > 1:
        return probability
    xp = probability.__array_namespace__()
    return xp.concatenate([1 - probability, probability], axis=-1)
