"""How far a prediction can be trusted: disagreement of the votes, calibration, what is risked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from segdiff_jax.evaluation.ensemble import temper

LEVELS = 256  # of a probability
BINS = 15
COVERAGES = 1.0, 0.9, 0.8, 0.7, 0.6, 0.5


def calibration_levels(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What calibration needs of one image.

    Args:
        probability: f32[H, W], from 0 to 1.
        truth: bool[H, W].
    Returns:
        f64[2, 256], for each level round(255 p): which share of the image's pixels has it, and
        which has it and is lesion.
    """
    level = np.rint((LEVELS - 1) * probability).astype(np.int64).ravel()
    return np.stack([np.bincount(level, w, LEVELS) for w in (None, truth.ravel())]) / level.size


def top_label(
    probability: np.ndarray, mask: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the calibration of several classes is of, for `calibration_levels`.

    There, "lesion" is then a pixel whose predicted class is right (the confidence calibration of
    Guo et al. 2017, section 2). No temperature can be fitted to it: `ensemble.temper` is of all
    classes.

    Args:
        probability: f32[H, W, K].
        mask, truth: u8[H, W].
    Returns:
        f32[H, W], the probability of the predicted class, and bool[H, W], whether it is right.
    """
    return np.take_along_axis(probability, mask[..., None], -1)[..., 0], mask == truth


def reliability(levels: np.ndarray, temperature: float = 1.0) -> list[dict[str, float]]:
    """A reliability diagram (DeGroot and Fienberg 1983) of the pixels' probability of lesion.

    Args:
        levels: f64[2, 256], the mean over images of `calibration_levels`.
        temperature: see `ensemble.temper`.
    Returns:
        Of each of 15 equal ranges of probability that has pixels: their mean "probability", the
        share of them that is "lesion", and their "share" of all.
    """
    probability = temper(np.linspace(0, 1, LEVELS), temperature)
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    weights = levels[0], levels[0] * probability, levels[1]
    share, *sums = (np.bincount(place, w, BINS) for w in weights)
    return [
        {"probability": p / n, "lesion": lesion / n, "share": n}
        for n, p, lesion in zip(share.tolist(), *(x.tolist() for x in sums), strict=True)
        if n > 0
    ]


def calibration_error(diagram: Sequence[dict[str, float]]) -> float:
    """Expected calibration error of the pixels (as Guo et al. 2017, arXiv 1706.04599, eq. 5).

    sum_b n_b |mean probability - share of lesion| over ranges b of the probability of lesion, where
    theirs are of the confidence in the predicted class. Each image counts once, whatever its size.

    Args:
        diagram: of `reliability`.
    """
    return sum(row["share"] * abs(row["probability"] - row["lesion"]) for row in diagram)


def fit_temperature(levels: np.ndarray) -> float:
    """The temperature of the least cross entropy (Guo et al. 2017, section 4.2), 0.05 to 20.

    Args:
        levels: as of `reliability`; those of a validation split, to be used for other images.
    """
    probability, (pixels, lesion) = np.linspace(0, 1, LEVELS), levels

    def cross_entropy(log_temperature):
        p = np.float64(temper(probability, np.exp(log_temperature)))
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return -(lesion @ np.log(p) + (pixels - lesion) @ np.log1p(-p))

    found = optimize.minimize_scalar(cross_entropy, bounds=np.log([0.05, 20]), method="bounded")
    return float(np.exp(found.x))


def risk_coverage(ious: Sequence[float], disagreements: Sequence[float]) -> list[list[float]]:
    """Mean IoU of the images whose votes agree most (El-Yaniv and Wiener 2010, JMLR 11).

    Returns:
        [coverage, mean IoU] for the most certain 100, 90, ... 50% of the images, rounded up.
    """
    ranked = np.asarray(ious)[np.argsort(disagreements, kind="stable")]
    return [[c, float(ranked[: int(np.ceil(c * len(ranked)))].mean())] for c in COVERAGES]


def summarise(
    ious: Sequence[float],
    disagreements: Sequence[float | None],
    levels: Sequence[np.ndarray],
    several: bool = False,
) -> dict[str, Any]:
    """The uncertainty of an evaluation.

    Args:
        ious: one an image.
        disagreements: of `vote_disagreement`.
        levels: of `calibration_levels`.
        several: whether they are of `top_label`: then there is no temperature.
    Returns:
        "ece" of `calibration_error`, "reliability", "temperature" of `fit_temperature` and
        "ece_tempered", the error with it on these same images; with several votes, also the mean
        "disagreement", its rank "correlation" (Spearman) over the images with 1 - IoU, None where
        either is constant, and "risk_coverage".
    """
    mean = np.mean(levels, axis=0)
    diagram = reliability(mean)
    summary = {"ece": calibration_error(diagram), "reliability": diagram}
    if not several:
        summary["temperature"] = temperature = fit_temperature(mean)
        summary["ece_tempered"] = calibration_error(reliability(mean, temperature))
    if None in disagreements:
        return summary
    constant = np.ptp(ious) == 0 or np.ptp(disagreements) == 0
    errors = 1 - np.asarray(ious)
    correlation = None if constant else float(stats.spearmanr(disagreements, errors).statistic)
    return summary | {
        "disagreement": float(np.mean(disagreements)),
        "correlation": correlation,
        "risk_coverage": risk_coverage(ious, disagreements),
    }
