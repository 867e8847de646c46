import json
import os

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.evaluation import outputs
from segdiff_jax.inference.combine import Segmentation
from segdiff_jax.runtime.errors import UserError

IMAGE = np.full((40, 60, 3), 90, np.uint8)
MASK = np.zeros((40, 60), np.uint8)
MASK[10:30, 8:24] = 1
TRUTH = np.zeros((40, 60), np.uint8)
TRUTH[12:36, 40:56] = 1
PROBABILITY = np.where(MASK, 0.75, 0.1).astype(np.float32)[..., None]


def write(path, id="ISIC_1", **changes):
    found = Segmentation(changes.pop("mask", MASK), PROBABILITY, changes.pop("deviation", None))
    example = {"id": id, "image": IMAGE, "truth": changes.get("truth", TRUTH)}
    outputs.OutputFolder(path).write(example, found, changes.get("result", {}))


def is_colour(pixels, colour):
    return np.abs(np.int32(pixels) - colour).max(axis=-1) < 60


@pytest.mark.parametrize("id", ["ISIC_1", "patient 7/left/a.1"])
def test_masks_and_maps(tmp_path, id):
    write(tmp_path, id, deviation=np.where(MASK, 0.1, 0.5))
    for name, expected in (
        (f"masks/{id}_Segmentation.png", np.where(MASK, 255, 0)),
        (f"probabilities/{id}.png", np.where(MASK, 191, 26)),  # round(191.25), round(25.5)
        (f"deviations/{id}.png", np.where(MASK, 51, 255)),
        (f"entropies/{id}.png", np.where(MASK, 207, 120)),  # 0.8113 and 0.4690 bits
    ):
        with Image.open(tmp_path / name) as file:
            assert (file.format, file.mode, file.size) == ("PNG", "L", (60, 40))
            np.testing.assert_array_equal(np.asarray(file), expected)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 6
    write(tmp_path / "one", id, truth=None)
    assert not any(path.is_file() for path in (tmp_path / "one" / "deviations").rglob("*"))
    outputs.OutputFolder(tmp_path).keep_only([])
    assert not any(path.is_file() for path in tmp_path.glob("[a-z]*s/**/*"))


def test_overlay_draws_each_contour_in_its_colour(tmp_path):
    write(tmp_path)
    overlay = np.asarray(Image.open(tmp_path / "overlays/ISIC_1.jpg"))
    assert overlay.shape == IMAGE.shape
    assert is_colour(overlay[10:30, 8], outputs.PREDICTION_COLOUR).all()
    assert is_colour(overlay[12:36, 40], outputs.TRUTH_COLOUR).all()
    assert is_colour(overlay[[20, 2, 24], [16, 30, 48]], (90, 90, 90)).all()  # inside, outside
    write(tmp_path, id="untold", truth=None)
    overlay = np.asarray(Image.open(tmp_path / "overlays/untold.jpg"))
    assert not is_colour(overlay, outputs.TRUTH_COLOUR).any()
    assert is_colour(overlay[10:30, 8], outputs.PREDICTION_COLOUR).all()


