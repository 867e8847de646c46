"""What a run shows and writes: progress bar, metrics.csv, trackers."""

import csv
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from segdiff_jax.methods.losses import TERMS
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import complete_rows, naming, write_file
from segdiff_jax.training.trackers import Trackers

SPEED = "images_per_second", "data_share", "minutes"
COLUMNS = "step", "loss", *TERMS, "grad_norm", "learning_rate", *SPEED


class Logs:
    """The logs of one run; only the main process writes and shows anything.

    metrics.csv has a row per logged step. `loss`, its terms and `grad_norm` are means over the
    steps since the row before; `data_share` is the part of the time spent waiting for data.
    """

    def __init__(self, workdir: Path, config: ConfigDict, step: int, pending: Sequence[dict] = ()):
        """Removes the rows after `step`, which a killed run left; continues with what is `pending`.

        A UserError says that metrics.csv is not ours, or comes from `Trackers`. An OSError names a
        file that cannot be written.
        """
        self._path, self._train = workdir / "metrics.csv", config.train
        self._columns = *COLUMNS, *(f"validation_{name}" for name in config.validation.scores)
        self._writes = parallel.is_main()
        if self._writes:
            self._trim(step)
            self._trackers = Trackers(config.train.trackers, config.to_dict(), workdir, step)
        self._first, self._start, self._score = step, time.monotonic(), ""
        self._window: list[dict[str, Any]] = list(pending)
        self._new = 0  # steps of the window that were taken here
        self._data_seconds, self._clock, self._compiling = 0.0, time.monotonic(), True
        limited = config.train.max_minutes
        done = "{n_fmt} steps" if limited else "{bar:20} {n_fmt}/{total_fmt} steps"
        self._bar = tqdm(
            total=config.train.num_steps,
            initial=step,
            desc="training",
            bar_format=f"{{desc}}: {done} [{{elapsed}}{{postfix}}]",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            postfix="compiling",
            disable=not self._writes,
        )

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        self._bar.close()
        if self._writes:
            self._trackers.tell("close", kind)

    def _trim(self, step: int) -> None:
        """Keeps the complete rows up to `step`."""
        rows = complete_rows(self._path)
        if rows and not {"step", "loss", "grad_norm"} <= rows[0].keys():
            raise UserError(f"{self._path} is not the log of a training run: move it away")
        rows = [row for row in rows if int(row["step"]) <= step] if step else []
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\r\n")
        table.writeheader()
        table.writerows(rows)
        write_file(self._path, text.getvalue())

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
        """The metrics of each step up to `step` that no row holds yet; errors as of `flush`."""
        self._window = [{k: float(v) for k, v in metrics.items()} for metrics in self._window]
        check_finite(self._window, step, self._train.max_skipped)
        return self._window

    def flush(self, step: int, learning_rate: float, minutes: float) -> None:
        """Records the means over the steps since the last call, without skipped ones.

        A FloatingPointError names the first step with NaN or infinity.
        """
        updated = [metrics for metrics in self.pending(step) if not metrics["nonfinite"]]
        skipped = len(self._window) - len(updated)
        if skipped:
            self._bar.write(f"{skipped} steps up to {step} had NaN or infinite gradients: skipped")
        names = updated[0].keys() - {"nonfinite"} if updated else ()
        row = {name: float(np.mean([m[name] for m in updated])) for name in names}
        seconds = time.monotonic() - self._clock
        speed, share = self._new * self._train.batch_size / seconds, self._data_seconds / seconds
        row |= {"learning_rate": learning_rate, "images_per_second": speed}
        self._row(step, row | {"data_share": share, "minutes": minutes})
        self._bar.set_postfix_str(
            f"loss {row.get('loss', math.nan):.4f}, {speed:.1f} images/s, {share:.0%} in data"
            f"{self._score}, {self._time(step, minutes)}",
            refresh=False,
        )
        self._window, self._new = [], 0
        self._data_seconds, self._clock = 0.0, time.monotonic()

    def _time(self, step: int, minutes: float) -> str:
        pace = (time.monotonic() - self._start) / max(step - self._first, 1)
        seconds, done, limit = pace * (self._train.num_steps - step), "", self._train.max_minutes
        if limit:
            seconds = min(seconds, 60 * max(limit - minutes, 0))
            done = f"{minutes:.1f} of {limit:g} minutes, "
        return f"{done}ETA {tqdm.format_interval(seconds)}"

    def validation(self, step: int, scores: dict[str, float], pictures: list[np.ndarray]) -> None:
        """Records validation scores; shows up to 8 rows of image, truth and prediction."""
        name, score = next(iter(scores.items()))
        self._score = f", {shown(name)} {score:.3f}"
        self._row(step, {f"validation_{name}": score for name, score in scores.items()})
        if not self._writes:
            return
        rows = [np.concatenate(row, axis=1) for row in zip(*(p[:8] for p in pictures), strict=True)]
        self._trackers.tell("picture", step, np.concatenate(rows, axis=0))

    def _row(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        with naming(self._path), self._path.open("a", newline="") as file:
            table = csv.DictWriter(file, self._columns)
            table.writerow({"step": step} | {k: f"{v:.6g}" for k, v in values.items()})
        self._trackers.tell("scalars", step, values)


def shown(score: str) -> str:
    """The name of a score, as it is printed."""
    return "IoU" if score == "iou" else score


def has_validation(workdir: Path, step: int) -> bool:
    """Whether a run's metrics.csv has the validation of a step."""
    rows = [r for r in complete_rows(workdir / "metrics.csv") if r.get("step") == str(step)]
    return any(value for row in rows for k, value in row.items() if k.startswith("validation_"))


def check_finite(window: Sequence[dict[str, float]], step: int, max_skipped: int = 0) -> None:
    """Raises a FloatingPointError that names the first step with NaN or infinity.

    `window` has the metrics of the steps up to `step`; their "nonfinite" counts skipped steps in a
    row, of which `max_skipped` are no error.
    """
    for i, metrics in enumerate(window):
        numbers = {name: value for name, value in metrics.items() if name != "nonfinite"}
        skipped = 0 < metrics["nonfinite"] <= max_skipped
        if not skipped and not np.isfinite(list(numbers.values())).all():
            what = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
            raise FloatingPointError(f"step {step - len(window) + i + 1}: {what}")
