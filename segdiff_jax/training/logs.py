"""What a run shows and writes: progress bar, metrics.csv, TensorBoard."""

import csv
import sys
import time
from pathlib import Path

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
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self._path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._num_steps, self._max_minutes = num_steps, max_minutes
        self._first, self._start, self._iou = step, time.monotonic(), "not yet known"
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            desc="training",
            unit="step",
            bar_format="{desc}: {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            postfix="compiling",
        )

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()
        self._writer.close()

    def tick(self) -> None:
        """Counts a step on the progress bar."""
        self._bar.update()

    def steps(self, step: int, values: dict[str, float]) -> None:
        """Records the means over the steps since the last call."""
        self._row(step, values)
        postfix = (
            f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s, "
            f"{values['data_share']:.0%} in data, IoU {self._iou}, ETA {self._eta(step, values)}"
        )
        self._bar.set_postfix_str(postfix, refresh=False)

    def _eta(self, step: int, values: dict[str, float]) -> str:
        pace = (time.monotonic() - self._start) / max(step - self._first, 1)
        seconds = pace * (self._num_steps - step)
        if self._max_minutes:
            seconds = min(seconds, 60 * max(self._max_minutes - values["minutes"], 0))
        return tqdm.format_interval(seconds)

    def validation(self, step: int, iou: float, pictures: list[np.ndarray]) -> None:
        """Records a validation IoU and shows up to 8 rows of image, truth and prediction."""
        self._iou = f"{iou:.3f}"
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
