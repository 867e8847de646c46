"""What the real libraries keep of a run, where they are installed (requirements-trackers.txt)."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import default
from segdiff_jax.config import flatten
from segdiff_jax.runtime.stop import Stopped
from segdiff_jax.training.logs import Logs
from tests.conftest import ROOT
from tests.training.test_trackers import (
    TRAIN,
    after_the_kill,
    before_the_kill,
    log,
    opened,
    settings_of,
)


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """In offline mode, its settings and caches in `tmp_path`."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()


def records(path):
    """Of an offline run: after 7 bytes, a LevelDB log of protobuf records.

    In blocks of 32 KiB lie pieces: CRC u32, length u16, type u8 (whole, first, middle, last).
    """
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(path):
    rows = [record.history for record in records(path) if record.HasField("history")]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wandb_keeps_each_step_at_its_place(wandb, tmp_path, kill):
    workdir = tmp_path / "isic"
    workdir.mkdir()
    if kill:  # It has written little, or nothing, of what it was told.
        killed = (
            "import os, pathlib; from tests.training.test_trackers import before_the_kill;"
            f"before_the_kill(pathlib.Path({str(workdir)!r}), ['wandb']); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", killed], cwd=ROOT).returncode == -9
    else:
        before_the_kill(workdir, ["wandb"]).__exit__(Stopped)
    (first,) = workdir.glob("wandb/offline-run-*/run-*.wandb")
    after_the_kill(workdir, ["wandb"])
    wandb.teardown()  # It writes in a process of its own.
    (second,) = {*workdir.glob("wandb/offline-run-*/run-*.wandb")} - {first}
    id = json.loads((workdir / "trackers.json").read_text())["wandb"]
    assert first.stem == second.stem == f"run-{id}"
    whole = [(2, 1, 1), (4, 2, 2), (5, 2, 0.2), (6, 3, 3), (8, 4, 4), (9, 4, 0.4), (10, 5, 5)]
    former, latter = (
        [(r["_step"], r["step"], r.get("loss", r.get("validation_iou"))) for r in history(file)]
        for file in (first, second)
    )
    assert latter == whole[2:] and former == whole[: len(former)] and (kill or len(former) == 6)
    picture = history(second)[-2]["validation.path"]
    grid = np.asarray(Image.open(second.parent / "files" / picture))
    assert grid.shape == (32, 12, 3)
    np.testing.assert_array_equal(grid[0, :, 0], np.repeat([10, 20, 30], 4))
    found = list(records(second))
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id) == ("segdiff_jax", "isic", id)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["train"] == TRAIN | {"trackers": ["wandb"]} and config["seed"] == 0
    metrics = [(r.metric.glob_name, r.metric.step_metric) for r in found if r.HasField("metric")]
    assert ("*", "step") in metrics
    ends = lambda file: [r.exit.exit_code for r in records(file) if r.HasField("exit")]
    assert ends(second) == [0]
    if not kill:
        assert ends(first) == [1]
        assert any(record.HasField("preempting") for record in records(first))


def test_wandb_goes_beside_a_run_of_the_callers(wandb, tmp_path):
    mine = wandb.init(project="mine", dir=tmp_path)
    with opened(tmp_path, 0, ["wandb"]) as logs:
        log(logs, 1)
    mine.log({"a": 1})
    assert wandb.run is mine
    mine.finish()


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Of a database in `tmp_path`, as trackers find it there."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)  # Pictures go to mlruns/.
    return pytest.importorskip("mlflow").MlflowClient()


def test_mlflow_keeps_each_step_once(client, tmp_path):
    workdir = tmp_path / "isic"
    workdir.mkdir()
    before_the_kill(workdir, ["mlflow"])
    after_the_kill(workdir, ["mlflow"])
    (run,) = client.search_runs([client.get_experiment_by_name("segdiff_jax").experiment_id])
    id = json.loads((workdir / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_id, run.info.run_name, run.info.status) == (id, "isic", "FINISHED")
    settings = flatten(settings_of(["mlflow"]))
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    assert run.data.params["train.trackers"] == "('mlflow',)"
    history = lambda name: [(m.step, m.value) for m in client.get_metric_history(id, name)]
    assert history("loss") == [(step, step) for step in range(1, 6)]
    assert history("learning_rate") == [(step, 0.5) for step in range(1, 6)]
    assert history("validation_iou") == [(2, 0.2), (4, 0.4)]
    paths = [a.path for a in client.list_artifacts(id, "images") if a.path.endswith(".png")]
    assert [path.partition("step")[2][1] for path in sorted(paths)] == ["2", "4"]
    path = paths[0]
    grid = np.asarray(Image.open(client.download_artifacts(id, path)))
    np.testing.assert_array_equal(grid[0, :, 0], np.repeat([10, 20, 30], 4))
    assert grid.shape == (32, 12, 3)


def test_mlflow_knows_how_a_run_ended_and_that_it_goes_on(client, tmp_path):
    status = lambda: client.search_runs(["1"])[0].info.status
    for step, (error, expected) in enumerate(
        [(Stopped, "KILLED"), (FloatingPointError, "FAILED"), (None, "FINISHED")]
    ):
        logs = opened(tmp_path, step, ["mlflow"], num_steps=step, log_every=step % 2)
        assert status() == "RUNNING"
        log(logs, step + 1)
        logs.__exit__(error)
        assert status() == expected
    (run,) = client.search_runs(["1"])
    # What changed is a tag.
    first = flatten(settings_of(["mlflow"], num_steps=0, log_every=0))
    assert run.data.params == {name: str(value) for name, value in first.items()}
    assert run.data.tags["train.num_steps"] == "2" and run.data.tags["train.log_every"] == "0"


def test_an_mlflow_that_is_lost_does_not_end_the_run(client, tmp_path, monkeypatch, capsys):
    with opened(tmp_path, 0, ["mlflow"]) as logs:
        log(logs, 1)
        client.delete_run(logs._trackers._open["mlflow"].id)
        log(logs, 2, 3)
    told = capsys.readouterr().out
    assert told.count("mlflow is left out until the next start: ") == 1
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4


def test_mlflow_keeps_the_whole_config(client, tmp_path):
    config = default.get_config()
    config.train.trackers = ("mlflow",)
    with Logs(tmp_path, config, 0):
        pass
    (run,) = client.search_runs(["1"])
    settings = flatten(config.to_dict())
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    assert run.data.params["model.channel_mult"] == "(1, 2, 2, 4)" and not run.data.metrics
