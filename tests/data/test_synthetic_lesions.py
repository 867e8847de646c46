"""The drawn data set: reproducible bytes, exact masks, conditions that do what they say."""

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segdiff_jax.data.builders.synthetic_lesions import drawing, fields, lesion, occluders
from segdiff_jax.data.builders.synthetic_lesions.synthetic_lesions_dataset_builder import (
    Builder,
    SyntheticLesionsConfig,
)

_SIZE = 64


def _digest(seed):
    image, mask, conditions = drawing.draw(seed, _SIZE)
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest(), conditions


@pytest.fixture(scope="module")
def drawn():
    """80 pictures as (image, mask, conditions), conditions left to the seed."""
    return [drawing.draw((11, index), _SIZE) for index in range(80)]


def _skin_minus_lesion(image, mask):
    """Mean brightness of a band around the lesion, less that of the lesion."""
    inside = mask > 0
    band = ndimage.binary_dilation(inside, iterations=8) & ~ndimage.binary_dilation(
        inside, iterations=3
    )
    return image[band].mean() - image[inside].mean()


def _brightness(image):
    return image.astype(np.float64).mean(-1)


def test_same_seed_gives_same_bytes_in_any_order():
    forwards = [_digest((3, index)) for index in range(6)]
    backwards = [_digest((3, index)) for index in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert len({digest for digest, _ in forwards}) == 6
    assert _digest((4, 0)) != forwards[0]


def test_global_random_state_is_neither_read_nor_moved():
    np.random.seed(0)
    expected = np.random.RandomState(0).random_sample()
    first = _digest((3, 0))
    assert np.random.random_sample() == expected
    assert _digest((3, 0)) == first


def test_given_generator_is_advanced():
    rng = np.random.default_rng(5)
    first, _, _ = drawing.draw(rng, _SIZE)
    second, _, _ = drawing.draw(rng, _SIZE)
    again, _, _ = drawing.draw(5, _SIZE)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_image_and_mask_types(drawn):
    for image, mask, conditions in drawn:
        assert image.shape == (_SIZE, _SIZE, 3) and image.dtype == np.uint8
        assert mask.shape == (_SIZE, _SIZE) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert conditions == tuple(sorted(conditions))


def test_mask_is_one_piece_without_holes(drawn):
    for _, mask, _ in drawn:
        assert ndimage.label(mask)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask > 0)


def test_areas_spread_like_real_ones(drawn):
    areas = np.array([(mask > 0).mean() for _, mask, _ in drawn])
    assert areas.min() > 0.01 and areas.max() < 0.8
    assert areas.mean() == pytest.approx(0.27, abs=0.06)
    assert areas.min() < 0.08 and areas.max() > 0.5


@pytest.mark.parametrize("size", [16, 33, 128])
def test_scene_is_the_same_at_every_size(size):
    _, mask, _ = drawing.draw(9, size)
    _, reference, _ = drawing.draw(9, 96)
    resized = Image.fromarray(reference).resize((size, size), Image.Resampling.BOX)
    resized = np.asarray(resized) > 127
    both = (resized & (mask > 0)).sum() / (resized | (mask > 0)).sum()
    assert both > 0.9


def test_lesion_is_darker_than_its_skin_unless_faint():
    clear, faint = [], []
    for index in range(40):
        clear.append(_skin_minus_lesion(*drawing.draw((12, index), _SIZE, ())[:2]))
        faint.append(_skin_minus_lesion(*drawing.draw((12, index), _SIZE, ("faint",))[:2]))
    clear, faint = np.array(clear), np.array(faint)
    assert clear.min() > 10
    assert 35 < clear.mean() < 80
    assert (faint < clear).all()
    assert 5 < faint.mean() < 25


def test_presence_of_pigment_is_half_on_the_outline():
    rng = np.random.default_rng(1)
    mask, depth = lesion.draw_shape(rng, _SIZE)
    np.testing.assert_array_equal(depth > 0, mask)
    presence = lesion.draw_presence(rng, depth)
    np.testing.assert_array_equal(presence > 0.5, mask)
    assert presence[depth < -0.3].max() < 0.05


@pytest.mark.parametrize("condition", drawing.CONDITIONS)
def test_conditions_leave_mask_and_the_rest_alone(condition):
    for index in range(5):
        plain, mask, none = drawing.draw((13, index), _SIZE, ())
        changed, same_mask, given = drawing.draw((13, index), _SIZE, (condition,))
        assert none == () and given == (condition,)
        np.testing.assert_array_equal(mask, same_mask)
        assert (plain != changed).any()


def test_hair_and_ruler_change_few_pixels_and_darken_them():
    for condition, most in (("hair", 0.75), ("ruler", 0.5)):
        lowered = []
        for index in range(12):
            plain = _brightness(drawing.draw((14, index), _SIZE, ())[0])
            changed = _brightness(drawing.draw((14, index), _SIZE, (condition,))[0])
            touched = np.abs(changed - plain) > 4
            assert 0.001 < touched.mean() < most, (condition, index)
            lowered.append((plain - changed)[touched].mean())
        assert np.mean(lowered) > 15, condition


def test_ruler_stays_near_one_edge():
    for index in range(12):
        plain = drawing.draw((14, index), _SIZE, ())[0]
        changed = drawing.draw((14, index), _SIZE, ("ruler",))[0]
        middle = slice(20, 44)
        np.testing.assert_array_equal(plain[middle, middle], changed[middle, middle])


