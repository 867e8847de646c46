"""Masks of two classes: samples become probabilities and labels."""

from pathlib import Path

import jax
import numpy as np
import pytest

from segdiff_jax.data.classes import most_likely
from segdiff_jax.inference import combine

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "votes.npz")
SAMPLES = GOLDEN["samples"][..., None]
# One pixel, three samples; as probabilities 1 (clipped from 2.5), 0.4 and 0.4.
SPLIT = np.float32([4, -0.2, -0.2]).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("name", ["same", "up"])
def test_mean_equals_the_original_segdiff(name):
    expected = GOLDEN[f"{name}/mean"]
    probability = combine.mean(combine.resize_samples(SAMPLES, expected.shape))
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability[..., 0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(most_likely(probability, 0.5), GOLDEN[f"{name}/out"] == 1)


def test_shrinking_antialiases_where_the_original_skips_pixels():
    checkers = np.where(np.indices((1, 32, 32)).sum(axis=0) % 2, 1, -1).astype(np.float32)
    inner = combine.resize_samples(checkers[..., None], (8, 8))[0, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, 0, atol=1e-6)
    expected = GOLDEN["down/mean"]
    probability = combine.mean(combine.resize_samples(SAMPLES, expected.shape))[..., 0]
    assert np.abs(probability - expected).max() > 0.01


def test_mean_and_vote_differ_where_one_sample_outweighs_two():
    assert combine.mean(SPLIT) == pytest.approx(0.6)
    assert combine.vote(SPLIT) == pytest.approx(1 / 3)
    assert combine.vote(SPLIT).dtype == np.float32
    assert combine.ENSEMBLES["mean"] is combine.mean
    assert combine.ENSEMBLES["vote"] is combine.vote
    assert combine.ENSEMBLES["staple"] is combine.staple


def raters(count, seed, shape=(40, 60)):
    """A disc as raters see it who err at their own rates: f32[count, 40, 60, 1]."""
    rng, (y, x) = np.random.default_rng(seed), np.indices(shape)
    truth = (y - 20) ** 2 + (x - 30) ** 2 < 150
    errs = rng.random((count, *shape)) < rng.uniform(0.02, 0.3, (count, 1, 1))
    return truth, np.where(truth ^ errs, 0.8, -1.3).astype(np.float32)[..., None]


@pytest.mark.parametrize("count, seed", [(2, 0), (3, 1), (5, 2), (9, 3), (25, 4)])
def test_staple_equals_simpleitk(count, seed):
    sitk = pytest.importorskip("SimpleITK")
    _, samples = raters(count, seed)
    filter = sitk.STAPLEImageFilter()
    filter.SetForegroundValue(1)
    expected = filter.Execute(
        [sitk.GetImageFromArray(np.uint8(sample[..., 0] > 0)) for sample in samples]
    )
    probability = combine.staple(samples)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(
        probability[..., 0], sitk.GetArrayFromImage(expected), rtol=0, atol=1e-4
    )


def test_staple_trusts_good_samples_more():
    truth, rng = raters(1, 5)[0], np.random.default_rng(0)
    errs = rng.random((5, *truth.shape)) < np.reshape([0, 0, 0.3, 0.3, 0.3], (5, 1, 1))
    samples = np.where(truth ^ errs, 1.0, -1.0)[..., None]
    staple, vote = (most_likely(f(samples), 0.5) for f in (combine.staple, combine.vote))
    assert (vote != truth).sum() > 10 and (staple != truth).sum() == 0


def test_staple_of_samples_that_are_noise_ends():
    noise = np.random.default_rng(3).standard_normal((4, 34, 34, 1))
    probability = combine.staple(noise)
    assert np.isfinite(probability).all() and 0 <= probability.min() < probability.max() <= 1


def test_staple_where_all_samples_are_the_same():
    mask = np.where(np.arange(12).reshape(1, 3, 4, 1) < 5, 1.0, -1.0)
    np.testing.assert_allclose(combine.staple(np.repeat(mask, 4, 0)), mask[0] > 0, atol=1e-6)
    np.testing.assert_allclose(combine.staple(mask), mask[0] > 0, atol=1e-4)
    for value in (0, 1):
        assert (combine.staple(np.full((3, 2, 2, 1), 2.0 * value - 1)) == value).all()
    with pytest.raises(ValueError, match=r"at most 64 samples of two classes, not \(65, 1, 1, 1\)"):
        combine.staple(np.zeros((65, 1, 1, 1)))


def test_a_temperature_divides_the_log_odds():
    probability = np.float32([0.2, 0.5, 0.9])[:, None]
    odds = np.log(probability / (1 - probability))
    expected = 1 / (1 + np.exp(-odds / 2.5))
    np.testing.assert_allclose(combine.temper(probability, 2.5), expected, rtol=1e-6)
    assert combine.temper(probability, 1) is probability
    certain = combine.temper(np.float32([[0], [1]]), 2)
    np.testing.assert_allclose(
        certain[:, 0], [0.0424, 0.9576], atol=1e-4
    )  # Of 1/510: 1 / (1 + 509^0.5)


def test_entropy():
    expected = [0, 1, -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75), 0]
    probability = np.float32([0, 0.5, 0.25, 1])[:, None]
    np.testing.assert_allclose(combine.entropy(probability), expected, atol=1e-6)


def test_a_tie_is_background():
    labels = most_likely(np.float32([[0.49], [0.5], [0.51]]), 0.5)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [0, 0, 1])
    np.testing.assert_array_equal(most_likely(np.float32([[0.25], [0.26]]), 0.25), [0, 1])
    assert combine.vote(np.zeros((1, 1, 1, 1), np.float32)) == 0


def test_standard_deviation():
    assert combine.standard_deviation(SPLIT) == pytest.approx(np.sqrt(0.08))  # of 1, 0.4 and 0.4
    even = np.float32([-3, 3, -1, 1]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(combine.standard_deviation(even), [[0.5]])
    np.testing.assert_array_equal(combine.standard_deviation(SPLIT[:1]), [[0]])


def test_the_largest_component_stays_and_its_holes_are_filled():
    """A ring of 8 pixels with a hole; a speck; 3 pixels that touch at a corner."""
    drawn = ["###...", "#.#..#", "###...", "...###"]
    mask = np.array([[c == "#" for c in row] for row in drawn])
    kept = ["###...", "###...", "###...", "......"]
    samples = np.where(mask, 1.0, -1.0).astype(np.float32)[None, ..., None]
    found, plain = combine.segment(samples, largest_component=True), combine.segment(samples)
    assert ["".join(".#"[x] for x in row) for row in found.labels] == kept
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(plain.labels, mask)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    assert not combine.keep_largest_component(np.zeros((2, 3), bool)).any()


def test_a_segmentation_is_what_users_see():
    found = combine.segment(SPLIT, ensemble="vote", threshold=0.3)
    assert found.mask.dtype == bool and found.mask.shape == found.probability.shape == (1, 1)
    assert found.mask.all() and found.probability == pytest.approx(1 / 3)
    assert not combine.segment(SPLIT, ensemble="vote").mask.any()
    assert combine.segment(SPLIT[:1]).deviation is None


@pytest.mark.parametrize("classes", [1, 3])
def test_jax_arrays_are_combined_like_numpys(classes):
    samples = np.random.default_rng(0).normal(0, 1, (5, 4, 6, classes)).astype(np.float32)
    functions = [combine.mean, combine.vote, combine.standard_deviation]
    functions.append(lambda x: combine.temper(combine.mean(x), 2.5))
    for function in functions:
        ours, expected = jax.jit(function)(samples), function(samples)
        assert ours.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-6)
