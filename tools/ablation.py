"""The tables of docs/results.md.

python -m tools.ablation --minutes=16 --config.data.manual_dir=FOLDER

Every row of the first table trains for the same time, from seed 0 on, and is scored at native size
without choosing among its checkpoints. What was trained or scored before is kept, and an
interrupted training resumes. Options that are not listed here are train.py's.
"""

import argparse
import sys

import numpy as np

from segdiff_jax.runtime.files import absolute
from tools.runs import Run, cell, table

PAPER = {
    "diffusion.prediction": "eps",
    "diffusion.loss": "mse",
    "diffusion.weight": "simple",
    "diffusion.input_scale": 1.0,
    "diffusion.normalise_input": False,
    "diffusion.timestep_power": 1.0,
    "diffusion.recycling": False,
    "diffusion.self_conditioning": False,
    "data.extra_datasets": (),
    "data.soft_masks": False,
    "augment.flip": True,
    "augment.right_angles": True,
    "augment.rotation": 30.0,
    "augment.scale": 0.15,
    "augment.shift": 0.05,
    "augment.brightness": 0.1,
    "augment.contrast": 0.15,
    "augment.saturation": 0.15,
    "augment.hue": 0.02,
    "train.batch_size": 8,
    "train.optimizer": "adamw",
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.num_steps": 100_000,
    "validation.every": 0,
}
ARTEFACTS = {
    "skin_tone": 0.1, "hair": 0.1, "ruler": 0.05, "gamma": 0.1, "colour_cast": 0.1,
    "blur": 0.1, "jpeg": 0.1, "cutout": 0.1,
}  # fmt: skip
X0 = {"diffusion.prediction": "x0", "diffusion.loss": "bce_dice"}
SCALE = {"diffusion.input_scale": 0.3, "diffusion.normalise_input": True}
MUON = {"train.schedule": "cosine", "train.optimizer": "muon", "train.learning_rate": 0.005}
BATCH_NORM = {
    "model.norm_groups": 0, "model.channels": 16, "model.channel_mult": (1, 1, 2, 4, 4),
    "model.attention_resolutions": (), "model.rrdb_width": 8, "model.rrdb_growth": 4,
    "diffusion.timestep_power": 0.1,
}  # fmt: skip
SMALL = {"model.channel_mult": (1, 1, 2, 2), "model.rrdb_width": 16, "model.rrdb_growth": 8}
# Row -> the row that it starts from, what it changes, and its seeds.
ROWS = {
    "paper": (None, PAPER, 3),
    "x0": ("paper", X0, 1),
    "scale": ("x0", SCALE, 1),
    "noisy": ("scale", {"diffusion.timestep_power": 1 / 3}, 3),
    "muon": ("noisy", MUON, 1),
    "small": ("muon", SMALL, 1),
    "min_snr": ("small", {"diffusion.weight": "min_snr"}, 1),
    "recycling": ("small", {"diffusion.recycling": True}, 1),
    "dark_corners": ("small", {"augment.vignette": 0.15, "augment.frame": 0.05}, 3),
    "artefacts": ("dark_corners", {f"augment.{k}": v for k, v in ARTEFACTS.items()}, 1),
    "soft_masks": ("dark_corners", {"data.soft_masks": True}, 1),
    "batch_norm": ("soft_masks", BATCH_NORM, 1),
    "more_data": ("dark_corners", {"data.extra_datasets": ("isic/2017",)}, 1),
}
STEPS, SAMPLES = (1, 2, 5, 10, 20, 100), (1, 5, 9, 25)
SOLVERS = ("ddim", "dpm_solver_pp_2m")


def overrides(row: str) -> dict:
    """The config fields of a row and of the rows before it."""
    parent, changes, _ = ROWS[row]
    return (overrides(parent) if parent else {}) | changes


