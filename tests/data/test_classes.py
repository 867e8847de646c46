"""Masks of several classes: decoding, shares of pixels, augmentation, one's own folder."""

import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segdiff_jax.config import default_config
from segdiff_jax.data import pipeline
from segdiff_jax.data.augment import augment, random_patch
from segdiff_jax.data.classes import TWO, Classes, classes_of, most_likely
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.folder import Folder
from segdiff_jax.data.normalise import normalise_mask
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.data.statistics import Statistics, format_statistics
from segdiff_jax.evaluation.outputs import CLASS_COLOURS
from segdiff_jax.evaluation.overview import contact_sheet
from segdiff_jax.runtime.errors import UserError

NAMES = ("skin", "lesion", "core")
CLASSES = Classes(NAMES, (0, 7, 200))
LABELS = np.uint8([[0, 1, 2, 2], [0, 0, 1, 2]])


def png(image):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette(labels, colours):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette(colours)
    return image


def fields(classes=(), values=()):
    return {"classes": classes, "mask_values": values}


def test_two_classes_are_the_default_and_values_count_from_0():
    assert classes_of(fields()) == TWO == Classes(("background", "lesion"), (0, 255))
    assert (len(TWO.names), TWO.several, TWO.channels, list(TWO.of_channels)) == (2, False, 1, [1])
    classes = classes_of(fields(list(NAMES)))  # As a checkpoint's config comes back.
    assert classes == Classes(NAMES, (0, 1, 2)) and classes.channels == 3
    assert classes.several and list(classes.of_channels) == [0, 1, 2]
    assert classes_of(fields(NAMES, [0, 7, 200])) == CLASSES


@pytest.mark.parametrize(
    ("classes", "values", "message"),
    [
        ((), (0, 1), "data.mask_values=(0, 1) needs data.classes, which is empty"),
        (("skin", "lesion"), (), "data.classes=('skin', 'lesion') must be 3 to 255 names"),
        (("a", "b", "a"), (), "data.classes=('a', 'b', 'a') must be different names"),
        (("a", "b", ""), (), "must be different names"),
        (NAMES, (0, 1), "data.mask_values=(0, 1) must be 3 different numbers from 0 to 255"),
        (NAMES, (0, 1, 1), "data.mask_values=(0, 1, 1) must be 3 different numbers"),
        (NAMES, (0, 1, 256), "data.mask_values=(0, 1, 256) must be 3 different numbers"),
        (NAMES, (0, 1, "2"), "must be 3 different numbers"),
    ],
)
def test_wrong_fields_are_named(classes, values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        classes_of(fields(classes, values))


GREY = CLASSES.file_values(LABELS)


@pytest.mark.parametrize(
    ("image", "classes"),
    [
        (GREY, CLASSES),
        (GREY[..., None].repeat(3, axis=-1), CLASSES),
        (np.dstack([GREY, np.full_like(GREY, 9)]), CLASSES),
        (LABELS, Classes(NAMES, (0, 1, 2))),
        # The palette's colours, grey ones in another order, do not count.
        (palette(LABELS, [2, 2, 2, 0, 0, 0, 1, 1, 1]), Classes(NAMES, (0, 1, 2))),
        (palette(LABELS, [200, 0, 0, 0, 90, 0, 0, 0, 90]), Classes(NAMES, (0, 1, 2))),
        (palette(LABELS + 3, [0] * 30), Classes(NAMES, (3, 4, 5))),
    ],
    ids=["grey", "rgb", "alpha", "labels", "grey palette", "colours", "other indices"],
)
def test_decodes_labels(image, classes):
    if isinstance(image, np.ndarray) and image.shape[2:] == (2,):
        image = Image.fromarray(image, "LA")
    labels = decode_labels(png(image), "a", classes)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS)


def test_decodes_labels_upright():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # Turned by half.
    Image.fromarray(GREY[::-1, ::-1]).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_labels(file.getvalue(), "a", CLASSES), LABELS)


