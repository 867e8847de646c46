"""The ISIC builder, on tiny archives."""

import functools
import io
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.builders.isic import archives
from segdiff_jax.data.builders.isic.isic_dataset_builder import Builder, parts_of
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.prepare import load_source
from segdiff_jax.data.splits import is_validation
from segdiff_jax.runtime.errors import UserError

SHARED = Path(os.environ.get("SEGDIFF_SHARED", Path(__file__).parents[3] / "shared"))

IDS = [f"ISIC_{i:07d}" for i in (0, 1, 2, 11, 26)]  # The last two are in validation.
YEARS = {
    "2016": (
        ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    ),
    "2017": (
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
        ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    ),
    "2018": (
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    ),
}
(TRAIN_IMAGES, TRAIN_MASKS), (TEST_IMAGES, TEST_MASKS) = YEARS["2016"]
ISIC_2016 = functools.partial(load_source, "isic/2016")


def encoded(size, form, seed=0, mode="RGB"):
    """Random image file of (height, width)."""
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3), np.uint8)
    if mode == "L":
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)[..., 0]
    if mode == "I;16":
        pixels = pixels[..., 0].astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def members(ids, kind, suffix="segmentation", size=(6, 5)):
    """Name -> bytes of the files of an archive, the sizes being all different."""
    sizes = {id: (size[0] + int(id[-2:]), size[1]) for id in ids}
    if kind == "images":
        return {f"{id}.jpg": encoded(sizes[id], "JPEG", int(id[-2:])) for id in ids}
    return {f"{id}_{suffix}.png": encoded(sizes[id], "PNG", mode="L") for id in ids}


def write_zip(folder, name, files):
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        warnings.simplefilter("ignore")  # Of duplicate names.
        for file, data in files.items() if isinstance(files, dict) else files:
            archive.writestr(f"{name}/{file}", data)


def write_folder(folder, name, files):
    (folder / name).mkdir(parents=True)
    for file, data in files.items():
        (folder / name / file).write_bytes(data)


def write_2016(folder, images=None, masks=None, write=write_zip):
    """All four archives of 2016, with the given files in those of the training set."""
    suffix = "Segmentation"
    images = members(IDS, "images") if images is None else images
    masks = members(IDS, "masks", suffix) if masks is None else masks
    write(folder, TRAIN_IMAGES, images)
    write(folder, TRAIN_MASKS, masks)
    write(folder, TEST_IMAGES, members(["ISIC_0000003"], "images"))
    write(folder, TEST_MASKS, members(["ISIC_0000003"], "masks", suffix))
    return images, masks


def built_files(data_dir):
    """What a build leaves, but for downloads, the lock and the name of the default config."""
    files = (p.relative_to(data_dir) for p in data_dir.rglob("*") if p.is_file())
    return {str(f) for f in files if f.parts[0] != "downloads" and f.name[0] != "."} - {
        "isic/.config/metadata.json"
    }


