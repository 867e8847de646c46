"""Where the numbers and pictures of a run are shown: TensorBoard, Weights & Biases, MLflow.

Names, places and modes are those of the libraries' environment variables: WANDB_PROJECT,
WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from segdiff_jax.config import flatten
from segdiff_jax.runtime.stop import Stopped

PROJECT = "segdiff_jax"


class TensorBoard:
    """One tracker; the others are made and used like this one, and may raise anything.

    They are made of the config, the workdir, the last step that counts and the `id` of the run that
    goes on, None for a new one. Their `id` then is that of the run; None: the workdir is enough.
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

    def images(self, step: int, values: dict[str, np.ndarray]) -> None:
        """values: u8[H, W, 3] each."""
        self._check()
        for name, image in values.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, kind: type[BaseException] | None) -> None:
        """kind: of the exception that ends the training, if one does."""
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
        # W&B's own steps never go back: below this one, it has what comes, of a run that was
        # killed. Offline, it does not know, and gets it again at the same place.
        self._next = self._run.step

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._log(step, values)

    def images(self, step: int, values: dict[str, np.ndarray]) -> None:
        self._log(step, {name: self._image(image) for name, image in values.items()})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # A validation comes after the row of its step, maybe only when the run goes on.
        place = 2 * step + any(name.startswith("validation") for name in values)
        if place >= self._next:
            self._run.log({"step": step} | values, step=place)

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
        # The last step of each name: of a run that was killed, it has them already.
        history = {name: self._client.get_metric_history(id, name) for name in data.metrics}
        self._last = {name: max(m.step for m in metrics) for name, metrics in history.items()}
        pictures = {k: int(v) for k, v in data.tags.items() if k.startswith("last_step.")}
        self._last |= {tag.removeprefix("last_step."): step for tag, step in pictures.items()}
        # Every server takes 500 characters. A parameter stays as it is: what changes is a tag.
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

    def images(self, step: int, values: dict[str, np.ndarray]) -> None:
        for name, image in values.items():
            if step > self._last.get(name, -1):
                self._client.log_image(self.id, image, key=name, step=step, synchronous=True)
                self._client.set_tag(self.id, f"last_step.{name}", step)

    def close(self, kind: type[BaseException] | None) -> None:
        self._client.set_terminated(self.id, how_ended(kind))


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def how_ended(kind: type[BaseException] | None) -> str:
    """MLflow's word for it; a run that was KILLED goes on."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, (Stopped, KeyboardInterrupt)) else "FAILED"
