"""Seconds from the start of train.py to its first step, and of sample.py; cold and warm.

python -m benchmarks.compile --config=configs/isic2016_64.py --config.data.manual_dir=FOLDER

Cold is with an empty folder of compiled programs, warm with what the run before left there. The
data set is built before the clock starts. Other options are train.py's; without any, it is the
demo's drawn lesions.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.timing import finish, from_to, parser
from segdiff_jax.runtime.command import run_simple
from tools.runs import table

DEFAULT = ["--config=configs/synthetic.py"]
WHAT = ("train.py to its first step", "train.py, one step and saving", "sample.py, 1 image")


def start(command: Sequence[str], cache: Path, log: Path) -> subprocess.Popen:
    """Runs a script of ours with its compiled programs in `cache`."""
    variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    with log.open("a") as file:
        return subprocess.Popen([sys.executable, *command], env=variables, stdout=file, stderr=file)


def check(process: subprocess.Popen, log: Path) -> None:
    """Waits for its end.

    Raises:
        ChildProcessError: with the last of its log, if it failed.
    """
    if process.wait():
        raise ChildProcessError("\n".join(log.read_text().splitlines()[-5:]))


def has_logged_a_step(workdir: Path) -> bool:
    """Whether metrics.csv has its first row."""
    path = workdir / "metrics.csv"
    if not path.exists():
        return False
    with path.open(newline="") as file:
        return any(row["loss"] for row in csv.DictReader(file))


def time_run(flags: Sequence[str], cache: Path, image: Path, folder: Path) -> list[float]:
    """Seconds of each of `WHAT`."""
    workdir, log = folder / "run", folder / "log.txt"
    short = ["--config.train.num_steps=1", "--config.validation.every=0"]
    begin = time.monotonic()
    training = start(["train.py", f"--workdir={workdir}", *flags, *short], cache, log)
    while not has_logged_a_step(workdir) and training.poll() is None:
        time.sleep(0.02)
    first = time.monotonic() - begin
    check(training, log)
    whole = time.monotonic() - begin
    begin = time.monotonic()
    out = f"--out={folder / 'out'}"
    check(start(["sample.py", f"--workdir={workdir}", f"--images={image}", out], cache, log), log)
    return [first, whole, time.monotonic() - begin]


def main() -> None:
    options, flags = parser(__doc__, None).parse_known_args()
    flags = flags or DEFAULT
    seconds = {}
    with tempfile.TemporaryDirectory() as root, tqdm(total=2 * options.repeats + 1) as progress:
        folders = (Path(tempfile.mkdtemp(dir=root)) for _ in iter(int, 1))
        image = write_image(Path(root) / "image")
        progress.set_description("preparing data")
        time_run(flags, next(folders), image, next(folders))
        progress.update()
        for _ in range(options.repeats):
            cache = next(folders)
            for how in ("cold", "warm"):
                progress.set_description(how)
                seconds.setdefault(how, []).append(time_run(flags, cache, image, next(folders)))
                progress.update()
    lines = []
    for how, runs in seconds.items():
        for what, values in zip(WHAT, zip(*runs, strict=True), strict=True):
            median = f"{statistics.median(values):.1f}"
            lines.append([f"{what}, {how}", median, from_to(values, ".1f")])
    figures = {"training": json.dumps(flags), "seconds": seconds}
    finish(options, table(" | seconds | from ... to", lines), figures)


def write_image(folder: Path) -> Path:
    """A folder with one drawn image."""
    from PIL import Image

    from segdiff_jax.data.builders.synthetic_lesions.drawing import draw

    folder.mkdir()
    Image.fromarray(draw(0, 96)[0]).save(folder / "lesion.png")
    return folder


if __name__ == "__main__":
    run_simple(main)
