"""Kills a training run again and again, and compares it with one that was left alone.

python -m tools.soak --rounds=20

A tiny network learns drawn lesions and saves at every second step, so that many kills meet a save.
Each round starts train.py and ends it by SIGKILL or, one time in four, by SIGTERM: at a random time
after its first new checkpoint or, every fourth round, after its start. The run survives a round if
the next start finds a checkpoint that is no older than the one before, and resumes from it. At the
end, parameters, moving averages, optimiser, data order, logged losses and validations must be, bit
for bit, the same as in a run of as many steps that nobody ended.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from segdiff_jax.config import saved_config
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.runtime.checkpoint import Checkpoints, find_checkpoint, load_meta
from segdiff_jax.runtime.files import absolute
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import TrainState, create_state

ROOT = Path(__file__).parents[1]
FIELDS = """
    data.dataset=synthetic_lesions/small data.image_size=16 model.channel_mult=(1,1)
    model.attention_resolutions=() model.rrdb_width=8 model.rrdb_growth=4 train.batch_size=4
    train.max_minutes=0 train.schedule=constant train.half_size_share=0 train.log_every=3
    train.checkpoint_every=2 validation.every=6 validation.num_images=4
""".split()  # noqa: SIM905
LOGGED = "step", "loss", "bce", "dice", "grad_norm", "learning_rate", "validation_iou"
LONGEST = 1_000_000


def start(workdir: Path, num_steps: int, flags: list[str]) -> subprocess.Popen:
    """train.py; its output goes to a file beside the workdir."""
    fields = [f"--config.{field}" for field in (*FIELDS, f"train.num_steps={num_steps}")]
    command = [sys.executable, "train.py", "--config=configs/synthetic.py", *fields, *flags]
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen, workdir: Path, status: int = 0) -> None:
    """Waits for the end; if it is not the expected one, shows what the run has said."""
    if process.wait() != status:
        said = workdir.with_suffix(".log").read_text()[-2000:]
        sys.exit(f"a run ended with status {process.returncode}, not {status}:\n{said}")


def last_step(workdir: Path) -> int:
    """The step of the last whole checkpoint; 0: there is none."""
    names = [path.name for path in (workdir / "checkpoints" / "last").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def kill(workdir: Path, rounds: int, longest: float, draw: random.Random, flags: list[str]) -> int:
    """Starts and ends a run `rounds` times; returns how often that was in the middle of a save."""
    before = in_save = 0
    with tqdm(total=rounds, desc="killing", unit="round") as progress:
        for round_ in range(rounds):
            process = start(workdir, LONGEST, flags)
            while round_ % 4 and last_step(workdir) == before and process.poll() is None:
                time.sleep(0.1)
            time.sleep(draw.uniform(0, longest))
            by = signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL
            process.send_signal(by)
            # Before its first step, a run has nothing to save, and SIGTERM is its end.
            if (status := process.wait()) not in (-by, 128 + by):
                finish(process, workdir, -by)
            in_save += any(workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*"))
            step = last_step(workdir)
            if step < before:
                sys.exit(f"the checkpoint of step {before} is gone: there is step {step}")
            before = step
            progress.set_postfix_str(f"{signal.Signals(by).name} ({status}), at step {step}")
            progress.update()
    return in_save


def logged(workdir: Path) -> list[list[str]]:
    """The rows of metrics.csv, without times."""
    with (workdir / "metrics.csv").open(newline="") as file:
        return [[row[name] for name in LOGGED] for row in csv.DictReader(file)]


def differences(killed: Path, alone: Path) -> list[str]:
    """The names of what differs between two finished runs."""
    (state, meta), (other, other_meta) = map(last_state, (killed, alone))
    same = jax.tree.map(lambda x, y: np.array_equal(x, y), state, other)
    found = [jax.tree_util.keystr(path) for path, ok in jax.tree.leaves_with_path(same) if not ok]
    found += ["place in the data"] if meta["iterator"] != other_meta["iterator"] else []
    best, other = (load_meta(find_checkpoint(workdir)) for workdir in (killed, alone))
    found += ["best"] if best["validation_iou"] != other["validation_iou"] else []
    return found + (["metrics.csv"] if logged(killed) != logged(alone) else [])


def last_state(workdir: Path) -> tuple[TrainState, dict]:
    """Everything that the last checkpoint holds."""
    with Checkpoints(workdir) as checkpoints:
        meta = checkpoints.last_meta()
        config = saved_config(meta)
        method, tx = make_method(config), make_optimizer(config.train)
        like = jax.eval_shape(lambda: create_state(init_variables(method, 0), tx))
        return like.from_trees(checkpoints.restore_last(like.trees())), meta


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--longest", type=float, default=10.0, help="seconds until the end")
    options.add_argument("--seed", type=int, default=0, help="of the times and signals")
    options.add_argument("--folder", type=absolute, default="runs/soak")
    options, flags = options.parse_known_args()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
    killed, alone = options.folder / "killed", options.folder / "alone"
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    first = options.folder / "first"
    finish(start(first, 2, flags), first)  # Draws the data, and compiles.
    draw = random.Random(options.seed)
    in_save = kill(killed, options.rounds, options.longest, draw, flags)
    steps = last_step(killed) + 10
    for workdir in (killed, alone):
        print(f"{workdir.name}: to step {steps}", flush=True)
        finish(start(workdir, steps, flags), workdir)
    different = differences(killed, alone)
    print(f"{options.rounds} of {options.rounds} kills survived, {in_save} of them ", end="")
    print(f"in the middle of a save; {steps} steps; ", end="", flush=True)
    if different:
        sys.exit(f"other than the run that was left alone: {', '.join(sorted(different))}")
    print("bitwise equal to the run that was left alone")


if __name__ == "__main__":
    main()