def build_error(tmp_path):
    """Message of a build that must fail, and leave nothing."""
    with pytest.raises(UserError, match=r"isic/2016/1.0.0 cannot be built") as error:
        ISIC_2016("train", tmp_path / "data", tmp_path / "manual")
    assert built_files(tmp_path / "data") == set()
    return str(error.value).splitlines()[1:]


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_bytes_are_the_original_ones(tmp_path, write):
    images, masks = write_2016(tmp_path / "manual", write=write)
    load = functools.partial(ISIC_2016, data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    seen = {}
    for split, ids in {"train": IDS[:3], "validation": IDS[3:], "test": ["ISIC_0000003"]}.items():
        source = load(split)
        assert sorted(example["id"].decode() for example in source) == ids
        seen |= {example["id"].decode(): example for example in source}
    for id in IDS:
        assert seen[id]["image"] == images[f"{id}.jpg"]
        assert seen[id]["mask"] == masks[f"{id}_Segmentation.png"]
        assert (seen[id]["height"], seen[id]["width"]) == (6 + int(id[-2:]), 5)
    assert len(load("train[:2]")) == 2
    assert sorted(e["id"] for e in load("train+validation")) == [id.encode() for id in IDS]


@pytest.mark.parametrize("year", ["2017", "2018"])
def test_later_years_have_an_official_validation_split(tmp_path, year):
    id_of = dict(zip(YEARS[year], (IDS, ["ISIC_0000007"], ["ISIC_0000008"]), strict=True))
    for (images, masks), ids in id_of.items():
        extra = {"ATTRIBUTION.txt": b"x", "a.csv": b"x", f"{ids[0]}_superpixels.png": b"x"}
        hidden = {"__MACOSX/ISIC_0000001.jpg": b"x", f"._{ids[0]}.jpg": b"x"}
        write_zip(tmp_path / "manual", images, members(ids, "images") | extra | hidden)
        write_zip(tmp_path / "manual", masks, members(ids, "masks") | extra)
    counts = {
        split: len(load_source(f"isic/{year}", split, tmp_path / "data", tmp_path / "manual"))
        for split in ("train", "validation", "official_validation", "test")
    }
    assert counts == {"train": 3, "validation": 2, "official_validation": 1, "test": 1}


def test_suffixes_and_archive_names_in_any_case(tmp_path):
    upper = {name.upper(): data for name, data in members(IDS, "images").items()}
    write_2016(tmp_path / "manual", images=upper)
    archive = tmp_path / "manual" / f"{TRAIN_MASKS}.zip"
    archive.rename(archive.with_name(f"{TRAIN_MASKS.lower()}.ZIP"))
    assert len(ISIC_2016("train", tmp_path / "data", tmp_path / "manual")) == 3


def test_absent_splits_are_skipped_and_subsets_logged(tmp_path, caplog):
    write_zip(tmp_path / "manual", TRAIN_IMAGES, members(IDS, "images"))
    write_zip(tmp_path / "manual", TRAIN_MASKS, members(IDS, "masks"))
    with pytest.raises(UserError, match=r"'test'.*\['train', 'validation'\]"):
        ISIC_2016("test", tmp_path / "data", tmp_path / "manual")
    assert "training: 5 of 900 images (a subset of the official archive)" in caplog.text
    assert "no test archives" in caplog.text


def test_all_problems_are_listed_by_kind(tmp_path):
    images, masks = members(IDS, "images"), members(IDS, "masks")
    del masks[f"{IDS[0]}_segmentation.png"], images[f"{IDS[1]}.jpg"]
    masks[f"{IDS[2]}_segmentation.png"] = encoded((7, 5), "PNG", mode="L")
    images[f"{IDS[3]}.jpg"] = images[f"{IDS[3]}.jpg"][:-40]
    masks[f"{IDS[3]}_segmentation.png"] = b"text"
    images[f"{IDS[4]}.jpg"], masks[f"{IDS[4]}_segmentation.png"] = b"", encoded((32, 5), "PNG")
    write_2016(tmp_path / "manual", images, masks)
    (tmp_path / "manual" / f"{TEST_MASKS}.zip").unlink()
    lines = build_error(tmp_path)
    assert lines[:9] == [
        "image without mask (1):",
        f"  {TRAIN_IMAGES}/{IDS[0]}.jpg",
        "mask without image (1):",
        f"  {TRAIN_MASKS}/{IDS[1]}_segmentation.png",
        "missing archive (1):",
        f"  {TEST_MASKS}.zip (there is {TEST_IMAGES})",
        "image and mask of different sizes (1):",
        f"  {TRAIN_IMAGES}/{IDS[2]}.jpg: image 8 x 5, mask 7 x 5",
        "unreadable file (4):",
    ]
    assert lines[9].startswith(
        f"  {TRAIN_IMAGES}/{IDS[3]}.jpg: cannot be decoded as an image (image"
    )
    unreadable = f"  {TRAIN_MASKS}/{IDS[3]}_segmentation.png: cannot be decoded as an image (of"
    assert lines[10].startswith(unreadable)
    assert lines[11] == f"  {TRAIN_IMAGES}/{IDS[4]}.jpg: the file is empty"
    colours = f"  {TRAIN_MASKS}/{IDS[4]}_segmentation.png: the mask has several colours"
    assert lines[12].startswith(colours)
    assert lines[13:] == []


def greys():
    buffer = io.BytesIO()
    Image.fromarray(np.resize(np.uint8([0, 1, 2, 3]), (6, 5))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mask", "kind", "reason"),
    [
        (encoded((7, 5), "PNG", mode="L"), "image and mask of different sizes", "mask 7 x 5"),
        (encoded((6, 5), "PNG"), "unreadable file", "the mask has several colours"),
        (greys(), "unreadable file", "values other than 0 and 255 (1, 2, 3)"),
        (encoded((6, 5), "PNG", mode="L")[:-30], "unreadable file", "cannot be decoded"),
        (encoded((6, 5), "PNG", mode="I;16"), "unreadable file", "more than 8 bits a channel"),
        (b"", "unreadable file", "the file is empty"),
        (b"text", "unreadable file", "cannot be decoded"),
    ],
    ids=["another size", "colours", "other values", "truncated", "16 bits", "0 bytes", "text"],
)
def test_a_bad_mask_is_listed_with_its_reason(tmp_path, mask, kind, reason):
    masks = members(IDS, "masks") | {f"{IDS[0]}_segmentation.png": mask}
    write_2016(tmp_path / "manual", masks=masks)
    first, line = build_error(tmp_path)
    assert first == f"{kind} (1):"
    assert IDS[0] in line and reason in line


def test_an_image_of_one_pixel_is_built(tmp_path):
    images, masks = members(IDS, "images"), members(IDS, "masks")
    images[f"{IDS[0]}.jpg"] = encoded((1, 1), "JPEG")
    masks[f"{IDS[0]}_segmentation.png"] = encoded((1, 1), "PNG", mode="L")
    write_2016(tmp_path / "manual", images, masks)
    source = ISIC_2016("train", tmp_path / "data", tmp_path / "manual")
    sizes = {record["id"].decode(): (record["height"], record["width"]) for record in source}
    assert sizes[IDS[0]] == (1, 1)


def test_long_lists_are_cut(tmp_path):
    ids = [f"ISIC_{i:07d}" for i in range(30)]
    write_2016(tmp_path / "manual", images=members(ids, "images"))
    lines = build_error(tmp_path)
    assert lines[0] == "image without mask (25):"
    assert lines[1:21] == [f"  {TRAIN_IMAGES}/{id}.jpg" for id in ids if id not in IDS][:20]
    assert lines[21:] == ["  and 5 more"]


def test_duplicates_corrupt_and_empty_archives(tmp_path):
    images = [*members(IDS, "images").items(), *members(IDS[:1], "images").items()]
    write_2016(tmp_path / "manual", images=images)
    write_zip(tmp_path / "manual", TEST_IMAGES, {"readme.txt": b"x"})
    (tmp_path / "manual" / f"{TEST_MASKS}.zip").write_bytes(b"PK not really")
    assert build_error(tmp_path) == [
        "duplicate id (1):",
        f"  {TRAIN_IMAGES}: {IDS[0]}",
        "no file of the expected name (1):",
        f"  {TEST_IMAGES}",
        "corrupt archive (1):",
        f"  {TEST_MASKS}: File is not a zip file",
    ]


def test_damage_inside_an_archive_is_found(tmp_path):
    images, _ = write_2016(tmp_path / "manual")
    archive = tmp_path / "manual" / f"{TRAIN_IMAGES}.zip"
    data, wanted = archive.read_bytes(), images[f"{IDS[1]}.jpg"]
    archive.write_bytes(data.replace(wanted, wanted[:-9] + b"\0" * 9))
    kind, line = build_error(tmp_path)
    assert kind == "unreadable file (1):"
    assert f"{TRAIN_IMAGES}/{IDS[1]}.jpg: Bad CRC-32" in line


def test_an_encrypted_file_is_named(tmp_path):
    write_2016(tmp_path / "manual")
    archive = tmp_path / "manual" / f"{TRAIN_IMAGES}.zip"
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # The first file's flags, before it and in the list at the end.
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    kind, line = build_error(tmp_path)
    assert kind == "unreadable file (1):"
    assert f"{TRAIN_IMAGES}/{IDS[0]}.jpg: " in line and "is encrypted" in line


def test_paths_that_lead_out_of_an_archive_are_refused_and_nothing_is_written(tmp_path):
    write_2016(tmp_path / "manual")
    slips = "../../ISIC_0000005.jpg", "/tmp/ISIC_0000006.jpg", "..\\ISIC_0000007.jpg"
    with zipfile.ZipFile(tmp_path / "manual" / f"{TRAIN_IMAGES}.zip", "a") as archive:
        for slip in slips:
            archive.writestr(slip, encoded((6, 5), "JPEG"))
    kind, *lines = build_error(tmp_path)
    assert kind == "path that leads out of its archive (3):"
    assert lines == [f"  {TRAIN_IMAGES}: {slip}" for slip in slips]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "manual"]