def metrics(run: Run, split: str = "validation", **flags) -> dict | None:
    """The scores of 5 DDIM steps and one sample, or as the flags say; None: not known."""
    flags = {"steps": 5, "samples": 1, "sampler": "ddim"} | flags
    name = "-".join([split, *(f"{name}={value}" for name, value in flags.items())])
    fields = "flips", "clip"
    flags = [
        f"--config.sampler.{name}={value}" if name in fields else f"--{name}={value}"
        for name, value in flags.items()
    ]
    return run.metrics(name, f"--split={split}", *flags)


def iou(run: Run, **flags) -> float:
    """Mean IoU at native size, NaN if not known."""
    scores = metrics(run, **flags)
    return scores["mean"]["iou"] if scores else np.nan


def low_contrast_iou(run: Run) -> float:
    """Mean IoU of the images of the stand-in test whose colour is near the skin's."""
    scores = metrics(run, "test")
    contrast = scores["conditions"]["contrast"] if scores else {}
    return contrast.get("low", {"iou": np.nan})["iou"]


def print_rows(options: argparse.Namespace, flags: list[str]) -> None:
    """Trains and scores the rows, then prints their table."""
    lines = []
    for row in options.rows:
        runs = []
        for seed in range(min(ROWS[row][2], options.seeds)):
            workdir = options.out / f"{options.minutes:g}-minutes" / f"{row}-seed{seed}"
            runs.append(Run(workdir, options.only_print))
            fields = overrides(row) | {"seed": seed, "train.max_minutes": options.minutes}
            runs[-1].train("configs/default.py", fields, flags)
        kinds = [{}, {"steps": 1}, {"artefact": "vignette"}, {"split": "test"}]
        if row == "paper":  # As the original samples; then with clipping, in few steps.
            ddpm = {"sampler": "ddpm", "steps": 100, "clip": False}
            lines.append([f"{row}, DDPM 100, seed 0", cell([runs[0].steps()], 0)])
            lines[-1] += [cell([iou(runs[0], **ddpm)])] + 4 * [""]
            kinds[0] = {"steps": 10}
        scores = [[iou(run, **kind) for run in runs] for kind in kinds]
        scores.append([low_contrast_iou(run) for run in runs])
        lines.append([row, cell([run.steps() for run in runs], 0), *map(cell, scores)])
    header = "row | steps | validation | one step | dark corners | test | test, low contrast"
    print(table(header, lines), flush=True)


def print_sampling(run: Run) -> None:
    """Samples the validation images in several ways, then prints the tables."""
    of = lambda **flags: cell([iou(run, **flags)], 4)
    lines = [[str(n), *(of(steps=n, sampler=solver) for solver in SOLVERS)] for n in STEPS]
    print(table("steps | DDIM | DPM-Solver++(2M)", lines), flush=True)
    flips = False, True  # Both are given: the run's own config may have either.
    lines = [[str(n), *(of(steps=1, samples=n, flips=flip) for flip in flips)] for n in SAMPLES]
    print(table("samples | validation | of mirror images", lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=16, help="of training, each row")
    parser.add_argument("--out", type=absolute, default="runs/ablation", help="folder of the runs")
    parser.add_argument(
        "--rows", nargs="*", choices=ROWS, help="default: all; none beside --sampling_of"
    )
    parser.add_argument("--seeds", type=int, default=3, help="at most this many seeds a row")
    parser.add_argument("--sampling_of", type=absolute, metavar="WORKDIR", help="vary its sampling")
    parser.add_argument("--only_print", action="store_true", help="train and score nothing")
    options, flags = parser.parse_known_args()
    if options.rows is None:
        options.rows = [] if options.sampling_of else list(ROWS)
    if options.rows:
        try:
            print_rows(options, flags)
        except ValueError as error:
            sys.exit(f"error: {error}")
    if options.sampling_of:
        print_sampling(Run(options.sampling_of, options.only_print))


if __name__ == "__main__":
    main()
