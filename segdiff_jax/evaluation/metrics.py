"""Scores of a predicted mask against the true one."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree


class Masks:
    """The prediction and the truth of one image, bool[H, W] each, and how they overlap, in pixels.

    tp, fp, fn and tn are true and false positives and negatives.
    """

    def __init__(self, prediction: np.ndarray, truth: np.ndarray):
        for name, mask in (("prediction", prediction), ("truth", truth)):
            if mask.dtype != np.bool_:
                raise ValueError(f"{name} must be a boolean mask, not {mask.dtype}")
        if prediction.shape != truth.shape:
            shapes = f"prediction {prediction.shape} and truth {truth.shape}"
            raise ValueError(f"{shapes} differ in shape")
        self.prediction, self.truth = prediction, truth
        self.tp = np.count_nonzero(prediction & truth)
        self.areas = np.count_nonzero(prediction), np.count_nonzero(truth)
        self.fp, self.fn = (area - self.tp for area in self.areas)
        self.tn = truth.size - self.tp - self.fp - self.fn

    @functools.cached_property
    def iou(self) -> float:
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @functools.cached_property
    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """From each outline's pixels to the other outline, in pixels; infinite if that is empty."""
        return _distances(outline(self.prediction), outline(self.truth))


def boundary_score(masks: Masks) -> float:
    """FBound of SegDiff: F of the boundaries within 1, 2, 3, 4 and 5 pixels, averaged.

    Precision is the share of the predicted boundary that is so close to the true one, recall the
    reverse (Perazzi et al. 2016, section 5.1). Two masks without a boundary have 1; if only one has
    none, the score is 0. The image's border is no boundary.
    """
    ours, theirs = _distances(boundary(masks.prediction), boundary(masks.truth))
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    precision, recall = ((x[:, None] <= np.arange(1, 6)).mean(axis=0) for x in (ours, theirs))
    total = precision + recall
    return float(np.mean(2 * precision * recall / np.where(total > 0, total, 1)))


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of bool[H, W] that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def surface_dice(masks: Masks) -> float:
    """Share of both outlines within 1% of the image's diagonal of the other outline.

    Nikolov et al. 2018, arXiv 1809.04430. Two empty masks have 1; if only one is empty, 0.
    """
    both = np.concatenate(masks.distances)
    return float(np.mean(both <= 0.01 * np.hypot(*masks.truth.shape))) if len(both) else 1.0


def hd95(masks: Masks) -> float:
    """The larger of the two 95% quantiles of the distances to the other outline, in pixels.

    Two empty masks have 0; if only one is empty, the image's diagonal.
    """
    if not all(masks.areas):
        return float(np.hypot(*masks.truth.shape)) if any(masks.areas) else 0.0
    return float(max(np.quantile(distance, 0.95) for distance in masks.distances))


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of bool[H, W] that have one of the four neighbours outside it, or off the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _distances(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each mask's pixels to the other mask, in pixels; infinite if that is empty."""
    ours, theirs = np.argwhere(ours), np.argwhere(theirs)
    return cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 1.0


class Score(NamedTuple):
    """How a score is computed and shown. It is from 0 to 1; with a unit, lower is better."""

    of: Callable[[Masks], float]
    label: str
    meaning: str
    unit: str = ""


# Scores as the ISIC challenges define them (Gutman et al. 2016, arXiv 1605.01397, part 1; Codella
# et al. 2018, arXiv 1902.03368). If a denominator is 0, the score is 1: there was nothing to find,
# and nothing was got wrong. So two empty masks have IoU, Dice and WCov 1 (the original SegDiff says
# 0, 0 and fails; MONAI leaves empty truths out of its means), and an empty truth with a prediction
# that is not empty has IoU, Dice and WCov 0 and sensitivity 1. WCov is the original's: weighted
# coverage with one object; it does not ask where the masks lie.
SCORES = {
    "iou": Score(lambda m: m.iou, "IoU", "overlap / union of prediction and truth"),
    "dice": Score(
        lambda m: _ratio(2 * m.tp, sum(m.areas)),
        "Dice",
        "overlap / mean area of prediction and truth",
    ),
    "accuracy": Score(
        lambda m: _ratio(m.tp + m.tn, m.truth.size), "Accuracy", "pixels labelled rightly"
    ),
    "sensitivity": Score(lambda m: _ratio(m.tp, m.tp + m.fn), "Sensitivity", "lesion pixels found"),
    "specificity": Score(
        lambda m: _ratio(m.tn, m.tn + m.fp), "Specificity", "skin pixels left alone"
    ),
    "thresholded_jaccard": Score(
        lambda m: m.iou if m.iou >= 0.65 else 0.0,
        "Thresholded Jaccard",
        "IoU, but 0 where it is below 0.65",
    ),
    "fbound": Score(boundary_score, "FBound", "boundary found within 1 to 5 pixels"),
    "wcov": Score(
        lambda m: _ratio(*sorted(m.areas)), "WCov", "ratio of the areas of prediction and truth"
    ),
    "surface_dice": Score(
        surface_dice, "Surface Dice", "boundary found within 1% of the image's diagonal"
    ),
    "hd95": Score(hd95, "HD95", "distance of the boundaries, 95th percentile; low is good", "px"),
}
# Of single masks, see `distributions.energy_score`; for validation.scores.
ENERGY = "energy"
LOWER_IS_BETTER = {ENERGY, *(name for name, score in SCORES.items() if score.unit)}


def segmentation_scores(
    prediction: np.ndarray, truth: np.ndarray, names: Iterable[str] = SCORES
) -> dict[str, float]:
    """The named `SCORES` of one image; masks are bool[H, W], else a ValueError."""
    masks = Masks(prediction, truth)
    return {name: float(SCORES[name].of(masks)) for name in names}


def class_scores(
    prediction: np.ndarray, truth: np.ndarray, count: int, names: Iterable[str] = SCORES
) -> tuple[dict[str, float], list[dict[str, float] | None]]:
    """`segmentation_scores` of labels u8[H, W]: the mean over the classes, and each class's.

    They are the classes 1 to `count` - 1. A class that is in neither of the two has None and does
    not count. If none is in either, the mean is the scores of two empty masks.
    """
    scores = lambda k: segmentation_scores(prediction == k, truth == k, names)
    each = [scores(k) if k in prediction or k in truth else None for k in range(1, count)]
    there = [row for row in each if row]
    return average_scores(there) if there else scores(1), each


def average_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every score over the images, which count alike; a ValueError if there are none."""
    if not rows:
        raise ValueError("rows is empty: there are no images to average over")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def bootstrap_interval(
    values: list[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap (low, high) of the mean (Efron and Tibshirani 1993, chapter 13).

    It tells how much the mean of these values, one an image, would vary with other images of the
    same kind, not with another training or other samples. `level` is the share of the 10,000
    resampled means that lie within. A ValueError if there are no values.
    """
    if not len(values):
        raise ValueError("values is empty: there are no images to resample")
    values, rng, means = np.asarray(values), np.random.default_rng(seed), np.empty(10_000)
    for block in np.array_split(means, 20):  # Views; all at once is much memory.
        block[:] = values[rng.integers(len(values), size=(len(block), len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
