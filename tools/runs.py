"""What the other tools share: a training with its scores, and tables."""

import argparse
import csv
import json
import os
import queue
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from segdiff_jax.config import (
    changes,
    complete,
    parse_fields,
    set_fields,
    with_absolute_paths,
)
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import NO_MATTER, PLACES


def config_of(file: str, fields: Mapping[str, Any]) -> ConfigDict:
    """The config of a file such as "configs/compare.py:unet", with these fields."""
    path, colon, argument = file.partition(":")
    config = runpy.run_path(path)["get_config"](*[argument] if colon else [])
    set_fields(config, fields)
    return with_absolute_paths(config)


class Run:
    """A training and its scores. What is missing is made, except with `only_print`.

    Attributes:
        workdir: the folder of train.py.
    """

    def __init__(self, workdir: Path, only_print: bool):
        self.workdir, self._only_print = workdir, only_print

    def train(
        self,
        config: str,
        fields: dict,
        flags: list[str],
        log: TextIO = sys.stderr,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """Starts or resumes the training, unless it has ended.

        Args:
            config: the file of the config, as train.py takes it.
            fields: name -> value of the fields that change.
            flags: more arguments for train.py.
            log: where its output goes.
            prefix: words before the command.
        Raises:
            ValueError: if the workdir holds a run with another config; `NO_MATTER` and places may
                differ.
        """
        path = self.workdir / "config.json"
        if path.exists() and not self._only_print:
            given = parse_fields([flag for flag in flags if flag.startswith("--config.")])
            now = config_of(config, fields | given)
            before = complete(json.loads(path.read_text()))
            other = changes(before, now).keys() - {*NO_MATTER, *PLACES}
            if other:
                other = ", ".join(sorted(other))
                raise ValueError(f"{path} has another {other}: move its folder away")
        fields = [f"--config.{name}={value}" for name, value in fields.items()]
        command = "train.py", f"--workdir={self.workdir}", f"--config={config}", *fields, *flags
        self._script(command, log, prefix)

    def metrics(self, name: str, *flags: str) -> dict | None:
        """The metrics that sample.py writes to `name` in the workdir; None: not known."""
        out = self.workdir / name
        path = out / "metrics.json"
        if not path.exists():
            self._script(("sample.py", f"--workdir={self.workdir}", f"--out={out}", *flags))
        return json.loads(path.read_text()) if path.exists() else None

    def steps(self) -> float:
        """Training steps done."""
        last = self.workdir.glob("checkpoints/last/*")
        return max((int(p.name) for p in last if p.name.isdecimal()), default=np.nan)

    def _script(
        self, command: tuple[str, ...], log: TextIO = sys.stderr, prefix: tuple[str, ...] = ()
    ) -> None:
        if not self._only_print:
            print("+", *command, file=log, flush=True)
            command = [*prefix, sys.executable, *command]
            subprocess.run(command, check=True, stdout=log, stderr=log)


def check_side_by_side(parser: argparse.ArgumentParser, number: int) -> None:
    """Ends the command if there are fewer cores than `number`, or it is below 1."""
    if not 1 <= number <= max(1, len(own_cores())):
        parser.error(
            f"--side_by_side={number}: at least 1, at most a core each; on systems other than "
            "Linux, 1"
        )


def own_cores() -> list[int]:
    """The cores that this process may use; [] where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class Training(NamedTuple):
    """A training to start: its run, its name, the file of its config and the fields that change."""

    run: Run
    name: str
    config: str
    fields: dict


def train_side_by_side(trainings: Sequence[Training], number: int, flags: list[str]) -> None:
    """Trains what is not trained yet, this number at a time, each on its share of the cores.

    Each writes train.log in its workdir. `flags` are more arguments for train.py.

    Raises:
        ChildProcessError: naming the log of a training that failed; no other is begun then.
        ValueError: if the folder of a run holds another one.
    """
    lanes, failed = queue.SimpleQueue(), threading.Event()
    for cores in np.array_split(own_cores(), number):
        lanes.put(("taskset", "-c", ",".join(map(str, cores))) if number > 1 else ())

    def train(training: Training) -> None:
        if failed.is_set():
            return
        run, lane = training.run, lanes.get()
        run.workdir.mkdir(parents=True, exist_ok=True)
        try:
            with open(run.workdir / "train.log", "a") as log:
                run.train(training.config, training.fields, flags, log, lane)
        except BaseException as error:
            failed.set()
            if not isinstance(error, subprocess.CalledProcessError):
                raise
            raise ChildProcessError(
                f"training {training.name} failed; {run.workdir}/train.log says why"
            ) from error
        finally:
            lanes.put(lane)

    with ThreadPoolExecutor(number) as pool:
        jobs = [pool.submit(train, training) for training in trainings]
        try:
            for job in tqdm(as_completed(jobs), "training", len(jobs), unit="run"):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def column_of(folder: Path, name: str) -> dict[str, float]:
    """{id: score}, sorted by id, of an output folder of sample.py; UserError if it lacks it."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    if rows and name not in rows[0]:
        raise UserError(f"{folder}/metrics.csv has no column {name}: sample again")
    return {row["id"]: float(row[name]) for row in rows if row[name]}


def cell(values: list[float], digits: int = 3) -> str:
    """The mean of the seeds that are there and, if there are several, their standard deviation."""
    values = [value for value in values if np.isfinite(value)]
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}" if values else ""


def table(header: str, lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [header.split(" | "), ["---"] * len(header.split(" | ")), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
