"""Where sample.py reads and writes, and what its report tells of it."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import sample
from segdiff_jax.config import default_config
from segdiff_jax.data.splits import fold_of
from segdiff_jax.evaluation.examples import open_split
from segdiff_jax.evaluation.report import Page, write_report
from segdiff_jax.inference.load import Model, make_ensemble
from segdiff_jax.runtime.errors import UserError
from tests.evaluation.models import Threshold, config_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that holds the folders a and b, each with two images in photos; HOME is b."""
    for folder, names in (("a", "pq"), ("b", "rs")):
        (tmp_path / folder / "photos").mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / folder / "photos" / f"{name}.png")
    monkeypatch.setenv("HOME", str(tmp_path / "b"))
    checkpoint = str(tmp_path / "runs" / "isic" / "checkpoints" / "best" / "1000")
    settings = {"checkpoint": checkpoint, "model": "unet"}
    driver = Threshold(2)
    driver.method = SimpleNamespace(unread=())
    model = Model(config_of(), settings, driver, "variables")
    monkeypatch.setattr(sample, "load", lambda paths: model)
    return tmp_path


def run(*arguments, **flags):
    with flagsaver.as_parsed(**({"workdir": ["/runs/isic"]} | flags)):
        return sample.main(list(arguments))


def test_two_folders_of_one_name_do_not_share_an_output(place, monkeypatch):
    monkeypatch.chdir(place / "a")
    assert run(images="photos", out="../out") == 0
    masks = sorted(path.name for path in (place / "out" / "masks").iterdir())
    assert masks == ["p_Segmentation.png", "q_Segmentation.png"]
    settings = json.loads((place / "out" / "settings.json").read_text())
    assert settings["data"] == str(place / "a" / "photos")
    monkeypatch.chdir(place / "b")
    message = f"{place}/out holds files of {place}/a/photos, such as .*: choose another output"
    with pytest.raises(UserError, match=message):
        run(images="photos", out="../out")
    assert sorted(path.name for path in (place / "out" / "masks").iterdir()) == masks
    assert run(images="~/photos", out="~/out") == 0
    assert (place / "b" / "out" / "masks" / "r_Segmentation.png").exists()
    assert sorted(path.name for path in (place / "b").iterdir()) == ["out", "photos"]


