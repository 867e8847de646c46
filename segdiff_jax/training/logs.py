"""What a run shows and writes: progress bar, metrics.csv, trackers."""

import contextlib
import csv
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from segdiff_jax.training.tracking import Trackers

COLUMNS = (
    "step",
    "loss",
    "mse",
    "vb",
    "bce",
    "dice",
    "grad_norm",
    "learning_rate",
    "images_per_second",
    "data_share",
    "minutes",
    "validation_iou",
)
FORMER = tuple(name for name in COLUMNS if name != "vb")  # of runs begun before there was one


class Logs:
    """Logs of one run from `step` on; rows of later steps, of a run that was killed, go.

    metrics.csv has a row per logged step; `loss`, its terms and `grad_norm` are means over the
    steps since the row before, `data_share` is the part of the time spent waiting for data.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        num_steps: int,
        max_minutes: float,
        max_skipped: int = 0,
        pending: Sequence[dict[str, float]] = (),
        writes: bool = True,
        trackers: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
    ):
        """Opens the logs of a workdir.

        Args:
            workdir: as that of the run.
            step: the last one that counts.
            num_steps, max_minutes: at which the run ends.
            max_skipped: steps in a row that may be without an update, see `check_finite`.
            pending: what `pending` gave at `step`, of a run that is resumed.
            writes: whether to write and show anything.
            trackers: names of `TRACKERS`, which show the same.
            settings: the config, for them.
        Raises:
            ValueError: if there is a metrics.csv of another kind; as `Trackers`.
            OSError: naming a file that cannot be written.
        """
        self._path, self._writes, self._max_skipped = workdir / "metrics.csv", writes, max_skipped
        if writes:
            self._trim(step)
            self._trackers = Trackers(trackers, settings or {}, workdir, step)
        self._num_steps, self._max_minutes, self._iou = num_steps, max_minutes, ""
        self._first, self._start = step, time.monotonic()
        self._window: list[dict[str, Any]] = list(pending)
        self._new = 0  # steps of the window that were taken here
        self._data_seconds, self._clock, self._compiling = 0.0, time.monotonic(), True
        total = "{n_fmt} steps" if max_minutes else "{bar:20} {n_fmt}/{total_fmt} steps"
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            desc="training",
            bar_format=f"{{desc}}: {total} [{{elapsed}}{{postfix}}]",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            postfix="compiling",
            disable=not writes,
        )

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        self._bar.close()
        if self._writes:
            self._trackers.close(kind)

    def _trim(self, step: int) -> None:
        """Keeps the complete rows up to `step`."""
        rows = complete_rows(self._path)
        if rows and tuple(rows[0]) not in (COLUMNS, FORMER):
            raise ValueError(f"{self._path} is not the log of a training run: move it away")
        rows = [row for row in rows if int(row["step"]) <= step] if step else []
        temporary = self._path.with_name(".metrics.csv.part")
        with naming(self._path):
            with temporary.open("w", newline="") as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(rows)
            os.replace(temporary, self._path)

    def collect(self, metrics: dict[str, Any], data_seconds: float) -> None:
        """Notes one step's metrics, still on the device, and the time it waited for data."""
        self._window.append(metrics)
        self._new += 1
        self._data_seconds += data_seconds
        if self._compiling:
            jax.block_until_ready(metrics)
            self._bar.set_postfix_str("", refresh=False)
            self._compiling = False
        self._bar.update()

    def restart_clock(self) -> None:
        """Leaves what came since `flush` out of the speed: validation and saving."""
        self._clock = time.monotonic()

    def pending(self, step: int) -> list[dict[str, float]]:
        """The metrics of each step up to `step` that no row holds yet.

        Raises:
            FloatingPointError: as `flush`.
        """
        self._window = [{k: float(v) for k, v in metrics.items()} for metrics in self._window]
        check_finite(self._window, step, self._max_skipped)
        return self._window

    def flush(self, step: int, learning_rate: float, minutes: float, batch_size: int) -> None:
        """Records the means over the steps since the last call, but for those without an update.

        Raises:
            FloatingPointError: naming the first step with NaN or infinity.
            OSError: naming a file that cannot be written.
        """
        updated = [metrics for metrics in self.pending(step) if not metrics["nonfinite"]]
        skipped = len(self._window) - len(updated)
        if skipped:
            self._bar.write(f"{skipped} steps up to {step} had NaN or infinite gradients: skipped")
        names = updated[0].keys() - {"nonfinite"} if updated else ()
        row = {name: float(np.mean([m[name] for m in updated])) for name in names}
        seconds = time.monotonic() - self._clock
        row["learning_rate"] = learning_rate
        row["images_per_second"] = self._new * batch_size / seconds
        row["data_share"] = self._data_seconds / seconds
        row["minutes"] = minutes
        self._row(step, row)
        self._bar.set_postfix_str(
            f"loss {row.get('loss', math.nan):.4f}, {row['images_per_second']:.1f} images/s, "
            f"{row['data_share']:.0%} in data{self._iou}, {self._time(step, minutes)}",
            refresh=False,
        )
        self._window, self._new = [], 0
        self._data_seconds, self._clock = 0.0, time.monotonic()

    def _time(self, step: int, minutes: float) -> str:
        pace = (time.monotonic() - self._start) / max(step - self._first, 1)
        seconds, done = pace * (self._num_steps - step), ""
        if self._max_minutes:
            seconds = min(seconds, 60 * max(self._max_minutes - minutes, 0))
            done = f"{minutes:.1f} of {self._max_minutes:g} minutes, "
        return f"{done}ETA {tqdm.format_interval(seconds)}"

    def validation(self, step: int, iou: float, pictures: list[np.ndarray]) -> None:
        """Records a validation IoU and shows up to 8 rows of image, truth and prediction."""
        self._iou = f", IoU {iou:.3f}"
        self._row(step, {"validation_iou": iou})
        if not self._writes:
            return
        rows = [np.concatenate(row, axis=1) for row in zip(*(p[:8] for p in pictures), strict=True)]
        grid = np.concatenate(rows, axis=0)
        self._trackers.images(step, {"validation": grid})

    def _row(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        with naming(self._path), self._path.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writerow({"step": step} | {k: f"{v:.6g}" for k, v in values.items()})
        self._trackers.scalars(step, values)


def complete_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file, which may be absent; a run that is killed may leave a torn line."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def has_validation(workdir: Path, step: int) -> bool:
    """Whether a run's metrics.csv has the validation of a step."""
    rows = complete_rows(workdir / "metrics.csv")
    return any(row.get("step") == str(step) and row.get("validation_iou") for row in rows)


def check_finite(window: Sequence[dict[str, float]], step: int, max_skipped: int = 0) -> None:
    """Raises FloatingPointError naming the first step with NaN or infinity of those up to `step`.

    Args:
        window: the metrics of the last steps; of a step that was left out for its gradient,
            "nonfinite" counts it, from 1.
        step: the last one.
        max_skipped: up to this count, that is no error.
    """
    for i, metrics in enumerate(window):
        numbers = {name: value for name, value in metrics.items() if name != "nonfinite"}
        skipped = 0 < metrics["nonfinite"] <= max_skipped
        if not skipped and not np.isfinite(list(numbers.values())).all():
            what = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
            raise FloatingPointError(f"step {step - len(window) + i + 1}: {what}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError says that `path` cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): make room or choose another "
            "--workdir; the last checkpoint is kept"
        ) from error
