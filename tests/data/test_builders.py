"""Every public data set's builder, on a small generated copy of the official layout."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import segdiff_jax
from segdiff_jax.data.builders.cityscapes_instances import (
    cityscapes_instances_dataset_builder as cityscapes,
)
from segdiff_jax.data.builders.image_and_mask.sets import SETS, PlainSet, builder_of
from segdiff_jax.data.prepare import load_source
from segdiff_jax.data.records import Rules
from segdiff_jax.data.splits import hashed_split, hold_out
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train
from tests.evaluation.models import model_of

SPLITS = "train", "validation", "test"
RNG = np.random.default_rng(0)


def picture(size):
    return RNG.integers(0, 256, (*size, 3), np.uint8)


def half(size, value=255):
    """u8[size], `value` in the left half, 0 in the right one."""
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = value
    return mask


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)


def write_monuseg(root):
    for part, names in (("Training", "abcde"), ("Test", "xy")):
        for i, name in enumerate(names):
            suffix = ".png" if name == "b" else ".tif"
            write(root / f"MoNuSeg/{part}/img/TCGA-{name}{suffix}", picture((12 + i, 10)))
            write(root / f"MoNuSeg/{part}/mask/TCGA-{name}.png", half((12 + i, 10), i + 1))


def write_vaihingen(root):
    for number in range(1, 111):
        write(root / f"buildings/building_{number}.tif", picture((8, 6)))
        write(root / f"buildings/building_mask_{number}.tif", half((8, 6), 1 + number % 2))


def write_vaihingen_hdf5(root):
    for name, numbers in (("training", (1, 10, 2, 3)), ("test", (4, 5))):
        with h5py.File(root / f"full_{name}_vaih.hdf5", "w") as file:
            for number in numbers:
                file[f"imgs/building_{number}"] = picture((8, 6))
                file[f"mask_single/building_mask_{number}"] = half((8, 6), 1)


PH2 = [f"IMD{i:03d}" for i in range(2, 32)]


def write_ph2(root):
    for id in PH2:
        folder = root / f"PH2Dataset/PH2 Dataset images/{id}"
        write(folder / f"{id}_Dermoscopic_Image/{id}.bmp", picture((8, 6)))
        write(folder / f"{id}_lesion/{id}_lesion.bmp", half((8, 6)) > 0)
        write(folder / f"{id}_roi/{id}_R1_Label1.bmp", half((8, 6)))


KVASIR = [f"cju{i:02d}" for i in range(20)]


def write_kvasir(root):
    for id in KVASIR:
        write(root / f"Kvasir-SEG/images/{id}.jpg", picture((16, 32)))
        write(root / f"Kvasir-SEG/masks/{id}.jpg", np.repeat(half((16, 32))[..., None], 3, -1))


def write_cvc(root):
    for number in (1, 2, 447, 448, 503, 504, 612):
        write(root / f"CVC-ClinicDB/Original/{number}.tif", picture((8, 6)))
        write(root / f"CVC-ClinicDB/Ground Truth/{number}.tif", half((8, 6)))


def city(file, bbox, x, y):
    """An object of Cityscapes: a square of 4 pixels at x, y."""
    polygon = [x, y, x + 4, y, x + 4, y + 4, x, y + 4]
    image = {"file_name": file, "height": 20, "width": 30}
    return {"segmentation": [polygon], "bbox": bbox, "img": image}


def write_cityscapes(root):
    with h5py.File(root / "all_images.hdf5", "w") as file:
        for i in range(3):
            pixels = np.zeros((20, 30, 3), np.uint8)
            pixels[..., 0], pixels[..., 1] = np.indices((20, 30)) + i
            file[f"city_{i}.png"] = pixels
    for i, part in enumerate(("train", "train_val", "val")):
        objects = [city(f"city_{i}.png", [4, 6, 8, 4], 4, 6)] * 4
        objects.append(city(f"city_{i}.png", [30, 6, 8, 4], 4, 6))
        (root / part).mkdir()
        data = {"data": dict.fromkeys(cityscapes.CLASSES, objects)}
        (root / part / "all_classes_instances.json").write_text(json.dumps(data))


@dataclasses.dataclass
class Case:
    name: str
    write: Callable[[Path], None]
    counts: dict[str, int]  # Records of each split.
    mask: np.ndarray  # Of every record, but for its height.


def hashed(ids):
    return {s: sum(hashed_split(id) == s for id in ids) for s in SPLITS}


CASES = [
    Case("monuseg", write_monuseg, {"train": 4, "validation": 1, "test": 2}, half((12, 10))),
    Case("vaihingen", write_vaihingen, {"train": 93, "validation": 7, "test": 10}, half((8, 6))),
    Case("vaihingen", write_vaihingen_hdf5, {"train": 3, "validation": 1, "test": 2}, half((8, 6))),
    Case("ph2", write_ph2, hashed(PH2) | {"all": 30}, half((8, 6))),
    Case("kvasir_seg", write_kvasir, hashed(KVASIR), half((16, 32))),
    Case("cvc_clinicdb", write_cvc, {"train": 3, "validation": 2, "test": 2}, half((8, 6))),
    Case(
        "cityscapes_instances/bus",
        write_cityscapes,
        {"train": 4, "validation": 4, "test": 4},
        half((4, 8)),
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.write.__name__[6:])


@pytest.fixture
def load(tmp_path):
    """load(case, split) -> its records, built of files that are written first."""

    def load(case, split):
        folder = tmp_path / "manual"
        if not folder.exists():
            folder.mkdir()
            case.write(folder)
        return load_source(case.name, split, tmp_path / "data", folder)

    return load


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@each_case
def test_builds_every_split(case, load):
    seen = set()
    for split, count in case.counts.items():
        records = load(case, split)
        assert len(records) == count, split
        statistics = records.statistics
        assert statistics["pairs"] == sum(case.counts.get(s, 0) for s in SPLITS)
        assert statistics["foreground"] == [0.5] * 3 and not statistics["empty_splits"]
        for record in records:
            image, mask = decoded(record["image"]), decoded(record["mask"])
            size = record["height"], record["width"]
            assert image.shape == (*size, 3) and mask.shape == size
            assert mask.dtype == np.uint8 and mask.shape[1] == case.mask.shape[1]
            assert (mask == case.mask[0]).all()
            assert split == "all" or record["id"] not in seen or "city" in case.name
            seen.add(record["id"])


@each_case
def test_is_built_again_when_the_files_change(case, load, tmp_path, capsys):
    first = load(case, "train").fingerprint
    assert load(case, "train").fingerprint == first
    (tmp_path / "manual").rename(tmp_path / "former")
    (tmp_path / "manual").mkdir()
    assert load(case, "train").fingerprint == first  # An empty folder changes nothing.
    (tmp_path / "former").rename(tmp_path / "manual/moved")
    assert load(case, "train").fingerprint == first
    assert "building again" not in capsys.readouterr().out
    for path in (tmp_path / "manual").rglob("*.*"):
        if path.suffix in (".json", ".tif", ".bmp", ".jpg", ".png") or "hdf5" in path.suffix:
            with path.open("ab") as file:
                file.write(b"\n")
    load(case, "train")
    assert "building again" in capsys.readouterr().out


@pytest.mark.parametrize("number", [3, 5], ids=["ph2", "cvc"])
def test_a_corrected_mask_of_as_many_bytes_is_read(load, tmp_path, number):
    case = CASES[number]
    load(case, "train")
    for path in (tmp_path / "manual").rglob("*"):
        if path.is_file() and ("_lesion.bmp" in path.name or "Ground" in str(path)):
            size, mask = path.stat().st_size, np.asarray(Image.open(path))
            write(path, np.ascontiguousarray(mask[:, ::-1]))
            assert path.stat().st_size == size
    for record in load(case, "train"):
        assert (decoded(record["mask"]) == case.mask[0, ::-1]).all()


@pytest.mark.parametrize("colour", [(100, 100, 100), (255, 0, 0), (0, 0, 140)])
def test_blurred_masks_of_any_brightness_and_colour(load, tmp_path, colour):
    write_kvasir(tmp_path / "manual")
    for path in (tmp_path / "manual/Kvasir-SEG/masks").iterdir():
        Image.fromarray(half((16, 32))[..., None] // 255 * np.uint8(colour)).save(path, quality=95)
    for record in load(CASES[4], "train"):
        assert (decoded(record["mask"]) == half((16, 32))).all()


def test_a_split_without_any_foreground_is_refused_unless_told(tmp_path):
    write_cvc(tmp_path)
    for number in (504, 612):
        write(tmp_path / f"CVC-ClinicDB/Ground Truth/{number}.tif", np.zeros((8, 6), np.uint8))
    place = tmp_path / "data", tmp_path
    for split in ("train", "test"):  # It is one build; the second time, it is there.
        with pytest.raises(UserError, match="no mask of test has any foreground: check the masks"):
            load_source("cvc_clinicdb", split, *place)
    records = load_source("cvc_clinicdb", "test", *place, rules=Rules(empty_splits=True))
    assert not any(decoded(record["mask"]).any() for record in records)
    assert records.statistics["empty_splits"] == ["test"]
    assert records.statistics["without_foreground"] == ["504", "612"]


def test_masks_that_leave_a_doubt_are_listed(tmp_path, capsys):
    write_cvc(tmp_path)
    folder, exif = tmp_path / "CVC-ClinicDB", Image.Exif()
    ground_truth, original = folder / "Ground Truth", folder / "Original"
    image = Image.fromarray(half((8, 6)))
    image.save(ground_truth / "1.tif", tiffinfo={262: 0})  # 0 is white.
    for name, size, turn in (("2", (6, 6), 6), ("447", (6, 8), 6), ("448", (8, 6), 3)):
        exif[0x0112] = turn  # Of 447, the sides tell that its mask is upright.
        Image.fromarray(picture(size)).save(original / f"{name}.tif", exif=exif)
    write(ground_truth / "2.tif", half((6, 6)))
    load_source("cvc_clinicdb", "train", tmp_path / "data", tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == 2
    assert "TIFF that has 0 for white" in lines[0] and lines[0].endswith(
        f"(1): {ground_truth}/1.tif"
    )
    assert lines[1].endswith(f"(2): {ground_truth}/2.tif, {ground_truth}/448.tif")


def test_numbered_nuclei_are_foreground_and_two_values_are_needed_elsewhere(load, tmp_path):
    numbered = np.uint8([[0, 1, 2, 255, 0, 7, 0, 0, 0, 0]] * 12)
    write_monuseg(tmp_path / "manual")
    write(tmp_path / "manual/MoNuSeg/Training/mask/TCGA-a.png", numbered)
    records = {r["id"].decode(): r for r in load(CASES[0], "train+validation")}
    assert (decoded(records["TCGA-a"]["mask"]) == 255 * (numbered > 0)).all()
    write_ph2(tmp_path / "ph2")
    folder = tmp_path / "ph2/PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion"
    write(folder / "IMD002_lesion.bmp", np.uint8([[0, 9, 255] * 2] * 8))
    with pytest.raises(UserError, match="the mask has 3 values .0, 9, 255.: make it 0 and one"):
        load_source("ph2", "train", tmp_path / "data", tmp_path / "ph2")


def test_a_test_part_may_be_absent_and_thumbnails_are_no_images(load, tmp_path):
    write_monuseg(tmp_path / "manual")
    shutil.rmtree(tmp_path / "manual/MoNuSeg/Test")
    assert len(load(CASES[0], "train[:100%]")) == 4
    with pytest.raises(UserError, match="split 'test' of monuseg"):
        load(CASES[0], "test")
    write_ph2(tmp_path / "ph2")
    (tmp_path / "ph2/PH2Dataset/PH2 Dataset images/@eaDir").mkdir()
    assert len(load_source("ph2", "all", tmp_path / "data", tmp_path / "ph2")) == 30


def test_a_slice_of_a_split_is_read_as_examples(load):
    for split in ("train", "train[20%:]"):
        records, some = load(CASES[1], split), range(14, 20)
        found = NativeExamples(records, model_of()).read(some, lambda *file: False)
        ids = [(example["id"], example["truth"].mean()) for example in found]
        assert ids == [(records[i]["id"].decode(), 0.5) for i in some]


def test_a_build_of_an_older_version_is_not_read(load, tmp_path, capsys):
    case = CASES[5]
    load(case, "train")
    (metadata,) = (tmp_path / "data").rglob("cvc_clinicdb/*/metadata.json")
    older = json.loads(metadata.read_text())
    del older["format"]
    metadata.write_text(json.dumps(older))
    load(case, "train")
    assert "by an older version: building again" in capsys.readouterr().out
    metadata.write_text(json.dumps(older))
    (tmp_path / "manual").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="manual' is not a folder, and .* by an older version"):
        load_source(case.name, "train", tmp_path / "data", str(tmp_path / "manual"))


def test_frames_that_are_alike_are_not_cut_into_folds(load, tmp_path):
    load(CASES[5], "train")
    with pytest.raises(UserError, match="'cvc_clinicdb' cannot be cut into folds, because neigh"):
        load_source("cvc_clinicdb", "train", tmp_path / "data", rules=Rules(folds=2))


def test_a_copy_of_a_test_image_is_not_trained_on(load, tmp_path, capsys):
    write_monuseg(tmp_path / "manual")
    root = tmp_path / "manual/MoNuSeg"
    shutil.copy(root / "Test/img/TCGA-x.tif", root / "Training/img/TCGA-a.tif")
    ids = {split: {r["id"].decode() for r in load(CASES[0], split)} for split in SPLITS}
    assert ids["test"] == {"TCGA-x", "TCGA-y"}
    assert ids["train"] | ids["validation"] == {f"TCGA-{name}" for name in "bcde"}
    said = capsys.readouterr().out
    assert "left out, because test has the same image or group: 1 (TCGA-a)\n" in said


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_an_absent_data_set_says_where_to_get_it(name, tmp_path):
    (tmp_path / "empty").mkdir()
    for manual_dir in (None, str(tmp_path / "empty")):
        with pytest.raises(UserError, match="https?://") as error:
            load_source(name, "train", tmp_path / "data", manual_dir)
        text = str(error.value)
        assert f"{name}/1.0.0 cannot be built: data.manual_dir" in text
        assert "Set data.manual_dir to the folder" in text.replace("\n", " ")


def test_every_data_set_is_known(tmp_path):
    names = {case.name.partition("/")[0] for case in CASES}
    names = sorted(names | {"isic", "lidc", "qubiq", "synthetic_lesions", "paired_folder"})
    for name in ("nothing", "image_and_mask"):
        with pytest.raises(UserError, match=f"'{name}' is unknown; there are {', '.join(names)}$"):
            load_source(name, "train", tmp_path)
    with pytest.raises(UserError, match="data.dataset='ph2/x' is unknown; there are ph2$"):
        load_source("ph2/x", "train", tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_a_plain_data_set_is_described(name, tmp_path):
    builder = builder_of(name)(data_dir=tmp_path)
    assert builder.info.full_name == f"{name}/1.0.0"
    assert "`train`" in builder.info.description and "title={" in builder.info.citation
    assert "ml.task.image-segmentation" in builder.get_metadata().tags
    assert builder.info.homepage in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_a_plain_data_set_is_one_entry(tmp_path, monkeypatch):
    entry = PlainSet("https://a.b", "Set data.manual_dir", "all/pictures", "all/drawn", hold_out)
    monkeypatch.setitem(SETS, "flowers", entry)
    for i, name in enumerate("abc"):
        write(tmp_path / f"flowers/all/pictures/{name}.png", picture((8 + i, 6)))
        write(tmp_path / f"flowers/all/drawn/{name}.png", half((8 + i, 6), 9 + i))
    records = load_source("flowers", "all", tmp_path / "data", tmp_path)
    shares = {record["id"].decode(): (decoded(record["mask"]) == 255).mean() for record in records}
    assert shares == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_files_that_are_not_where_they_belong(load, tmp_path):
    ph2, cvc = CASES[3], CASES[5]
    ph2.write(tmp_path / "manual")
    image = tmp_path / "manual/PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp"
    image.unlink()
    with pytest.raises(UserError, match="ph2/1.0.0 cannot be built") as error:
        load(ph2, "train")
    assert str(error.value).splitlines()[1:3] == ["missing file (1):", f"  {image}"]
    cvc.write(tmp_path / "manual")
    folder = tmp_path / "manual/CVC-ClinicDB"
    for name in ("0", "613", "x"):
        write(folder / f"Original/{name}.tif", picture((8, 6)))
        write(folder / f"Ground Truth/{name}.tif", half((8, 6)))
    with pytest.raises(UserError, match="cvc_clinicdb/1.0.0 cannot be built") as error:
        load(cvc, "train")
    assert str(error.value).splitlines()[1:] == [
        "not the number of a frame, 1 to 612 (3):",
        *(f"  {folder}/Original/{name}.tif" for name in ("0", "613", "x")),
    ]


def test_decoding_leaves_the_warnings_of_python_as_they_are():
    code = (
        "import warnings, numpy, PIL.Image, PIL.ImageOps, segdiff_jax.data.classes;"
        "before = list(warnings.filters); import segdiff_jax.data.decode;"
        "assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_problems_of_a_folder_of_files_are_listed_at_once(load, tmp_path):
    write_monuseg(tmp_path / "manual")
    root = tmp_path / "manual/MoNuSeg"
    (root / "Training/mask/TCGA-a.png").rename(root / "Training/mask/TCGA-z.png")
    (root / "Training/img/TCGA-c.tif").write_bytes(b"text")
    write(root / "Test/mask/TCGA-x.png", half((3, 10)))
    write(root / "Test/img/TCGA-y.png", picture((3, 10)))
    with pytest.raises(UserError, match="monuseg/1.0.0 cannot be built") as error:
        load(CASES[0], "train")
    same = "TCGA-y.png and TCGA-y.tif have the same name"
    assert str(error.value).replace(f"{root}/", "").splitlines()[1:] == [
        "image without a mask of its own (3):",
        "  Training/img/TCGA-a.tif: no mask in Training/mask: it would have the image's name",
        *(f"  Test/img/TCGA-y.{ending}: {same}: rename one" for ending in ("png", "tif")),
        "mask without image (1):",
        "  Training/mask/TCGA-z.png",
        "unreadable file (1):",
        "  Training/img/TCGA-c.tif: cannot be decoded as an image (of no known format): replace "
        "the file or remove it",
        "image and mask of different sizes (1):",
        "  Test/img/TCGA-x.tif: image 12 x 10, mask 3 x 10",
    ]


def test_vaihingen_trains_on_the_first_hundred_strings(load, tmp_path):
    case = CASES[1]
    names = sorted(f"building_{n}.tif" for n in range(1, 111))
    ids = lambda split: {record["id"].decode() + ".tif" for record in load(case, split)}
    assert ids("train") | ids("validation") == set(names[:100])
    assert ids("test") == set(names[100:])
    assert "building_99.tif" in ids("test") and "building_100.tif" not in ids("test")
    held = hold_out(name.removesuffix(".tif") for name in names[:100])["validation"]
    assert {name.removesuffix(".tif") for name in ids("validation")} == set(held)


def test_vaihingen_pairs_hdf5_by_number(load, tmp_path):
    load(CASES[2], "train")
    with h5py.File(tmp_path / "manual/full_training_vaih.hdf5", "a") as file:
        del file["mask_single/building_mask_10"]
        file["mask_single/building_mask_11"] = half((99, 99), 1)
    with pytest.raises(UserError, match="cannot be built") as error:
        load(CASES[2], "train")
    lines = str(error.value).splitlines()
    assert lines[1] == "image without mask (1):" and lines[2].endswith("hdf5/imgs/building_10")
    assert lines[3] == "mask without image (1):" and lines[4].endswith(
        "hdf5/mask_single/building_mask_11"
    )


def test_vaihingen_keeps_the_pixels_of_hdf5(load, tmp_path):
    records = {record["id"].decode(): record for record in load(CASES[2], "train+validation")}
    with h5py.File(tmp_path / "manual/full_training_vaih.hdf5") as file:
        for id, record in records.items():
            assert np.array_equal(decoded(record["image"]), file[f"imgs/{id}"][()])


@pytest.mark.parametrize(("number", "module"), [(2, "h5py"), (6, "h5py"), (6, "pycocotools")])
def test_a_missing_package_is_named(load, tmp_path, monkeypatch, number, module):
    (tmp_path / "manual").mkdir()
    CASES[number].write(tmp_path / "manual")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.mask", None)
    with pytest.raises(UserError, match=rf"needs {module}.*pip install -r requirements-data.txt"):
        load(CASES[number], "train")


def test_cityscapes_cuts_boxes_out_and_names_empty_ones(load, tmp_path, capsys):
    image = decoded(load(CASES[6], "validation")[0]["image"])
    assert np.array_equal(image[..., 0], 7 + np.indices((4, 8))[0])  # The second image, from row 6.
    assert np.array_equal(image[..., 1], 5 + np.indices((4, 8))[1])
    out = capsys.readouterr().out
    empty = "1 objects have an empty box and are left out: val, bus 4 of city_2.png"
    assert empty in out and out.count("empty box") == 3
    expanded = Case("cityscapes_instances/bus_expanded", None, {}, None)
    record = load(expanded, "test")[0]
    assert (record["height"], record["width"]) == (4, 10)  # Rows 5.7 to 10.3, columns 3.4 to 12.6.
    assert decoded(record["image"])[0, 0, 1] == 3 + 2
    expected = np.zeros((4, 10), np.uint8)
    expected[:, 1:5] = 255
    assert np.array_equal(decoded(record["mask"]), expected)


def test_cityscapes_lists_what_is_missing(load, tmp_path):
    load(CASES[6], "train")
    root = tmp_path / "manual"
    (root / "val/all_classes_instances.json").unlink()
    other = city("city_9.png", [0, 0, 4, 4], 0, 0)
    larger = city("city_0.png", [0, 0, 4, 4], 0, 0)
    larger["img"]["width"] = 31
    data = {"data": {"bus": [other, larger]}}
    (root / "train/all_classes_instances.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="cityscapes_instances/bus/1.0.0 cannot be") as error:
        load(CASES[6], "train")
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["image not in all_images.hdf5 (1):", "  train, bus 0 of city_9.png"]
    assert lines[3] == "image of another size than annotated (1):"
    assert lines[4] == "  train, bus 1 of city_0.png"
    assert lines[5] == "missing or broken file of objects (1):"


@pytest.mark.parametrize(
    ("bbox", "expansion", "rows", "columns"),
    [
        ([4.9, 6.9, 8.9, 4.9], 0.0, (6, 10), (4, 12)),
        ([-3, -2, 8, 4], 0.0, (0, 4), (0, 8)),
        ([25, 18, 8, 4], 0.0, (18, 20), (25, 30)),
        ([10, 10, 10, 8], 0.15, (9, 19), (9, 21)),  # 9.4 to 18.6, 9.25 to 20.75
        ([0, 12, 30, 8], 0.15, (11, 20), (0, 30)),
    ],
)
def test_boxes_in_the_image(bbox, expansion, rows, columns):
    assert cityscapes.crop(bbox, 20, 30, expansion) == (slice(*rows), slice(*columns))


def test_three_kinds_of_segmentation_are_one_mask():
    expected = np.zeros((20, 30), np.uint8)
    expected[6:10, 4:8] = 255
    runs = coco.encode(np.asfortranarray(expected // 255))
    flat, counts, value = expected.T.ravel() // 255, [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    polygon = city("", [], 4, 6)["segmentation"]
    for kind in (polygon, runs, {"counts": counts, "size": [20, 30]}):
        assert np.array_equal(cityscapes.mask_of(kind, 20, 30), expected)
    far = [[20, 2, 22, 2, 22, 4, 20, 4]]
    assert cityscapes.mask_of(polygon + far, 20, 30)[2:4, 20:22].all()


def test_cityscapes_has_every_class_and_its_expanded_boxes():
    classes, configs = cityscapes.CLASSES, cityscapes.Builder.builder_configs
    assert configs.keys() == {*classes, *(f"{label}_expanded" for label in classes)}
    assert len(classes) == 8 and cityscapes.EXPANSION == 0.15


def test_held_out_images_are_always_the_same():
    ids = [f"image {i}" for i in range(2000)]
    splits = {split: [id for id in ids if hashed_split(id) == split] for split in SPLITS}
    assert [len(splits[split]) for split in SPLITS] == [1405, 198, 397]
    assert hold_out(ids)["validation"] == sorted(splits["validation"])
    small = ["a", "b", "c"]  # The hash holds none of them out.
    assert hold_out(small) == {"train": ["a", "b"], "validation": ["c"]}
    assert hold_out(["a"]) == {"train": [], "validation": ["a"]}


@each_case
@pytest.mark.slow
def test_two_steps_and_an_evaluation(case, load, tiny_config, tmp_path):
    load(case, "train")
    config = tiny_config()
    config.data.dataset, config.data.dir = case.name, str(tmp_path / "data")
    config.data.manual_dir = str(tmp_path / "manual")
    train(config, str(tmp_path / "run"))
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and "validation_iou" in rows[0]
    trained, records = segdiff_jax.load(tmp_path / "run"), load(case, "test[:2]")
    examples, out = NativeExamples(records, trained), tmp_path / "out"
    evaluation = evaluate([examples], out, {}, case.name)
    assert not evaluation.failures
    ious = []
    for record in records:
        file = out / "masks" / f"{record['id'].decode()}_Segmentation.png"
        masks = np.asarray(Image.open(file)) > 127, decoded(record["mask"]) > 127
        ious.append(segmentation_scores(*masks)["iou"])
    assert evaluation.metrics["mean"]["iou"] == pytest.approx(np.mean(ious))
