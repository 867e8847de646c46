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
    assert ensemble.ENSEMBLES["staple"] is ensemble.staple


def raters(count, seed, shape=(40, 60)):
    """A disc as so many raters see it, who err at their own rates: f32[count, 40, 60]."""
    rng, (y, x) = np.random.default_rng(seed), np.indices(shape)
    truth = (y - 20) ** 2 + (x - 30) ** 2 < 150
    errs = rng.random((count, *shape)) < rng.uniform(0.02, 0.3, (count, 1, 1))
    return truth, np.where(truth ^ errs, 0.8, -1.3).astype(np.float32)


@pytest.mark.parametrize("count, seed", [(2, 0), (3, 1), (5, 2), (9, 3), (25, 4)])
def test_staple_equals_simpleitk(count, seed):
    sitk = pytest.importorskip("SimpleITK")
    _, samples = raters(count, seed)
    filter = sitk.STAPLEImageFilter()
    filter.SetForegroundValue(1)
    expected = filter.Execute([sitk.GetImageFromArray(np.uint8(vote > 0)) for vote in samples])
    probability = ensemble.staple(samples)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, sitk.GetArrayFromImage(expected), rtol=0, atol=1e-4)


def test_staple_trusts_good_votes_more():
    truth, rng = raters(1, 5)[0], np.random.default_rng(0)
    errs = rng.random((5, *truth.shape)) < np.reshape([0, 0, 0.3, 0.3, 0.3], (5, 1, 1))
    samples = np.where(truth ^ errs, 1.0, -1.0)
    staple, vote = (ensemble.to_mask(f(samples)) for f in (ensemble.staple, ensemble.vote))
    assert (vote != truth).sum() > 10 and (staple != truth).sum() == 0


def test_staple_of_votes_that_are_noise_ends():
    noise = np.random.default_rng(3).standard_normal((4, 34, 34))
    probability = ensemble.staple(noise)
    assert np.isfinite(probability).all() and 0 <= probability.min() < probability.max() <= 1


def test_staple_where_all_votes_are_the_same():
    mask = np.where(np.arange(12).reshape(1, 3, 4) < 5, 1.0, -1.0)
    np.testing.assert_allclose(ensemble.staple(np.repeat(mask, 4, 0)), mask[0] > 0, atol=1e-6)
    np.testing.assert_allclose(ensemble.staple(mask), mask[0] > 0, atol=1e-4)
    for value in (0, 1):
        assert (ensemble.staple(np.full((3, 2, 2), 2.0 * value - 1)) == value).all()
    with pytest.raises(ValueError, match="at most 64 votes, not 65"):
        ensemble.staple(np.zeros((65, 1, 1)))


def test_a_temperature_divides_the_log_odds():
    probability = np.float32([0.2, 0.5, 0.9])
    odds = np.log(probability / (1 - probability))
    expected = 1 / (1 + np.exp(-odds / 2.5))
    np.testing.assert_allclose(ensemble.temper(probability, 2.5), expected, rtol=1e-6)
    assert ensemble.temper(probability, 1) is probability
    certain = ensemble.temper(np.float32([0, 1]), 2)
    np.testing.assert_allclose(certain, [0.0424, 0.9576], atol=1e-4)  # Of 1/510: 1 / (1 + 509^0.5)


def test_entropy():
    expected = [0, 1, -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75), 0]
    np.testing.assert_allclose(ensemble.entropy(np.float32([0, 0.5, 0.25, 1])), expected, atol=1e-6)


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
@pytest.mark.parametrize(
    "combine", [ensemble.mean, ensemble.vote, ensemble.staple, ensemble.standard_deviation]
)
def test_rejects_samples_it_cannot_combine(combine, samples, message):
    with pytest.raises(ValueError, match=message):
        combine(samples)
