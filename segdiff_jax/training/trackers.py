"""Where the numbers and pictures of a run are shown: TensorBoard, Weights & Biases, MLflow.

Names, places and modes come from the libraries' environment variables: WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on.
"""

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdiff_jax.config import flatten
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import write_file
from segdiff_jax.runtime.stop import Stopped

PROJECT = "segdiff_jax"


class TensorBoard:
    """One tracker; the others have the same methods, and may raise anything.

    It gets the config, the workdir, the last step that counts and the `id` of the run that resumes,
    None for a new one. Afterwards `id` is the run's; None: the workdir is enough.
    """

    id = None

    def __init__(self, settings: dict[str, Any], workdir: Path, step: int, id: str | None):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._thread = getattr(self._writer.file_writer.event_writer, "_worker", None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._check()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Shows the picture of a validation, u8[H, W, 3]."""
        self._check()
        self._writer.add_image("validation", picture, step, dataformats="HWC")

    def close(self, kind: type[BaseException] | None) -> None:
        """kind: of the exception that ends the training, if any."""
        if not (kind and issubclass(kind, OSError)):  # On a full disk, it fails.
            self._check()
            self._writer.close()

    def _check(self) -> None:
        """A full disk ends the thread that writes; what is queued would then block the run."""
        if self._thread and not self._thread.is_alive():
            raise OSError("its files cannot be written")


class WandB:
    def __init__(self, settings: dict[str, Any], workdir: Path, step: int, id: str | None):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(workdir)),
            config=settings,
            allow_val_change=True,
            id=id,
            resume="allow",
            reinit="create_new",  # Beside a run of the caller's.
            settings=wandb.Settings(console="off"),  # Else it uploads the progress bar.
        )
        self.id = self._run.id
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        # W&B's own steps never go back. Below this one, it has the rows of a run that was killed.
        # Offline, it does not know this one, and gets the rows again at the same place.
        self._next = self._run.step

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        # A validation comes after the row of its step, maybe only when the run resumes.
        place = 2 * step + any(name.startswith("validation") for name in values)
        if place >= self._next:
            self._run.log({"step": step} | values, step=place)

    def picture(self, step: int, picture: np.ndarray) -> None:
        self.scalars(step, {"validation": self._image(picture)})

    def close(self, kind: type[BaseException] | None) -> None:
        status = how_ended(kind)
        if status == "KILLED":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(status != "FINISHED"))


class MLflow:
    def __init__(self, settings: dict[str, Any], workdir: Path, step: int, id: str | None):
        from mlflow import MlflowClient, entities

        self._client, self._metric = MlflowClient(), entities.Metric
        if id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            id = self._client.create_run(experiment, run_name=workdir.resolve().name).info.run_id
        self._client.update_run(id, status="RUNNING")
        self.id, data = id, self._client.get_run(id).data
        # The last step of each name: up to there, it has the values of a run that was killed.
        history = {name: self._client.get_metric_history(id, name) for name in data.metrics}
        self._last = {name: max(m.step for m in metrics) for name, metrics in history.items()}
        self._last["validation"] = int(data.tags.get("last_step.validation", -1))
        # Every server takes 500 characters. A parameter cannot change: its new value is a tag.
        values = {name: str(value)[:500] for name, value in flatten(settings).items()}
        params = [entities.Param(k, v) for k, v in values.items() if k not in data.params]
        current = data.params | data.tags
        changed = {k: v for k, v in values.items() if current.get(k, v) != v}
        tags = [entities.RunTag(k, v) for k, v in changed.items()]
        self._client.log_batch(id, params=params, tags=tags)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        new = {k: v for k, v in values.items() if step > self._last.get(k, -1)}
        metrics = [self._metric(k, v, now, step) for k, v in new.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def picture(self, step: int, picture: np.ndarray) -> None:
        if step > self._last["validation"]:
            self._client.log_image(self.id, picture, key="validation", step=step, synchronous=True)
            self._client.set_tag(self.id, "last_step.validation", step)

    def close(self, kind: type[BaseException] | None) -> None:
        self._client.set_terminated(self.id, how_ended(kind))


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def how_ended(kind: type[BaseException] | None) -> str:
    """MLflow's word for the end of a run; a run that was KILLED will resume."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, (Stopped, KeyboardInterrupt)) else "FAILED"


def check_trackers(names: Sequence[str]) -> None:
    """Raises a UserError that names the first tracker that is not installed."""
    for name in names:
        spec = name == "tensorboard" or importlib.util.find_spec(name)
        # A folder of the same name, as wandb makes it, can be imported, but has no origin.
        if not getattr(spec, "origin", spec):
            raise UserError(
                f"train.trackers: {name} is not installed: pip install -r requirements-trackers.txt"
            )


class Trackers:
    """The trackers of a run; one that fails is left out, and the training continues.

    trackers.json in the workdir has the ids of their runs, which continue after a restart.
    """

    def __init__(self, names: Sequence[str], settings: dict[str, Any], workdir: Path, step: int):
        """Opens them, at step 0 for new runs.

        A UserError says that trackers.json is not ours or, at step 0, which tracker does not open.
        """
        path, self._open = workdir / "trackers.json", {}
        runs = read_runs(path)
        if not step:
            runs = {}
            path.unlink(missing_ok=True)
        for name in names:
            try:
                tracker = TRACKERS[name](settings, workdir, step, runs.get(name))
                self._open[name] = tracker
                if tracker.id != runs.get(name):
                    write_file(path, json.dumps(runs | {name: tracker.id}))
                    runs[name] = tracker.id
            except Exception as error:
                if step:
                    self._leave_out(name, error)
                    continue
                self.tell("close", UserError)
                raise UserError(
                    f"train.trackers: {name} cannot be opened ({reason(error)}): set it up, or "
                    "leave it out"
                ) from error

    def tell(self, method: str, *arguments: Any) -> None:
        """Calls a method of each tracker: "scalars", "picture" or "close"."""
        for name, tracker in list(self._open.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        tqdm.write(f"{name} is left out until the next start: {reason(error)}")


def read_runs(path: Path) -> dict[str, str]:
    """The id of each tracker's run in a trackers.json, which may be absent."""
    if not path.exists():
        return {}
    with contextlib.suppress(ValueError):
        runs = json.loads(path.read_text())
        if isinstance(runs, dict) and all(isinstance(id, str) for id in runs.values()):
            return runs
    raise UserError(
        f"{path} is damaged, or not of train.py: move it away, and the trackers begin new runs"
    )


def reason(error: Exception) -> str:
    """The first line of an error, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
