"""Loading runs of different kinds, and what cannot be an ensemble."""

import csv
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

import segdiff_jax
from segdiff_jax.config import default_config
from segdiff_jax.data.classes import TWO
from segdiff_jax.data.folder import MASK_ENDINGS
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.inference.combine import entropy, temper
from segdiff_jax.inference.load import load, make_ensemble
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.runtime.checkpoint import MEMBERS, Checkpoints, run_name
from segdiff_jax.runtime.errors import UserError
from tests.conftest import tiny_overrides


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """By model, a workdir with a checkpoint of a tiny network."""
    folders = {}
    for name in ("segdiff", "unet"):
        config = tiny_overrides(default_config(name))
        method = make_method(config)
        variables = jax.jit(lambda method=method: init_variables(method, 0))()
        rng = np.random.default_rng(0)  # New networks say 0 everywhere.
        move = lambda x, rng=rng: np.asarray(x) + 0.05 * rng.random(x.shape, np.float32)
        variables = jax.tree.map(move, variables)
        folders[name] = tmp_path_factory.mktemp(name)
        saved = config.to_dict()
        if name == "unet":
            saved["model"] = {"name": "unet", "channels": [8, 16]}
        else:  # As a run that did not know these fields yet saved it, in their former names.
            del saved["method"]
            for field in ("images", "mask_endings", "classes", "mask_values"):
                del saved["data"][field]
            saved["sampler"]["votes"] = saved["sampler"].pop("samples")
        with Checkpoints(folders[name]) as checkpoints:
            checkpoints.save_best(1, variables, {"config": saved, "step": 1})
    return folders


def images_of(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_a_runs_own_fields_and_those_it_does_not_know_yet(workdirs):
    unet = load(workdirs["unet"])
    assert unet.config.model.channels == (8, 16) and unet.config.model.padding == "same"
    assert unet.settings["model"] == "unet" and "steps" not in unet.settings
    assert sorted(unet.variables) == ["batch_stats", "params"]
    segdiff = load(workdirs["segdiff"])
    assert segdiff.config.data.images == "" and segdiff.classes == TWO
    assert tuple(segdiff.config.data.mask_endings) == MASK_ENDINGS
    assert segdiff.config.method == "diffusion" and segdiff.settings["steps"] == 2
    assert segdiff.settings["temperature"] == 1 and segdiff.history == []
    assert segdiff.settings["samples"] == 2
    assert segdiff_jax.load is load
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        segdiff_jax.train  # noqa: B018


@pytest.mark.parametrize(
    "sampling, message",
    [
        ({"sample": 3}, "sampler.sample=3: there is no such field; there are"),
        ({"samples": "many"}, "sampler.samples='many' must be of type int"),
        ({"flips": [1, 2]}, "flips=.* must be of type bool"),
        ({"seed": 1.5}, "seed=1.5 must be of type int"),
    ],
)
def test_wrong_sampling_is_named(workdirs, sampling, message):
    with pytest.raises(UserError, match=message):
        load(workdirs["segdiff"], **sampling)


def test_an_ensemble_is_of_models_that_see_alike(workdirs, tmp_path):
    alone = load([workdirs["unet"]])
    assert alone.settings["model"] == "unet"
    both = load([workdirs["segdiff"], workdirs["unet"]])
    assert both.settings["model"] == "segdiff + unet"
    assert both.settings["1. steps"] == 2 and "2. steps" not in both.settings
    images = np.zeros((4, 16, 16, 3), np.uint8)
    assert both.sample(images, list("abcd")).shape == (2, 4, 16, 16, 1)
    predictions = both.predict(images[:1], key=3)
    assert predictions[0].mask.shape == (16, 16) and 0 <= predictions[0].uncertainty <= 1
    (tmp_path / MEMBERS).write_text(json.dumps([str(workdirs[n]) for n in ("segdiff", "unet")]))
    listed = load(tmp_path)
    assert listed.settings == both.settings
    np.testing.assert_array_equal(
        listed.sample(images, list("abcd"), seed=2), both.sample(images, list("abcd"), seed=2)
    )
    for damaged in ("{}x", "[]", '"run"', "[1]"):
        (tmp_path / MEMBERS).write_text(damaged)
        with pytest.raises(UserError, match="members.json is no list of names of folders"):
            load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"is a workdir, and members\.json in it lists others"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"differ in sampler\.threshold: \[0\.5, 0\.4\]"):
        make_ensemble([load(workdirs["segdiff"]), load(workdirs["unet"], threshold=0.4)])


