"""train.py and sample.py as a user runs them, killed and started again."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.evaluation.metrics import segmentation_scores
from tests.conftest import ROOT

TINY = """
    --config=configs/isic2016_64.py
    --config.data.image_size=16
    --config.model.channel_mult=(1,1)
    --config.model.attention_resolutions=()
    --config.model.rrdb_width=8
    --config.model.rrdb_growth=4
    --config.train.batch_size=4
    --config.train.max_minutes=0
    --config.train.log_every=1
    --config.train.checkpoint_every=2
    --config.validation.every=4
    --config.validation.num_images=2
    --config.diffusion.self_conditioning=True
    --config.sampler.name=dpm_solver_pp_2m
    --config.sampler.steps=2
    --config.sampler.samples=2
""".split()  # noqa: SIM905


def start(script, *arguments, env=None, cwd=ROOT):
    env = (
        os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla-tests")} | (env or {})
    )
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, status=0):
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == status, err
    return out, err


def run(script, *arguments, status=0):
    return finish(start(script, *arguments), status)


def saved_steps(folder):
    """The checkpoints that are whole: one that is still being written has a longer name."""
    return [int(p.name) for p in folder.glob("checkpoints/last/*") if p.name.isdecimal()]


def wait_for_save(process, workdir):
    deadline = time.monotonic() + 200
    while process.poll() is None and not saved_steps(workdir) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def workdir(tiny_isic, tmp_path_factory):
    """A run that was killed after its first checkpoint and then started again to its end."""
    folder = tmp_path_factory.mktemp("run")
    data = [f"--config.data.manual_dir={tiny_isic}", f"--config.data.dir={folder / 'data'}"]
    command = ["train.py", *TINY, *data, f"--workdir={folder}"]
    process = start(*command, "--config.train.num_steps=100000")
    wait_for_save(process, folder)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    done = max(saved_steps(folder))
    out, err = run(*command, f"--config.train.num_steps={done + 4}")
    assert f"resuming {folder} at step {done}" in out
    assert f"trained: {done + 4} steps" in out
    assert "images/s" in err and "ETA" in err
    return folder


@pytest.mark.slow
def test_a_run_begins_with_the_config_and_the_parameters_of_another(workdir, tmp_path):
    """As a command without --num_processes: reading the config must not start jax."""
    flags = ["--config.train.num_steps=1", "--config.validation.every=0"]
    command = "train.py", f"--config=configs/saved.py:{workdir}", f"--workdir={tmp_path / 'run'}"
    out, _ = run(*command, *flags)
    assert f"starting from the parameters of {workdir / 'checkpoints' / 'best'}" in out
    assert "trained: 1 steps" in out
    config, former = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "run", workdir)
    )
    assert config["train"].pop("init_from") == str(workdir)
    assert config["model"] == former["model"] and config["diffusion"] == former["diffusion"]


@pytest.mark.parametrize(
    "other, message",
    [
        ("", "write --config=configs/saved.py:WORKDIR, of a run or a checkpoint"),
        (":/nowhere", "/nowhere: no checkpoint there"),
        (":TMP", "error: the config has version 9, this package reads up to 3: update it\n"),
    ],
)
def test_another_run_that_there_is_not_is_named(tmp_path, other, message):
    meta = tmp_path / "checkpoints" / "best" / "1" / "meta" / "metadata"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"config": {}, "version": 9}))
    config = f"--config=configs/saved.py{other}".replace("TMP", str(tmp_path))
    _, err = run("train.py", config, f"--workdir={tmp_path}", status=1)
    assert message in err and "Traceback" not in err


def read_masks(folder):
    return {p.name: np.asarray(Image.open(p)) for p in (folder / "masks").iterdir()}


def test_metrics_have_no_gap_and_no_repeat(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
    assert steps == list(range(1, len(steps) + 1))


def test_sampling_a_split(workdir):
    out, err = run("sample.py", f"--workdir={workdir}", "--split=test")
    folder = workdir / "samples_test"
    metrics = json.loads((folder / "metrics.json").read_text())
    iou = metrics["mean"]["iou"]
    assert out.splitlines()[-1] == f"mean IoU {iou:.4f}, report {folder / 'report.html'}"
    assert metrics["num_images"] == 5 and metrics["settings"]["steps"] == 2
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"ISIC_{n:07d}" for n in range(900, 905)]
    assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(iou, abs=1e-6)
    masks = read_masks(folder)
    assert sorted(masks) == [f"ISIC_{n:07d}_Segmentation.png" for n in range(900, 905)]
    for mask in masks.values():
        assert mask.shape == (40, 48) and set(np.unique(mask)) <= {0, 255}
    assert "sampling" in err


def test_sampling_a_folder(workdir, tmp_path):
    images, truths = tmp_path / "my images", tmp_path / "truth"
    images.mkdir()
    truths.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("b", (30, 50)), ("a", (64, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(images / f"{name}.png")
        Image.fromarray(255 * np.eye(*size, dtype=np.uint8)).save(truths / f"{name}_mask.png")
    arguments = [f"--workdir={workdir}", f"--images={images}", "--steps=3", "--samples=3"]
    arguments += ["--ensemble=vote", "--sampler=ddpm", "--seed=5"]
    arguments += ["--threshold=0.4", "--config.sampler.clip=false", "--artefact=frame"]
    out, _ = run("sample.py", *arguments, f"--masks={truths}", f"--out={tmp_path / 'scored'}")
    metrics = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    masks = read_masks(tmp_path / "scored")
    for name, size in (("b", (30, 50)), ("a", (64, 20))):
        mask = masks[f"{name}_Segmentation.png"]
        assert mask.shape == size
    ious = [
        segmentation_scores(masks[f"{n}_Segmentation.png"] > 127, np.eye(*s, dtype=bool))["iou"]
        for n, s in (("b", (30, 50)), ("a", (64, 20)))
    ]
    assert metrics["mean"]["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    expected = {"steps": 3, "samples": 3, "ensemble": "vote", "sampler": "ddpm", "seed": 5}
    expected |= {"threshold": 0.4, "clip": False, "data": f"{images}, with frame"}
    assert metrics["settings"].items() >= expected.items()
    out, _ = run("sample.py", *arguments, f"--out={tmp_path / 'unscored'}")
    assert out.splitlines()[-1] == f"2 images, report {tmp_path / 'unscored' / 'report.html'}"
    assert not (tmp_path / "unscored" / "metrics.json").exists()
    again = read_masks(tmp_path / "unscored")
    assert all(np.array_equal(again[name], masks[name]) for name in masks)


@pytest.fixture(scope="module")
def unet(workdir, tiny_isic, tmp_path_factory):
    """A finished run of a U-Net on the data of `workdir`."""
    folder = tmp_path_factory.mktemp("unet")
    tiny = [f for f in TINY if ".model." not in f and ".diffusion." not in f]
    tiny[0] = "--config=configs/compare.py:unet"
    tiny += ["--config.model.channels=(8,16)", "--config.train.num_steps=2"]
    data = [f"--config.data.manual_dir={tiny_isic}", f"--config.data.dir={workdir / 'data'}"]
    out, _ = run("train.py", *tiny, *data, f"--workdir={folder}")
    assert "unet, " in out and "trained: 2 steps" in out
    return folder


def probabilities(folder):
    files = sorted((folder / "probabilities").iterdir())
    return np.stack([np.asarray(Image.open(file), np.float64) for file in files])


@pytest.mark.slow
def test_a_supervised_model_needs_no_steps_and_joins_an_ensemble(workdir, unet):
    of_network = ["--config.sampler.samples_from=network"]
    out, _ = run("sample.py", *of_network, f"--workdir={unet}", "--split=test", "--samples=9")
    assert "unet does not read sampler.samples" in out
    settings = json.loads((unet / "samples_test" / "metrics.json").read_text())["settings"]
    assert settings["model"] == "unet" and settings["flips"] and "steps" not in settings
    both = [f"--workdir={workdir}", f"--workdir={unet}", "--split=test"]
    run("sample.py", f"--workdir={workdir}", "--split=test", f"--out={unet / 'diffusion'}")
    out, _ = run("sample.py", *both)
    folder = workdir / f"ensemble_{unet.name}_test"
    assert str(folder / "report.html") in out
    mean = (probabilities(unet / "diffusion") + probabilities(unet / "samples_test")) / 2
    # Clipping at the network's size, then enlarging, is not quite enlarging, then clipping.
    np.testing.assert_allclose(probabilities(folder), mean, atol=4)
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert settings["model"] == "segdiff + unet" and settings["1. steps"] == 2
    _, err = run("sample.py", *both, "--config.sampler.threshold=2", status=1)
    assert "sampler.threshold=2" in err
    _, err = run("sample.py", *both, f"--checkpoint={unet / 'checkpoints' / 'last'}", status=1)
    assert "beside --checkpoint, give one --workdir" in err


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("sample.py", ["--workdir=/nowhere"], "error: /nowhere: no checkpoint there"),
        ("sample.py", [], "error: give --workdir or --checkpoint"),
        ("sample.py", ["--workdir=x", "--masks=y"], "error: --masks needs --images"),
        (
            "train.py",
            ["--config=configs/default.py", "--workdir=TMP", "--config.data.dataset=coco"],
            "error: data.dataset='coco' is unknown; there are cityscapes_instances, cvc",
        ),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, script, arguments, message):
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    _, err = run(script, *arguments, status=1)
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize("field", ["--config.train.nosuch=1", "--config.train.num_steps=many"])
def test_a_field_that_does_not_fit_is_named(field):
    _, err = run("train.py", "--config=configs/default.py", "--workdir=x", field, status=1)
    assert field.split("=")[0] in err and "Traceback" not in err


def test_an_output_folder_that_is_a_workdir_is_refused(workdir):
    before = (workdir / "metrics.csv").read_bytes()
    _, err = run("sample.py", f"--workdir={workdir}", f"--out={workdir}", status=1)
    assert "is a workdir of train.py" in err
    assert (workdir / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_a_run_finds_its_data_from_any_folder_and_asks_for_them_if_they_moved(tiny_isic, tmp_path):
    """A workdir is all that sample.py needs; "~" is the user's folder, not one of this name."""
    project, elsewhere, home = (tmp_path / name for name in ("project", "elsewhere", "home"))
    for folder in (elsewhere, home):
        folder.mkdir()
    shutil.copytree(tiny_isic, project / "isic")

    def run(script, cwd, *arguments, status=0):
        process = start(script, *arguments, "--workdir=~/run", env={"HOME": str(home)}, cwd=cwd)
        return finish(process, status)

    tiny = [f for f in TINY if ".model." not in f and ".diffusion." not in f]
    shutil.copy(ROOT / "configs/compare.py", home / "mine.py")
    tiny[0] = "--config=~/mine.py:unet"
    tiny += ["--config.model.channels=(8,16)", "--config.train.num_steps=2"]
    run("train.py", project, *tiny, "--config.data.dir=data", "--config.data.manual_dir=isic")
    data = json.loads((home / "run" / "config.json").read_text())["data"]
    assert data["dir"] == f"{project}/data" and data["manual_dir"] == f"{project}/isic"
    builds = [path.stat().st_mtime_ns for path in (project / "data").rglob("*.json")]
    out, _ = run("sample.py", elsewhere, "--split=test")
    assert out.splitlines()[-1].endswith(f"report {home}/run/samples_test/report.html")
    assert str(tmp_path) not in (home / "run" / "samples_test" / "report.html").read_text()
    assert builds and not list(elsewhere.iterdir())
    assert builds == [path.stat().st_mtime_ns for path in (project / "data").rglob("*.json")]
    assert {path.name for path in project.iterdir()} == {"data", "isic"}

    project.rename(tmp_path / "moved")
    _, err = run("sample.py", elsewhere, "--split=test", status=1)
    sentence = f"error: data.dir={project}/data is not a folder: give --config.data.dir=FOLDER"
    assert sentence in err and "Traceback" not in err
    out, _ = run("sample.py", elsewhere, "--split=test", "--config.data.dir=../moved/data")
    assert "5 images had been segmented before" in out
    assert not project.exists() and not list(elsewhere.iterdir())


