"""The trackers of a run together: chosen, kept up with over its restarts, left out if they fail."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import write_file
from segdiff_jax.training.trackers import TRACKERS


def check_trackers(names: Sequence[str]) -> None:
    """Raises a UserError that names the first one that is not installed."""
    for name in names:
        # A folder of the same name, as wandb makes it, can be imported, but has no origin.
        found = name == "tensorboard" or importlib.util.find_spec(name)
        if not getattr(found, "origin", found):
            raise UserError(
                f"train.trackers: {name} is not installed: pip install -r requirements-trackers.txt"
            )


class Trackers:
    """Those of a run; one that fails is left out, and the training goes on.

    trackers.json in the workdir has the ids of their runs, which go on.
    """

    def __init__(self, names: Sequence[str], settings: dict[str, Any], workdir: Path, step: int):
        """Opens them, with the runs of before or, at step 0, new ones.

        Raises:
            UserError: if trackers.json is of another kind; at step 0, naming a tracker that cannot
                be opened.
        """
        self._path, self._open = workdir / "trackers.json", {}
        self._runs = read_runs(self._path)
        if not step:
            self._runs = {}
            self._path.unlink(missing_ok=True)
        for name in names:
            id = self._runs.get(name)
            try:
                self._open[name] = TRACKERS[name](settings, workdir, step, id)
                if self._open[name].id != id:
                    self._save(self._runs | {name: self._open[name].id})
            except Exception as error:
                if step:
                    self._leave_out(name, error)
                    continue
                self.close(UserError)
                raise UserError(
                    f"train.trackers: {name} cannot be opened ({reason(error)}): set it up, or "
                    "leave it out"
                ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._each(lambda tracker: tracker.scalars(step, values))

    def images(self, step: int, values: dict[str, np.ndarray]) -> None:
        self._each(lambda tracker: tracker.images(step, values))

    def close(self, kind: type[BaseException] | None) -> None:
        """kind: of the exception that ends the training, if one does."""
        self._each(lambda tracker: tracker.close(kind))

    def _each(self, call: Callable[[Any], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        tqdm.write(f"{name} is left out until the next start: {reason(error)}")

    def _save(self, runs: dict[str, str]) -> None:
        write_file(self._path, json.dumps(runs))
        self._runs = runs


def read_runs(path: Path) -> dict[str, str]:
    """Of a trackers.json, which may be absent: the id of each tracker's run."""
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
    """Its first line, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