@pytest.mark.parametrize(("side", "thickness"), [(100, 2), (800, 4)])
def test_contour_thickens_with_the_image(side, thickness):
    mask = np.zeros((side, 50), bool)
    mask[:, 25:] = True  # reaches the border, which closes the contour
    image = outputs.draw_contour(np.zeros((side, 50, 3), np.uint8), mask, (9, 9, 9))
    row = image[side // 2, :, 0]
    np.testing.assert_array_equal(np.flatnonzero(row[:40]), 25 + np.arange(thickness))
    assert (image[:thickness, 25:] == 9).all()


@pytest.mark.parametrize("id", ["", "../a", "/a", "a//b", "a\\b", "a\0b"])
def test_rejects_ids_that_are_not_file_names(tmp_path, id):
    with pytest.raises(UserError, match="cannot be a file name"):
        write(tmp_path, id=id)


@pytest.mark.parametrize("name", ["mask", "truth"])
def test_rejects_arrays_of_another_size(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} of 'ISIC_1' is \(40, 59\).*\(40, 60\)"):
        write(tmp_path, **{name: MASK[:, 1:]})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    outputs.write_file(path, b"old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"a\.png \(No space left on device\): free some space"):
        outputs.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file.*: free some space"):
        outputs.OutputFolder(tmp_path / "file")


def test_an_earlier_evaluations_files_go(tmp_path):
    folder = outputs.OutputFolder(tmp_path)
    folder.begin({"seed": 1})
    (tmp_path / "masks" / "a_Segmentation.png").write_bytes(b"old")
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    outputs.OutputFolder(tmp_path).begin({"seed": 2})
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["notes.txt", "settings.json"]
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 2}


def test_the_files_of_other_data_are_not_touched(tmp_path):
    outputs.OutputFolder(tmp_path).begin({"data": "patient 1", "seed": 1})
    mask = tmp_path / "masks" / "a_Segmentation.png"
    mask.write_bytes(b"old")
    with pytest.raises(
        ValueError, match="holds files of patient 1, such as a_Segm.*choose another"
    ):
        outputs.OutputFolder(tmp_path).begin({"data": "patient 2", "seed": 1})
    assert mask.read_bytes() == b"old"


def test_results_of_another_version_or_none_are_made_again(tmp_path):
    write(tmp_path, "a", result={"content": 1})
    folder, (path,) = outputs.OutputFolder(tmp_path), (tmp_path / "results").iterdir()
    assert folder.has("a", 1)
    known = json.loads(path.read_text())
    for other in (known | {"version": 1}, {k: known[k] for k in known if k != "files"}, None):
        path.write_text(json.dumps(other))
        assert not folder.has("a", 1)


def test_a_name_that_is_another_images_folder_is_a_bad_one(tmp_path):
    write(tmp_path, "x.png/y")
    with pytest.raises(outputs.BadName, match="no file can have this name"):
        write(tmp_path, "x")


def test_all_is_made_anew_where_that_is_asked(tmp_path, capsys):
    outputs.OutputFolder(tmp_path).begin({"seed": 1})
    write(tmp_path, "x/a")
    outputs.OutputFolder(tmp_path).begin({"seed": 1})
    assert (tmp_path / "masks/x/a_Segmentation.png").exists()
    outputs.OutputFolder(tmp_path).begin({"seed": 1}, resume=False)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["settings.json"] and capsys.readouterr().out == ""


def test_settings_of_memory_are_no_others_and_others_are_told_of(tmp_path, capsys):
    before = {"data": "d", "max_batch": 4, "1. max_memory": 0, "steps": 5}
    outputs.OutputFolder(tmp_path).begin(before)
    mask = tmp_path / "masks" / "a_Segmentation.png"
    mask.write_bytes(b"old")
    (tmp_path / "masks" / "a folder of the system").mkdir()
    outputs.OutputFolder(tmp_path).begin(before | {"max_batch": 8, "1. max_memory": 1})
    assert mask.exists() and capsys.readouterr().out == ""
    outputs.OutputFolder(tmp_path).begin(before | {"steps": 9, "samples": 2})
    assert not mask.exists()
    said = f"{tmp_path} is made anew, because these settings changed: samples, steps\n"
    assert capsys.readouterr().out == said


def test_what_a_kill_leaves_half_written_is_made_again_or_goes(tmp_path, monkeypatch):
    folder = outputs.OutputFolder(tmp_path)
    labels = np.zeros((4, 4), np.uint8)
    example = {"id": "a", "image": np.zeros((4, 4, 3), np.uint8), "truth": None}
    found = Segmentation(labels, np.zeros((4, 4, 1)), None)
    folder.write(example, found, {"content": 1})
    assert folder.has("a", 1) and not folder.has("a", 2) and not folder.has("b", 1)
    write, written = outputs.write_file, []

    def killed_after_two(path, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(outputs, "write_file", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        folder.write(example, found, {"content": 2})
    # The first file is the new one already: the old result does not count.
    assert not folder.has("a", 1) and not folder.has("a", 2)
    (tmp_path / "results" / "notes.json").write_text('{"id": "../notes"}')
    folder.keep_only(["b"])
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["results/notes.json"]


def test_files_of_another_origin_are_not_touched(tmp_path):
    truth = tmp_path / "masks" / "a_Segmentation.png"
    truth.parent.mkdir()
    truth.write_bytes(b"truth")
    with pytest.raises(UserError, match=r"files of another origin, such as a_Segmentation\.png"):
        outputs.OutputFolder(tmp_path).begin({})
    assert truth.read_bytes() == b"truth"