def test_an_output_folder_goes_on_in_whatever_way_its_data_are_named(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    run(images="a/photos", out="out")
    for images in ("./a/../a/photos/", str(place / "a" / "photos"), "~/../a/photos"):
        run(images=images, out="out")
        assert "2 images had been segmented before" in capsys.readouterr().out


def test_the_report_tells_no_folder_of_the_machine(place, monkeypatch):
    monkeypatch.chdir(place / "a")
    (place / "a" / "true masks").mkdir()
    Image.fromarray(255 * np.eye(8, dtype=np.uint8)).save(place / "a" / "true masks" / "p.png")
    (place / "a" / "photos" / "z.png").symlink_to("nowhere.png")
    assert run(images="photos/*.png", masks="true masks", out="out", artefact="frame") == 2
    text = (place / "a" / "out" / "report.html").read_text()
    assert str(place) not in text
    assert "<h1>unet on photos/*.png, with frame</h1>" in text
    assert ">isic/checkpoints/best/1000<" in text and ">photos/*.png, with frame<" in text
    assert "z.png is a link to nowhere.png, which is not there" in text


SQUARE = np.zeros((8, 8), np.uint8)
SQUARE[2:6, 1:7] = 1


def coloured(*colours):
    return Image.fromarray(np.uint8(colours)[SQUARE])


def indexed(*colours):
    image = Image.fromarray(SQUARE, "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_masks_are_scored_by_what_they_say_or_refused(tmp_path, place):
    """The model finds the square, so the truth is the square where its IoU is 1."""
    black = 0, 0, 0
    good = {f"rgb {c}": coloured(black, c) for c in ((1, 0, 0), (2, 0, 0), (0, 0, 1), (0, 0, 4))}
    good |= {"palette": indexed(black, (0, 0, 2)), "white palette": indexed((255,) * 3, black)}
    good |= {"grey": Image.fromarray(9 * SQUARE), "bits": Image.fromarray(SQUARE > 0)}
    bad = {
        "alpha": coloured((*black, 0), (*black, 255)),
        "red alpha": coloured((255, 255, 255, 0), (255, 0, 0, 255)),
        "two colours": coloured((0, 0, 9), (0, 9, 0)),
    }
    images, masks, out = tmp_path / "images", tmp_path / "masks" / "of another name", tmp_path / "o"
    images.mkdir()
    masks.mkdir(parents=True)
    for name, mask in (good | bad).items():
        Image.fromarray(255 * SQUARE).convert("RGB").save(images / f"{name}.png")
        mask.save(masks / f"{name}_mask.png")
    Image.fromarray(255 * SQUARE).save(images / "unmasked.png")
    (images / "gone.png").symlink_to("nowhere.png")
    assert run(images=str(images), masks=str(masks.parent), out=str(out)) == 2
    with (out / "metrics.csv").open(newline="") as file:
        ious = {row["id"]: row["iou"] for row in csv.DictReader(file)}
    assert ious == dict.fromkeys(good, "1.000000") | {"unmasked": ""}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_images"] == len(good) and metrics["unscored"] == ["unmasked"]
    with (out / "failures.csv").open(newline="") as file:
        failures = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert failures.keys() == {*bad, "gone"}
    for name in bad:
        assert f"mask of {name}: " in failures[name]
        assert ("transparent: flatten it" if "alpha" in name else "colours") in failures[name]
    assert "gone.png is a link to nowhere.png, which is not there" in failures["gone"]


def test_folders_that_are_linked_are_segmented_and_other_endings_counted(tmp_path, place, capsys):
    (tmp_path / "a" / "photos" / "more").symlink_to(tmp_path / "b" / "photos")
    (tmp_path / "b" / "photos" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "photos" / "x.jfif").write_bytes(b"x")
    assert run(images=str(tmp_path / "a" / "photos"), out=str(tmp_path / "o")) == 0
    masks = list((tmp_path / "o" / "masks").rglob("*.png"))
    names = sorted(path.relative_to(tmp_path / "o" / "masks").as_posix() for path in masks)
    assert names == [f"{n}_Segmentation.png" for n in ("more/r", "more/s", "p", "q")]
    assert "files with other endings, not looked at: 1 (1 .jfif)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/home/a/photos", "photos"),
        ("/home/a/photos/*.jpg", "photos/*.jpg"),
        ("/home/a [1]/photos, with hair", "photos, with hair"),
        ("/home/a/checkpoints/isic/checkpoints/last/20", "isic/checkpoints/last/20"),
        ("/mnt/20", "20"),
        ("/photos", "/photos"),
        ("isic/2016, test split", "isic/2016, test split"),
    ],
)
def test_a_report_leaves_out_the_folders_of_its_settings(tmp_path, text, shown):
    failures = {"q": f"{text} is a link to /gone/q.png", "p": "1 / 2, and/or 3"}
    page = Page(f"unet on {text}", {"data": text, "steps": 3}, failures)
    write_report(tmp_path / "report.html", [], None, page)
    html = (tmp_path / "report.html").read_text()
    assert f"<h1>unet on {shown}</h1>" in html and f">{shown}</dd>" in html
    assert f"{shown} is a link to /gone/q.png" in html and "1 / 2, and/or 3" in html


def test_fields_of_the_run_are_refused_and_places_are_not(place):
    with pytest.raises(UserError, match="data.image_size=8: the run decides this; sampling has s"):
        run("--config.data.image_size=8")
    with pytest.raises(UserError, match="^data.dir=/no/where is not a folder: give --config.data"):
        run("--config.data.dir=/no/where")


def test_data_that_were_moved_are_asked_for_and_nothing_is_built(tmp_path):
    config = default_config()
    config.data.dataset, config.data.dir = "synthetic_lesions", str(tmp_path / "data")
    message = (
        f"data.dir={tmp_path}/data is not a folder: give --config.data.dir=FOLDER, of the built "
        "data sets (and --config.data.manual_dir=FOLDER, of the official files), or "
        "--images=FOLDER"
    )
    with pytest.raises(UserError) as error:
        open_split(config, "test")
    assert str(error.value) == message and not list(tmp_path.iterdir())
    config.data.dataset = "paired_folder"
    with pytest.raises(UserError, match="and --config.data.images=FOLDER and --config.data.masks"):
        open_split(config, "test")


