from pathlib import Path

import numpy as np
import pytest

from segdiff_jax.evaluation import ensemble

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "votes.npz")
# One pixel, three votes; as probabilities 1 (clipped from 2.5), 0.4 and 0.4.
SPLIT = np.float32([4, -0.2, -0.2]).reshape(3, 1, 1)


@pytest.mark.parametrize("name", ["same", "up"])
def test_mean_equals_the_original_segdiff(name):
    expected = GOLDEN[f"{name}/mean"]
    probability = ensemble.mean(ensemble.resize_samples(GOLDEN["samples"], expected.shape))
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ensemble.to_mask(probability), GOLDEN[f"{name}/out"] == 1)


def test_shrinking_antialiases_where_the_original_skips_pixels():
    checkers = np.where(np.indices((1, 32, 32)).sum(axis=0) % 2, 1, -1).astype(np.float32)
    inner = ensemble.resize_samples(checkers, (8, 8))[0, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, 0, atol=1e-6)
    expected = GOLDEN["down/mean"]
    probability = ensemble.mean(ensemble.resize_samples(GOLDEN["samples"], expected.shape))
    assert np.abs(probability - expected).max() > 0.01


def test_mean_and_vote_differ_where_one_vote_outweighs_two():
    assert ensemble.mean(SPLIT) == pytest.approx(0.6)
    assert ensemble.vote(SPLIT) == pytest.approx(1 / 3)
    assert ensemble.vote(SPLIT).dtype == np.float32
    assert ensemble.ENSEMBLES["mean"] is ensemble.mean
    assert ensemble.ENSEMBLES["vote"] is ensemble.vote


def test_a_tie_is_background():
    np.testing.assert_array_equal(
        ensemble.to_mask(np.float32([0.49, 0.5, 0.51])), [False, False, True]
    )
    np.testing.assert_array_equal(ensemble.to_mask(np.float32([0.25, 0.26]), 0.25), [False, True])
    assert ensemble.vote(np.zeros((1, 1, 1))) == 0


def test_standard_deviation():
    assert ensemble.standard_deviation(SPLIT) == pytest.approx(np.sqrt(0.08))  # of 1, 0.4 and 0.4
    even = np.float32([-3, 3, -1, 1]).reshape(4, 1, 1)
    np.testing.assert_array_equal(ensemble.standard_deviation(even), [[0.5]])
    np.testing.assert_array_equal(ensemble.standard_deviation(SPLIT[:1]), [[0]])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((4, 4)), r"\(4, 4\)"),
        (np.zeros((0, 4, 4)), r"\(0, 4, 4\)"),
        (np.full((1, 2, 2), np.nan), "diverged"),
    ],
)
@pytest.mark.parametrize("combine", [ensemble.mean, ensemble.vote, ensemble.standard_deviation])
def test_rejects_samples_it_cannot_combine(combine, samples, message):
    with pytest.raises(ValueError, match=message):
        combine(samples)
