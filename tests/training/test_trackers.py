"""What trackers get, of a run in one piece or several, and what becomes of one that fails."""

import contextlib
import csv
import importlib.machinery
import importlib.util
import struct
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from segdiff_jax.config import changes, default_config
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.stop import Stopped
from segdiff_jax.schema import NETWORK, RUN
from segdiff_jax.training.logs import Logs
from segdiff_jax.training.loop import train
from segdiff_jax.training.trackers import TRACKERS, check_trackers
from tests.conftest import ROOT

PICTURES = [np.full((9, 4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
TRAIN = {"num_steps": 6, "max_minutes": 0.0, "batch_size": 4, "max_skipped": 0}
ENDS = [
    (None, "FINISHED"),
    (Stopped("", 15), "KILLED"),
    (KeyboardInterrupt(), "KILLED"),
    (FloatingPointError(), "FAILED"),
]


class FakeRun:
    online = True  # It knows what a run of the same id has.

    def __init__(self, id):
        self.id, self.metrics, self.rows, self.ends = id, [], [], []
        self.step = 0

    def define_metric(self, name, **arguments):
        self.metrics.append((name, arguments))

    def log(self, row, step):
        assert step >= self.step
        self.rows.append(row | {"_step": step})
        if self.online:
            self.step = step  # The next row's at the earliest: what has one step is merged.

    def mark_preempting(self):
        self.ends.append("preempting")

    def finish(self, exit_code):
        self.ends.append(exit_code)


def module(name, **contents):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="fake")
    made.__dict__.update(contents)
    return made


@pytest.fixture
def wandb(monkeypatch):
    """A fake in its place, with what `init` was told and the runs that it made."""
    made = module("wandb", inits=[], runs={}, Image=lambda x: ("image", x.shape, x.max()))

    def init(id, **arguments):
        id = id or f"run{len(made.runs)}"
        made.inits.append({"id": id} | arguments)
        run = made.runs.setdefault(id, FakeRun(id))
        run.step += bool(run.rows) and run.online
        return run

    made.init, made.Settings = init, lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "wandb", made)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return made


class FakeClient:
    """Notes the calls, and knows the parameter seed as 1 and the metrics and tags it was told."""

    calls, metrics, tags = [], {}, {}  # Of a test: `mlflow` empties them.

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append((name, *arguments, named))
            for key, _, step in named.get("metrics", ()):
                self.metrics.setdefault(key, []).append(types.SimpleNamespace(step=step))
            if name == "set_tag":
                self.tags[arguments[1]] = str(arguments[2])
            if name in ("get_experiment_by_name", "create_experiment"):
                return None if name.startswith("get") else 7
            if name == "get_metric_history":
                return self.metrics[arguments[1]]
            data = {"params": {"seed": "1"}, "metrics": self.metrics, "tags": self.tags}
            info, data = {"run_id": "m0"}, types.SimpleNamespace(**data)
            return types.SimpleNamespace(info=types.SimpleNamespace(**info), data=data)

        return call


@pytest.fixture
def mlflow(monkeypatch):
    """A fake in its place; see `FakeClient`."""
    entities = types.SimpleNamespace(
        Metric=lambda key, value, timestamp, step: (key, value, step),
        Param=lambda *item: item,
        RunTag=lambda *item: item,
    )
    for name, empty in (("calls", []), ("metrics", {}), ("tags", {})):
        monkeypatch.setattr(FakeClient, name, empty)
    made = module("mlflow", MlflowClient=FakeClient, entities=entities, calls=FakeClient.calls)
    monkeypatch.setitem(sys.modules, "mlflow", made)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return made


def settings_of(trackers, **train):
    """What `Logs` reads of a config, and a seed."""
    return {
        "seed": 0,
        "train": TRAIN | {"trackers": tuple(trackers)} | train,
        "validation": {"scores": ("iou",)},
    }


def opened(workdir, step, trackers, **train):
    return Logs(workdir, ConfigDict(settings_of(trackers, **train)), step)


def log(logs, *steps, validates=()):
    """Rows with loss = step, and validations with IoU = step / 10."""
    for step in steps:
        logs.collect({"loss": float(step), "nonfinite": 0}, 0.0)
        logs.flush(step, 0.5, 1.0)
        if step in validates:
            logs.validation(step, {"iou": step / 10}, PICTURES)


def before_the_kill(workdir, trackers):
    """Four steps, the last of which is validated; nothing is closed."""
    logs = opened(workdir, 0, trackers)
    log(logs, 1, 2, 3, 4, validates=[2, 4])
    return logs


def after_the_kill(workdir, trackers):
    """Goes on from step 2, from the checkpoint of before its validation, which is owed."""
    with opened(workdir, 2, trackers) as logs:
        logs.validation(2, {"iou": 0.2}, PICTURES)
        log(logs, 3, 4, 5, validates=[4])


def csv_steps(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def events(folder):
    """TFRecords: length u64, CRC u32, data, CRC u32."""
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_gets_scalars_and_pictures_and_purges_what_comes_again(tmp_path):
    with opened(tmp_path, 0, ["tensorboard"]) as logs:
        log(logs, 1, 2, validates=[2])
    (tmp_path / "tensorboard").rename(tmp_path / "first")
    with opened(tmp_path, 1, ["tensorboard"]) as logs:
        log(logs, 2)
    values = [(e.step, v) for e in events(tmp_path / "first") for v in e.summary.value]
    scalars = {(v.tag, step): v.simple_value for step, v in values if not v.HasField("image")}
    assert scalars["loss", 1] == 1 and scalars["loss", 2] == 2
    assert scalars["validation_iou", 2] == pytest.approx(0.2)
    ((step, picture),) = [(step, v) for step, v in values if v.HasField("image")]
    # Eight rows of three pictures.
    assert (step, picture.tag) == (2, "validation")
    assert (picture.image.height, picture.image.width) == (32, 12)
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [2] and not (tmp_path / "trackers.json").exists()


def test_wandb_gets_each_step_once_in_one_run(wandb, tmp_path):
    before_the_kill(tmp_path, ["wandb"])
    after_the_kill(tmp_path, ["wandb"])
    first, second = wandb.inits
    assert first["id"] == second["id"] == "run0" and first["resume"] == "allow"
    assert (first["project"], first["name"]) == ("segdiff_jax", tmp_path.name)
    assert first["dir"] == str(tmp_path) and first["config"] == settings_of(["wandb"])
    run = wandb.runs["run0"]
    assert run.metrics[1] == ("*", {"step_metric": "step"})
    losses = [(r["step"], r["loss"]) for r in run.rows if "loss" in r]
    assert losses == [(step, step) for step in range(1, 6)]
    assert [row["_step"] for row in run.rows] == [2, 4, 5, 5, 6, 8, 9, 9, 10]
    told = [{k: v for k, v in row.items() if k != "_step"} for row in run.rows if row["_step"] % 2]
    assert told[:2] == [
        {"step": 2, "validation_iou": 0.2},
        {"step": 2, "validation": ("image", (32, 12, 3), 30)},
    ]


def test_what_an_offline_wandb_may_have_it_gets_again_at_the_same_place(
    wandb, tmp_path, monkeypatch
):
    monkeypatch.setattr(FakeRun, "online", False)
    before_the_kill(tmp_path, ["wandb"])
    after_the_kill(tmp_path, ["wandb"])
    losses = {(r["_step"], r["step"], r["loss"]) for r in wandb.runs["run0"].rows if "loss" in r}
    assert losses == {(2 * step, step, step) for step in range(1, 6)}


def test_a_validation_that_is_owed_comes_after_the_row_of_its_step(wandb, tmp_path):
    with opened(tmp_path, 0, ["wandb"]) as logs:
        log(logs, 1, 2)
    with opened(tmp_path, 2, ["wandb"]) as logs:
        logs.validation(2, {"iou": 0.2}, PICTURES)
    assert wandb.runs["run0"].rows[-2] == {"step": 2, "validation_iou": 0.2, "_step": 5}


def test_wandb_takes_names_from_its_environment(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "this")
    with opened(tmp_path, 0, ["wandb"]):
        pass
    assert (wandb.inits[0]["project"], wandb.inits[0]["name"]) == ("mine", "this")


def calls_of(mlflow, name):
    return [call for call in mlflow.calls if call[0] == name]


def test_mlflow_gets_each_step_once_in_one_run(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    before_the_kill(tmp_path, ["mlflow"])
    after_the_kill(tmp_path, ["mlflow"])
    assert calls_of(mlflow, "create_experiment") == [("create_experiment", "mine", {})]
    assert calls_of(mlflow, "create_run") == [("create_run", 7, {"run_name": tmp_path.name})]
    assert calls_of(mlflow, "update_run") == 2 * [("update_run", "m0", {"status": "RUNNING"})]
    assert mlflow.calls[-1] == ("set_terminated", "m0", "FINISHED", {})
    batches = [call[-1] for call in calls_of(mlflow, "log_batch")]
    params = [(f"train.{name}", str(value)) for name, value in sorted(TRAIN.items())]
    params += [("train.trackers", "('mlflow',)"), ("validation.scores", "('iou',)")]
    # The seed is a parameter that is known as 1.
    assert batches[0] == {"params": params, "tags": [("seed", "0")]}
    losses = [m for b in batches for m in b.get("metrics", ()) if m[0] == "loss"]
    assert losses == [("loss", step, step) for step in (1, 2, 3, 4, 5)]
    images = [(image.shape, named) for name, _, image, named in calls_of(mlflow, "log_image")]
    expected = [{"key": "validation", "step": step, "synchronous": True} for step in (2, 4)]
    assert images == [((32, 12, 3), named) for named in expected]


def test_long_values_are_cut_for_mlflow(mlflow, tmp_path):
    with opened(tmp_path, 0, ["mlflow"], init_from="x" * 600):
        pass
    ((*_, batch),) = calls_of(mlflow, "log_batch")
    assert ("train.init_from", "x" * 500) in batch["params"]


@pytest.mark.parametrize("error, status", ENDS)
def test_how_a_run_ended(wandb, mlflow, tmp_path, error, status):
    ends = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with ends, opened(tmp_path, 0, ["wandb", "mlflow"]):
        if error:
            raise error
    expected = {"FINISHED": [0], "KILLED": ["preempting", 1], "FAILED": [1]}
    assert wandb.runs["run0"].ends == expected[status]
    assert mlflow.calls[-1] == ("set_terminated", "m0", status, {})


def test_a_run_that_starts_anew_is_a_new_one(wandb, tmp_path):
    for _ in range(2):
        with opened(tmp_path, 0, ["wandb"]) as logs:
            log(logs, 1)
    assert [init["id"] for init in wandb.inits] == ["run0", "run1"]
    assert len(wandb.runs["run1"].rows) == 1
    with opened(tmp_path, 0, []):  # Later, it would not be the same run.
        pass
    assert not (tmp_path / "trackers.json").exists()


def test_a_tracker_that_was_left_out_for_a_while_goes_on_with_its_run(wandb, mlflow, tmp_path):
    for step, trackers in enumerate([["wandb"], ["mlflow"], [], ["mlflow", "wandb"]]):
        with opened(tmp_path, step, trackers) as logs:
            log(logs, step + 1)
    assert [row["step"] for row in wandb.runs["run0"].rows] == [1, 4]
    assert len(calls_of(mlflow, "create_run")) == 1
    before, now = default_config(), default_config()
    before.train.trackers, now.train.trackers = ("wandb",), ("mlflow",)
    assert list(changes(before, now)) == ["train.trackers"]
    assert not changes(before, now, (RUN, NETWORK))


@pytest.mark.parametrize("method", ["scalars", "picture", "close"])
def test_a_tracker_that_fails_is_told_of_once_and_left_out(
    wandb, mlflow, tmp_path, monkeypatch, capsys, method
):
    def fails(*arguments):
        raise ConnectionError("the network is down\nTraceback ...")

    monkeypatch.setattr(TRACKERS["wandb"], method, fails)
    with opened(tmp_path, 0, ["wandb", "mlflow", "tensorboard"]) as logs:
        log(logs, 1, 2, 3, validates=[2, 3])
    told = capsys.readouterr().out
    assert told == "wandb is left out until the next start: the network is down\n"
    metrics = [m for *_, named in mlflow.calls for m in named.get("metrics", ())]
    assert [m for m in metrics if m[0] == "loss"] == [("loss", s, s) for s in (1, 2, 3)]
    assert len(calls_of(mlflow, "log_image")) == 2
    assert csv_steps(tmp_path) == ["1", "2", "2", "3", "3"]


def test_a_tracker_that_cannot_be_opened_ends_a_new_run_only(wandb, mlflow, tmp_path, capsys):
    def fails(**arguments):
        raise RuntimeError("no API key")

    wandb.init = fails
    message = r"train.trackers: wandb cannot be opened \(no API key\): set it up, or leave it out"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, 0, ["mlflow", "wandb"])
    assert mlflow.calls[-1] == ("set_terminated", "m0", "FAILED", {})
    with opened(tmp_path, 3, ["wandb", "mlflow"]) as logs:
        log(logs, 4)
    assert capsys.readouterr().out == "wandb is left out until the next start: no API key\n"
    assert csv_steps(tmp_path) == ["4"]
    assert [call[:2] for call in mlflow.calls[-2:]] == [
        ("log_batch", "m0"),
        ("set_terminated", "m0"),
    ]


def test_a_tensorboard_that_cannot_write_does_not_block_the_run(tmp_path, capsys):
    with opened(tmp_path, 0, ["tensorboard"]) as logs:
        logs._trackers._open["tensorboard"]._thread.stop()  # As a full disk does.
        log(logs, *range(1, 7))
    assert capsys.readouterr().out == (
        "tensorboard is left out until the next start: its files cannot be written\n"
    )
    assert len(csv_steps(tmp_path)) == 6


@pytest.mark.parametrize(
    "text",
    ['{"wandb": ', "[]", '{"wandb": 1}', '{"wandb": {"id": "a"}}'],
)
def test_a_foreign_file_of_runs_is_not_overwritten(wandb, tmp_path, text):
    (tmp_path / "trackers.json").write_text(text)
    for step in (0, 3):
        with pytest.raises(UserError, match="trackers.json is damaged, or not of train.py: move"):
            opened(tmp_path, step, ["wandb"])
    assert (tmp_path / "trackers.json").read_text() == text and not wandb.inits


def test_other_processes_track_nothing(wandb, mlflow, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    with opened(tmp_path, 0, ["wandb", "mlflow", "tensorboard"]) as logs:
        log(logs, 1, validates=[1])
    assert not wandb.inits and not mlflow.calls and not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_there_is_told_of_before_anything_is_written(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config()
    config.train.trackers = ("tensorboard", "mlflow")
    message = "train.trackers: mlflow is not installed: pip install -r requirements-trackers.txt"
    folder = importlib.machinery.ModuleSpec("mlflow", None, is_package=True)
    for spec in (None, folder):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
            with pytest.raises(UserError, match=message):
                train(config, str(tmp_path / "run"))
    config.train.trackers = ("comet",)
    with pytest.raises(UserError, match=r"train.trackers=\('comet',\) must be some of \('tensorb"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_is_to_be_installed_is_what_the_file_says(wandb, mlflow):
    check_trackers(["wandb", "mlflow", "tensorboard"])
    text = (ROOT / "requirements-trackers.txt").read_text()
    assert "wandb>=" in text and "mlflow-skinny>=" in text


@pytest.mark.slow
def test_a_run_tells_its_trackers_the_config_and_its_rows(wandb, tiny_config, tmp_path):
    config = tiny_config()
    config.train.trackers, config.validation.every = ("wandb",), 0
    train(config, str(tmp_path))
    assert wandb.inits[0]["config"]["train"]["trackers"] == ("wandb",)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        expected = [float(row["loss"]) for row in csv.DictReader(file)]
    rows = wandb.runs["run0"].rows
    assert [row["step"] for row in rows] == [1, 2] and wandb.runs["run0"].ends == [0]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert not (tmp_path / "tensorboard").exists()
