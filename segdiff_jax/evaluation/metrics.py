"""Scores of a predicted mask against the true one, as the ISIC challenges define them."""

import numpy as np
from scipy.spatial import cKDTree


def segmentation_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Scores of one image (Gutman et al. 2016, arXiv:1605.01397, the challenge's part 1).

    With true and false positives and negatives counted over the pixels of the image:

      iou         = TP / (TP + FP + FN), Jaccard's index
      dice        = 2 TP / (2 TP + FP + FN)
      accuracy    = (TP + TN) / (TP + TN + FP + FN)
      sensitivity = TP / (TP + FN)
      specificity = TN / (TN + FP)
      thresholded_jaccard = IoU where it is at least 0.65, else 0 (Codella et al. 2018,
        arXiv:1902.03368)
      fbound: see `boundary_score`
      wcov        = smaller / larger of the two areas: all that is left of weighted coverage where
        there is one object, as the original SegDiff has it; it does not ask where they lie
      surface_dice, hd95: see `surface_scores`; hd95 is in pixels, and lower is better

    A score whose denominator is 0 is 1: there was nothing to find, and nothing was got wrong. So
    two empty masks have IoU, Dice and WCov 1 (the original SegDiff says 0, 0 and fails), and an
    empty truth against a prediction that is not empty has IoU, Dice and WCov 0 with sensitivity 1.

    Args:
      prediction: bool[H, W].
      truth: bool[H, W].
    Returns:
      The scores above by their names, each but hd95 from 0 to 1.
    Raises:
      ValueError: if the shapes differ or a mask is not boolean.
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} must be a boolean mask, not {mask.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    tp = np.count_nonzero(prediction & truth)
    fp = np.count_nonzero(prediction) - tp
    fn = np.count_nonzero(truth) - tp
    tn = truth.size - tp - fp - fn
    iou = _ratio(tp, tp + fp + fn)
    return {
        "iou": iou,
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": _ratio(tp + tn, truth.size),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "thresholded_jaccard": iou if iou >= 0.65 else 0.0,
        "fbound": boundary_score(prediction, truth),
        "wcov": _ratio(min(tp + fp, tp + fn), max(tp + fp, tp + fn)),
        **surface_scores(prediction, truth),
    }


def class_scores(
    prediction: np.ndarray, truth: np.ndarray, count: int
) -> list[dict[str, float] | None]:
    """`segmentation_scores` of each of several classes but the background, 0.

    Args:
      prediction: u8[H, W], labels from 0 to `count` - 1.
      truth: u8[H, W], likewise.
      count: K.
    Returns:
      The scores of the classes from 1; None of one that is in neither prediction nor truth.
    """
    return [
        segmentation_scores(ours, theirs) if ours.any() or theirs.any() else None
        for ours, theirs in ((prediction == k, truth == k) for k in range(1, count))
    ]


def macro_scores(scores: list[dict[str, float] | None], size: tuple[int, int]) -> dict[str, float]:
    """The mean of `class_scores` over the classes that are in prediction or truth.

    Where there is none, the scores of two empty masks, of this (height, width).
    """
    there = [row for row in scores if row is not None]
    empty = np.zeros(size, bool)
    return average_scores(there) if there else segmentation_scores(empty, empty)


def boundary_score(prediction: np.ndarray, truth: np.ndarray) -> float:
    """FBound of SegDiff: F of the boundaries within 1, 2, 3, 4 and 5 pixels, averaged.

    Precision is the share of the predicted boundary within so many pixels of the true one, recall
    the reverse (Perazzi et al. 2016, section 5.1). Two masks without a boundary have 1, one without
    and one with 0. The image's border is no boundary.

    Args:
      prediction: bool[H, W].
      truth: bool[H, W].
    Returns:
      From 0 to 1.
    """
    ours, theirs = (np.argwhere(boundary(mask)) for mask in (prediction, truth))
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    tolerances = np.arange(1, 6)
    precision, recall = (
        (cKDTree(other).query(points)[0][:, None] <= tolerances).mean(axis=0)
        for points, other in ((ours, theirs), (theirs, ours))
    )
    total = precision + recall
    return float(np.mean(2 * precision * recall / np.where(total > 0, total, 1)))


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of bool[H, W] that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def surface_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How far apart the outlines lie, which are a mask's pixels beside others or the image's end.

    surface_dice: the share of both outlines that is within 1% of the image's diagonal of the other
      (Nikolov et al. 2018, arXiv:1809.04430); the images are of many sizes.
    hd95: the larger of the two 95% quantiles of the distances to the other outline, in pixels.

    Two empty masks have 1 and 0 pixels; one that is empty and one that is not, 0 and the diagonal,
    for want of an outline.

    Args:
      prediction: bool[H, W].
      truth: bool[H, W].
    """
    ours, theirs = (np.argwhere(outline(mask)) for mask in (prediction, truth))
    diagonal = float(np.hypot(*truth.shape))
    if not len(ours) or not len(theirs):
        same = len(ours) == len(theirs)
        return {"surface_dice": float(same), "hd95": 0.0 if same else diagonal}
    there, back = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
    return {
        "surface_dice": float(np.mean(np.concatenate([there, back]) <= 0.01 * diagonal)),
        "hd95": float(max(np.quantile(there, 0.95), np.quantile(back, 0.95))),
    }


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of bool[H, W] that have one of the four neighbours outside it, or off the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def average_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every score over the images; each image counts once, whatever its size.

    Raises:
      ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("rows is empty: there are no images to average over")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def bootstrap_interval(
    values: list[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    It tells how much the mean would vary with other images of the same kind, not with another
    training or other samples.

    Args:
        values: one an image.
        level: the share of the resampled means that lie within.
        resamples: how often as many images are drawn with replacement.
        seed: of the draws.
    Returns:
        (low, high).
    Raises:
        ValueError: if there are no values.
    """
    if not len(values):
        raise ValueError("values is empty: there are no images to resample")
    values, rng, means = np.asarray(values), np.random.default_rng(seed), np.empty(resamples)
    for block in np.array_split(means, -(-resamples // 500)):  # Views; all at once is much memory.
        block[:] = values[rng.integers(len(values), size=(len(block), len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 1.0
