"""Saving, finding and refusing checkpoints."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segdiff_jax.runtime import checkpoint as module
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.checkpoint import (
    Checkpoints,
    find_checkpoint,
    load_meta,
    load_variables,
    saved_at,
)
from segdiff_jax.training.state import create_state
from tests.conftest import ROOT

TX = optax.adam(1e-3)
LIKE = {"params": {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}


def params_of(value):
    return {"params": {"w": jnp.full((2, 3), value)}}


def state_at(step, value):
    state = create_state({"params": {"w": jnp.full((2, 3), value)}}, TX)
    return state.replace(step=jnp.int32(step), ema_params={"w": jnp.full((2, 3), value + 0.5)})


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, value in ((3, 1.0), (7, 2.0)):
        meta = {"config": {"a": [1, 2]}, "step": step}
        checkpoints.save_last(step, state_at(step, value).trees(), meta)
    checkpoints.save_best(5, params_of(9.0), {"config": {}, "step": 5})
    return tmp_path


def test_the_last_state_comes_back(workdir):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.last_meta() == {"config": {"a": [1, 2]}, "step": 7}
    assert checkpoints.last_step() == 7
    like = jax.eval_shape(lambda: state_at(0, 0.0))
    restored = like.from_trees(checkpoints.restore_last(like.trees()))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7, 2.0))
    assert [p.name for p in (workdir / "checkpoints" / "last").glob("*")] == ["7"]


@pytest.mark.parametrize(
    "name", ["exp [lr=1e-3]/run", "[x] a", "a[1-3]", "a\\b", "a*", "a?", "a{b} #1 %2 ü"]
)
def test_any_path_holds_a_checkpoint(tmp_path, name):
    for other in ("a1", "ab", name):  # The names of the first two fit some of the patterns.
        with Checkpoints(tmp_path / other) as checkpoints:
            checkpoints.save_last(3, state_at(3, 1.0).trees(), {"config": {}})
            checkpoints.save_best(3, params_of(float(len(other))), {"config": {}})
    with Checkpoints(tmp_path / name) as checkpoints:
        like = jax.eval_shape(lambda: state_at(0, 0.0))
        restored = like.from_trees(checkpoints.restore_last(like.trees()))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(3, 1.0))
    found = find_checkpoint(tmp_path / name)
    assert found == tmp_path / name / "checkpoints" / "best" / "3"
    assert (np.asarray(load_variables(found, LIKE)["params"]["w"]) == len(name)).all()


def test_a_save_that_cannot_be_read_back_is_noticed_and_the_former_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "a [b]"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_last(3, state_at(3, 1.0).trees(), {"config": {}})
    monkeypatch.setattr(module, "PATTERNS", re.compile("(?!)"))  # Orbax loses arrays there.
    with Checkpoints(folder) as checkpoints:
        message = re.escape(f"{folder}/checkpoints/last: cannot save the checkpoint of step 5")
        with pytest.raises(OSError, match=message):
            checkpoints.save_last(5, state_at(5, 2.0).trees(), {"config": {}})
    assert [path.name for path in (folder / "checkpoints" / "last").iterdir()] == ["3"]


@pytest.mark.parametrize("what", ["truncated", "gone", "meta"])
def test_a_save_that_the_disk_damages_is_noticed_and_the_former_is_kept(
    tmp_path, monkeypatch, what
):
    def save(manager, step, **more):
        saved = orbax_save(manager, step, **more)
        manager.wait_until_finished()
        folder = Path(manager.directory) / str(step)
        files = [path for path in folder.rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: ("/d/" in str(path), path.stat().st_size))
        assert "/d/" in str(largest)
        if what == "gone":
            largest.unlink()
        else:
            largest = folder / "meta/metadata" if what == "meta" else largest
            os.truncate(largest, largest.stat().st_size // 2)
        return saved

    orbax_save = module.ocp.CheckpointManager.save
    # So large that they have a file of their own.
    trees = {"ema_params": {"a": np.random.default_rng(0).random((500, 500))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(3, state_at(3, 1.0).trees(), {"config": {}})
        monkeypatch.setattr(module.ocp.CheckpointManager, "save", save)
        with pytest.raises(OSError, match="cannot save the checkpoint of step 5 .* is kept$"):
            checkpoints.save_last(5, trees, {"config": {}})
        assert checkpoints.last_step() == 3 and checkpoints.last_meta() == {"config": {}}
        with pytest.raises(OSError, match="cannot save .* or choose another --workdir$"):
            checkpoints.save_last(3, trees, {"config": {}})


def test_a_whole_checkpoint_stays_when_another_process_is_gone(tmp_path, monkeypatch):
    """Orbax waits for all processes again after it has renamed the folder."""

    def save(manager, step, **more):
        orbax_save(manager, step, **more)
        raise RuntimeError("the barrier failed")

    orbax_save = module.ocp.CheckpointManager.save
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(module.ocp.CheckpointManager, "save", save)
        with pytest.raises(OSError, match="step 5 .the barrier failed"):
            checkpoints.save_last(5, state_at(5, 1.0).trees(), {"config": {}})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step() == 5
        restored = checkpoints.restore_last(state_at(0, 0.0).trees())
        assert (np.asarray(restored["ema_params"]["w"]) == 1.5).all()


def test_a_checkpoint_moves_to_another_number_of_devices(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    meta = {"config": {}, "step": 3}
    checkpoints.save_last(3, parallel.replicate(state_at(3, 1.0)).trees(), meta)
    code = (
        "import sys, jax, jax.numpy as jnp; from segdiff_jax.runtime.checkpoint import *;"
        "assert jax.device_count() == 1;"
        "like = {'params': {'w': jax.ShapeDtypeStruct((2, 3), jnp.float32)}};"
        "variables = load_variables(find_checkpoint(sys.argv[1]), like);"
        "print(float(variables['params']['w'].sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert float(output) == 9.0


def test_a_second_best_of_the_same_step_replaces_the_first(workdir):
    checkpoints = Checkpoints(workdir)
    checkpoints.save_best(5, params_of(4.0), {"config": {}, "step": 5, "iou": 1})
    assert checkpoints.best_meta()["iou"] == 1
    variables = load_variables(find_checkpoint(workdir), LIKE)
    np.testing.assert_array_equal(variables["params"]["w"], np.full((2, 3), 4.0))


def test_what_a_run_killed_while_saving_leaves_is_no_checkpoint(workdir):
    last = workdir / "checkpoints" / "last"
    left_over = last / "9.orbax-checkpoint-tmp"
    shutil.copytree(last / "7", left_over)
    assert find_checkpoint(last).name == "7"
    assert Checkpoints(workdir).last_meta()["step"] == 7
    assert not left_over.exists()


def test_a_new_workdir_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last_meta() is checkpoints.best_meta() is checkpoints.last_step() is None


@pytest.mark.parametrize(
    "path, step, value",
    [
        (".", 5, 9.0),
        ("checkpoints/best", 5, 9.0),
        ("checkpoints/last", 7, 2.5),
        ("checkpoints/last/7", 7, 2.5),
    ],
)
def test_a_checkpoint_is_found(workdir, path, step, value):
    found = find_checkpoint(workdir / path)
    assert found.name == str(step) and load_meta(found)["step"] == step
    variables = load_variables(found, LIKE)
    np.testing.assert_array_equal(variables["params"]["w"], np.full((2, 3), value))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint there; give a workdir"):
        find_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("like", [{"w": (3, 3)}, {"v": (2, 3)}])
def test_another_networks_checkpoint_is_refused(workdir, like):
    like = {"params": {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in like.items()}}
    with pytest.raises(ValueError, match=r"best/5: not a checkpoint of this network"):
        load_variables(find_checkpoint(workdir), like)


def test_a_damaged_checkpoint_is_refused(workdir):
    found = find_checkpoint(workdir)
    for path in (found / "ema_params").rglob("*"):
        if path.is_file() and "manifest" in path.name:
            path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a checkpoint of this network, or damaged"):
        load_variables(found, LIKE)


def test_a_full_disk_keeps_the_former_checkpoint(workdir, monkeypatch):
    checkpoints = Checkpoints(workdir)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._managers["last"], "save", full)
    with pytest.raises(OSError, match="cannot save the checkpoint of step 8.*former checkpoint"):
        checkpoints.save_last(8, state_at(8, 0.0).trees(), {})
    assert Checkpoints(workdir).last_meta()["step"] == 7


def test_the_time_of_a_checkpoint(workdir):
    found = find_checkpoint(workdir)
    os.utime(found / "meta", (1_700_000_000, 1_700_000_000))
    assert saved_at(found) == "2023-11-14 22:13:20 UTC"


def test_what_orbax_says_of_a_full_disk_is_not_logged_but_other_errors_are(caplog):
    """The message of a record may be the exception itself, or another object."""
    logger = logging.getLogger("asyncio")
    logger.error(OSError("Future exception was never retrieved"))
    logger.error("Task exception was never retrieved\nfuture: ...")
    logger.error(OSError("another"))
    logger.error("text")
    assert [str(record.msg) for record in caplog.records] == ["another", "text"]