def test_other_values_and_colours_are_refused():
    message = (
        "mask a: the mask has 3 values (0, 1, 2), but only data.mask_values=(0, 7, 200) stand for "
        "data.classes=('skin', 'lesion', 'core')"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        decode_labels(png(LABELS), "mask a", CLASSES)
    many = np.arange(16, dtype=np.uint8).reshape(4, 4)
    with pytest.raises(UserError, match=re.escape("16 values (0, 1, 2, 3, 4, 5, 6, 7, ...)")):
        decode_labels(png(many), "a", CLASSES)
    with pytest.raises(
        UserError, match="mask a: the mask has colours: make it grey or a palette; JPEG"
    ):
        decode_labels(png(np.dstack([GREY, GREY, LABELS])), "mask a", CLASSES)
    with pytest.raises(UserError, match="mask a: cannot be decoded"):
        decode_labels(b"text", "mask a", CLASSES)


def record(labels, name="a"):
    image = np.full((*labels.shape, 3), 90, np.uint8)
    return {"id": name, "image": png(image), "mask": png(CLASSES.file_values(labels))}


class Records(list):
    fingerprint = "known"


def test_a_pixel_is_the_share_of_each_class(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (12, 8), np.uint8)
    records = Records([record(labels)])
    source = pipeline.ResizedSource(records, 4, data_dir=tmp_path, classes=CLASSES)
    mask = source[0]["mask"]
    blocks = labels.reshape(4, 3, 4, 2).swapaxes(1, 2).reshape(4, 4, 6)
    shares = np.stack([(blocks == k).mean(axis=-1) for k in range(3)], axis=-1)
    assert mask.shape == (4, 4, 3) and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.floor(255 * shares + 1e-4))
    again = pipeline.ResizedSource(
        Records([{"id": "a", "image": b"", "mask": b""}]), 4, data_dir=tmp_path, classes=CLASSES
    )
    np.testing.assert_array_equal(again[0]["mask"], mask)
    assert again[0]["image"].shape == (4, 4, 3)


def test_one_channel_for_each_class():
    shares = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 4)).astype(np.float32)
    shares[0, 0, 0] = 100  # Of equal ones, the first.
    hard = np.where(np.arange(4) == shares.argmax(axis=-1)[..., None], 1, -1)
    four = Classes(("a", "b", "c", "d"), (0, 1, 2, 3))
    np.testing.assert_array_equal(normalise_mask(shares, four), hard)
    assert (np.asarray(normalise_mask(shares, four)).sum(axis=-1) == -2).all()
    soft = normalise_mask(shares, four, soft=True)
    np.testing.assert_allclose(soft, shares / 127.5 - 1, atol=1e-6)


def test_the_label_of_a_pixel():
    values = np.float32([[0.2, 0.5, 0.51, 0.9]])
    labels = most_likely(values[..., None], 0.5)  # A tie is background.
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[0, 0, 1, 1]])
    of_two = normalise_mask(np.uint8([[[127], [128], [0], [255]]]))
    np.testing.assert_array_equal(of_two[..., 0], [[-1, 1, -1, 1]])
    several = most_likely(np.float32([[[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]]]), 0.5)
    assert several.dtype == np.uint8
    np.testing.assert_array_equal(several, [[1, 0]])  # Of equal ones, the first.


def test_each_class_moves_with_the_image():
    strengths = default_config().augment.to_dict()
    strengths |= {"rotation": 30.0, "scale": 0.2, "shift": 0.1, "brightness": 0.2}
    change = jax.jit(functools.partial(augment, strengths))
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(0), 4)
    image = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    mask = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    moved, masks = change(keys, image, mask)
    assert masks.shape == mask.shape
    for k in range(3):
        same, alone = change(keys, image, mask[..., k : k + 1])
        np.testing.assert_allclose(moved, same, atol=1e-3)
        np.testing.assert_allclose(masks[..., k], alone[..., 0], atol=1e-3)
    # What sums to 255 at each pixel does so afterwards.
    whole = jnp.uint8(255 * jax.nn.one_hot(mask[..., 0] % 3, 3))
    np.testing.assert_allclose(change(keys, image, whole)[1].sum(axis=-1), 255, atol=1e-2)
    cut, cut_mask = random_patch(keys, mask, mask, 3)
    np.testing.assert_array_equal(cut, cut_mask)