@pytest.fixture
def folds(tmp_path, tiny_isic, monkeypatch):
    """Runs named fold0, fold1 and fold2 of three folds of `tiny_isic`, and what differs in them."""
    changed = {}

    def load(path, **given):
        given |= changed
        names = [path] if isinstance(path, str) else path
        models = []
        for name in names:
            fold = {"folds": 3, "fold": int(name[-1])}
            places = {"manual_dir": str(tiny_isic), "dir": str(tmp_path)}
            driver = Threshold(8)
            driver.method = SimpleNamespace(unread=())
            config = config_of(dataset="isic/2016", **fold, **places)
            config.update_from_flattened_dict(given.get("fields", {}).get(fold["fold"], {}))
            settings = {"model": name, "checkpoint": f"{name}/checkpoints/best/9"}
            on = given.get("trained_on", "")
            model = Model(config, settings, driver, "variables", trained_on=on)
            models += [model] * changed.get("members", {}).get(fold["fold"], 1)
        return models[0] if len(models) == 1 else make_ensemble(models)

    monkeypatch.setattr(sample, "load", load)
    return ["fold0", "fold1", "fold2"], changed


def test_every_image_is_segmented_by_the_model_that_did_not_see_it(folds, tmp_path, capsys):
    (workdirs, _), out = folds, tmp_path / "out"
    assert run(workdir=workdirs, split="out_of_fold", out=str(out)) == 0
    with open(out / "metrics.csv", newline="") as file:
        found = [(row["id"], int(row["fold"])) for row in csv.DictReader(file)]
    ids = [f"ISIC_{number:07d}" for number in range(40)]
    assert found == [(id, fold_of(id, 3)) for id in ids]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [of["num_images"] for of in metrics["folds"].values()] == [
        sum(fold == k for _, fold in found) for k in range(3)
    ]
    assert metrics["settings"]["2. model"].endswith("fold1")
    assert metrics["settings"]["data"] == "isic/2016, out_of_fold split"
    said = capsys.readouterr().out
    assert "IoU by fold: " in said
    assert "warning: fold 2 chose the checkpoint that it is scored with; train with --c" in said
    assert run(workdir=workdirs, split="out_of_fold", out=str(out)) == 0  # All is there.
    said = capsys.readouterr().out
    assert "40 images had been segmented before" in said and "IoU by fold: " in said
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_every_fold_may_have_several_models(folds, tmp_path):
    workdirs, changed = folds
    changed["members"] = {0: 2, 1: 2, 2: 2}
    assert run(workdir=workdirs, split="out_of_fold", out=str(tmp_path / "out")) == 0
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        found = {row["id"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert len(found) == 40 and all(fold == fold_of(id, 3) for id, fold in found.items())


def test_folds_that_do_not_fit_the_split_are_refused(folds, tmp_path):
    workdirs, changed = folds
    with pytest.raises(UserError, match=r"needs a --workdir of each fold.*\(3, 0\), \(3, 2\)$"):
        run(workdir=["fold0", "fold2"], split="out_of_fold", out=str(tmp_path / "out"))
    for split in ("validation", "all"):
        with pytest.raises(UserError, match=f"--split={split}: some of the models were trained on"):
            run(workdir=workdirs, split=split, out=str(tmp_path / "out"))
    assert run(workdir=workdirs, split="test", out=str(tmp_path / "test")) == 0  # An ensemble.
    changed["fields"] = {1: {"seed": 5, "train.learning_rate": 0.5}}
    with pytest.raises(UserError, match=r"the model of fold 1 differs from the first in train.le"):
        run(workdir=workdirs, split="out_of_fold", out=str(tmp_path / "out"))
    changed["fields"] = {2: {"data.dir": "/elsewhere", "data.group_pattern": "x"}}
    with pytest.raises(UserError, match=r"of fold 2 differs from the first in data.group_pattern$"):
        run(workdir=workdirs, split="out_of_fold", out=str(tmp_path / "out"))
    changed.clear()
    changed["members"] = {1: 2}
    with pytest.raises(UserError, match="^fold 1 has 2 models, the first 1$"):
        run(workdir=workdirs, split="out_of_fold", out=str(tmp_path / "out"))
    changed.clear()
    changed["trained_on"] = "others"
    with pytest.raises(UserError, match="the images of fold 0 have changed since its model was"):
        run(workdir=workdirs, split="out_of_fold", out=str(tmp_path / "out"))
