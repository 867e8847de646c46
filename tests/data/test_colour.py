import numpy as np
import pytest

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.data.colour import COLOUR_CONSTANCY, shades_of_gray
from segdiff_jax.runtime.errors import UserError

CAST = np.array([1.15, 0.88, 0.62])


def picture(seed=0, size=48):
    """u8[size, size, 3] of skin and lesion, no channel near 0 or 255."""
    image = draw(seed, size, ())[0]
    return np.uint8(40 + 0.5 * image)


def light(image, p=6):
    """The Minkowski means of the channels over that of all, in float64."""
    means = [np.mean(np.float64(image[..., c]) ** p) ** (1 / p) for c in range(3)]
    return np.array(means) / np.mean(means)


def test_by_hand():
    # p = 2: the lights are sqrt((10^2 + 70^2) / 2) = 50 and 50, 25; the gains 1, 1, 2 times k with
    # k = (40 + 40 + 20) / (40 + 40 + 40).
    image = np.uint8([[[10, 70, 5]], [[70, 10, 35]]])
    expected = np.rint(np.array([[[10, 70, 10]], [[70, 10, 70]]]) * 100 / 120)
    np.testing.assert_array_equal(shades_of_gray(image, p=2), expected)


@pytest.mark.parametrize("p", [1, 6, 12])
def test_the_light_becomes_white_and_the_brightness_stays(p):
    image = picture()
    corrected = shades_of_gray(image, p)
    assert corrected.dtype == np.uint8 and corrected.shape == image.shape
    assert np.ptp(light(image, p)) > 0.1
    np.testing.assert_allclose(light(corrected, p), 1, atol=0.005)
    assert corrected.mean() == pytest.approx(image.mean(), abs=0.3)


def test_grey_stays_and_twice_is_once():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(shades_of_gray(grey), grey)
    once = shades_of_gray(picture())
    np.testing.assert_allclose(np.int32(shades_of_gray(once)), once, atol=1)


@pytest.mark.parametrize("seed", range(3))
def test_a_cast_is_undone(seed):
    image = picture(seed)
    cast = np.uint8(np.rint(CAST * image))
    balanced = shades_of_gray(image).astype(float)
    difference = shades_of_gray(cast) * (image.mean() / cast.mean()) - balanced
    assert np.abs(cast - np.float64(image)).mean() > 15
    assert np.abs(difference).mean() < 1.5


def test_a_black_border_changes_nothing_within_even_if_its_noise_is_coloured():
    image = picture()
    framed = np.zeros((96, 96, 3), np.uint8) + np.uint8([2, 4, 20])
    framed[24:72, 24:72] = image
    within = np.float64(shades_of_gray(framed)[24:72, 24:72])
    error = {p: np.abs(light(framed, p) - light(image, p)).max() for p in (1, 6)}
    assert error[6] < 1e-4 < 0.05 < error[1]
    np.testing.assert_allclose(light(within), 1, atol=0.005)


def test_black_and_one_colour_only():
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(shades_of_gray(black), black)
    red = black + np.uint8([90, 0, 0])
    np.testing.assert_array_equal(shades_of_gray(red), red)


def test_names():
    image = picture()
    assert COLOUR_CONSTANCY["none"](image) is image
    assert COLOUR_CONSTANCY["shades_of_gray"] is shades_of_gray
    config = default_config()
    config.data.colour_constancy = "white"
    message = r"data\.colour_constancy='white' is unknown: .*'none', 'shades_of_gray'"
    with pytest.raises(UserError, match=message):
        check(config)