def test_a_zip_bomb_is_refused_unread(tmp_path, monkeypatch):
    images, _ = write_2016(tmp_path / "manual")
    most = max(map(len, images.values()))
    monkeypatch.setattr(archives, "MOST_BYTES", most - 1)
    kind, *lines = build_error(tmp_path)
    bombs = [id for id in IDS if len(images[f"{id}.jpg"]) == most]
    assert kind == f"unreadable file ({len(bombs)}):"
    assert lines == [
        f"  {TRAIN_IMAGES}/{id}.jpg: unpacks to {most} bytes, more than an image has: a zip bomb?"
        for id in bombs
    ]


def test_names_with_spaces_and_other_letters(tmp_path):
    ids = [*IDS, "ein Fleck \u00e4\u4e2d 09"]
    write_2016(tmp_path / "manual", members(ids, "images"), members(ids, "masks"))
    load = functools.partial(ISIC_2016, data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    found = {record["id"].decode() for split in ("train", "validation") for record in load(split)}
    assert found == set(ids)


def test_sizes_are_those_of_the_upright_image(tmp_path):
    images, masks = members(IDS, "images"), members(IDS, "masks")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (6, 5)).save(buffer, "JPEG", exif=exif)  # As its mask, 5 wide and 6 high.
    images[f"{IDS[0]}.jpg"] = buffer.getvalue()
    write_2016(tmp_path / "manual", images, masks)
    source = ISIC_2016("train", tmp_path / "data", tmp_path / "manual")
    sizes = {record["id"].decode(): (record["height"], record["width"]) for record in source}
    assert sizes[IDS[0]] == (6, 5)


