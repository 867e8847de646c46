import itertools

import numpy as np
import pytest
from scipy import stats

from segdiff_jax.evaluation import distributions
from segdiff_jax.evaluation.distributions import (
    boundary_fields,
    consensus_dice,
    correlation_interval,
    describe_samples,
    field_distances,
    largest_difference,
    matched_distance,
    score_samples,
    shape_of,
    summarise_samples,
)
from segdiff_jax.inference.combine import iou_distances


def random_masks(rng, count, size=(9, 11)):
    return rng.random((count, *size)) < rng.uniform(0.2, 0.8, (count, 1, 1))


def slow_iou_distance(a, b):
    return 1 - (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0


def rows(*bits):
    """Masks of one row: rows("110", "000") is bool[2, 1, 3]."""
    return np.array([[[bit == "1" for bit in row]] for row in bits])


def test_distances_are_one_minus_the_iou_of_each_pair():
    rng = np.random.default_rng(0)
    a, b = random_masks(rng, 4), random_masks(rng, 3)
    a[1] = b[2] = False  # Two empty masks have distance 0.
    expected = [[slow_iou_distance(x, y) for y in b] for x in a]
    np.testing.assert_allclose(iou_distances(a, b), expected, atol=1e-7)
    assert iou_distances(a, b)[1, 2] == 0 and iou_distances(a, b)[1, 0] == 1


def test_distances_of_outlines_are_the_metric_of_baddeley():
    rng = np.random.default_rng(1)
    a, b = random_masks(rng, 3), random_masks(rng, 2)
    a[2] = False  # Without an outline, all pixels are at the cutoff.
    diagonal = np.hypot(9, 11)
    pixels = np.argwhere(np.ones((9, 11), bool))

    def field(mask):
        edge = np.argwhere(distributions.boundary(mask))
        far = [min((np.hypot(*(edge - p).T).min() if len(edge) else 99), 99) for p in pixels]
        return np.minimum(far, 0.1 * diagonal)

    root = lambda x, y: 100 / diagonal * np.sqrt(np.mean((field(x) - field(y)) ** 2))
    distances = field_distances(boundary_fields(a), boundary_fields(b))
    np.testing.assert_allclose(distances, [[root(x, y) for y in b] for x in a], atol=1e-6)
    own = field_distances(boundary_fields(a), boundary_fields(a))
    np.testing.assert_allclose(np.diag(own), 0, atol=1e-6)


def test_scores_by_hand():
    samples, truth = rows("1100", "1110", "0000"), rows("1100")
    scores = score_samples(samples, truth)
    assert scores["distance"] == pytest.approx((0 + 1 / 3 + 1) / 3)
    assert scores["diversity"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert scores["energy"] == pytest.approx(4 / 9 - 7 / 18)
    assert scores["best"] == pytest.approx(1)
    assert "ged" not in scores
    two = score_samples(samples, rows("1100", "1111"))
    to_truth = np.array([[0, 1 / 2], [1 / 3, 1 / 4], [1, 1]])
    assert two["distance"] == pytest.approx(to_truth.mean())
    assert two["truth_diversity"] == pytest.approx(1 / 2)
    assert two["ged"] == pytest.approx(2 * to_truth.mean() - 7 / 9 - 1 / 2)
    between, of_truths = 7 / 9 * 6 / 9, 1 / 2 * 2 / 4
    assert two["ged_biased"] == pytest.approx(2 * to_truth.mean() - between - of_truths)
    assert two["best"] == pytest.approx((1 + 3 / 4) / 2)


def test_a_single_sample_counts_as_certain():
    scores = score_samples(rows("1100"), rows("1000"))
    assert scores["diversity"] == 0
    assert scores["energy"] == scores["distance"] == pytest.approx(1 / 2)


def test_if_samples_are_all_that_there_are_pairs_with_themselves_count():
    samples, truth = rows("1100", "1110"), rows("1100")
    scores = score_samples(samples, truth, draws=False)
    assert scores["diversity"] == pytest.approx(1 / 6)  # 1/3 for two different ones, else 0.
    assert scores["energy"] == pytest.approx(1 / 6 - 1 / 12)
    assert scores["boundary_energy"] > score_samples(samples, truth)["boundary_energy"]


def test_the_energy_score_does_not_depend_on_the_number_of_samples():
    rng = np.random.default_rng(2)
    masks, truth = random_masks(rng, 4), random_masks(rng, 1)
    draw = lambda count: masks[rng.integers(4, size=count)]
    means = [np.mean([score_samples(draw(n), truth)["energy"] for _ in range(300)]) for n in (2, 9)]
    assert means[0] == pytest.approx(means[1], abs=0.02)


def test_the_right_distribution_has_the_lowest_energy():
    """Level sets of one half of two places: both or none, though one of them is always true."""
    places = rows("11000000", "00000011")
    both_or_none = rows("11000011", "00000000")
    energy = lambda samples: np.mean([score_samples(samples, y[None])["energy"] for y in places])
    many = lambda pair: np.repeat(pair, 50, axis=0)
    right, wrong = energy(many(places)), energy(many(both_or_none))
    # E d(S, Y) = 1/2 and E d(S, S') = 1/2, but 3/4 and 1/2; the diagonal is left out of the pairs.
    assert right == pytest.approx(1 / 2 - 1 / 4, abs=0.01)
    assert wrong == pytest.approx(3 / 4 - 1 / 4, abs=0.01)
    perfect, other = (score_samples(many(x), many(places))["ged"] for x in (places, both_or_none))
    assert perfect == pytest.approx(0, abs=0.011) and other == pytest.approx(1 / 2, abs=0.011)


def test_samples_and_truths_are_matched_as_well_as_possible():
    rng = np.random.default_rng(3)
    distances = rng.random((2, 4))
    best = min(
        np.mean([distances[i, j] for i, j in zip((0, 0, 1, 1), order, strict=True)])
        for order in itertools.permutations(range(4))
    )
    assert matched_distance(distances) == pytest.approx(best)
    square = rng.random((4, 4))
    least = min(
        np.mean(square[range(4), list(order)]) for order in itertools.permutations(range(4))
    )
    assert matched_distance(square) == pytest.approx(least)


def test_consensus_dice_by_hand():
    # At 0.1, 0.2 and 0.3 ours is 110; at 0.4 to 0.9 it is 100. Theirs is 100 up to 0.5, then empty.
    ours, theirs = np.array([[1.0, 0.4, 0.0]]), np.array([[0.6, 0.0, 0.0]])
    expected = [2 / 3] * 4 + [1] * 2 + [0] * 3
    assert consensus_dice(ours, theirs) == pytest.approx(np.mean(expected))
    assert consensus_dice(0 * ours, 0 * theirs) == 1


def test_shapes_of_masks():
    y, x = np.mgrid[:201, :201] - 100
    disc = np.hypot(y, x) < 80
    assert shape_of(disc) == {"components": 1, "holes": 0, "roughness": pytest.approx(1, abs=0.01)}
    ring = disc & (np.hypot(y, x) > 40)
    found = shape_of(ring)
    assert (found["components"], found["holes"]) == (1, 1)
    assert found["roughness"] == pytest.approx((80 + 40) / np.sqrt(80**2 - 40**2), rel=0.02)
    square = np.zeros((20, 20), bool)
    square[5:15, 5:15] = True
    assert shape_of(square)["roughness"] == pytest.approx(np.sqrt(np.pi) / 2)
    assert shape_of(np.ones((8, 8), bool))["holes"] == 0  # The frame's edge is an outline.
    # Pixels that touch with corners: two components, and the outside reaches between them.
    corners = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    assert shape_of(corners)["components"] == 2 and shape_of(corners)["holes"] == 0
    diamond = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    assert shape_of(diamond)["holes"] == 0
    assert shape_of(np.zeros((4, 4), bool)) == {"components": 0, "holes": 0, "roughness": 0}


def test_the_summary_of_several_images():
    rng = np.random.default_rng(4)
    described = {
        f"image{i}": describe_samples(random_masks(rng, 4), random_masks(rng, 1 + i % 2))
        for i in range(6)
    }
    agreement = {f"image{i}": rng.random() for i in range(5)} | {"another": 0.5}
    summary = summarise_samples(described, agreement)
    energies = [row["scores"]["energy"] for row in described.values()]
    assert summary["num_images"] == 6
    assert summary["mean"]["energy"] == pytest.approx(np.mean(energies))
    low, high = summary["intervals"]["energy"]
    assert low < np.mean(energies) < high
    geds = [row["scores"]["ged"] for row in described.values() if "ged" in row["scores"]]
    assert len(geds) == 3 and summary["mean"]["ged"] == pytest.approx(np.mean(geds))
    rough = [shape["roughness"] for row in described.values() for shape in row["shapes"]]
    assert summary["shapes"]["roughness"]["samples"] == pytest.approx(np.mean(rough))
    diversities = [described[f"image{i}"]["scores"]["diversity"] for i in range(5)]
    expected = stats.spearmanr(diversities, [1 - agreement[f"image{i}"] for i in range(5)])
    assert summary["agreement"]["num_images"] == 5
    assert summary["agreement"]["correlation"] == pytest.approx(expected.statistic)
    assert correlation_interval(0.5, 103) == pytest.approx(
        np.tanh(np.arctanh(0.5) + np.array([-1, 1]) * 1.96 * np.sqrt(1.125 / 100))
    )
    assert "agreement" not in summarise_samples(described)
    unknown = {"num_images": 0, "correlation": None, "interval": None}
    assert summarise_samples(described, {"another": 0.5})["agreement"] == unknown
    constant = dict.fromkeys(agreement, 0.5)
    assert summarise_samples(described, constant)["agreement"]["correlation"] is None


def test_the_share_of_samples_is_compared_with_the_share_of_annotators():
    # Half of the pixels: 3 of 4 samples, 1 of 2 annotators; the others: none.
    samples, truths = rows("10", "10", "10", "00"), rows("10", "00")
    assert summarise_samples({"a": describe_samples(samples, truths)})[
        "share_error"
    ] == pytest.approx(1 / 2 * (191 / 255 - 1 / 2))
    alike = describe_samples(np.concatenate([truths, truths]), truths)
    assert summarise_samples({"a": alike})["share_error"] == pytest.approx(0, abs=0.002)


def test_shapes_that_differ_are_told_apart():
    disc = np.hypot(*(np.mgrid[:21, :21] - 10)) < 8
    crumbs = np.random.default_rng(5).random((3, 21, 21)) < 0.5
    alike = summarise_samples({"a": describe_samples(disc[None], disc[None])})["shapes"]
    assert all(row["difference"] == 0 for row in alike.values())
    other = summarise_samples({"a": describe_samples(crumbs, disc[None])})["shapes"]
    assert other["components"]["difference"] == 1 and other["components"]["truths"] == 1


def test_the_largest_difference_is_that_of_kolmogorov_and_smirnov():
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 9, 50), rng.integers(2, 12, 70)
    expected = stats.ks_2samp(a, b, method="asymp").statistic
    assert largest_difference(a, b) == pytest.approx(expected)
