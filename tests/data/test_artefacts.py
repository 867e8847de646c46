"""Each artefact on pictures and draws whose result is known."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import fft, ndimage

from segdiff_jax.data.artefacts import ARTEFACTS, HAIRS, add_artefact

HEIGHT, WIDTH = 44, 60  # Neither is a multiple of a JPEG block.
SIDE = np.sqrt(HEIGHT * WIDTH)
COUNT = 64
LAST = 1 - 2**-24  # the largest draw
MELANIN, BLOOD = np.array([0.5, 0.9, 1.1]), np.array([0.15, 1.0, 0.8])


@functools.cache
def jitted(name):
    return jax.jit(jax.vmap(ARTEFACTS[name].function, in_axes=(0, None)))


def apply(name, draws, image):
    """Applies f32[COUNT, K] draws, or one row of them, to f32[HEIGHT, WIDTH, 3]."""
    rows = np.broadcast_to(np.float32(draws), (COUNT, ARTEFACTS[name].draws))
    images = np.asarray(jitted(name)(rows, np.float32(image)))
    assert images.shape == (COUNT, HEIGHT, WIDTH, 3)
    assert images.dtype == np.float32
    return images if np.ndim(draws) == 2 else images[0]


def draws_of(name, seed=0):
    return np.random.default_rng(seed).random((COUNT, ARTEFACTS[name].draws), np.float32)


def plain(value=1.0):
    return np.full((HEIGHT, WIDTH, 3), value, np.float32)


def noise(low=0.0, high=1.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_stays_in_range_and_follows_from_its_draws(name):
    draws = draws_of(name)
    images = apply(name, draws, noise())
    assert images.min() >= 0
    assert images.max() <= 1
    assert (np.abs(images - noise()).max(axis=(1, 2, 3)) > 0.01).mean() > 0.9
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) > 0.9 * COUNT
    np.testing.assert_array_equal(apply(name, draws, noise()), images)
    order = np.random.default_rng(1).permutation(COUNT)
    np.testing.assert_array_equal(apply(name, draws[order], noise()), images[order])
    draws = np.where(draws < 0.5, 0, LAST)
    for image in (noise(), plain(0), plain(1)):
        extreme = apply(name, draws, image)
        assert extreme.min() >= 0  # Which NaN is not.
        assert extreme.max() <= 1


def test_skin_tone_adds_and_multiplies_densities():
    same = np.array([0.5, 0.5, 1 / 7, 0.375])  # 1 c + 0 of both
    image = noise(0.2, 0.8)
    np.testing.assert_allclose(apply("skin_tone", same, image), image, atol=1e-5)
    more = apply("skin_tone", [0.5, 0.5, LAST, 0.375], image)
    np.testing.assert_allclose(more, image * np.exp(-0.6 * MELANIN), atol=1e-5)
    more = apply("skin_tone", [0.5, 0.5, 1 / 7, LAST], image)
    np.testing.assert_allclose(more, image * np.exp(-0.25 * BLOOD), atol=1e-5)
    for row, density in (([LAST, 0.5], MELANIN), ([0.5, LAST], BLOOD)):
        scaled = apply("skin_tone", [*row, 1 / 7, 0.375], plain() * np.exp(-0.6 * density))
        np.testing.assert_allclose(scaled, plain() * np.exp(-0.6 * 1.15 * density), atol=1e-5)
        shade = apply("skin_tone", [*row, 1 / 7, 0.375], plain(0.3))
        np.testing.assert_allclose(shade, 0.3, atol=1e-5)


def test_a_straight_hair_is_as_wide_as_drawn():
    strokes = np.full((HAIRS, 7), 0.5)  # No bend, no twist, through the centre.
    for towards, axis in ((0.0, 0), (0.25, 1)):
        draws = np.concatenate([[0, towards, 0.5, 0.5, 0, 0], strokes.ravel()])
        image = apply("hair", draws, plain())
        across = (1 - image)[:, WIDTH // 2] if axis == 0 else (1 - image)[HEIGHT // 2]
        width = SIDE * 0.0085 * 0.9
        expected = 0.9 * width * (1 - np.array([0.15, 0.11, 0.10]))
        np.testing.assert_allclose(across.sum(axis=0), expected, rtol=1e-3)
        assert (across > 0).any(axis=1).sum() <= 2
    draws[4] = 0.9  # pale
    pale = apply("hair", draws, plain(0.5))
    assert pale.max() > 0.55
    assert pale.min() >= 0.4999


def test_hair_is_thin_and_dark_in_four_images_of_five():
    images = apply("hair", draws_of("hair"), plain(0.6)).mean(axis=-1)
    touched = (np.abs(images - 0.6) > 1e-3).mean(axis=(1, 2))
    assert 0.001 < touched.min() < touched.mean() < touched.max() < 0.5
    assert touched.mean() < 0.2
    dark = images.mean(axis=(1, 2)) < 0.6
    assert 0.65 < dark.mean() < 0.95
    assert (images[dark].max(axis=(1, 2)) < 0.6001).all()


def test_a_ruler_is_a_row_of_ticks_near_a_border():
    # Square to the direction of y, outwards, 0.05 apart, within 0.5 of the middle.
    spacing = (0.05 - 0.035) / 0.045
    draws = [0.25, 0.5, 0.0, 0.5, spacing, 0.0, 0.5, 0.9, 0.25 / 0.55, 0.5]
    image = apply("ruler", draws, plain())
    darkness = (1 - image).sum(axis=-1)
    start = HEIGHT / 2 + 0.825 * (HEIGHT - 1) / 2
    np.testing.assert_array_equal(darkness[: int(start - 1)], 0)
    row = int(start) + 1
    assert darkness[row].max() > 0.5
    places = ndimage.label(darkness[row] > 1e-6)[1]
    assert places == 2 * round(0.5 / 0.05) + 1
    beyond = darkness[int(np.ceil(start + 0.03 * SIDE))]  # Only every fifth is as long as that.
    assert ndimage.label(beyond > 0.1)[1] == 5
    # By default a row crosses near a border, and darkens little.
    images = apply("ruler", draws_of("ruler"), plain())
    touched = (images < 0.999).any(axis=-1)
    assert touched.mean(axis=(1, 2)).max() < 0.25
    assert touched.any(axis=(1, 2)).mean() > 0.95
    centre = touched[:, HEIGHT // 3 : -HEIGHT // 3, WIDTH // 3 : -WIDTH // 3]
    assert centre.mean() < 0.01


def test_gamma_is_a_power():
    image = noise()
    for draw, power in ((0, np.exp(-0.5)), (0.5, 1), (LAST, np.exp(0.5))):
        np.testing.assert_allclose(apply("gamma", [draw], image), image**power, atol=1e-5)


def test_a_colour_cast_multiplies_channels():
    image = noise()
    gains = np.exp([-0.15, 0, 0.15])
    expected = np.minimum(image * gains, 1)
    np.testing.assert_allclose(apply("colour_cast", [0, 0.5, LAST], image), expected, atol=1e-5)


def test_a_vignette_leaves_the_centre_and_darkens_the_corners():
    draws = draws_of("vignette")
    images = apply("vignette", draws, plain())
    np.testing.assert_array_equal(images[:, HEIGHT // 2, WIDTH // 2], 1)
    middle = images[:, HEIGHT // 2 - 9 : HEIGHT // 2 + 9, WIDTH // 2 - 12 : WIDTH // 2 + 12]
    assert middle.mean(axis=(1, 2, 3)).min() > 0.95
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    darkest = np.repeat(0.4 * draws[:, 5:] ** 3, 4, axis=1)
    assert (corners >= darkest - 1e-5).all()
    assert np.isclose(corners, darkest, atol=0.01).all(axis=1).mean() > 0.9
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    lit = images.mean(axis=(1, 2, 3))
    assert lit.min() > 0.4
    assert lit.max() > 0.85


def test_a_vignette_is_an_ellipse_with_a_soft_or_hard_edge():
    wide, tall, soft = (
        apply("vignette", [0.5, 0.5, 0.5, squeeze, softness, 0], plain())[..., 0]
        for squeeze, softness in ((0, 0), (LAST, 0), (0.5, LAST))
    )
    for lit, squeeze in ((wide, np.exp(-0.15)), (tall, np.exp(0.15))):
        middle = lit[HEIGHT // 2].mean(), lit[:, WIDTH // 2].mean()
        np.testing.assert_allclose(
            middle, np.minimum(2 * 0.565 / np.array([squeeze, 1 / squeeze]), 1), atol=0.03
        )
    assert ((wide > 0.01) & (wide < 0.99)).mean() < 0.05
    assert ((soft > 0.01) & (soft < 0.99)).mean() > 0.2


def test_a_frame_is_black_and_as_wide_as_drawn():
    draws = np.array([0.9, 0.6, 0.5, 0.0, 0.5])
    image = apply("frame", draws, plain())
    black, sizes = 0.08 * 0.25, 0.12 * draws[:4] ** 2 * (HEIGHT, HEIGHT, WIDTH, WIDTH)
    np.testing.assert_allclose(image[[0, -1]], black, atol=1e-6)
    np.testing.assert_allclose(image[:, 0], black, atol=1e-6)
    np.testing.assert_array_equal(image[10:-10, 10:], 1)
    column, row = (1 - image[:, WIDTH // 2, 0]) / (1 - black), (1 - image[20, :, 0]) / (1 - black)
    halves = [*np.split(column, [HEIGHT // 2]), *np.split(row, [WIDTH // 2])]
    np.testing.assert_allclose([half.sum() for half in halves], sizes, atol=1e-4)


def test_blur_is_gaussian_and_keeps_the_mean():
    image = noise()
    blurred = apply("blur", [LAST], image)
    sigma = 0.022 * SIDE
    expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), truncate=8)
    np.testing.assert_allclose(blurred[9:-9, 9:-9], expected[9:-9, 9:-9], atol=1e-5)
    np.testing.assert_allclose(blurred.mean(), image.mean(), atol=0.005)
    spread = apply("blur", np.linspace(0, LAST, COUNT)[:, None], image).std(axis=(1, 2, 3))
    assert (np.diff(spread) < 0).all()
    assert spread[0] < image.std()
    assert spread[-1] < 0.3 * image.std()
    np.testing.assert_allclose(apply("blur", [0.5], plain(0.3)), 0.3, atol=1e-6)


@pytest.mark.parametrize("quality", [15, 30, 50])
def test_jpeg_is_what_libjpeg_makes_of_grey(quality):
    smooth = ndimage.gaussian_filter(noise()[..., 0], 2)
    grey = np.uint8(128 + 900 * (smooth - smooth.mean())).clip(40, 215)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file), np.float32)[:40, :56]  # Blocks that are not padded.
    image = np.repeat(grey[..., None] / 255, 3, axis=-1)
    draw = np.log(quality / 10) / np.log(6)
    ours = 255 * apply("jpeg", [draw], image)[:40, :56, 0]
    assert np.abs(ours - expected).mean() < 0.5
    assert np.quantile(np.abs(ours - expected), 0.99) < 3
    assert np.abs(expected - grey[:40, :56]).max() > 5


def test_jpeg_rounds_the_luma_of_blocks_and_nothing_else():
    image = noise(0.4, 0.6)  # No clipping.
    once = apply("jpeg", [0], image)
    twice = apply("jpeg", [0], once)
    np.testing.assert_allclose(twice[:40, :56], once[:40, :56], atol=1e-3)
    np.testing.assert_allclose(
        once[..., 0] - once[..., 2], image[..., 0] - image[..., 2], atol=1e-5
    )

    def coefficients(image):
        luma = 255 * (image @ np.array([0.299, 0.587, 0.114]))[:40, :56] - 128
        blocks = luma.reshape(5, 8, 7, 8).swapaxes(1, 2)
        return fft.dctn(blocks, axes=(2, 3), norm="ortho")

    before, after = coefficients(image), coefficients(once)
    # At quality 10 the steps of the table are 5 times as large: 80 for the mean of a block.
    np.testing.assert_allclose(after[..., 0, 0], 80 * np.round(before[..., 0, 0] / 80), atol=0.01)
    assert (np.abs(after) > 0.05).mean() < 0.1
    assert (np.abs(before) > 0.05).mean() > 0.9


def test_a_cutout_is_a_rectangle_of_one_colour():
    draws = draws_of("cutout")
    images, image = apply("cutout", draws, plain(0.5)), plain(0.5)
    for row, result in zip(draws, images, strict=True):
        changed = (result != image).any(axis=-1)
        rows, columns = changed.any(axis=1), changed.any(axis=0)
        np.testing.assert_array_equal(changed, rows[:, None] & columns)
        assert ndimage.label(rows)[1] == ndimage.label(columns)[1] == 1
        np.testing.assert_array_equal(result[changed], np.tile(row[4:], (changed.sum(), 1)))
        share = 0.1 + 0.25 * row[:2]
        np.testing.assert_allclose([rows.mean(), columns.mean()], share, atol=1 / HEIGHT)


@pytest.mark.parametrize("name", ["hair", "vignette", "frame"])
def test_a_larger_picture_gets_the_same(name):
    large = np.ones((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    means = []
    for seed in range(4):
        larger = np.asarray(add_artefact(name, jax.random.key(seed), large))
        smaller = np.asarray(add_artefact(name, jax.random.key(seed), plain()))
        halved = larger.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
        means.append(np.abs(halved - smaller).mean())
    assert np.mean(means) < 0.01


def test_add_artefact_draws_from_its_key():
    key = jax.random.key(3)
    expected = apply("vignette", jax.random.uniform(key, (6,)), noise())
    added = add_artefact("vignette", key, noise())
    np.testing.assert_allclose(added, expected, atol=1e-5)
    np.testing.assert_array_equal(added, add_artefact("vignette", key, noise()))
    assert (added != add_artefact("vignette", jax.random.key(4), noise())).any()


@pytest.mark.parametrize("name", ["hair", "blur"])
def test_a_native_picture_fits_in_memory(name):
    image = jax.ShapeDtypeStruct((2000, 3000, 3), jnp.float32)
    compiled = add_artefact.lower(name, jax.random.key(0), image).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**29