def test_masks_with_a_palette_of_black_and_white_are_read(tmp_path):
    mask = np.zeros((6, 5), np.uint8)
    mask[:2] = 1
    image, buffer = Image.fromarray(mask, "P"), io.BytesIO()
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(buffer, "PNG")
    masks = members(IDS, "masks") | {f"{IDS[0]}_segmentation.png": buffer.getvalue()}
    write_2016(tmp_path / "manual", masks=masks)
    records = ISIC_2016("train", tmp_path / "data", tmp_path / "manual")
    stored = {r["id"].decode(): r["mask"] for r in records}[IDS[0]]
    np.testing.assert_array_equal(decode_labels(stored, "a"), mask)


def test_names_with_backslashes_are_paths(tmp_path):
    images, masks = members(IDS, "images"), members(IDS, "masks")
    for name, files in ((TRAIN_IMAGES, images), (TRAIN_MASKS, masks)):
        (tmp_path / "manual").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / f"manual/{name}.zip", "w") as archive:
            archive.writestr(f"__MACOSX\\{name}\\ISIC_0000099.jpg", b"x")
            for file, data in files.items():
                archive.writestr(f"{name}\\{file}", data)
    seen = ISIC_2016("train+validation", tmp_path / "data", tmp_path / "manual")
    assert {r["id"].decode(): r["image"] for r in seen} == {id: images[f"{id}.jpg"] for id in IDS}