@pytest.mark.slow
def test_a_messy_folder_is_trained_on_as_its_owner_means_it(tmp_path):
    """Linked folders, masks in blue of 1, copies, thumbnails, a workdir with brackets."""
    photos, masks, disk = (tmp_path / name for name in ("photos", "masks", "disk"))
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        folder = photos if name in "abcd" else disk / "2024"
        for parent in (folder, masks / "drawn"):
            parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((20, 24, 3), np.uint8)
        mask[4:11, 5:15, 2] = 1  # 70 of 480 pixels
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(mask).save(masks / "drawn" / f"{name}_mask.png")
    (photos / "more").symlink_to(disk)
    (photos / "@eaDir").mkdir()
    for copy in (photos / "@eaDir/a.png", photos / "z.png", photos / "y.jfif"):
        shutil.copy(photos / "a.png", copy)
    shutil.copy(masks / "drawn/a_mask.png", masks / "drawn/z_mask.png")
    workdir = tmp_path / "exp [lr=1e-3]" / "run"
    tiny = [f for f in TINY if ".model." not in f and ".diffusion." not in f]
    tiny[0] = "--config=configs/compare.py:unet"
    tiny += ["--config.model.channels=(8,16)", "--config.train.num_steps=2"]
    tiny += ["--config.data.dataset=paired_folder", f"--config.data.dir={tmp_path / 'data'}"]
    tiny += [f"--config.data.images={photos}", f"--config.data.masks={masks}"]
    command = "train.py", *tiny, "--config.data.group_pattern=(20[0-9]+)/", f"--workdir={workdir}"
    out, _ = run(*command)
    assert "9 pairs of image and mask" in out and "foreground 14.6% / 14.6% / 14.6%" in out
    assert "copies of other images: 1; copies share a split" in out
    assert "photos: files with other endings, not looked at: 1 (1 .jfif)" in out
    splits = {}
    for split in ("train", "validation"):
        run("sample.py", f"--workdir={workdir}", f"--split={split}")
        with (workdir / f"samples_{split}" / "metrics.csv").open(newline="") as file:
            splits[split] = {row["id"] for row in csv.DictReader(file)}
    names = {*"abcdz", *(f"more/2024/{name}" for name in "efgh")}
    assert splits["train"] | splits["validation"] == names
    assert not splits["train"] & splits["validation"]
    for together in ({"a", "z"}, {name for name in names if "2024" in name}):
        assert any(together <= ids for ids in splits.values())
    out, _ = run(*command)
    assert f"resuming {workdir} at step 2\nalready trained: 2 steps" in out
    for path in (masks / "drawn").iterdir():
        Image.new("L", (24, 20)).save(path)
    _, err = run("train.py", *tiny, f"--workdir={tmp_path / 'other'}", status=1)
    assert "no mask of train and validation has any foreground: check the masks" in err
    assert "Traceback" not in err
