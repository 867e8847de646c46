import numpy as np
import pytest

from segdiff_jax.inference.drawn import drawn_labels


def draw(probability, source="levels", count=400, pixels=(4, 4), id="a", seed=0):
    shape = pixels if source == "pixels" else (1, 1)
    return drawn_labels(np.float32(probability), shape, count, id, seed)


@pytest.mark.parametrize("source", ["levels", "pixels"])
def test_each_pixel_is_lesion_as_often_as_its_probability_says(source):
    probability = np.linspace(0, 1, 16).reshape(4, 4, 1)
    masks = draw(probability, source, 4000)
    assert masks.shape == (4000, 4, 4) and masks.dtype == np.uint8
    np.testing.assert_allclose(masks.mean(axis=0), probability[..., 0], atol=0.03)
    assert not masks[:, 0, 0].any() and masks[:, 3, 3].all()  # Never and always.


def test_level_sets_lie_inside_each_other_and_pixels_do_not():
    probability = np.random.default_rng(0).uniform(0.1, 0.9, (4, 4, 1))
    ordered = lambda masks: np.sort(masks.reshape(len(masks), -1).sum(axis=1))
    masks = draw(probability, count=2000)
    for mask in masks:  # All that is as probable as a pixel of the mask is in it too.
        least = probability[mask > 0].min() if mask.any() else 1
        np.testing.assert_array_equal(mask, probability[..., 0] >= least)
    assert len(set(ordered(masks))) >= 14  # Two of the 17 may be nearly the same level.
    alone = draw(probability, "pixels")
    pairs = alone.reshape(len(alone), -1).T
    off_diagonal = np.corrcoef(pairs)[~np.eye(16, dtype=bool)]
    assert abs(np.nanmean(off_diagonal)) < 0.02


def test_classes_have_their_probabilities():
    probability = np.broadcast_to([0.2, 0.5, 0.3], (1, 2, 3))
    masks = draw(probability, count=4000)
    shares = [(masks == k).mean() for k in range(3)]
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=0.03)
    assert (masks[:, 0, 0] == masks[:, 0, 1]).all()  # Alike pixels share a level.


def test_a_mask_follows_from_image_seed_and_number():
    probability = np.random.default_rng(1).random((4, 4, 1))
    masks = draw(probability, "pixels", count=8)
    np.testing.assert_array_equal(draw(probability, "pixels", count=3), masks[:3])
    assert (draw(probability, "pixels", count=8, id="b") != masks).any()
    assert (draw(probability, "pixels", count=8, seed=1) != masks).any()


def test_pixels_are_those_of_the_network():
    masks = draw(np.full((8, 12, 1), 0.5), "pixels", count=50, pixels=(4, 4))
    blocks = masks.reshape(50, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4).reshape(50, 16, 6)
    assert (blocks == blocks[..., :1]).all()
    assert 0.4 < masks.mean() < 0.6