def test_predicting_images_of_any_sizes(workdirs):
    segdiff = load(workdirs["segdiff"], samples=3)
    images = images_of((20, 30), (16, 16), (7, 50), (64, 9), (30, 30))
    predictions = segdiff.predict(images, ids=list("abcde"))
    assert [p.mask.shape for p in predictions] == [image.shape[:2] for image in images]
    for p in predictions:
        assert p.mask.dtype == bool and p.probability.dtype == p.deviation.dtype == np.float32
        np.testing.assert_array_equal(p.mask, p.probability > 0.5)
        assert 0 <= p.deviation.max() <= 0.5 and 0 <= p.uncertainty <= 1
    # An image's samples follow from its name and the key, not from the others.
    (again,) = segdiff.predict(images[2:3], ids=["c"])
    np.testing.assert_allclose(again.probability, predictions[2].probability, atol=1e-5)
    (other,) = segdiff.predict(images[2:3], ids=["c"], key=7)
    assert np.abs(other.probability - again.probability).max() > 1e-3
    (same,) = load(workdirs["segdiff"], samples=3, seed=7).predict(images[2:3], ids=["c"])
    np.testing.assert_array_equal(same.probability, other.probability)


def test_an_evaluations_files_hold_what_is_predicted(workdirs, tmp_path):
    segdiff, images = load(workdirs["segdiff"], samples=3), images_of((20, 30), (16, 16), (7, 50))
    records = []
    for id, image in zip("abc", images, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        records.append({"id": id, "image": file.getvalue()})
    examples = NativeExamples(records, segdiff)
    evaluate([examples], tmp_path, segdiff.settings, "t")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    for row, p in zip(rows, segdiff.predict(images, ids=list("abc")), strict=True):
        maps = {"probabilities": 255 * p.probability, "deviations": 510 * p.deviation}
        maps["entropies"] = 255 * entropy(p.probabilities)
        for name, expected in maps.items():
            found = np.asarray(Image.open(tmp_path / name / f"{row['id']}.png"))
            np.testing.assert_allclose(found, expected, atol=0.51)
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{row['id']}_Segmentation.png"))
        assert ((mask == 255) != p.mask).mean() < 0.01
        assert float(row["disagreement"]) == pytest.approx(p.uncertainty, abs=0.01)


@pytest.mark.slow
def test_the_temperature_of_an_ensemble_is_that_of_its_mean(workdirs):
    paths, images = [workdirs["segdiff"], workdirs["unet"]], images_of((16, 16))
    (plain,) = load(paths).predict(images)
    (warm,) = load(paths, temperature=3.0).predict(images)
    np.testing.assert_allclose(warm.probabilities, temper(plain.probabilities, 3.0), atol=1e-5)
    assert load(paths, temperature=3.0).settings["1. temperature"] == 1


@pytest.mark.slow
def test_predicting_with_other_steps_and_samples(workdirs):
    segdiff, images = load(workdirs["segdiff"], seed=7), images_of((16, 16))
    (one,) = segdiff.predict(images, steps=1, samples=1)
    assert one.deviation is None and one.uncertainty is None
    assert segdiff.with_fields(steps=1, samples=1) is segdiff.with_fields(samples=1, steps=1)
    assert "variables" not in repr(segdiff)
    (expected,) = load(workdirs["segdiff"], seed=7, steps=1, samples=1).predict(images)
    np.testing.assert_array_equal(one.probability, expected.probability)


def test_images_that_are_none_are_named(workdirs):
    unet = load(workdirs["unet"])
    assert unet.predict([]) == []
    with pytest.raises(UserError, match=r"image 1: float64\(4, 4, 3\) is not uint8"):
        unet.predict([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))])
    with pytest.raises(UserError, match=r"image x: uint8\(4, 4\) is not uint8 \(H, W, 3\)"):
        unet.predict([np.zeros((4, 4), np.uint8)], ids=["x"])
    with pytest.raises(UserError, match="is no seed of samples: give an int"):
        unet.predict([np.zeros((4, 4, 3), np.uint8)], key=jax.random.key(0))
    with pytest.raises(UserError, match="no path of a model"):
        load([])
    with pytest.raises(UserError, match="2 ids for 1 images"):
        unet.predict([np.zeros((4, 4, 3), np.uint8)], ids=["x", "y"])


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("name", "euler", "sampler.name='euler' is unknown: choose one of"),
        ("steps", 0, "sampler.steps=0 must be at least 1"),
        ("steps", 1000, "sampler.steps=1000: spacing 'trailing1000'"),
        ("spacing", "x", "sampler.spacing='x' is unknown"),
    ],
)
def test_a_wrong_setting_is_named_before_the_network_is_made(workdirs, field, value, message):
    with pytest.raises(UserError, match=message):
        load(workdirs["segdiff"], **{field: value})


def test_paths_of_an_older_run_are_read_from_the_current_folder(workdirs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(workdirs["unet"]))
    monkeypatch.chdir(tmp_path)
    model = load("~")
    assert model.config.data.dir == f"{tmp_path}/data" and model.config.data.manual_dir == ""
    assert model.settings["checkpoint"] == f"{workdirs['unet']}/checkpoints/best/1"


def test_a_run_is_named_by_its_workdir(workdirs):
    assert run_name("/mnt/checkpoints/runA") == "runA"
    assert run_name("/mnt/checkpoints/x/runs/runA") == "runA"
    workdir = workdirs["unet"]
    assert run_name(workdir) == run_name(workdir / "checkpoints" / "best" / "1") == workdir.name
