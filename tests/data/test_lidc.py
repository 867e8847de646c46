"""LIDC's crops, on small copies of both layouts."""

import h5py
import numpy as np
import pytest

from segdiff_jax.data.annotations import annotators_of, decode_annotations
from segdiff_jax.data.decode import decode_image, decode_labels
from segdiff_jax.data.prepare import load_source
from segdiff_jax.runtime.errors import UserError
from tests.data.test_annotations import columns, write

PARTS = {"train": ("train", 3), "validation": ("val", 2), "test": ("test", 2)}
SIZE = 10, 8


def crop(number):
    """An image u8[10, 8] that no other number has."""
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)


def masks_of(number):
    """Four masks u8[10, 8], 0 or 1; the last is empty."""
    widths = (2, 4, 4 + number % 2, 0)
    return [columns(0, width, SIZE, 1) for width in widths]


def numbers():
    """(split, part, patient, number) of each crop; every patient has two."""
    for i, (split, (part, patients)) in enumerate(PARTS.items()):
        for patient in range(patients):
            for k in range(2):
                yield split, part, 10 * (i + 1) + patient, 100 * i + 2 * patient + k


def write_pngs(root, prefix=""):
    for _, part, patient, number in numbers():
        folder, name = f"LIDC-IDRI-{patient:04d}", f"z-{number}.5_c0"
        write(root / f"{prefix}{part}/images/{folder}/{name}.png", crop(number))
        for k, mask in enumerate(masks_of(number)):
            write(root / f"{prefix}{part}/gt/{folder}/{name}_l{k}.png", 255 * mask)


def write_hdf5(root, shift=0.5):
    root.mkdir(exist_ok=True)
    with h5py.File(root / "data_lidc.hdf5", "w") as file:
        for part in ("train", "val", "test"):
            own = [(uid, number) for _, p, uid, number in numbers() if p == part]
            file[f"{part}/uids"] = np.array([-uid for uid, _ in own])
            file[f"{part}/images"] = np.stack([crop(n) / 255 - shift for _, n in own])
            file[f"{part}/labels"] = np.stack([np.stack(masks_of(n), -1) for _, n in own])


@pytest.fixture
def load(tmp_path):
    folder = tmp_path / "manual"
    return lambda split="train": load_source("lidc", split, tmp_path / "data", folder)


@pytest.mark.parametrize(
    "layout",
    [
        write_pngs,
        lambda root: write_pngs(root, "lidc_crops_"),
        write_hdf5,
        lambda root: write_hdf5(root, 0),
    ],
    ids=["PNGs", "longer names", "HDF5", "HDF5 from 0"],
)
def test_all_masks_and_the_official_splits_are_read(tmp_path, load, layout):
    layout(tmp_path / "manual")
    for split in PARTS:
        records = load(split)
        expected = {bytes(crop(number)): number for s, _, _, number in numbers() if s == split}
        assert len(records) == len(expected)
        for record in records:
            image = decode_image(record["image"], "a")
            number = expected[bytes(image[..., 0])]
            np.testing.assert_array_equal(decode_annotations(record), masks_of(number))
            np.testing.assert_array_equal(
                decode_labels(record["mask"], "a"), columns(0, 2, SIZE, 1)
            )
            assert annotators_of(record) == [""] * 4
    assert records.most_masks == 4 and not records.annotators
    assert records.statistics["masks"] == [4, 4] and records.statistics["people"] == 0


def test_a_patient_of_two_splits_is_only_in_the_last(tmp_path, load, capsys):
    write_pngs(tmp_path / "manual")
    folder = tmp_path / "manual/train"
    for kind in ("images", "gt"):
        (folder / f"{kind}/LIDC-IDRI-0010").rename(folder / f"{kind}/LIDC-IDRI-0030")
    assert len(load("train")) == 4 and len(load("test")) == 4
    assert "left out, because test has the same image or group: 2" in capsys.readouterr().out


def test_a_pickle_is_not_read(tmp_path, load):
    (tmp_path / "manual").mkdir()
    with pytest.raises(UserError, match="Set data.manual_dir to the folder|Set\n"):
        load()
    (tmp_path / "manual/data_lidc.pickle").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="data_lidc.pickle is not read, because a pickle may run"):
        load()


def test_missing_and_wrong_files_are_listed(tmp_path, load):
    root = tmp_path / "manual"
    write_pngs(root)
    (root / "val").rename(root / "other")
    train = root / "train"
    (train / "images/LIDC-IDRI-0010/z-0.5_c0.png").unlink()
    for k in range(4):
        (train / f"gt/LIDC-IDRI-0010/z-1.5_c0_l{k}.png").unlink()
    write(train / "gt/LIDC-IDRI-0011/z-2.5_c0_l3.png", columns(0, 2, (5, 5)))
    with pytest.raises(UserError, match="lidc/1.0.0 cannot be built") as error:
        load()
    assert str(error.value).replace(f"{root}/", "").splitlines()[1:] == [
        "missing folder (1):",
        "  val/images",
        "image without mask (1):",
        "  train/images/LIDC-IDRI-0010/z-1.5_c0.png",
        "mask without image (1):",
        "  train/gt/LIDC-IDRI-0010/z-0.5_c0_l0.png",
        "image and mask of different sizes (1):",
        "  train/images/LIDC-IDRI-0011/z-2.5_c0.png: image 10 x 8, "
        "train/gt/LIDC-IDRI-0011/z-2.5_c0_l3.png 5 x 5",
    ]


def test_an_hdf5_file_of_another_kind_is_named(tmp_path, load):
    root = tmp_path / "manual"
    write_hdf5(root)
    with h5py.File(root / "data_lidc.hdf5", "a") as file:
        file["val/images"][1, 0, 0] = 0.7
    with pytest.raises(UserError, match=r"/val/images\[1\]: its values are not within -0.5 to 0.5"):
        load()
    with h5py.File(root / "data_lidc.hdf5", "a") as file:
        del file["train/labels"]
    with pytest.raises(UserError, match="no HDF5 file of the expected groups.*\n.*data_lidc.hdf5"):
        load()
    (root / "data_lidc.hdf5").write_bytes(b"text")
    with pytest.raises(UserError, match="no HDF5 file of the expected groups"):
        load()
