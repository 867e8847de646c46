import numpy as np
import pytest

from segdiff_jax.evaluation.uncertainty import (
    calibration_bins,
    calibration_error,
    summarise,
    vote_disagreement,
)


def test_disagreement_is_one_minus_the_mean_iou_of_every_two_votes():
    votes = np.float32([[[1, 1, -1, -1]], [[0.5, -1, -1, -1]], [[1, 1, 0.1, -0.1]]])
    # IoU of the masks 1100, 1000 and 1110: 1/2, 2/3 and 1/3.
    assert vote_disagreement(votes) == pytest.approx(1 - (1 / 2 + 2 / 3 + 1 / 3) / 3)
    assert vote_disagreement(votes[[0, 0]]) == 0
    empty = -np.ones((2, 1, 4), np.float32)
    assert vote_disagreement(empty) == 0
    assert vote_disagreement(np.stack([votes[0], empty[0]])) == 1
    assert vote_disagreement(votes[:1]) is None


def test_calibration_error_by_hand():
    # 0.1: one of 4 is lesion; 0.9: one of 2. The image counts 6 pixels, 1/6 each.
    probability = np.float32([[0.1, 0.1, 0.1, 0.1, 0.9, 0.9]])
    truth = np.array([[1, 0, 0, 0, 1, 0]], bool)
    bins = calibration_bins(probability, truth)
    assert bins.shape == (3, 15)
    np.testing.assert_allclose(bins[:, [1, 13]], np.array([[4, 2], [0.4, 1.8], [1, 1]]) / 6)
    assert bins[0].sum() == pytest.approx(1)
    assert calibration_error([bins]) == pytest.approx((0.6 + 0.8) / 6)
    # A second image that errs the other way as much, whatever its size.
    other = calibration_bins(np.full((20, 30), 0.1, np.float32), np.zeros((20, 30), bool))
    expected = (abs((0.4 - 1) / 6 + 0.1) + 0.8 / 6) / 2
    assert calibration_error([bins, other]) == pytest.approx(expected)
    perfect = calibration_bins(np.float32(truth), truth)
    assert calibration_error([perfect]) == 0 and perfect[0, 14] == pytest.approx(2 / 6)


def test_calibrated_probabilities_have_no_error():
    rng = np.random.default_rng(0)
    probability = rng.random((400, 400)).astype(np.float32)
    truth = rng.random((400, 400)) < probability
    assert calibration_error([calibration_bins(probability, truth)]) < 0.01
    wrong = calibration_bins(probability**3, truth)
    assert calibration_error([wrong]) == pytest.approx(1 / 2 - 1 / 4, abs=0.01)


def test_the_correlation_is_that_of_the_ranks():
    bins = [np.zeros((3, 15))] * 4
    ious, disagreements = [0.9, 0.8, 0.5, 0.1], [0.01, 0.02, 0.03, 0.9]
    summary = summarise(ious, disagreements, bins)
    assert summary == {"ece": 0, "disagreement": pytest.approx(0.24), "correlation": 1.0}
    assert summarise(ious, disagreements[::-1], bins)["correlation"] == -1
    assert summarise(ious, [0.0] * 4, bins)["correlation"] is None
    assert summarise(ious, [None] * 4, bins) == {"ece": 0}
