"""What a run shows and writes: progress bar, metrics.csv, TensorBoard."""

import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

COLUMNS = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "images_per_second",
    "data_share",
    "minutes",
    "validation_iou",
)


class Logs:
    """Logs of one run from `step` on; rows of later steps, of a run that was killed, go.

    metrics.csv has a row per logged step; `loss` and `grad_norm` are means over the steps since
    the row before, `data_share` is the part of the time spent waiting for data.
    """

    def __init__(self, workdir: Path, step: int, num_steps: int, max_minutes: float):
        self._path = workdir / "metrics.csv"
        self._trim(step)
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._num_steps, self._max_minutes, self._iou = num_steps, max_minutes, ""
        self._first, self._start = step, time.monotonic()
        self._window: list[dict[str, Any]] = []
        self._data_seconds, self._clock = 0.0, time.monotonic()
        total = "{n_fmt} steps" if max_minutes else "{bar:20} {n_fmt}/{total_fmt} steps"
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            desc="training",
            bar_format=f"{{desc}}: {total} [{{elapsed}}{{postfix}}]",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            postfix="compiling",
        )

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()
        self._writer.close()

    def _trim(self, step: int) -> None:
        """Keeps the complete rows up to `step`."""
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
        if rows and tuple(rows[0]) != COLUMNS:
            raise ValueError(f"{self._path} is not the log of a training run: move it away")
        rows = [row for row in rows if int(row["step"]) <= step]
        temporary = self._path.with_name(".metrics.csv.part")
        with temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        os.replace(temporary, self._path)

    def collect(self, metrics: dict[str, Any], data_seconds: float) -> None:
        """Notes one step's metrics, still on the device, and the time it waited for data."""
        self._window.append(metrics)
        self._data_seconds += data_seconds
        self._bar.update()

    def restart_clock(self) -> None:
        """Leaves what came since `flush` out of the speed: validation and saving."""
        self._clock = time.monotonic()

    def flush(self, step: int, learning_rate: float, minutes: float, batch_size: int) -> None:
        """Records the means over the steps since the last call.

        Raises:
            FloatingPointError: naming the first step with NaN or infinity.
        """
        values = {k: np.array([float(m[k]) for m in self._window]) for k in self._window[0]}
        check_finite(values, step)
        seconds = time.monotonic() - self._clock
        row = {name: float(v.mean()) for name, v in values.items()}
        row["learning_rate"] = learning_rate
        row["images_per_second"] = len(self._window) * batch_size / seconds
        row["data_share"] = self._data_seconds / seconds
        row["minutes"] = minutes
        self._row(step, row)
        self._bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['images_per_second']:.1f} images/s, "
            f"{row['data_share']:.0%} in data{self._iou}, {self._time(step, minutes)}",
            refresh=False,
        )
        self._window, self._data_seconds, self._clock = [], 0.0, time.monotonic()

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
        rows = [np.concatenate(row, axis=1) for row in zip(*(p[:8] for p in pictures), strict=True)]
        grid = np.concatenate(rows, axis=0)
        self._writer.add_image("validation", grid, step, dataformats="HWC")

    def _row(self, step: int, values: dict[str, float]) -> None:
        with self._path.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writerow({"step": step} | {k: f"{v:.6g}" for k, v in values.items()})
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def check_finite(values: dict[str, np.ndarray], step: int) -> None:
    """Raises FloatingPointError naming the first step with NaN or infinity of those up to `step`.

    `values` maps a metric's name to its values at the last steps, f64[N].
    """
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
        bad = int(np.argmin(finite))
        what = ", ".join(f"{name} {v[bad]}" for name, v in values.items())
        raise FloatingPointError(
            f"step {step - len(finite) + bad + 1}: {what}; what was saved before is kept. Lower "
            "train.learning_rate or train.clip_norm"
        )
