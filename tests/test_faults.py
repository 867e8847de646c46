"""What goes wrong for users: bad files, full disks, foreign checkpoints, kills at a bad time."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from segdiff_jax.config import default_config
from segdiff_jax.inference.load import load
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.training.loop import train
from segdiff_jax.training.state import create_state
from tests.conftest import ROOT, save_untrained, tiny_overrides
from tests.test_end_to_end import TINY, run, saved_steps


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a U-Net that was never trained."""
    workdir, config = tmp_path_factory.mktemp("workdir"), tiny_overrides(default_config("unet"))
    return save_untrained(config, workdir)


@pytest.fixture
def small_disk(tmp_path):
    """small_disk("3m") mounts a file system of that size; small_disk("ro") makes it read-only."""
    folder = tmp_path / "small disk"
    folder.mkdir()

    def mount(option):
        options = f"size={option}" if option != "ro" else "remount,ro"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this needs the right to mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def image(*size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(noise)


def fill(folder):
    """Good images of all kinds, and bad ones; returns the bad ones' names and reasons."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    image(20, 30).save(folder / "turned.jpg", exif=exif)
    image(20, 30).convert("RGBA").save(folder / "alpha.png")
    image(20, 30).convert("P").save(folder / "palette.png")
    image(20, 30).convert("L").save(folder / "grey.bmp")
    image(20, 30).convert("CMYK").save(folder / "cmyk.jpg")
    image(1, 1).save(folder / "one pixel.png")
    image(20, 30).save(folder / "ein Fleck äö 斑.jpg")
    image(20, 30).save(folder / "truncated.jpg")
    data = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    image(20, 30).save(os.fsencode(folder) + b"/Fl\xe4che.png")
    image(20, 30).save(folder / "pages.tiff", save_all=True, append_images=[image(20, 30)])
    (folder / "text.jpg").write_text("This is not an image.")
    Image.fromarray(np.uint16([[0, 65535]])).save(folder / "deep.png")
    image(20, 30).save(folder / "twice.jpg")
    image(20, 30).save(folder / "twice.png")
    broken = "cannot be decoded as an image ({}): replace the file or remove it"
    return {
        "truncated": broken.format("Truncated File Read"),
        "empty": "the file is empty",
        "text": broken.format("of no known format"),
        "deep": "more than 8 bits a channel: convert it to 8 bits",
        "Fl\\xe4che.png": "its name is not Unicode: rename it",
        "pages": broken.format("it holds 2 images"),
        "twice.jpg": "twice.jpg and twice.png have the same name: rename one",
        "twice.png": "twice.jpg and twice.png have the same name: rename one",
    }


def read_failures(folder):
    with (folder / "failures.csv").open(newline="") as file:
        return dict(list(csv.reader(file))[1:])


def test_a_folder_is_segmented_but_for_what_cannot_be_and_then_what_is_missing(workdir, tmp_path):
    images, out = tmp_path / "photos", tmp_path / "out"
    reasons = fill(images)
    arguments = "sample.py", f"--workdir={workdir}", f"--images={images}", f"--out={out}"
    said, err = run(*arguments, status=2)
    assert "Traceback" not in err
    assert f"8 images could not be segmented: {out}/failures.csv says why" in said
    assert said.splitlines()[-1] == f"7 images, report {out}/report.html"
    failures = read_failures(out)
    assert failures == reasons
    sizes = {}
    for path in (out / "masks").iterdir():
        with Image.open(path) as file:
            sizes[path.stem.removesuffix("_Segmentation")] = file.size
    normal = dict.fromkeys(["alpha", "palette", "grey", "cmyk", "ein Fleck äö 斑"], (30, 20))
    assert sizes == normal | {"turned": (20, 30), "one pixel": (1, 1)}
    report = (out / "report.html").read_text()
    assert (
        "7 images, true masks not given, 8 not segmented" in report
        and "the file is empty" in report
    )

    before = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    for name in (b"empty.png", b"text.jpg", b"twice.png", b"Fl\xe4che.png", b"pages.tiff"):
        os.remove(os.path.join(os.fsencode(images), name))
    image(9, 8).save(images / "truncated.jpg")
    Image.new("L", (8, 9)).save(images / "deep.png")
    said, _ = run(*arguments)
    assert "7 images had been segmented before" in said
    assert said.splitlines()[-1] == f"10 images, report {out}/report.html"
    after = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    assert before.items() <= after.items() and len(after) == 10
    assert not (out / "failures.csv").exists()


def test_masks_that_do_not_fit_are_failures_and_the_others_are_scored(workdir, tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    for name in ("good", "labels", "small", "none"):
        image(20, 30).save(images / f"{name}.jpg")
    Image.fromarray(255 * np.eye(20, 30, dtype=np.uint8)).save(masks / "good.png")
    labels = np.diag([1, 2] * 10 + [0] * 10)[:20].astype(np.uint8)
    Image.fromarray(labels).save(masks / "labels_mask.png")
    Image.fromarray(255 * np.eye(10, 15, dtype=np.uint8)).save(masks / "small_Segmentation.png")
    flags = f"--images={images}", f"--masks={masks}", f"--out={tmp_path / 'out'}"
    said, _ = run("sample.py", f"--workdir={workdir}", *flags, status=2)
    assert "(1 images)" in said
    failures = read_failures(tmp_path / "out")
    assert failures["labels"].startswith(
        "mask of labels: the mask has 3 values (0, 1, 2): make it 0 and one other value"
    )
    assert failures["small"] == "the image is (20, 30) but its mask (10, 15) pixels"
    assert "1 images have no mask: they are segmented, but not scored (none)" in said
    assert (tmp_path / "out/masks/none_Segmentation.png").exists()


def test_an_empty_folder_is_named(workdir, tmp_path):
    _, err = run("sample.py", f"--workdir={workdir}", f"--images={tmp_path}", status=1)
    assert f"error: {tmp_path} holds no images (.jpg, " in err and "Traceback" not in err


@pytest.mark.slow
def test_a_full_disk_ends_sampling_and_with_more_room_it_goes_on(workdir, tmp_path, small_disk):
    disk, images = small_disk("100k"), tmp_path / "images"
    images.mkdir()
    for name in "abcdef":
        image(100, 100).save(images / f"{name}.png")
    arguments = "sample.py", f"--workdir={workdir}", f"--images={images}", f"--out={disk / 'out'}"
    _, err = run(*arguments, "--workers=1", status=1)  # Writes one image after the other.
    assert re.search(r"error: cannot write .*\(No space left on device\): free some space", err)
    assert "Traceback" not in err and not list(disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    said, _ = run(*arguments)
    done = int(re.search(r"(\d) images had been segmented before", said)[1])
    assert 1 <= done < 6 and "6 images, report" in said


@pytest.mark.slow
def test_a_read_only_disk_is_named(workdir, tmp_path, small_disk, tiny_config):
    small_disk("1m")
    disk = small_disk("ro")
    image(9, 9).save(tmp_path / "a.png")
    arguments = f"--workdir={workdir}", f"--images={tmp_path}", f"--out={disk / 'out'}"
    _, err = run("sample.py", *arguments, status=1)
    assert f"error: cannot write {disk / 'out'}" in err and "Read-only file system" in err
    assert "Traceback" not in err
    message = r"cannot write .*/run.* \(Read-only .* choose a folder that can be written to"
    with pytest.raises(OSError, match=message):
        train(tiny_config(), str(disk / "run"))


@pytest.mark.slow
def test_a_full_disk_ends_training_and_the_former_checkpoint_is_kept(tiny_isic, small_disk):
    disk = small_disk("600k")
    tiny = [field for field in TINY if ".model." not in field and ".diffusion." not in field]
    tiny[0] = "--config=configs/compare.py:unet"
    tiny += ["--config.model.channels=(8,16)", "--config.validation.every=0"]
    tiny += [f"--config.data.manual_dir={tiny_isic}", f"--config.data.dir={disk.parent / 'data'}"]
    command = "train.py", *tiny, f"--workdir={disk}", "--config.train.checkpoint_every=1"
    said, err = run(*command, "--config.train.num_steps=1000", status=1)
    assert re.search(r"error: .*(cannot save the checkpoint|cannot write).* is kept\n", err)
    assert "Traceback" not in err and "Exception" not in err
    (step,) = saved_steps(disk)
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    said, _ = run(*command, f"--config.train.num_steps={step + 1}")
    assert f"resuming {disk} at step {step}" in said and saved_steps(disk) == [step + 1]


def damage(folder, what):
    if what == "no meta":
        shutil.rmtree(folder / "meta")
    elif what == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif what == "foreign meta":
        (file,) = (folder / "meta").rglob("metadata")
        file.write_text('{"name": "another program"}')
    else:
        for file in (folder / "ema_params").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:20] if what == "truncated" else b"rubbish")


@pytest.mark.parametrize(
    "what, message",
    [
        ("truncated", "best/1: not a checkpoint of this network, or damaged"),
        ("rubbish", "best/1: not a checkpoint of this network, or damaged"),
        ("foreign meta", "best/1: not a checkpoint of train.py"),
        ("no meta", "no checkpoint there; give a workdir of train.py"),
        ("empty", "no checkpoint there; give a workdir of train.py"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused(workdir, tmp_path, what, message):
    shutil.copytree(workdir, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "best" / "1", what)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    (file,) = (tmp_path / "run" / "checkpoints" / "best" / "1" / "meta").rglob("metadata")
    meta = json.loads(file.read_text())
    meta["config"]["model"]["channels"] = [8, 32]
    file.write_text(json.dumps(meta))
    _, err = run("sample.py", f"--workdir={tmp_path / 'run'}", f"--images={tmp_path}", status=1)
    assert "best/1: not a checkpoint of this network" in err
    assert "BatchNorm_2.bias: (16,) in the checkpoint, (32,) in the network" in err
    assert "Traceback" not in err and "Exception" not in err


SAVE = """
import os, sys, jax.numpy as jnp, optax
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.training.state import create_state
fatal, calls = int(sys.argv[2]), 0

def guarded(fn):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os._exit(9)  # As a kill, it leaves no time to tidy up.
        return fn(*args, **kwargs)
    return call

checkpoints = Checkpoints(sys.argv[1])
state = create_state({"params": {"w": jnp.full(3, 2.0)}}, optax.adam(1.0))
for name in ("rename", "replace", "rmdir", "unlink", "mkdir"):
    setattr(os, name, guarded(getattr(os, name)))
trees = state.replace(step=jnp.int32(2)).trees()
checkpoints.save_last(2, trees, {"config": {}, "step": 2})
print(calls)
"""


@pytest.mark.slow
def test_a_kill_between_any_two_steps_of_a_save_leaves_a_checkpoint(tmp_path):
    state = create_state({"params": {"w": jnp.full(3, 1.0)}}, optax.adam(1.0))
    like, found = jax.eval_shape(lambda: state), []
    for fatal in range(1, 100):
        workdir = tmp_path / str(fatal)
        with Checkpoints(workdir) as checkpoints:
            trees = state.replace(step=jnp.int32(1)).trees()
            checkpoints.save_last(1, trees, {"config": {}, "step": 1})
        command = [sys.executable, "-c", SAVE, str(workdir), str(fatal)]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        saving = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert saving.returncode in (0, 9), saving.stderr
        with Checkpoints(workdir) as checkpoints:
            meta = checkpoints.last_meta()
            restored = like.from_trees(checkpoints.restore_last(like.trees()))
        assert meta["step"] == int(restored.step)
        np.testing.assert_array_equal(restored.params["w"], np.full(3, meta["step"]))
        found.append(meta["step"])
        if saving.returncode == 0:
            break
    assert found == sorted(found) and found[0] == 1 and found[-1] == 2 and len(found) > 4


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    command = [sys.executable, "-m", "tools.soak", "--rounds=3", "--longest=3"]
    command += [f"--folder={tmp_path / 'soak'}", f"--config.data.dir={tmp_path / 'data'}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    soak = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "3 of 3 kills survived, " in soak.stdout
    assert "bitwise equal to the run that was left alone" in soak.stdout
