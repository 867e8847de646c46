"""How well a set of sampled masks stands for the masks that experts would draw.

Samples are bool[V, H, W] and truths bool[M, H, W]: what M annotators drew. The distance d of two
masks is one minus their IoU; two empty masks have distance 0. Means over pairs leave out the pairs
of a mask with itself, so that they do not depend on how many samples there are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage, optimize, stats

from segdiff_jax.evaluation.metrics import bootstrap_interval, boundary
from segdiff_jax.evaluation.uncertainty import (
    calibration_error,
    calibration_levels,
    reliability,
)
from segdiff_jax.inference.combine import iou_distances

CONSENSUS = np.arange(1, 10) / 10  # the least share of annotators, as in QUBIQ
CUTOFF = 0.1  # of the image's diagonal, see `boundary_fields`
SHAPES = "components", "holes", "roughness"


def boundary_fields(masks: np.ndarray) -> np.ndarray:
    """Fields f64[V, H W] of bool[V, H, W], whose distances are those of the outlines.

    Baddeley's metric with p = 2 (1992, Nieuw Archief voor Wiskunde 10, "Errors in binary images and
    an L^p version of the Hausdorff metric") is the root mean square over the pixels of min(D_a, c)
    - min(D_b, c), where D is a pixel's distance to the outline and c is 10% of the diagonal. A mask
    without an outline has D = c. It is a Euclidean distance, so the energy score with it is proper
    too.
    """
    most = CUTOFF * np.hypot(*masks.shape[1:])
    found = np.full(masks.shape, most)
    for field, edge in zip(found, map(boundary, masks), strict=True):
        if edge.any():
            np.minimum(field, ndimage.distance_transform_edt(~edge), out=field)
    return found.reshape(len(masks), -1) * (100 * CUTOFF / most)


def field_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far apart outlines lie, in % of the image's diagonal, of `boundary_fields`: f64[V, M]."""
    squares = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1) - 2 * a @ b.T / a.shape[1]
    return np.sqrt(np.maximum(squares, 0))


def mean_of_pairs(distances: np.ndarray, draws: bool = True) -> float:
    """Mean of f64[V, V], without the diagonal if the masks are drawn from a distribution.

    Otherwise they are all that it has. A single mask has 0: it is taken for certain.
    """
    count = len(distances)
    if not draws or count == 1:
        return float(distances.mean())
    return float((distances.sum() - np.trace(distances)) / (count * (count - 1)))


def energy_score(to_truth: np.ndarray, between: np.ndarray, draws: bool = True) -> float:
    """E d(S, Y) - E d(S, S') / 2 of distances f64[V, M] and f64[V, V], see `score_samples`."""
    return float(to_truth.mean() - mean_of_pairs(between, draws) / 2)


def score_samples(samples: np.ndarray, truths: np.ndarray, draws: bool = True) -> dict[str, float]:
    """The scores of the samples of one image; those from "ged" on need several truths.

    `draws` says that samples are independent draws. If they are all masks that a model has, such as
    its mirror views, a mask's distance to itself counts in E d(S, S').

    "distance": E d(S, Y), between samples and truths.
    "diversity": E d(S, S'), between two samples.
    "energy": E d(S, Y) - E d(S, S') / 2, the energy score, lower is better. No other distribution
      than the one that the truth is drawn from has a lower mean (Gneiting and Raftery 2007, JASA
      102, section 4.3).
    "boundary_distance", "boundary_energy": the same with `field_distances`.
    "best": the largest IoU of a sample with a truth, averaged over the truths.
    "ged": 2 E d(S, Y) - E d(S, S') - E d(Y, Y'), the squared generalised energy distance; 0 for a
      perfect model. This is an unbiased estimate, so it may be below 0.
    "ged_biased": the same with d(S, S) = d(Y, Y) = 0 among the pairs, as Kohl et al. 2018 (arXiv
      1806.05034, eq. 5) and most papers report it. It depends on the number of samples.
    "hungarian": mean IoU of samples and truths, each repeated until their numbers are equal, when
      they are matched as well as possible (Kohl et al. 2019, arXiv 1905.13077, appendix).
    "consensus_dice": mean Dice of the pixels that at least 10, 20, ... 90% of samples and of truths
      include, as QUBIQ 2020 scores them.
    "truth_diversity": E d(Y, Y'), between two annotators.
    """
    to_truth, between = iou_distances(samples, truths), iou_distances(samples, samples)
    distance, diversity = float(to_truth.mean()), mean_of_pairs(between, draws)
    ours, theirs = boundary_fields(samples), boundary_fields(truths)
    to_outline = field_distances(ours, theirs)
    scores = {
        "distance": distance,
        "diversity": diversity,
        "energy": energy_score(to_truth, between, draws),
        "boundary_distance": float(to_outline.mean()),
        "boundary_energy": energy_score(to_outline, field_distances(ours, ours), draws),
        "best": float((1 - to_truth).max(axis=0).mean()),
    }
    if len(truths) == 1:
        return scores
    of_truths = iou_distances(truths, truths)
    return scores | {
        "ged": 2 * distance - diversity - mean_of_pairs(of_truths),
        "ged_biased": float(2 * distance - between.mean() - of_truths.mean()),
        "hungarian": 1 - matched_distance(to_truth),
        "consensus_dice": consensus_dice(samples.mean(axis=0), truths.mean(axis=0)),
        "truth_diversity": mean_of_pairs(of_truths),
    }


