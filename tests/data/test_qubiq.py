"""QUBIQ's 2-D tasks, on small copies of the challenge's layout."""

import sys

import numpy as np
import pytest

from segdiff_jax.data.annotations import annotators_of, decode_annotations
from segdiff_jax.data.builders.qubiq.qubiq_dataset_builder import Builder, to_rgb
from segdiff_jax.data.decode import decode_image
from segdiff_jax.data.prepare import load_source
from segdiff_jax.data.splits import hold_out
from segdiff_jax.runtime.errors import UserError
from tests.data.test_annotations import columns

nibabel = pytest.importorskip("nibabel")
SIZE = 12, 8  # rows and columns


def save(path, array):
    """An array [H, W, ...] as NIfTI, whose first axis is x."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.swapaxes(array, 0, 1), np.eye(4)), path)


def image_of(number, channels=()):
    return np.random.default_rng(number).integers(0, 3000, (*SIZE, *channels)).astype(np.int16)


def write_cases(root, organ="kidney", tasks=1, channels=()):
    for part, numbers in (("Training", range(1, 8)), ("Validation", (8, 9))):
        for number in numbers:
            case = root / f"{part}_data/{organ}/{part}/case{number:02d}"
            save(case / "image.nii.gz", image_of(number, channels))
            for task in range(1, tasks + 1):
                for k in range(3):
                    mask = columns(task, 3 + task + k, SIZE, 1).astype(np.float64)
                    save(case / f"task0{task}_seg0{k + 1}.nii.gz", mask)


@pytest.fixture
def load(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return lambda name, split="train": load_source(
        f"qubiq/{name}", split, tmp_path / "data", folder
    )


def test_masks_images_and_splits(tmp_path, load):
    write_cases(tmp_path / "manual")
    ids = [f"case{number:02d}" for number in range(1, 8)]
    for split, expected in {**hold_out(ids), "test": ["case08", "case09"]}.items():
        records = load("kidney", split)
        assert sorted(record["id"].decode() for record in records) == expected
        for record in records:
            assert annotators_of(record) == ["seg01", "seg02", "seg03"]
            masks = [columns(1, 4 + k, SIZE, 1) for k in range(3)]
            np.testing.assert_array_equal(decode_annotations(record), masks)
            image = decode_image(record["image"], "a")
            values = image_of(int(record["id"][-2:]))
            np.testing.assert_array_equal(image, to_rgb(values))
            assert image.shape == (*SIZE, 3) and (np.ptp(image, axis=-1) == 0).all()
            order = np.argsort(values, axis=None)
            assert (np.diff(image[..., 0].ravel()[order].astype(int)) >= 0).all()


def test_several_tasks_and_four_sequences(tmp_path, load):
    write_cases(tmp_path / "manual", "brain-tumor", 3, (4,))
    for task in (1, 3):
        record = load(f"brain-tumor-{task}", "test")[0]
        assert decode_annotations(record)[0].sum() == 3 * SIZE[0]
        assert decode_annotations(record)[0][:, task].all()
    image = decode_image(record["image"], "a")
    values = image_of(int(record["id"][-2:]), (4,))
    for place, channel in enumerate((0, 2, 3)):
        np.testing.assert_array_equal(image[..., place], to_rgb(values[..., channel])[..., 0])
    names = {config.name for config in Builder.BUILDER_CONFIGS}
    tumours = {f"brain-tumor-{task}" for task in (1, 2, 3)}
    assert names == tumours | {"brain-growth", "kidney", "prostate-1", "prostate-2"}


def test_values_are_scaled_by_percentiles():
    values = np.arange(1001.0).reshape(7, 143) * 10 - 500
    scaled = to_rgb(values)[..., 0].ravel()
    assert (scaled[:6] == 0).all() and (scaled[-6:] == 255).all() and scaled[500] in (127, 128)
    assert (to_rgb(np.full((2, 2), 7.0)) == 0).all()
    with pytest.raises(UserError, match="the image has 2 channels, not 1, 3 or 4"):
        to_rgb(np.zeros((4, 4, 2)))


def test_faults_are_listed(tmp_path, load, monkeypatch):
    with pytest.raises(UserError, match="https://qubiq21.grand-challenge.org"):
        load("kidney")
    root = tmp_path / "manual"
    write_cases(root)
    cases = root / "Training_data/kidney/Training"
    (cases / "case01/image.nii.gz").unlink()
    for k in range(1, 4):
        (cases / f"case02/task01_seg0{k}.nii.gz").unlink()
    save(cases / "case03/task01_seg02.nii.gz", columns(0, 2, (5, 5), 1))
    (cases / "case04/image.nii.gz").write_bytes(b"text")
    save(cases / "case05/task01_seg01.nii.gz", np.full(SIZE, 0.5))
    save(cases / "case06/task01_seg01.nii.gz", np.arange(96).reshape(SIZE).astype(np.int16))
    with pytest.raises(UserError, match="qubiq/kidney/1.0.0 cannot be built") as error:
        load("kidney")
    lines = str(error.value).replace(f"{cases}/", "").splitlines()[1:]
    assert lines[:5] == [
        "missing file (2):",
        "  case01/image.nii.gz",
        "  case02/task01_seg01.nii.gz",
        "image and mask of different sizes (1):",
        "  case03/image.nii.gz: image 12 x 8, case03/task01_seg02.nii.gz 5 x 5",
    ]
    assert lines[5] == "unreadable file (3):" and lines[6].startswith("  case04/image.nii.gz: ")
    assert "case05/task01_seg01.nii.gz: the mask is no slice of whole numbers" in lines[7]
    assert "case06/task01_seg01.nii.gz: the mask has 96 values" in lines[8]
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match="needs nibabel.*pip install -r requirements-data.txt"):
        load("kidney")
