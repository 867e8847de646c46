from pathlib import Path

import numpy as np
import pytest

from segdiff_jax.evaluation import metrics
from segdiff_jax.evaluation.metrics import (
    SCORES,
    average_scores,
    bootstrap_interval,
    class_scores,
    segmentation_scores,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")


def masks_of(case):
    return GOLDEN[f"{case}/pred"] == 1, GOLDEN[f"{case}/gt"] == 1


def test_scores_by_hand():
    prediction = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    truth = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)  # TP 2, FP 1, FN 2, TN 3
    expected = {
        "iou": 2 / 5,
        "dice": 4 / 7,
        "accuracy": 5 / 8,
        "sensitivity": 1 / 2,
        "specificity": 3 / 4,
        "thresholded_jaccard": 0,
        # The boundaries 1 1 0 0 / 1 0 0 0 and 1 1 1 1 / 0 0 0 0 lie within a pixel, but for the
        # last of the truth's, which is two away.
        "fbound": (2 * (3 / 4) / (1 + 3 / 4) + 4) / 5,
        "wcov": 3 / 4,
        # Every pixel is outline; a hundredth of the diagonal is less than a pixel.
        "surface_dice": 4 / 7,
        "hd95": np.quantile([0, 0, 1, 2], 0.95),
    }
    assert segmentation_scores(prediction, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [  # iou, dice, accuracy, sensitivity, specificity, thresholded Jaccard, FBound, WCov, surface
        (False, False, (1, 1, 1, 1, 1, 1, 1, 1, 1, 0)),
        (True, True, (1, 1, 1, 1, 1, 1, 1, 1, 1, 0)),
        # A full mask has no boundary either, but the image's end is outline.
        (True, False, (0, 0, 0, 1, 0, 0, 1, 0, 0, np.hypot(3, 5))),
        (False, True, (0, 0, 0, 0, 1, 0, 1, 0, 0, np.hypot(3, 5))),
    ],
)
def test_empty_and_full_masks(prediction, truth, expected):
    scores = segmentation_scores(np.full((3, 5), prediction), np.full((3, 5), truth))
    assert tuple(scores.values()) == expected


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN}))
def test_equals_the_original_segdiff(name):
    scores = segmentation_scores(*masks_of(name))
    *expected, fbound = GOLDEN[f"{name}/f1_jaccard_fbound"]
    if name == "both_empty":  # the one difference: the original says 0, see the docstring
        np.testing.assert_array_equal(expected, 0)
        expected = (1, 1)
    np.testing.assert_allclose((scores["dice"], scores["iou"]), expected, rtol=0, atol=1e-12)
    assert scores["fbound"] == pytest.approx(fbound, abs=1e-12)
    wcov = 1 if name == "both_empty" else GOLDEN[f"{name}/wcov"]  # It divides by 0 there.
    assert scores["wcov"] == pytest.approx(wcov, abs=1e-12)


def test_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        prediction, truth = rng.random((2, 30, 40)) < share
        ours, flat = segmentation_scores(prediction, truth), (truth.ravel(), prediction.ravel())
        for name, function in (
            ("iou", sklearn.jaccard_score),
            ("dice", sklearn.f1_score),
            ("accuracy", sklearn.accuracy_score),
            ("sensitivity", sklearn.recall_score),
            ("specificity", lambda t, p: sklearn.recall_score(t, p, pos_label=0)),
        ):
            assert ours[name] == pytest.approx(function(*flat), abs=1e-12)


@pytest.mark.parametrize("name", sorted(k[:-6] for k in GOLDEN if k.endswith("/monai")))
def test_distances_of_outlines_equal_monais(name):
    """compute_surface_dice and compute_hausdorff_distance(percentile=95) of MONAI 1.6.1."""
    scores = segmentation_scores(*masks_of(name))
    ours = scores["surface_dice"], scores["hd95"]
    np.testing.assert_allclose(ours, GOLDEN[f"{name}/monai"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_alone_is_the_same_as_among_all(name):
    for case in sorted({key.split("/")[0] for key in GOLDEN}):
        prediction, truth = masks_of(case)
        alone = segmentation_scores(prediction, truth, (name,))
        assert alone == {name: segmentation_scores(prediction, truth)[name]}
        labels = prediction.astype(np.uint8), truth.astype(np.uint8)
        assert class_scores(*labels, 2, (name,))[0] == alone


def test_what_is_not_asked_for_is_not_computed(monkeypatch):
    def fail(*args):
        raise AssertionError("a KD-tree is built")

    monkeypatch.setattr(metrics, "cKDTree", fail)
    prediction, truth = masks_of("near8")
    assert segmentation_scores(prediction, truth, ("iou",))["iou"] > 0
    areas = "iou", "dice", "accuracy", "sensitivity", "specificity", "thresholded_jaccard", "wcov"
    assert list(segmentation_scores(prediction, truth, areas)) == list(areas)
    for name in set(SCORES) - set(areas):
        with pytest.raises(AssertionError, match="KD-tree"):
            segmentation_scores(prediction, truth, (name,))


def test_average_counts_each_image_once():
    rows = [{"iou": 0.5, "dice": 1.0}, {"iou": 0.25, "dice": 0.0}, {"iou": 0.0, "dice": 0.5}]
    assert average_scores(rows) == {"iou": 0.25, "dice": 0.5}
    with pytest.raises(ValueError, match="rows is empty"):
        average_scores([])


def test_bootstrap_interval_of_many_images_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).beta(8, 2, 400)
    half = values.std() / 20
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - 1.96 * half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + 1.96 * half, abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    inner = bootstrap_interval(values, level=0.5)
    assert inner[1] - inner[0] == pytest.approx(2 * 0.6745 * half, rel=0.05)


def test_bootstrap_interval_of_few_images():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    # Of two images, one in four resamples is all 0 and one in four all 1.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
    with pytest.raises(ValueError, match="values is empty"):
        bootstrap_interval([])


def test_rejects_shapes_that_differ_and_masks_that_are_not_boolean():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        segmentation_scores(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="truth must be a boolean mask, not uint8"):
        segmentation_scores(np.zeros((2, 2), bool), np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("columns, expected", [(13, 0.65), (12, 0.0)])
def test_thresholded_jaccard(columns, expected):
    prediction = np.zeros((5, 20), bool)
    prediction[:, :columns] = True
    scores = segmentation_scores(prediction, np.ones((5, 20), bool))
    assert scores["iou"] == columns / 20 and scores["thresholded_jaccard"] == expected
