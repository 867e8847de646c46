"""How benchmarks time, and the table they make: the machine and its peak, options."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.networks import NETWORKS
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.files import absolute
from tools.runs import own_cores, table

try:
    import resource
except ImportError:  # Windows has none.
    resource = None


@dataclasses.dataclass
class Row:
    """One line of a table.

    Attributes:
        name: what was timed.
        run: runs it once, to its end; everything is compiled.
        gflop: of one run, as XLA counts them in the compiled programs (a product and a sum are 2);
            None: not known.
        mib: memory that its largest program takes; None: not known.
        images: of one run.
        devices: on which it runs.
        seconds: of each run.
    """

    name: str
    run: Callable[[], Any]
    gflop: float | None = None
    mib: float | None = None
    images: int = 1
    devices: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


def time_rows(rows: Sequence[Row], repeats: int) -> None:
    """Runs all rows in turn, so that a machine that slows down slows all of them."""
    with tqdm(total=repeats * len(rows), desc="timing", unit="run") as progress:
        for _ in range(repeats):
            for row in rows:
                progress.set_postfix_str(row.name)
                start = time.perf_counter()
                row.run()
                row.seconds.append(time.perf_counter() - start)
                progress.update()


def matrix_peak(dtype: str = "float32", repeats: int = 5) -> float:
    """GFLOP/s of one device in the product of two large square matrices, the best of some runs."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    best = np.inf
    for _ in range(repeats + 1):  # The first compiles.
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def program_cost(compiled: Any) -> tuple[float, float]:
    """GFLOP of a run of a compiled program, and the MiB that it takes."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return compiled.cost_analysis()["flops"] / 1e9, held / 2**20


def from_to(values: Sequence[float], form: str) -> str:
    """The least and the greatest value, as in "4 to 8"."""
    return f"{min(values):{form}} to {max(values):{form}}"


def speed_table(rows: Sequence[Row], peak: float) -> str:
    """Median and range of the times, time an image beside the first row's, share of the peak.

    Args:
        peak: GFLOP/s of `matrix_peak`, beside the rows.
    """
    lines = []
    for row in rows:
        share = row.median / row.images * rows[0].images / rows[0].median
        line = [
            row.name,
            f"{row.median:.3g}",
            from_to(row.seconds, ".3g"),
            f"{row.images / row.median:.3g}",
            f"{share:.3f}",
        ]
        if row.gflop is None:
            line += ["", "", ""]
        else:
            speed = row.gflop / row.median
            line += [f"{row.gflop:.4g}", f"{speed:.0f}", f"{speed / peak / row.devices:.0%}"]
        lines.append([*line, "" if row.mib is None else f"{row.mib:.0f}"])
    head = f"seconds | from ... to | images/s | an image, of {rows[0].name}"
    return table(f" | {head} | GFLOP | GFLOP/s | of peak | MiB", lines)


def machine() -> dict[str, str]:
    """The machine and the versions, on which all figures depend."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(own_cores()) or os.cpu_count()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax")]
    return {
        "devices": parallel.describe_devices(),
        "cpu": f"{(names or [platform.processor()])[0]}, {cores} cores",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "settings": os.environ.get("GLIBC_TUNABLES", "") + " " + os.environ.get("XLA_FLAGS", ""),
    }


def parser(description: str, network: str | None = "m1") -> argparse.ArgumentParser:
    """A parser of the options that benchmarks share; without a network to choose if None.

    Fields of the config are set as in train.py: --config.model.dtype=bfloat16.
    """
    options = argparse.ArgumentParser(description=description, allow_abbrev=False)
    options.add_argument("--repeats", type=int, default=3, help="of each row")
    options.add_argument("--json", type=absolute, help="file for all figures")
    if network is not None:
        options.add_argument("--network", choices=NETWORKS, default=network)
    return options


def finish(options: argparse.Namespace, text: str, figures: dict[str, Any]) -> None:
    """Prints the table and how it was made; writes the figures where --json says."""
    figures = {"command": " ".join(["python", "-m", *_command()]), **machine(), **figures}
    if resource:
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures["process"] = f"{mib:.0f} MiB of the machine's memory at its peak"
    said = [f"{name}: {value}" for name, value in figures.items() if isinstance(value, str)]
    print("\n".join([*said, "", text]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def _command() -> list[str]:
    return [f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]


def finish_speed(options: argparse.Namespace, rows: Sequence[Row], peak: float, dtype: str) -> None:
    """`finish` with the `speed_table` of the rows; `peak` is `matrix_peak` of this dtype."""
    figures = {"peak": f"{peak:.0f} GFLOP/s, {dtype} matrix product", "rows": figures_of(rows)}
    finish(options, speed_table(rows, peak), figures)


def figures_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON."""
    fields = "name", "seconds", "images", "devices", "gflop", "mib"
    return [{field: getattr(row, field) for field in fields} for row in rows]