def test_statistics_of_each_class():
    statistics = Statistics(NAMES)
    image = np.zeros((2, 4, 3), np.uint8)
    statistics.add("a", image, LABELS)
    statistics.add("b", image, np.minimum(LABELS, 1))
    summary = statistics.summary()
    assert summary["mean_foreground"] == 0.625
    assert summary["classes"] == {
        "skin": {"share": 0.375, "images": 2},
        "lesion": {"share": (0.25 + 0.625) / 2, "images": 2},
        "core": {"share": 0.1875, "images": 1},
    }
    assert "core: 18.8% of the mask on average, in 1 of them" in format_statistics(summary)


def test_the_sheet_has_an_outline_for_each_class():
    labels = np.zeros((100, 200), np.uint8)
    labels[20:80, 40:160], labels[40:60, 80:120] = 1, 2
    sheet = contact_sheet([record(labels)] * 2, CLASSES)
    assert sheet.shape == (224 + 2 * 16, 2 * 208, 3)
    cell = sheet[4:104, 4:204]
    assert (cell[20, 40:160] == CLASS_COLOURS[0]).all()
    assert (cell[40, 80:120] == CLASS_COLOURS[1]).all()
    assert (cell[:19] == 90).all() and (cell[44:56, 84:116] == 90).all()
    assert (sheet[224 + 8, 8] == CLASS_COLOURS[0]).all()
    assert (sheet[240 + 8, 8] == CLASS_COLOURS[1]).all()


@pytest.fixture
def mine(tmp_path):
    """Six images, and masks of 0, 7 and 200 in a third of each."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate("abcfgh"):
        Image.new("RGB", (30, 20 + i), (10 * i, 90, 90)).save(tmp_path / f"images/{name}.png")
        labels = np.repeat(np.uint8([0, 1, 2]), 10)[None].repeat(20 + i, axis=0)
        Image.fromarray(CLASSES.file_values(labels)).save(tmp_path / f"masks/{name}.png")
    return Folder(str(tmp_path / "images"), str(tmp_path / "masks"), classes=CLASSES)


def load_mine(mine, tmp_path):
    return load_source("paired_folder", "train+validation", str(tmp_path / "data"), None, mine)


def test_ones_own_folder_of_several_classes(mine, tmp_path):
    records = load_mine(mine, tmp_path)
    assert len(records) == 6
    for one in records:
        labels = decode_labels(one["mask"], "a", CLASSES)
        assert (labels == np.repeat([0, 1, 2], 10)).all()
    assert records.statistics["classes"]["core"] == {"share": pytest.approx(1 / 3), "images": 6}
    # Other names and values are other builds.
    renamed = mine._replace(classes=Classes(("a", "b", "c"), CLASSES.values))
    other = load_mine(renamed, tmp_path)
    assert other.fingerprint != records.fingerprint and "a" in other.statistics["classes"]
    assert load_mine(mine, tmp_path).fingerprint == records.fingerprint


def test_masks_of_0_and_1_in_ones_own_folder_are_two_classes(mine, tmp_path):
    for i, name in enumerate("abcfgh"):
        labels = np.repeat(np.uint8([0, 1, 1]), 10)[None].repeat(20 + i, axis=0)
        Image.fromarray(labels).save(tmp_path / f"masks/{name}.png")
    config = default_config()
    config.data.update(dir=str(tmp_path / "data"), images=mine.images, masks=mine.masks)
    records = load_source("paired_folder", "train+validation", *where(config.data))
    assert "classes" not in records.statistics
    for record in records:
        labels = decode_labels(record["mask"], "a")
        np.testing.assert_array_equal(labels, np.repeat([0, 1, 1], 10) + 0 * labels)


def test_wrong_masks_of_several_classes_are_listed(mine, tmp_path):
    wrong = np.uint8(np.arange(20 * 30).reshape(20, 30) % 4)
    Image.fromarray(wrong).save(tmp_path / "masks/a.png")
    with pytest.raises(UserError, match=r"unreadable file \(1\)") as error:
        load_mine(mine, tmp_path)
    line = "masks/a.png: the mask has 4 values (0, 1, 2, 3), but only data.mask_values"
    assert line in str(error.value)
    with pytest.raises(UserError, match="name them in data.classes"):
        load_mine(mine._replace(classes=TWO), tmp_path)