def matched_distance(distances: np.ndarray) -> float:
    """Least mean of f64[V, M] over the matchings of samples and truths, see "hungarian" above."""
    count = np.lcm(*distances.shape)
    rows, columns = (np.arange(count) % length for length in distances.shape)
    repeated = distances[np.ix_(rows, columns)]
    return float(repeated[optimize.linear_sum_assignment(repeated)].mean())


def consensus_dice(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean Dice of two shares f64[H, W] cut at each of `CONSENSUS`; two empty masks have Dice 1."""
    dices = []
    for level in CONSENSUS - 1e-9:  # 1 of 10 annotators is the level 0.1, whatever the rounding.
        a, b = ours > level, theirs > level
        total = a.sum() + b.sum()
        dices.append(2 * (a & b).sum() / total if total else 1.0)
    return float(np.mean(dices))


def shape_of(mask: np.ndarray) -> dict[str, float]:
    """`SHAPES` of bool[H, W]: what tells a mask that someone drew from a threshold's crumbs.

    "components" and "holes" are their numbers; pixels are connected by their sides in a component
    and also by their corners in a hole. "roughness" is the outline's length over the circumference
    of the disc of the same area: 1 for a disc, more the more ragged the outline is; 0 for an empty
    mask. The length is pi / 4 times the number of pixel sides, the outline's mean over directions.
    """
    background = np.pad(~mask, 1, constant_values=True)
    sides = sum(np.count_nonzero(np.diff(background, axis=axis)) for axis in (0, 1))
    area = np.count_nonzero(mask)
    return {
        "components": float(ndimage.label(mask)[1]),
        "holes": float(ndimage.label(background, np.ones((3, 3)))[1] - 1),
        "roughness": float(np.pi / 4 * sides / (2 * np.sqrt(np.pi * area))) if area else 0.0,
    }


def describe_samples(samples: np.ndarray, truths: np.ndarray, draws: bool = True) -> dict[str, Any]:
    """What `summarise_samples` needs of one image.

    {"scores": `score_samples`, "shapes" and "true_shapes": `shape_of` each sample and truth,
    "shares": f64[2, 256], as of `uncertainty.calibration_levels`: the share of samples that include
    a pixel, and the share of annotators who do}.
    """
    return {
        "scores": score_samples(samples, truths, draws),
        "shapes": [shape_of(mask) for mask in samples],
        "true_shapes": [shape_of(mask) for mask in truths],
        "shares": calibration_levels(samples.mean(axis=0), truths.mean(axis=0)),
    }


def summarise_samples(
    described: Mapping[str, Mapping[str, Any]], agreement: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Means over the images of `describe_samples`, by id.

    {"num_images", "mean" and "intervals" of each score over the images that have it (95%, see
    `bootstrap_interval`), "shapes": {name: {"samples" and "truths": means, "difference": the
    largest difference of their cumulative distributions, from 0 to 1 (Kolmogorov and Smirnov)}},
    "share_error": the calibration error of the share of samples that include a pixel as an
    estimate of the share of annotators who do}, and, with `agreement`, "agreement": {"num_images"
    of which it is known, "correlation", "interval"}: the rank correlation of the samples' diversity
    with the annotators' disagreement, or None if there are under 4 images or one is constant.
    """
    rows = [row["scores"] for row in described.values()]
    values = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    summary = {
        "num_images": len(rows),
        "mean": {name: float(np.mean(of)) for name, of in values.items()},
        "intervals": {name: list(bootstrap_interval(of)) for name, of in values.items()},
        "shapes": {},
    }
    for name in SHAPES:
        found = [
            [shape[name] for row in described.values() for shape in row[kind]]
            for kind in ("shapes", "true_shapes")
        ]
        summary["shapes"][name] = {
            "samples": float(np.mean(found[0])),
            "truths": float(np.mean(found[1])),
            "difference": largest_difference(*found),
        }
    shares = np.mean([row["shares"] for row in described.values()], axis=0)
    summary["share_error"] = calibration_error(reliability(shares))
    known = [id for id in described if id in (agreement or {})]
    if agreement:
        summary["agreement"] = {"num_images": len(known), "correlation": None, "interval": None}
        pairs = np.array([[described[id]["scores"]["diversity"], -agreement[id]] for id in known])
        if len(known) > 3 and np.ptp(pairs, axis=0).all():
            found = float(stats.spearmanr(*pairs.T).statistic)
            interval = correlation_interval(found, len(known))
            summary["agreement"] |= {"correlation": found, "interval": interval}
    return summary


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference of two empirical cumulative distributions, from 0 to 1."""
    values = np.concatenate([a, b])
    cumulated = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(cumulated[0] - cumulated[1]).max())


def correlation_interval(correlation: float, count: int) -> list[float]:
    """The 95% interval of a rank correlation of `count` pairs, at least 4: [low, high].

    Bonett and Wright 2000, Psychometrika 65.
    """
    error = np.sqrt((1 + correlation**2 / 2) / (count - 3))
    return np.tanh(np.arctanh(correlation) + 1.96 * error * np.array([-1, 1])).tolist()
