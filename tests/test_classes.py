"""Masks of three classes from the folder to the report: drawn skin, lesions and their cores."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segdiff_jax.config import VERSION
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.inference.export import export_model
from segdiff_jax.inference.load import load
from segdiff_jax.original.export_torch import export_state_dict
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train
from tests.conftest import ROOT, save_untrained
from tools.bound import make_bound_fn

NAMES, VALUES = ("skin", "lesion", "core"), (0, 100, 200)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with images/ and masks/ of twelve pictures, 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(12):
        image, mask, _ = (part[:40] for part in draw(number, 48))
        depth = ndimage.distance_transform_edt(mask)
        labels = np.uint8(mask > 0) + (depth > 0.5 * depth.max())
        Image.fromarray(image).save(folder / f"images/{number}.png")
        Image.fromarray(np.uint8(VALUES)[labels]).save(folder / f"masks/{number}_mask.png")
    return folder


def config_of(drawn, config):
    config.data.update(dataset="paired_folder", dir=str(drawn / "data"))
    config.data.update(images=str(drawn / "images"), masks=str(drawn / "masks"))
    config.data.classes, config.data.mask_values = NAMES, VALUES
    config.model.out_channels = 3
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segdiff", "unet"])
def test_it_trains_validates_and_samples(drawn, tiny_config, tmp_path, capsys, name):
    config = config_of(drawn, tiny_config(name))
    config.diffusion.update(self_conditioning=True, recycling=True)
    config.data.soft_masks = name == "unet"
    train(config, str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert "core: " in out and "in 12 of them" in out
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["loss"]) < 4 for row in rows if row["loss"])
    assert [float(row["validation_iou"]) <= 1 for row in rows if row["validation_iou"]] == [True]
    train(config, str(tmp_path / "run"))  # As it was trained: nothing is refused.
    assert "already trained" in capsys.readouterr().out

    trained = load(tmp_path / "run")
    assert trained.classes.names == NAMES and trained.classes.values == VALUES
    assert trained.settings["mask values"] == VALUES
    data = trained.config.data
    for records, count in (
        (FolderSource(data.images, data.masks, data.mask_endings), 12),
        (load_source(data.dataset, "validation", *where(data)), 1),
    ):
        examples, out = NativeExamples(records, trained), tmp_path / f"out{count}"
        result = evaluate([examples], out, trained.settings, "title")
        assert result.num_images == count and not result.failures
    metrics = json.loads((tmp_path / "out12/metrics.json").read_text())
    assert list(metrics["classes"]) == ["lesion", "core"]
    assert metrics["classes"]["core"]["images"] == 12 == metrics["num_images"]
    ious = [row["iou"] for row in metrics["classes"].values()]
    # Each image has both.
    assert metrics["mean"]["iou"] == pytest.approx(np.mean(ious), abs=1e-9)
    masks = sorted((tmp_path / "out12/masks").iterdir())
    assert len(masks) == 12
    values = [np.unique(np.asarray(Image.open(path))) for path in masks]
    assert set(np.concatenate(values)) <= set(VALUES)

    image = np.asarray(Image.open(drawn / "images/3.png"))
    (prediction,) = trained.predict([image], ids=["3"])
    assert prediction.mask.shape == (40, 48) and prediction.probability.shape == (40, 48, 3)
    np.testing.assert_allclose(prediction.probability.sum(axis=-1), 1, atol=1e-5)
    file = np.asarray(Image.open(tmp_path / "out12/masks/3_Segmentation.png"))
    np.testing.assert_array_equal(trained.classes.file_values(prediction.mask), file)


def meta_of(config):
    return {"config": json.loads(config.to_json()), "version": VERSION, "step": 1}


@pytest.fixture
def workdir(drawn, tiny_config, tmp_path):
    """Of an untrained network."""
    return save_untrained(config_of(drawn, tiny_config()), tmp_path / "run")


@pytest.mark.slow
def test_what_is_of_two_classes_only_says_so(workdir, tmp_path):
    trained = load(workdir)
    with pytest.raises(UserError, match="data.classes=.*two classes can be exported"):
        export_model(trained)
    with pytest.raises(UserError, match=r"data.classes=.*the original has two classes"):
        export_state_dict(workdir)
    with pytest.raises(UserError, match="data.classes=.*the bound needs masks of two classes"):
        make_bound_fn(trained)
    with pytest.raises(UserError, match="'staple' combines masks of two classes"):
        load(workdir, ensemble="staple")
    with pytest.raises(UserError, match="sampler.largest_component=True is for two classes"):
        load(workdir, largest_component=True)
    (tmp_path / "metrics.json").write_text(json.dumps({"num_images": 1, "classes": {"core": {}}}))
    command = [sys.executable, "-m", "tools.official_score", f"--out={tmp_path}", "--truth=x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "is of data.classes=['core'] and a background" in done.stderr


@pytest.mark.slow
def test_members_of_an_ensemble_have_the_same_classes(workdir, drawn, tiny_config, tmp_path):
    both = load([workdir, workdir])
    images = np.zeros((4, 16, 16, 3), np.uint8)
    assert both.sample(images, list("abcd")).shape == (2, 4, 16, 16, 3)
    config = config_of(drawn, tiny_config())
    config.data.mask_values = (0, 1, 2)
    save_untrained(config, tmp_path / "other")
    with pytest.raises(UserError, match="the models of an ensemble differ in data.mask_values"):
        load([workdir, tmp_path / "other"])


@pytest.mark.slow
def test_other_classes_are_another_run(drawn, tiny_config, tmp_path):
    config = config_of(drawn, tiny_config("unet"))
    config.train.num_steps, config.validation.every = 1, 0
    train(config, str(tmp_path / "run"))
    config.data.classes = ("skin", "mole", "core")
    with pytest.raises(UserError, match=r"config.data.classes: \('skin', 'lesion', 'core'\) bef"):
        train(config, str(tmp_path / "run"))
