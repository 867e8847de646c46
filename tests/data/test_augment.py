"""Images are painted so that each pixel tells where it came from."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.data import augment as module
from segdiff_jax.data.artefacts import ARTEFACTS, Artefact
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import AUGMENT

SIZE, COUNT = 16, 64
DEFAULT = {name: field.default for name, field in AUGMENT.items()}
OFF = dict.fromkeys(AUGMENT, 0)
AFFINE = {"rotation": 30.0, "scale": 0.2, "shift": 0.1}
COLOUR = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
STRENGTHS = [*AFFINE, *COLOUR]
MOVED = DEFAULT | AFFINE | COLOUR
EVERYTHING = MOVED | dict.fromkeys(ARTEFACTS, 0.7)


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), COUNT)


def painted():
    """Red is 16 x row, green is 16 x column, blue is the mask: an ellipse off the centre."""
    row, column = np.indices((SIZE, SIZE))
    mask = np.where((row - 6) ** 2 + 2 * (column - 9) ** 2 < 18, 255, 0)
    image = np.stack([16 * row, 16 * column, mask], axis=-1).astype(np.uint8)
    return image, mask[..., None].astype(np.uint8)


def batch_of(array):
    return np.repeat(array[None], COUNT, axis=0)


def of(strengths):
    """The augmentation (keys, image, mask) -> (image, mask)."""
    return functools.partial(module.augment, strengths)


@functools.cache
def jitted(*strengths):
    return jax.jit(of(dict(strengths)))


def augment(strengths, image, mask, seed=0):
    """Augments `COUNT` copies: numpy image and mask."""
    change = jitted(*strengths.items())
    image, mask = change(keys(seed), batch_of(image), batch_of(mask))
    assert image.dtype == mask.dtype == np.float32
    assert image.shape == (COUNT, SIZE, SIZE, 3)
    assert mask.shape == (COUNT, SIZE, SIZE, 1)
    return np.asarray(image), np.asarray(mask)


@functools.cache
def affine():
    return augment(OFF | AFFINE, *painted())


def test_nothing_is_the_identity():
    image, mask = painted()
    augmented, augmented_mask = augment(OFF, image, mask)
    np.testing.assert_allclose(augmented, batch_of(image), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(augmented_mask, batch_of(mask))


@pytest.mark.parametrize(
    ("field", "variants"),
    [
        ("flip", [lambda x: x, np.fliplr, np.flipud, lambda x: np.flipud(np.fliplr(x))]),
        ("right_angles", [functools.partial(np.rot90, k=k) for k in range(4)]),
    ],
)
def test_image_and_mask_flip_and_turn_together_and_evenly(field, variants):
    both = np.concatenate(painted(), axis=-1)
    images, masks = augment(OFF | {field: True}, *painted())
    augmented = np.concatenate([images, masks], axis=-1)
    expected = np.stack([variant(both) for variant in variants])
    errors = np.abs(augmented[:, None] - expected[None]).max(axis=(2, 3, 4))
    np.testing.assert_allclose(errors.min(axis=1), 0, atol=1e-4)
    chosen = np.bincount(errors.argmin(axis=1), minlength=4)
    # Each of the four for a quarter of 64: 16, give or take three standard deviations.
    assert (np.abs(chosen - 16) < 11).all(), chosen


def test_affine_moves_the_mask_with_the_image():
    images, masks = affine()
    np.testing.assert_allclose(masks, images[..., 2:], atol=1e-3)
    assert ((masks > 128).sum(axis=(1, 2, 3)) > 20).all()
    assert ((masks > 1) & (masks < 254)).any()  # Between pixels, a share of each.


def test_affine_turns_zooms_and_shifts_within_its_bounds():
    images, _ = affine()
    centre = (SIZE - 1) / 2
    angles, zooms, shifts = [], [], []
    row, column = np.indices((SIZE, SIZE)) - centre
    for image in images:
        inside = (image[..., :2] > 1).all(axis=-1) & (image[..., :2] < 16 * 15 - 1).all(axis=-1)
        assert inside.sum() > 60
        # Where each output pixel came from, is linear in its own place.
        source = image[inside][:, :2] / 16 - centre
        places = np.stack([row[inside], column[inside], np.ones(inside.sum())], axis=-1)
        linear, residuals, *_ = np.linalg.lstsq(places, source, rcond=None)
        np.testing.assert_allclose(residuals, 0, atol=1e-4)
        matrix, offset = linear[:2].T, linear[2]
        zoom = 1 / np.sqrt(np.linalg.det(matrix))
        turn = zoom * matrix
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-3)  # no shear, no mirror
        angles.append(np.rad2deg(np.arctan2(turn[0, 1], turn[0, 0])))
        zooms.append(zoom)
        shifts.append(-np.linalg.inv(matrix) @ offset / SIZE)
    for values, bound in ((angles, 30), (np.array(zooms) - 1, 0.2), (np.array(shifts), 0.1)):
        values = np.reshape(values, (COUNT, -1))
        assert (np.abs(values) < bound * 1.01).all()
        assert (values.max(axis=0) > 0.8 * bound).all()
        assert (values.min(axis=0) < -0.8 * bound).all()
    assert abs(np.corrcoef(np.transpose(shifts))[0, 1]) < 0.5  # drawn apart
    assert abs(np.corrcoef(angles, zooms)[0, 1]) < 0.5


def test_affine_repeats_the_border():
    images, _ = affine()
    assert images.min() >= 0
    np.testing.assert_allclose(images[..., :2].max(), 240, atol=1e-3)  # the last row and column
    grey = np.full((SIZE, SIZE, 3), 77, np.uint8)
    still, mask = augment(OFF | AFFINE, grey, np.full_like(grey[..., :1], 255))
    np.testing.assert_allclose(still, 77, atol=1e-3)
    np.testing.assert_allclose(mask, 255, atol=1e-3)


def test_brightness_adds_the_same_to_every_pixel():
    image, mask = painted()
    image = 100 + image // 8  # from 100 to 131: nothing is clipped
    augmented, augmented_mask = augment(OFF | {"brightness": 0.3}, image, mask)
    difference = (augmented - image).reshape(COUNT, -1) / 255
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-5)
    added = difference[:, 0]
    assert 0.24 < added.max() <= 0.3
    assert -0.24 > added.min() >= -0.3
    np.testing.assert_array_equal(augmented_mask, batch_of(mask))
    image, _ = painted()  # from 0 to 255: the same keys add the same, within bounds
    clipped, _ = augment(OFF | {"brightness": 0.3}, image, mask)
    expected = np.clip(image + 255 * added[:, None, None, None], 0, 255)
    np.testing.assert_allclose(clipped, expected, rtol=0, atol=1e-3)


def test_contrast_scales_around_each_channels_mean():
    image, mask = painted()
    image = 100 + image // 8
    augmented, augmented_mask = augment(OFF | {"contrast": 0.4}, image, mask)
    mean = image.mean(axis=(0, 1))
    factors = ((augmented - mean) * (image - mean)).sum(axis=(1, 2)) / ((image - mean) ** 2).sum(
        axis=(0, 1)
    )
    expected = mean + factors[:, None, None] * (image - mean)
    np.testing.assert_allclose(augmented, expected, atol=0.01)
    np.testing.assert_allclose(factors - factors[:, :1], 0, atol=1e-3)
    assert 1.3 < factors.max() <= 1.401
    assert 0.599 <= factors.min() < 0.7
    np.testing.assert_array_equal(augmented_mask, batch_of(mask))


def test_saturation_and_hue_leave_grey_and_the_value_alone():
    strengths = OFF | {"saturation": 0.5, "hue": 0.1}
    image, mask = painted()
    grey = image[..., :1].repeat(3, axis=-1)
    augmented, _ = augment(strengths, grey, mask)
    np.testing.assert_allclose(augmented, batch_of(grey), atol=0.01)
    augmented, augmented_mask = augment(strengths, image, mask)
    # The largest channel, the value of HSV, depends on neither.
    np.testing.assert_allclose(augmented.max(axis=-1), batch_of(image.max(axis=-1)), atol=0.01)
    assert (np.abs(augmented - image).max(axis=(1, 2, 3)) > 1).all()
    np.testing.assert_array_equal(augmented_mask, batch_of(mask))


def test_a_key_gives_the_same_result_whatever_the_batch_in_one_trace():
    traces = []

    @jax.jit
    def everything(*arguments):
        traces.append(arguments)
        return of(MOVED)(*arguments)

    image, mask = painted()
    images = np.stack([np.roll(image, shift, axis=0) for shift in range(COUNT)])
    first, first_mask = everything(keys(), images, batch_of(mask))
    assert np.min(first) >= 0
    assert np.max(first) <= 255
    assert np.min(first_mask) == 0
    assert np.max(first_mask) <= 255
    order = np.random.default_rng(0).permutation(COUNT)
    second, second_mask = everything(keys()[order], images[order], batch_of(mask))
    np.testing.assert_array_equal(second, first[order])
    np.testing.assert_array_equal(second_mask, first_mask[order])
    # The second half gives way to other images with other keys.
    half = COUNT // 2
    mixed_keys = jax.numpy.concatenate([keys()[:half], keys(1)[half:]])
    mixed = np.concatenate([images[:half], 255 - images[half:]])
    third, third_mask = everything(mixed_keys, mixed, batch_of(mask))
    np.testing.assert_array_equal(third[:half], first[:half])
    np.testing.assert_array_equal(third_mask[:half], first_mask[:half])
    # Another key, another result: no two examples are augmented alike.
    alike, _ = everything(keys(), batch_of(image), batch_of(mask))
    assert len(np.unique(np.asarray(alike).reshape(COUNT, -1), axis=0)) == COUNT
    assert len(traces) == 1


def replace_artefacts(monkeypatch, make):
    """Puts `make(place, name)` in the place of each artefact."""
    for place, (name, artefact) in enumerate(ARTEFACTS.items()):
        monkeypatch.setitem(ARTEFACTS, name, artefact._replace(function=make(place, name)))


def test_each_artefact_gets_its_share_and_draws_of_its_own(monkeypatch):
    # Each writes its first draw in a column of its own.
    replace_artefacts(
        monkeypatch, lambda place, _: lambda draws, image: image.at[:, place].set(draws[0])
    )
    shares = dict.fromkeys(ARTEFACTS, 0.5) | {"hair": 1.0, "blur": 0.0, "jpeg": 0.25}
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), painted()[1]
    images, masks = augment(OFF | shares, image, mask)
    np.testing.assert_array_equal(masks, batch_of(mask))
    columns = images[:, 0, : len(ARTEFACTS), 0]
    found = (columns > 0).mean(axis=0)
    # Give or take three standard deviations of 64 draws.
    np.testing.assert_allclose(found, list(shares.values()), atol=0.19)
    assert (found[[1, 7]] == (1, 0)).all()
    correlation = np.corrcoef(columns[:, found > 0].T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.5
    draws = np.stack([jax.random.uniform(key, (300,)) for key in keys()])
    np.testing.assert_array_equal(draws[:, :11], [jax.random.uniform(k, (11,)) for k in keys()])
    places = 11 + np.cumsum([0] + [1 + artefact.draws for artefact in ARTEFACTS.values()])[:-1]
    gates, values = draws[:, places], 255 * draws[:, places + 1]
    expected = np.where(gates < np.array(list(shares.values())), values, 0)
    np.testing.assert_allclose(columns, expected, atol=1e-3)


def test_what_is_off_is_not_traced(monkeypatch):
    def make(_, name):
        def fail(draws, image):
            raise RuntimeError(name)

        return fail

    replace_artefacts(monkeypatch, make)
    arguments = (keys(), *map(batch_of, painted()))
    jax.eval_shape(of(MOVED), *arguments)
    for name in ARTEFACTS:
        with pytest.raises(RuntimeError, match=name):
            jax.eval_shape(of(DEFAULT | {name: 0.01}), *arguments)


def test_skin_comes_before_colour_and_the_camera_after(monkeypatch):
    trace = []

    def make(_, name):
        return lambda draws, image: trace.append(name) or image

    monkeypatch.setitem(ARTEFACTS, "fog", Artefact(None, 5, 35, "put after the vignette"))
    replace_artefacts(monkeypatch, make)
    monkeypatch.setattr(module.pix, "adjust_hue", make(None, "hue"))
    whole = of(DEFAULT | {"hue": 0.1} | dict.fromkeys(ARTEFACTS, 1.0))
    jax.eval_shape(whole, keys(), *map(batch_of, painted()))
    after = ["gamma", "colour_cast", "vignette", "fog", "frame", "blur", "jpeg", "cutout"]
    assert trace == ["skin_tone", "hair", "ruler", "hue", *after]


def test_artefacts_leave_the_mask_alone():
    images, masks = augment(EVERYTHING, *painted())
    without, expected = augment(MOVED, *painted())
    np.testing.assert_array_equal(masks, expected)
    assert images.min() >= 0
    assert images.max() <= 255
    assert (np.abs(images - without).max(axis=(1, 2, 3)) > 5).mean() > 0.9


def test_an_appended_artefact_changes_no_draw_of_the_others(monkeypatch):
    images, masks = augment(EVERYTHING, *painted())
    monkeypatch.setitem(ARTEFACTS, "fog", Artefact(None, 5, -15, "not used"))
    extended = jax.jit(of(EVERYTHING | {"fog": 0}))
    same, same_masks = extended(keys(), *map(batch_of, painted()))
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(same_masks, masks)


def check_field(field, value):
    config = default_config()
    config.augment[field] = value
    check(config)


@pytest.mark.parametrize("field", ARTEFACTS)
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_rejects_impossible_shares(field, share):
    with pytest.raises(UserError, match=rf"augment\.{field}={share} must be from 0 to 1"):
        check_field(field, share)


@pytest.mark.parametrize("field", STRENGTHS)
def test_rejects_negative_strengths(field):
    with pytest.raises(UserError, match=rf"augment\.{field}=-0\.1 must be (at least|from) 0"):
        check_field(field, -0.1)


@pytest.mark.parametrize("field", ["scale", "contrast", "saturation"])
def test_rejects_factors_that_may_reach_0(field):
    with pytest.raises(UserError, match=rf"augment\.{field}=1\.0 must be from 0 to below 1"):
        check_field(field, 1.0)
    check_field(field, 0.99)


def test_right_angles_need_square_images():
    image, mask = np.zeros((1, 8, 16, 3), np.uint8), np.zeros((1, 8, 16, 1), np.uint8)
    with pytest.raises(ValueError, match=r"augment\.right_angles needs square images"):
        jax.eval_shape(of(DEFAULT), keys()[:1], image, mask)


def test_bilinear_reads_between_pixels_and_repeats_the_border():
    rng = np.random.default_rng(0)
    image = rng.random((6, 9, 4), np.float32)
    y, x = rng.uniform(-2, 8, (5, 7)), rng.uniform(-2, 11, (5, 7))
    y[0, 0], x[0, 0] = 5, 8  # The last pixel itself.
    found = jax.jit(module._bilinear)(image, np.float32(y), np.float32(x))
    for k in range(4):
        expected = ndimage.map_coordinates(image[..., k], [y, x], order=1, mode="nearest")
        np.testing.assert_allclose(found[..., k], expected, atol=1e-5)
