"""From the samples (votes) of one image to its probability and mask.

Of two classes, lesion or not, samples are f32[V, H, W] and a probability f32[H, W], of lesion; of K
classes, f32[V, H, W, K] and f32[H, W, K], whose sum over the classes is 1.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import special


@dataclasses.dataclass(frozen=True)
class Combined:
    """What the samples of one image come to.

    Attributes:
      mask: bool[H, W], lesion or not; of several classes, u8[H, W], which one.
      probability: f32[H, W], of lesion; of several classes, f32[H, W, K].
      deviation: f32[H, W], `standard_deviation` of the samples; None of a single one.
      uncertainty: `vote_disagreement` of the samples as the network made them; None of a single
        one, or where it was not measured.
    """

    mask: np.ndarray
    probability: np.ndarray
    deviation: np.ndarray | None
    uncertainty: float | None = None


def mean(samples: np.ndarray) -> np.ndarray:
    """Mean over the votes of clip((x + 1) / 2, 0, 1), the original SegDiff's "majority vote".

    Of several classes, each vote is divided by its sum over these first; where that is 0, all
    classes are equal.

    Args:
      samples: f32[V, H, W] or f32[V, H, W, K], masks of -1 and +1 as sampled; values may lie beyond
        them.
    Returns:
      f32[H, W] or f32[H, W, K], from 0 to 1.
    Raises:
      ValueError: if samples is none of these with V >= 1, or holds NaN or infinity.
    """
    return _probabilities(samples).mean(axis=0)


def vote(samples: np.ndarray) -> np.ndarray:
    """Share of the votes that call a pixel lesion, or a class: each is made a mask before the mean.

    Arguments, return value and errors are those of `mean`.
    """
    votes = _votes(samples)
    if votes.dtype != np.bool_:
        votes = votes[..., None] == np.arange(np.shape(samples)[-1])
    return votes.mean(axis=0, dtype=np.float32)


def staple(samples: np.ndarray) -> np.ndarray:
    """Probability of lesion by STAPLE (Warfield et al. 2004, IEEE TMI 23(7), equations 14 to 19).

    Expectation maximisation, in logarithms, estimates the true mask together with each vote's
    sensitivity and specificity. As in ITK, the prior is the share of lesion over all votes; it
    starts with the share of the votes at each pixel, and ends where no sensitivity or specificity
    changes by more than 1e-7, or after 1000 steps, as with votes that are noise.

    Arguments, return value and errors are those of `mean`, of two classes; at most 64 votes.
    """
    if np.ndim(samples) == 4:
        raise ValueError("staple is of two classes: combine several by 'mean' or 'vote'")
    votes = _votes(samples)
    if len(votes) > 64:
        raise ValueError(f"staple takes at most 64 votes, not {len(votes)}")
    # Pixels whose votes are alike are one: there are few kinds.
    kinds = sum(vote.astype(np.uint64) << np.uint64(i) for i, vote in enumerate(votes))
    kinds, place, count = np.unique(kinds, return_inverse=True, return_counts=True)
    lesion = kinds[:, None] >> np.arange(len(votes), dtype=np.uint64) & np.uint64(1) == 1
    prior = votes.mean()
    if prior in (0, 1):
        return np.full(votes.shape[1:], prior, np.float32)
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
    return probability[place].reshape(votes.shape[1:]).astype(np.float32)


ENSEMBLES = {"mean": mean, "vote": vote, "staple": staple}


def temper(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the log odds by a temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Of several classes, the logarithms, whose softmax is the new probability.

    Args:
      probability: f32[N], f32[H, W] or f32[H, W, K], from 0 to 1; taken to be within 1/510 and
        509/510, half a step of 8-bit files, so that what seems certain has log odds, too. The
        least of several classes is 1/510 / (K - 1).
      temperature: above 0; above 1 it makes less certain; 1 changes nothing.
    Returns:
      f32 of the same shape.
    """
    if temperature == 1:
        return probability
    if probability.ndim == 3:
        least = 1 / 510 / (probability.shape[-1] - 1)
        logs = np.log(np.clip(probability, least, 509 / 510)) / temperature
        return special.softmax(logs, axis=-1).astype(np.float32)
    odds = special.logit(np.clip(probability, 1 / 510, 509 / 510))
    return special.expit(odds / temperature).astype(np.float32)


