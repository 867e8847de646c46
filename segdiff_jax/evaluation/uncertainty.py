"""How far a prediction can be trusted: disagreement of the samples, calibration and risk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from segdiff_jax.inference.combine import temper

LEVELS = 256  # of a probability
BINS = 15
COVERAGES = 1.0, 0.9, 0.8, 0.7, 0.6, 0.5


def calibration_levels(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What calibration needs to know about one image: f64[2, 256].

    For each level round(255 p) of the probability f32[H, W], the share of the image's pixels that
    have it, and the share that have it and are lesion in the truth bool[H, W]. A truth of several
    annotators is the share f64[H, W] of them who include a pixel.
    """
    level = np.rint((LEVELS - 1) * probability).astype(np.int64).ravel()
    return np.stack([np.bincount(level, w, LEVELS) for w in (None, truth.ravel())]) / level.size


def calibration_pair(
    probabilities: np.ndarray, labels: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The probability f32[H, W] that calibration is about, and whether it came true, bool[H, W].

    With two classes, the event is lesion. With several, it is that the predicted class is right
    (Guo et al. 2017, section 2). No temperature can be fitted to that, since `combine.temper`
    changes all classes. Probabilities are f32[H, W, C], labels and truth u8[H, W].
    """
    if probabilities.shape[-1] == 1:
        return probabilities[..., 0], truth > 0
    return np.take_along_axis(probabilities, labels[..., None], -1)[..., 0], labels == truth


def reliability(levels: np.ndarray, temperature: float = 1.0) -> list[dict[str, float]]:
    """A reliability diagram (DeGroot and Fienberg 1983) of the pixels' probability of lesion.

    From the mean over images of `calibration_levels`: for each of 15 equal ranges of probability
    that has pixels, their mean "probability", the share of them that is "lesion", and their "share"
    of all. The probabilities are tempered before.
    """
    probability = temper(np.linspace(0, 1, LEVELS)[:, None], temperature)[:, 0]
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    weights = levels[0], levels[0] * probability, levels[1]
    sums = np.transpose([np.bincount(place, w, BINS) for w in weights]).tolist()
    return [{"probability": p / n, "lesion": lesion / n, "share": n} for n, p, lesion in sums if n]


def calibration_error(diagram: Sequence[dict[str, float]]) -> float:
    """Expected calibration error of the pixels (as Guo et al. 2017, arXiv 1706.04599, eq. 5).

    sum_b n_b |mean probability - share of lesion| over the ranges b of `reliability`; theirs are
    ranges of the confidence in the predicted class. Each image counts once, whatever its size.
    """
    return sum(row["share"] * abs(row["probability"] - row["lesion"]) for row in diagram)


def fit_temperature(levels: np.ndarray) -> float:
    """The temperature with the least cross entropy (Guo et al. 2017, section 4.2), 0.05 to 20.

    Fit it to the `levels` of a validation split, and use it for other images.
    """
    probability, (pixels, lesion) = np.linspace(0, 1, LEVELS), levels

    def cross_entropy(log_temperature):
        p = np.float64(temper(probability[:, None], np.exp(log_temperature))[:, 0])
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return -(lesion @ np.log(p) + (pixels - lesion) @ np.log1p(-p))

    found = optimize.minimize_scalar(cross_entropy, bounds=np.log([0.05, 20]), method="bounded")
    return float(np.exp(found.x))


def risk_coverage(ious: Sequence[float], disagreements: Sequence[float]) -> list[list[float]]:
    """[coverage, mean IoU] of the 100, 90, ... 50% of the images whose samples agree most.

    El-Yaniv and Wiener 2010, JMLR 11. The number of images is rounded up.
    """
    ranked = np.asarray(ious)[np.argsort(disagreements, kind="stable")]
    return [[c, float(ranked[: int(np.ceil(c * len(ranked)))].mean())] for c in COVERAGES]


def summarise(
    ious: list[float], disagreements: list[float | None], levels: list, several: bool = False
) -> dict[str, Any]:
    """The uncertainty of an evaluation, from IoU, `combine.disagreement` and levels of each image.

    "ece" (`calibration_error`) and "reliability". Unless there are several classes, "temperature"
    (`fit_temperature`) and "ece_tempered", the error with it on these same images. With several
    samples also the mean "disagreement", its rank "correlation" (Spearman) with 1 - IoU over the
    images, None if either is constant, and "risk_coverage".
    """
    mean = np.mean(levels, axis=0)
    diagram = reliability(mean)
    summary = {"ece": calibration_error(diagram), "reliability": diagram}
    if not several:
        summary["temperature"] = temperature = fit_temperature(mean)
        summary["ece_tempered"] = calibration_error(reliability(mean, temperature))
    if None not in disagreements:
        summary |= {"disagreement": float(np.mean(disagreements)), "correlation": None}
        if np.ptp(ious) and np.ptp(disagreements):
            found = stats.spearmanr(disagreements, 1 - np.asarray(ious))
            summary["correlation"] = float(found.statistic)
        summary["risk_coverage"] = risk_coverage(ious, disagreements)
    return summary
