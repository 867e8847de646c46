"""How far a prediction can be trusted: disagreement of the votes, calibration."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

BINS = 15


def vote_disagreement(samples: np.ndarray) -> float | None:
    """One minus the mean IoU of every two votes' masks, cut at 0; two empty masks have IoU 1.

    Args:
        samples: f32[V, H, W], masks of -1 and +1 as sampled.
    Returns:
        From 0, all votes are the same, to 1; None for a single vote.
    """
    if len(samples) < 2:
        return None
    masks = (samples > 0).reshape(len(samples), -1).astype(np.float64)
    areas, common = masks.sum(axis=1), masks @ masks.T
    union = areas[:, None] + areas[None] - common
    iou = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    return float(1 - iou[np.triu_indices(len(masks), 1)].mean())


def calibration_bins(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What the calibration error needs of one image.

    Args:
        probability: f32[H, W], from 0 to 1.
        truth: bool[H, W].
    Returns:
        f64[3, 15], for each of 15 equal ranges of probability: how many pixels are in it, the sum
        of their probabilities and that of their truths, each divided by the image's pixels.
    """
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1).ravel()
    weights = None, probability.ravel(), truth.ravel()
    return np.stack([np.bincount(place, w, BINS) for w in weights]) / place.size


def calibration_error(bins: Sequence[np.ndarray]) -> float:
    """Expected calibration error of the pixels (as Guo et al. 2017, arXiv 1706.04599, eq. 5).

    sum_b n_b |mean probability - share of lesion| over ranges b of the probability of lesion, where
    theirs are of the confidence in the predicted class. Each image counts once, whatever its size.

    Args:
        bins: f64[3, 15] of each image, from `calibration_bins`.
    """
    _, probability, truth = np.mean(bins, axis=0)
    return float(np.abs(probability - truth).sum())


def summarise(
    ious: Sequence[float], disagreements: Sequence[float | None], bins: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """The uncertainty of an evaluation.

    Returns:
        "ece" of `calibration_error`; with several votes, also the mean "disagreement" and its rank
        "correlation" (Spearman) over the images with 1 - IoU, None where either is constant.
    """
    summary = {"ece": calibration_error(bins)}
    if None in disagreements:
        return summary
    summary["disagreement"] = float(np.mean(disagreements))
    constant = np.ptp(ious) == 0 or np.ptp(disagreements) == 0
    errors = 1 - np.asarray(ious)
    correlation = None if constant else float(stats.spearmanr(disagreements, errors).statistic)
    return summary | {"correlation": correlation}