def test_dark_corners_blacken_corners_and_spare_the_lesion():
    for index in range(20):
        plain, mask, _ = drawing.draw((15, index), _SIZE, ())
        changed, _, _ = drawing.draw((15, index), _SIZE, ("dark_corners",))
        corners = np.ix_([0, 1, -2, -1], [0, 1, -2, -1])
        ratio = _brightness(changed)[corners].mean() / _brightness(plain)[corners].mean()
        assert ratio < 0.5, index
        kept = _brightness(changed)[mask > 0] > 0.5 * _brightness(plain)[mask > 0]
        assert kept.mean() > 0.7, index


def test_dark_corners_show_three_quarters_of_any_lesion():
    mask = np.zeros((_SIZE, _SIZE), bool)
    mask[-9:, :9] = True
    grey = np.full((_SIZE, _SIZE, 3), 100, np.float32)
    for seed in range(5):
        shaded = occluders.add_dark_corners(np.random.default_rng((18, seed)), grey, mask)
        assert (shaded[mask] > 50).mean() >= 0.75


def test_colour_cast_shifts_the_balance_of_channels():
    shifts = []
    for index in range(12):
        plain = drawing.draw((16, index), _SIZE, ())[0].mean((0, 1))
        cast = drawing.draw((16, index), _SIZE, ("colour_cast",))[0].mean((0, 1))
        gain = cast / plain
        shifts.append(gain.max() / gain.min())
    assert min(shifts) > 1.08


def test_conditions_come_as_often_as_stated_and_independently():
    chosen = [
        drawing._choose_conditions(np.random.default_rng((17, index)), None)
        for index in range(4000)
    ]
    present = np.array([[name in each for name in drawing.CONDITIONS] for each in chosen])
    stated = np.array([drawing.CONDITION_PROBABILITIES[name] for name in drawing.CONDITIONS])
    # Five standard errors of a frequency over 4000 draws is at most 0.04.
    np.testing.assert_allclose(present.mean(0), stated, atol=0.04)
    correlation = np.corrcoef(present.T) - np.eye(len(stated))
    assert np.abs(correlation).max() < 0.08


def test_unknown_condition_is_named():
    with pytest.raises(ValueError, match="moustache"):
        drawing.draw(0, _SIZE, ("moustache",))


def test_smooth_noise_has_unit_variance_and_is_smooth():
    rng = np.random.default_rng(2)
    noise = np.stack([fields.smooth_noise(rng, _SIZE, 6) for _ in range(400)])
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert np.diff(noise, axis=1).std() < 0.2


def test_cell_distances_match_brute_force():
    f1, f2 = fields.cell_distances(np.random.default_rng(3), _SIZE, 5, jitter=0.0)
    # Without jitter the points are cell centres: the nearest is at most half a diagonal away.
    y, x = (axis * 5 for axis in fields.frame(_SIZE))
    centres = np.arange(-2, 7) + 0.5
    squared = (y[..., None, None] - centres[:, None]) ** 2 + (x[..., None, None] - centres) ** 2
    nearest = np.sort(np.sqrt(squared).reshape(_SIZE, _SIZE, -1), axis=-1)
    np.testing.assert_allclose(f1, nearest[..., 0], atol=1e-4)
    np.testing.assert_allclose(f2, nearest[..., 1], atol=1e-4)


def test_config_refuses_an_empty_split():
    with pytest.raises(ValueError, match="num_test"):
        SyntheticLesionsConfig(name="none", num_test=0)


_BUILD = """
import sys
from segdiff_jax.data.builders.synthetic_lesions import drawing
assert "tensorflow_datasets" not in sys.modules
import tensorflow_datasets as tfds
from segdiff_jax.data.builders.synthetic_lesions import synthetic_lesions_dataset_builder
config = synthetic_lesions_dataset_builder.SyntheticLesionsConfig(
    name="tiny", size=24, num_train=5, num_validation=2, num_test=3, seed=7
)
builder = synthetic_lesions_dataset_builder.Builder(
    data_dir=sys.argv[1], file_format="array_record", config=config
)
builder.download_and_prepare()
raw = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}
for split in ("train", "validation", "test"):
    list(builder.as_data_source(split, decoders=raw))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of a tiny data set, built by a process that must not import TensorFlow."""
    data_dir = tmp_path_factory.mktemp("tfds")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(data_dir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return data_dir


def test_builder_round_trip(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(
        built / "synthetic_lesions" / "tiny" / str(Builder.VERSION)
    )
    assert Builder.name == "synthetic_lesions"
    raw = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}
    for number, (split, count) in enumerate((("train", 5), ("validation", 2), ("test", 3))):
        examples = {
            example["id"].decode(): example
            for example in builder.as_data_source(split, decoders=raw)
        }
        assert sorted(examples) == [f"synthetic_{split}_{index:05d}" for index in range(count)]
        for index in range(count):
            example = examples[f"synthetic_{split}_{index:05d}"]
            image, mask, conditions = drawing.draw((7, number, index), 24)
            np.testing.assert_array_equal(_decode(example["image"]), image)
            np.testing.assert_array_equal(_decode(example["mask"]), mask)
            assert (example["height"], example["width"]) == (24, 24)
            assert tuple(each.decode() for each in example["conditions"]) == conditions


def _decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))
