"""What the other tools share: a training with its scores, and tables."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

from segdiff_jax.config import flatten


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
            ValueError: if the workdir holds a run with other values of `fields`.
        """
        path = self.workdir / "config.json"
        known = flatten(json.loads(path.read_text())) if path.exists() else {}
        wanted = flatten(json.loads(json.dumps(fields)))
        other = [name for name in wanted if known.get(name, wanted[name]) != wanted[name]]
        if other and not self._only_print:
            raise ValueError(f"{path} has another {', '.join(other)}: move its folder away")
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


def cell(values: list[float], digits: int = 3) -> str:
    """The mean of the seeds that are there and, if there are several, their standard deviation."""
    values = [value for value in values if np.isfinite(value)]
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}" if values else ""


def table(header: str, lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [header.split(" | "), ["---"] * len(header.split(" | ")), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
