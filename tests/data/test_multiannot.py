"""ISIC MultiAnnot++, on small copies of its layout."""

import numpy as np
import pytest

from segdiff_jax.data.annotations import annotators_of, decode_annotations, encode_png
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.prepare import load_source
from segdiff_jax.data.splits import hashed_split
from segdiff_jax.runtime.errors import UserError
from tests.data.test_annotations import columns
from tests.data.test_isic import encoded, write_folder, write_zip

SPLITS = "train", "validation", "test"
IDS = [f"ISIC_{i:07d}" for i in range(30)]
SIZE = 12, 8


def masks_of(ids):
    """Of each image, two masks of A04 and A06; of the first one, another of A04; and consensus."""
    files = {"ATTRIBUTION.txt": b"x"}
    for i, id in enumerate(ids):
        files[f"{id}_A04_T1_S2_54{i:022d}.png"] = encode_png(columns(0, 2, SIZE))
        files[f"{id}_A06_T3_S1_55{i:022d}.png"] = encode_png(columns(0, 4, SIZE))
        for kind in ("ST", "MV"):
            files[f"{id}_{kind}_{kind}_{kind}_{kind}.png"] = encode_png(columns(0, 8, SIZE))
    files[f"{ids[0]}_A04_T2_S2_56{0:022d}.png"] = encode_png(columns(0, 6, SIZE))
    return files


def images_of(ids):
    return {f"{id}.JPG": encoded(SIZE, "JPEG", seed=int(id[-2:])) for id in ids}


@pytest.fixture
def load(tmp_path):
    folder = tmp_path / "manual"
    return lambda split: load_source("isic/multiannot", split, tmp_path / "data", folder)


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_all_masks_of_annotators_are_read_and_hashed_splits_made(tmp_path, load, write):
    write(tmp_path / "manual", "segs", masks_of(IDS))
    write(tmp_path / "manual", "ISIC-images", images_of(IDS))
    (tmp_path / "manual/IMAplusplus_seg_metadata.csv").write_text("ISIC_id\n")
    found = {split: load(split) for split in SPLITS}
    for split, records in found.items():
        ids = [record["id"].decode() for record in records]
        assert sorted(ids) == [id for id in IDS if hashed_split(id) == split]
    records = {r["id"].decode(): r for of_split in found.values() for r in of_split}
    first, other = records[IDS[0]], records[IDS[1]]
    assert annotators_of(first) == ["A04 S2 T1", "A04 S2 T2", "A06 S1 T3"]
    for mask, last in zip(decode_annotations(first), (2, 6, 4), strict=True):
        np.testing.assert_array_equal(255 * mask, columns(0, last, SIZE))
    np.testing.assert_array_equal(255 * decode_labels(first["mask"], "a"), columns(0, 4, SIZE))
    assert annotators_of(other) == ["A04 S2 T1", "A06 S1 T3"]
    np.testing.assert_array_equal(255 * decode_labels(other["mask"], "a"), columns(0, 2, SIZE))
    assert first["image"] == images_of(IDS)[f"{IDS[0]}.JPG"]
    statistics = found["train"].statistics
    assert statistics["masks"] == [2, 3] and statistics["people"] == 2
    assert statistics["annotators"] == {"A04": 31, "A06": 30, "S1": 30, "S2": 31, "T1": 30} | {
        "T2": 1,
        "T3": 30,
    }


def test_images_of_the_test_of_isic_2016_are_not_trained_on(tmp_path, load, capsys):
    test = [id for id in IDS if hashed_split(id) != "test"][:3]
    own = [id for id in IDS if id not in test]
    manual = tmp_path / "manual/ISIC"
    write_zip(manual, "segs", masks_of(IDS))
    write_zip(manual, "ISBI2016_ISIC_Part1_Training_Data", images_of(own))
    write_zip(manual, "ISBI2016_ISIC_Part1_Test_Data", images_of([*test, "ISIC_0000077"]))
    write_zip(manual, "ISBI2016_ISIC_Part1_Test_GroundTruth", {"a_Segmentation.png": b"x"})
    copy = images_of(test)[f"{test[0]}.JPG"]
    write_folder(manual, "more", {f"{own[0]}.jpg": copy, "notes.txt": b"x"})
    (manual / "ISBI2016_ISIC_Part1_Training_Data.zip").unlink()
    write_zip(manual, "ISBI2016_ISIC_Part1_Training_Data", images_of(own[1:]))
    ids = {split: {record["id"].decode() for record in load(split)} for split in SPLITS}
    assert {*test} <= ids["test"] and not {*test} & (ids["train"] | ids["validation"])
    assert ids["test"] - {*test} == {id for id in own[1:] if hashed_split(id) == "test"}
    said = capsys.readouterr().out  # Its bytes are those of a test image.
    assert f"left out, because test has the same image or group: 1 ({own[0]})" in said


def test_masks_without_images_are_counted_and_images_without_masks_ignored(tmp_path, load, capsys):
    write_zip(tmp_path / "manual", "segs", masks_of(IDS))
    write_zip(tmp_path / "manual", "images", images_of([*IDS[2:], "ISIC_0000099"]))
    ids = {record["id"].decode() for split in SPLITS for record in load(split)}
    assert ids == {*IDS[2:]}
    said = f"left out: 5 masks of 2 images that are not there: {IDS[0]}, {IDS[1]}\n"
    assert said in capsys.readouterr().out


def test_faults_are_listed(tmp_path, load):
    manual = tmp_path / "manual"
    manual.mkdir()
    with pytest.raises(UserError, match="get segs.zip from https://doi.org/10.5281"):
        load("train")
    write_zip(manual, "segs", masks_of(IDS))
    with pytest.raises(UserError, match="no image of any mask, in the zip files and folders"):
        load("train")
    masks = masks_of(IDS)
    masks[f"{IDS[3]}_A07_T1_S1_57.png"] = encode_png(columns(0, 2, (5, 5)))
    masks[f"{IDS[4]}_A07_T1_S1_57.png"] = encode_png(np.uint8([[0, 1, 255]]))
    write_zip(manual, "segs", masks)
    write_zip(manual, "images", images_of(IDS))
    (manual / "broken.zip").write_bytes(b"text")
    with pytest.raises(UserError, match="isic/multiannot/1.0.0 cannot be built") as error:
        load("train")
    assert str(error.value).splitlines()[1:] == [
        "corrupt archive (1):",
        "  broken: File is not a zip file",
        "image and mask of different sizes (1):",
        f"  images/{IDS[3]}.JPG: image 12 x 8, segs/{IDS[3]}_A07_T1_S1_57.png 5 x 5",
        "unreadable file (1):",
        f"  segs/{IDS[4]}_A07_T1_S1_57.png: the mask has 3 values (0, 1, 255): make it 0 and one "
        "other value, or, if it has several classes, name them in data.classes; JPEG blurs masks, "
        "save them as PNG",
    ]
