import numpy as np
import pytest

from segdiff_jax.evaluation.uncertainty import (
    calibration_error,
    calibration_levels,
    calibration_pair,
    fit_temperature,
    reliability,
    risk_coverage,
    summarise,
)
from segdiff_jax.inference.combine import disagreement, temper


def test_disagreement_is_one_minus_the_mean_iou_of_every_two_masks():
    labels = np.uint8([[[1, 1, 0, 0]], [[1, 0, 0, 0]], [[1, 1, 1, 0]]])
    # IoU of the masks 1100, 1000 and 1110: 1/2, 2/3 and 1/3.
    assert disagreement(labels) == pytest.approx(1 - (1 / 2 + 2 / 3 + 1 / 3) / 3)
    assert disagreement(labels[[0, 0]]) == 0
    empty = np.zeros((2, 1, 4), np.uint8)
    assert disagreement(empty) == 0
    assert disagreement(np.stack([labels[0], empty[0]])) == 1
    assert disagreement(labels[:1]) is None


def test_calibration_by_hand():
    # 0.2: one of 4 is lesion; 0.8: one of 2. The image counts 6 pixels, 1/6 each.
    probability = np.float32([[0.2, 0.2, 0.2, 0.2, 0.8, 0.8]])
    truth = np.array([[1, 0, 0, 0, 1, 0]], bool)
    levels = calibration_levels(probability, truth)
    assert levels.shape == (2, 256) and levels[0].sum() == pytest.approx(1)
    np.testing.assert_allclose(levels[:, [51, 204]], np.array([[4, 2], [1, 1]]) / 6)
    rows = [{"probability": 0.2, "lesion": 1 / 4}, {"probability": 0.8, "lesion": 1 / 2}]
    shares = [{"share": 4 / 6}, {"share": 2 / 6}]
    expected = [pytest.approx(row | share) for row, share in zip(rows, shares, strict=True)]
    assert reliability(levels) == expected
    assert calibration_error(reliability(levels)) == pytest.approx(4 / 6 * 0.05 + 2 / 6 * 0.3)
    # A second image that errs the other way counts as much, whatever its size.
    other = calibration_levels(np.full((20, 30), 0.2, np.float32), np.zeros((20, 30), bool))
    rows = reliability(np.mean([levels, other], axis=0))
    assert rows[0]["lesion"] == pytest.approx((1 / 6) / (4 / 6 + 1))
    perfect = reliability(calibration_levels(np.float32(truth), truth))
    assert calibration_error(perfect) == 0
    assert perfect[-1] == pytest.approx({"probability": 1, "lesion": 1, "share": 2 / 6})


def test_of_two_classes_the_event_is_lesion():
    probabilities, labels = np.float32([[[0.2], [0.6]]]), np.uint8([[0, 1]])
    confidence, lesion = calibration_pair(probabilities, labels, np.uint8([[1, 0]]))
    np.testing.assert_array_equal(confidence, np.float32([[0.2, 0.6]]))
    np.testing.assert_array_equal(lesion, [[True, False]])


def test_calibrated_probabilities_have_no_error():
    rng = np.random.default_rng(0)
    probability = rng.random((400, 400)).astype(np.float32)
    truth = rng.random((400, 400)) < probability
    assert calibration_error(reliability(calibration_levels(probability, truth))) < 0.01
    wrong = calibration_levels(probability**3, truth)
    assert calibration_error(reliability(wrong)) == pytest.approx(1 / 2 - 1 / 4, abs=0.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoilt_probabilities_is_found(temperature):
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.15, 0.85, (400, 400)).astype(np.float32)
    truth = rng.random((400, 400)) < probability
    spoilt = temper(probability[..., None], 1 / temperature)[..., 0]
    levels = calibration_levels(spoilt, truth)
    assert fit_temperature(levels) == pytest.approx(temperature, rel=0.05)
    assert calibration_error(reliability(levels, temperature)) < 0.01


def test_risk_and_coverage():
    ious = [0.1, 0.9, 0.8, 0.7]
    curve = risk_coverage(ious, [0.9, 0.1, 0.2, 0.3])
    assert [coverage for coverage, _ in curve] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    expected = [0.625, 0.625, 0.625, 0.8, 0.8, 0.85]  # Of 4, 4, 4, 3, 3 and 2 images.
    assert [iou for _, iou in curve] == pytest.approx(expected)
    assert risk_coverage([0.5], [0.0])[-1] == [0.5, 0.5]


def test_the_correlation_is_that_of_the_ranks():
    truth = np.arange(6).reshape(2, 3) < 2
    levels = [calibration_levels(np.full((2, 3), 0.6, np.float32), truth)] * 4
    ious, disagreements = [0.9, 0.8, 0.5, 0.1], [0.01, 0.02, 0.03, 0.9]
    summary = summarise(ious, disagreements, levels)
    assert summary["ece"] == pytest.approx(0.6 - 1 / 3)
    # Log odds of 0.6 would have to be negative: none will do, and the most uncertain is best.
    assert summary["temperature"] == pytest.approx(20, rel=0.01)
    assert summary["ece_tempered"] == pytest.approx(0.5 - 1 / 3, abs=0.01)
    assert summary["disagreement"] == pytest.approx(0.24) and summary["correlation"] == 1
    assert summary["risk_coverage"] == risk_coverage(ious, disagreements)
    assert summarise(ious, disagreements[::-1], levels)["correlation"] == -1
    assert summarise(ious, [0.0] * 4, levels)["correlation"] is None
    single = summarise(ious, [None] * 4, levels)
    assert sorted(single) == ["ece", "ece_tempered", "reliability", "temperature"]