def test_an_unpacked_folder_beside_its_archive_is_named_and_read_without_it(tmp_path, capsys):
    manual, mask = tmp_path / "manual", f"{TRAIN_MASKS}/{IDS[0]}_Segmentation.png"
    write_2016(manual)
    load = lambda: {r["id"].decode(): r for r in ISIC_2016("train", tmp_path / "data", manual)}
    before = load()[IDS[0]]["mask"]
    with zipfile.ZipFile(manual / f"{TRAIN_MASKS}.zip") as archive:
        archive.extractall(manual)
    corrected = encoded((6, 5), "PNG", seed=1, mode="L")
    (manual / mask).write_bytes(corrected)
    capsys.readouterr()
    assert load()[IDS[0]]["mask"] == before
    said = capsys.readouterr().out
    assert f"{TRAIN_MASKS}.zip is read, and not the folder {manual / TRAIN_MASKS}: remove" in said
    (manual / f"{TRAIN_MASKS}.zip").unlink()
    assert load()[IDS[0]]["mask"] == corrected
    (manual / mask).write_bytes(encoded((6, 5), "PNG", seed=2, mode="L"))
    assert load()[IDS[0]]["mask"] == encoded((6, 5), "PNG", seed=2, mode="L")


def test_linked_folders_and_links_to_nowhere(tmp_path):
    write_2016(tmp_path / "elsewhere", write=write_folder)
    (tmp_path / "manual").mkdir()
    for name in (TRAIN_IMAGES, TRAIN_MASKS, TEST_IMAGES, TEST_MASKS):
        (tmp_path / "manual" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(ISIC_2016("train", tmp_path / "data", tmp_path / "manual")) == 3
    file = tmp_path / f"elsewhere/{TRAIN_IMAGES}/{IDS[0]}.jpg"
    file.unlink()
    file.symlink_to("../.git/annex/gone.jpg")
    with pytest.raises(
        UserError, match=rf"{IDS[0]}.jpg is a link to ../.git/annex/gone.jpg, which"
    ):
        ISIC_2016("train", tmp_path / "data", tmp_path / "manual")


def test_empty_split(tmp_path):
    write_2016(tmp_path / "manual", members(IDS[:3], "images"), members(IDS[:3], "masks"))
    expected = [
        "empty split (1):",
        "  validation (there are 4 images; copies and groups share a split)",
    ]
    assert build_error(tmp_path) == expected


def test_a_folder_is_recorded_by_its_files(tmp_path):
    write_2016(tmp_path, write=write_folder)
    builder = Builder(config="2016", data_dir=tmp_path / "data")
    before = builder.manual_sources(tmp_path)
    counts = {name: source["files"] for name, source in before.items()}
    assert counts == {TRAIN_IMAGES: 5, TRAIN_MASKS: 5, TEST_IMAGES: 1, TEST_MASKS: 1}
    os.utime(tmp_path / f"{TRAIN_MASKS}/{IDS[0]}_Segmentation.png", (1, 1))
    after = builder.manual_sources(tmp_path)
    assert [name for name in before if before[name] != after[name]] == [TRAIN_MASKS]


def test_builder_describes_itself(tmp_path):
    builder = Builder(config="2016", data_dir=tmp_path)
    assert builder.name == "isic"
    assert "ISIC challenges" in builder.info.description
    assert "gutman2016skin" in builder.info.citation
    official = {
        year: {name: part.official for name, part in parts_of(year).items()} for year in YEARS
    }
    assert official == {
        "2016": {"training": 900, "test": 379},
        "2017": {"training": 2000, "official_validation": 150, "test": 600},
        "2018": {"training": 2594, "official_validation": 100, "test": 1000},
    }
    for year in YEARS:
        assert tuple((part.images, part.masks) for part in parts_of(year).values()) == YEARS[year]


def test_validation_is_a_fixed_tenth():
    ids = [f"ISIC_{i:07d}" for i in range(10000)]
    assert [id for id in ids[:40] if is_validation(id)] == [ids[i] for i in (11, 26, 32, 35)]
    assert 900 < sum(map(is_validation, ids)) < 1100


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED} (SEGDIFF_SHARED)")
def test_real_archives(tmp_path):
    counts = {}
    for year, splits in {"2016": ["train", "validation", "test"], "2017": ["train"]}.items():
        load = functools.partial(load_source, f"isic/{year}", data_dir=tmp_path)
        for split in splits:
            source = load(split, manual_dir=SHARED / f"data/isic{year}")
            counts[year, split] = len(source)
            assert Image.open(io.BytesIO(source[0]["image"])).size == (256, 256)
    assert counts == {
        ("2016", "train"): 671,
        ("2016", "validation"): 78,
        ("2016", "test"): 147,
        ("2017", "train"): 850,
    }