def entropy(probability: np.ndarray) -> np.ndarray:
    """Of each pixel's label, from 0 (certain) to 1 (all classes alike): f32[...] or f32[H, W].

    In bits; of several classes, f32[H, W, K], divided by log2 K.
    """
    if probability.ndim == 3:
        nats = special.entr(probability).sum(axis=-1)
        return (nats / np.log(probability.shape[-1])).astype(np.float32)
    nats = special.entr(probability) + special.entr(1 - probability)
    return (nats / np.log(2)).astype(np.float32)


def standard_deviation(samples: np.ndarray) -> np.ndarray:
    """Standard deviation over the votes of clip((x + 1) / 2, 0, 1).

    Of several classes, the greatest over these of that of the votes' probabilities. Arguments and
    errors are those of `mean`.

    Returns:
      f32[H, W], from 0 (all votes agree, or there is only one) to 0.5 (they split evenly).
    """
    deviation = _probabilities(samples).std(axis=0)
    return deviation if deviation.ndim == 2 else deviation.max(axis=-1)


def vote_disagreement(samples: np.ndarray) -> float | None:
    """One minus the mean IoU of every two votes' masks, cut at 0; two empty masks have IoU 1.

    Of several classes, the IoU of two votes is the mean over those, but for the background, that
    are in either.

    Args:
        samples: f32[V, H, W] or f32[V, H, W, K], masks of -1 and +1 as sampled.
    Returns:
        From 0, all votes are the same, to 1; None for a single vote.
    """
    if len(samples) < 2:
        return None
    if samples.ndim == 3:
        of_classes = [samples > 0]
    else:
        votes = _votes(samples)
        of_classes = [votes == k for k in range(1, samples.shape[-1])]
    ious, present = np.zeros((2, len(samples), len(samples)))
    for masks in of_classes:
        masks = masks.reshape(len(samples), -1).astype(np.float64)
        areas, common = masks.sum(axis=1), masks @ masks.T
        union = areas[:, None] + areas[None] - common
        ious += common / np.maximum(union, 1)
        present += union > 0
    iou = np.where(present > 0, ious / np.maximum(present, 1), 1.0)
    return float(1 - iou[np.triu_indices(len(samples), 1)].mean())


def to_mask(probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Lesion where probability > threshold; a tie is background, as the original's round(0.5) = 0.

    Of several classes, f32[H, W, K], the most probable one, u8[H, W], of equal ones the first; the
    threshold is not read.

    IoU and Dice gain from a threshold under 0.5: half of the largest Dice that the probabilities
    allow is the best one (Lipton et al. 2014, arXiv 1402.1892, theorem 1).
    """
    if probability.ndim == 3:
        return probability.argmax(axis=-1).astype(np.uint8)
    return probability > threshold


def resize_samples(samples: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize with half-pixel centres, antialiased where it shrinks.

    Enlarging equals the original's torch `interpolate(align_corners=False)`. Shrinking differs on
    purpose: the original skips pixels there.

    Args:
      samples: f32[V, h, w] or f32[V, h, w, K].
      size: (height, width) in pixels.
    Returns:
      f32[V, height, width] or f32[V, height, width, K].
    """
    height, width = size
    if np.ndim(samples) == 4:
        channels = np.moveaxis(np.asarray(samples), -1, 0)
        return np.stack([resize_samples(channel, size) for channel in channels], axis=-1)
    resized = (
        Image.fromarray(sample).resize((width, height), Image.Resampling.BILINEAR)
        for sample in np.asarray(samples, np.float32)
    )
    return np.stack([np.asarray(image) for image in resized])


def _probabilities(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim not in (3, 4) or not len(samples):
        raise ValueError(f"samples must be [votes >= 1, height, width], not {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinity: the network or the sampler diverged")
    probabilities = samples + 1  # A large image's votes are gigabytes: one copy of them is made.
    probabilities /= 2
    np.clip(probabilities, 0, 1, out=probabilities)
    if samples.ndim == 4:
        total = probabilities.sum(axis=-1, keepdims=True)
        probabilities[total[..., 0] == 0] = 1
        probabilities /= np.where(total > 0, total, samples.shape[-1])
    return probabilities


def _votes(samples: np.ndarray) -> np.ndarray:
    """Each sample's mask: bool[V, H, W] or, of several classes, u8[V, H, W]."""
    probabilities = _probabilities(samples)
    if probabilities.ndim == 4:  # Of the samples: beyond +1, all probabilities are alike.
        return np.argmax(samples, axis=-1).astype(np.uint8)
    return probabilities > 0.5
