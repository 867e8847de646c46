"""Masks of several annotators: encoded, found in folders, built, resized and read as examples."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.data.annotations import (
    annotators_of,
    decode_annotations,
    encode_annotations,
    majority,
    masks_of_annotators,
    numbers_of,
)
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.folder import Folder, FolderSource
from segdiff_jax.data.pipeline import ResizedSource, train_iterator
from segdiff_jax.data.prepare import load_source, load_training_source, where
from segdiff_jax.data.records import Rules
from segdiff_jax.data.statistics import format_statistics
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import open_data
from tests.evaluation.models import model_of

RNG = np.random.default_rng(0)


def columns(first, last, size=(12, 8), value=255):
    """u8[size], `value` from column `first` to before `last`, 0 elsewhere."""
    mask = np.zeros(size, np.uint8)
    mask[:, first:last] = value
    return mask


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_masks_come_back_and_the_majority_has_over_half_of_them(number):
    labels = RNG.integers(0, 2, (number, 4, 3), np.uint8)
    texts = [f"A{i:02d} S1" for i in range(number)]
    record = encode_annotations(labels, texts)
    np.testing.assert_array_equal(decode_annotations(record), labels)
    np.testing.assert_array_equal(decode_labels(record["mask"], "a"), np.mean(labels, axis=0) > 0.5)
    assert annotators_of(record) == texts
    as_bytes = record | {"annotators": [text.encode() for text in texts]}  # As TFDS reads them.
    assert annotators_of(as_bytes) == texts
    stacked = np.concatenate(255 * labels)
    np.testing.assert_array_equal(decode_labels(record["annotations"], "a"), stacked > 0)


def test_many_masks_have_a_majority_and_may_have_more_pixels_than_an_image(monkeypatch):
    labels = np.ones((201, 1, 2), np.uint8)
    labels[:100, 0, 0] = labels[:101, 0, 1] = 0
    np.testing.assert_array_equal(majority(labels), [[1, 0]])
    monkeypatch.setattr("segdiff_jax.data.decode.MOST_PIXELS", 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    record = encode_annotations(labels, [""] * 201)
    np.testing.assert_array_equal(decode_annotations(record), labels)


def test_a_mask_has_the_number_of_its_first_listed_name():
    texts = ["A04 S2 T1", "A06 S1", "A07 S2", ""]
    assert numbers_of(texts, ("A06", "S2")) == [2, 1, 2, 0]
    assert numbers_of(texts, ("S1", "T1", "A04")) == [3, 1, 0, 0]
    assert numbers_of(texts, ()) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("mask", "image", "annotator"),
    [
        ("a_Ann", "a", "Ann"),
        ("a-Ann", "a", "Ann"),
        ("A_ANN_mask", "a", "ANN"),
        ("Ann/a", "a", "Ann"),
        ("Ann/a_mask", "a", "Ann"),
        ("Ann/a_2", "a", "Ann 2"),
        ("Dr Lee/a", "a", "Dr_Lee"),
        ("a", "a", ""),
        ("a_mask", "a", ""),
        ("a_b_Ann", "a_b", "Ann"),  # Not "b_Ann" of "a".
        ("a_b", "a_b", ""),
        ("x/c_Ann", "x/c", "Ann"),
        ("Ann/x/c", "x/c", "Ann"),
        ("Ann/c", None, None),
        ("aAnn", None, None),
        ("a_Ann/b", None, None),
        ("d", None, None),
    ],
)
def test_masks_are_named_after_their_annotators(mask, image, annotator):
    images, path = ["a", "a_b", "x/c"], Path("m.png")
    found = masks_of_annotators(images, {mask: [path]}, ["_mask", ""])
    assert found == {name: {path: annotator} if name == image else {} for name in images}


@pytest.fixture
def mine(tmp_path):
    """Six images; a has masks of Ann, Bob and Eve, b of Ann twice, the others of Bob alone."""
    for i, name in enumerate("abcdef"):
        write(tmp_path / f"images/{name}.png", RNG.integers(0, 256, (12 + i, 8, 3), np.uint8))
    masks = tmp_path / "masks"
    write(masks / "Ann/a.png", columns(0, 2))
    write(masks / "a_Bob.png", columns(0, 4))
    write(masks / "Eve/a_mask.png", columns(0, 8))
    write(masks / "b_Ann.png", columns(0, 4, (13, 8)))
    write(masks / "Ann/b.png", columns(2, 6, (13, 8)))
    for i, name in enumerate("cdef", 2):
        write(masks / f"Bob/{name}.png", columns(0, 4, (12 + i, 8)))
    return Folder(str(tmp_path / "images"), str(masks), several_annotators=True)


def build(mine, split="train+validation", **rules):
    data = str(Path(mine.images).parent / "data")
    return load_source("paired_folder", split, data, None, mine, Rules(**rules))


def test_records_have_all_masks_and_the_majority(mine):
    records = build(mine)
    by_id = {record["id"].decode(): record for record in records}
    a, b, c = (by_id[name] for name in "abc")
    assert annotators_of(a) == ["Ann", "Eve", "Bob"]
    for mask, last in zip(decode_annotations(a), (2, 8, 4), strict=True):
        np.testing.assert_array_equal(255 * mask, columns(0, last))
    np.testing.assert_array_equal(255 * decode_labels(a["mask"], "a"), columns(0, 4))
    assert annotators_of(b) == ["Ann", "Ann"]  # Both drew columns 2 and 3.
    np.testing.assert_array_equal(255 * decode_labels(b["mask"], "b"), columns(2, 4, (13, 8)))
    assert annotators_of(c) == ["Bob"] and decode_annotations(c).shape == (1, 14, 8)
    assert records.most_masks == 3 and records.annotators == {"Ann", "Bob", "Eve"}


def test_a_build_says_who_drew_and_folds_know_it(mine):
    records = build(mine)
    statistics = records.statistics
    assert statistics["annotators"] == {"Ann": 3, "Bob": 5, "Eve": 1}
    assert statistics["masks"] == [1, 3] and statistics["people"] == 3
    lines = format_statistics(statistics).splitlines()
    assert lines[0].startswith("6 images with 1 to 3 masks of 3 annotators (least")
    fold = build(mine, "train", folds=2)
    assert fold.most_masks == 3 and fold.annotators == {"Ann", "Bob", "Eve"}


def test_every_mask_is_checked(mine, tmp_path):
    write(tmp_path / "masks/Eve/a_mask.png", columns(0, 8, (5, 8)))
    write(tmp_path / "masks/Ann/b.png", np.uint8([[0, 1, 2, 255]]))
    write(tmp_path / "masks/Bob/c.png", columns(0, 4, (14, 8), value=7))
    write(tmp_path / "masks/Bob/z.png", columns(0, 4))
    (tmp_path / "masks/Bob/d.png").unlink()
    with pytest.raises(UserError, match="cannot be built") as error:
        build(mine)
    lines = str(error.value).replace(f"{tmp_path}/", "").splitlines()[1:]
    assert lines[0] == "image without a mask of its own (1):" and "images/d.png" in lines[1]
    assert lines[2:4] == ["mask without image (1):", "  masks/Bob/z.png"]
    assert lines[4:6] == [
        "image and mask of different sizes (1):",
        "  images/a.png: image 12 x 8, masks/Eve/a_mask.png 5 x 8",
    ]
    assert lines[6] == "unreadable file (1):" and "masks/Ann/b.png: the mask has 4" in lines[7]
    assert lines[9] == "  masks/Bob/c.png: 7, not 255" and len(lines) == 10


def test_two_masks_are_refused_unless_told(mine):
    with pytest.raises(UserError, match="two masks: a.png and .*if annotators drew them, set data"):
        masks = Path(mine.masks)
        write(masks / "a.png", columns(0, 2))
        write(masks / "a_mask.png", columns(0, 2))
        build(mine._replace(several_annotators=False))


def examples_of(records, annotators, size=4, **options):
    source = ResizedSource(records, size, annotators=annotators, **options)
    return {records[i]["id"].decode(): source[i] for i in range(len(source))}


def test_training_gets_every_mask_and_validation_the_majority(mine):
    records = build(mine)
    found = examples_of(records, ("Eve", "Ann"))
    a, b, c = (found[name] for name in "abc")
    assert a["mask"].shape == (4, 4, 3) and a["annotators"].tolist() == [2, 1, 0]
    for place, last in enumerate((1, 4, 2)):
        np.testing.assert_array_equal(a["mask"][..., place], columns(0, last, (4, 4)))
    assert b["annotators"].tolist() == [2, 2, -1]
    np.testing.assert_array_equal(b["mask"][..., 0], columns(1, 3, (4, 4)))
    assert not b["mask"][..., 2].any()
    assert c["annotators"].tolist() == [0, -1, -1] and c["annotators"].dtype == np.int32
    for name, (first, last) in {"a": (0, 2), "b": (1, 2), "c": (0, 2)}.items():
        example = examples_of(records, None)[name]
        assert sorted(example) == ["image", "mask"]
        np.testing.assert_array_equal(example["mask"][..., 0], columns(first, last, (4, 4)))
        np.testing.assert_array_equal(example["image"], found[name]["image"])


def test_batches_carry_all_masks_and_the_file_belongs_to_the_names(mine, tmp_path):
    records, folder = build(mine), tmp_path / "cache"
    for names, expected in ((), {0, -1}), (("Ann",), {1, 0, -1}):
        for _ in range(2):  # The second time, from the file.
            source = ResizedSource(records, 4, data_dir=folder, annotators=names)
            batch = next(train_iterator(source, 6, seed=0))
            assert batch["mask"].shape == (6, 4, 4, 3) and batch["index"].shape == (6,)
            assert {*batch["annotators"].ravel().tolist()} == expected
    majority = ResizedSource(records, 4, data_dir=folder)
    assert [majority[i]["mask"].shape for i in range(6)] == [(4, 4, 1)] * 6
    assert len(list((folder / "resized").iterdir())) == 3


def config_of(mine, **data):
    config = default_config()
    config.data.update({"dataset": "paired_folder", "dir": str(Path(mine.images).parent / "data")})
    config.data.update({"images": mine.images, "masks": mine.masks, "image_size": 4})
    config.data.update({"several_annotators": True, **data})
    return config


def test_a_name_that_nobody_has_is_refused(mine):
    training, validation = open_data(config_of(mine, annotators=("Bob",)), None)
    assert "annotators" in training[0] and "annotators" not in validation[0]
    with pytest.raises(
        UserError,
        match=r"data.annotators=\('Bob', 'S1'\): no mask of the training"
        " split has the name S1; there are Ann, Bob, Eve",
    ):
        open_data(config_of(mine, annotators=("Bob", "S1")), None)


def test_names_need_masks_of_several_annotators_and_two_classes(mine, tmp_path):
    single = mine._replace(masks=str(tmp_path / "single"), several_annotators=False)
    for i, name in enumerate("abcdef"):
        write(tmp_path / f"single/{name}.png", columns(0, 4, (12 + i, 8)))
    config = config_of(single, several_annotators=False)
    training, _ = open_data(config, None)
    assert sorted(training[0]) == ["image", "mask"] and training[0]["mask"].shape == (4, 4, 1)
    config.data.annotators = ("Ann",)
    with pytest.raises(UserError, match="has the name Ann; there are no names"):
        open_data(config, None)
    config = config_of(mine, classes=("skin", "lesion", "hair"))
    config.model.out_channels = 3
    with pytest.raises(UserError, match="data.classes=.* does not go with masks of several annot"):
        check(config)
    with pytest.raises(UserError, match="data.several_annotators=True is for data.dataset='paired"):
        check(config_of(mine, dataset="ph2"))
    with pytest.raises(UserError, match="data.annotators=.* must be different names"):
        check(config_of(mine, annotators=("Ann", "Ann")))


def test_extra_data_sets_may_have_single_masks_or_several(mine, tmp_path, tiny_isic):
    data = config_of(mine, manual_dir=str(tiny_isic)).data
    both = load_training_source("paired_folder", ["isic/2016"], *where(data))
    source = ResizedSource(both, 4, annotators=("Ann",))
    assert both.extra == 40 and both.most_masks == 3
    assert source[len(both) - 1]["annotators"].tolist() == [0, -1, -1]
    mask = decode_labels(both[len(both) - 1]["mask"], "a")
    single = source[len(both) - 1]["mask"]
    assert abs(single[..., 0].mean() / 255 - mask.mean()) < 0.01 and not single[..., 1:].any()
    both = load_training_source("isic/2016", ["paired_folder"], *where(data))
    source = ResizedSource(both, 4, annotators=())
    assert both.annotators == {"Ann", "Bob", "Eve"} and source[0]["mask"].shape == (4, 4, 3)
    assert source[0]["annotators"].tolist() == [0, -1, -1]


def test_examples_have_all_truths(mine, tmp_path):
    for records in (build(mine), FolderSource(*mine[:4])):
        examples = {e["id"]: e for e in NativeExamples(records, model_of())}
        a = examples["a"]
        assert a["truths"].dtype == np.uint8 and a["truths"].shape == (3, 12, 8)
        assert sorted(a["truths"].mean((1, 2))) == [0.25, 0.5, 1]
        np.testing.assert_array_equal(255 * a["truth"], columns(0, 4))
        assert examples["c"]["truths"].shape == (1, 14, 8)
    (without,) = NativeExamples(FolderSource(f"{mine.images}/a.png"), model_of())
    assert without["truth"] is without["truths"] is None


def test_masks_of_a_folder_that_differ_in_size_are_one_failure(mine, tmp_path):
    write(tmp_path / "masks/Eve/a_mask.png", columns(0, 8, (5, 8)))
    write(tmp_path / "masks/Ann/b.png", np.uint8([[0, 1, 2, 255]]))
    examples = NativeExamples(FolderSource(*mine[:4]), model_of())
    found = list(examples.read(range(6), lambda *file: False))
    assert found[0]["id"] == "a" and "a: its masks differ in size: " in found[0]["failure"]
    assert found[1]["id"] == "b" and "the mask has 4 values" in found[1]["failure"]
    assert [example["id"] for example in found[2:]] == list("cdef")
    assert all("truth" in example for example in found[2:])


def test_other_masks_are_other_files(mine, tmp_path):
    content = lambda: next(examples.read([0], lambda *file: False))["content"]
    examples = NativeExamples(FolderSource(*mine[:4]), model_of())
    before = content()
    write(tmp_path / "masks/Eve/a_mask.png", columns(0, 7))  # The majority stays.
    assert content() != before
