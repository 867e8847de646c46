"""Trains models and scores their mean; with --folds, by cross-validation.

python -m tools.ensemble --config=configs/isic2016_64.py --config=configs/isic2016_128.py \\
    --out=runs/isic2016 --config.data.manual_dir=FOLDER
python sample.py --workdir=runs/isic2016 --split=test

Each config is one model of the mean; given again, it starts from the next seed.

With --folds=5, all this is done five times, each time without a fifth of the images, and each image
is scored by the models that are new to it. It prints the score of each fold, their mean and
standard deviation, and writes the scores of all images to metrics.csv and a report. The last
checkpoint of each fold counts: a fold does not choose among checkpoints. --against=FOLDER compares
with another cross-validation, image by image.

What was trained before is kept, and an interrupted training resumes. Options that are not listed
here are train.py's.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from segdiff_jax.evaluation.metrics import bootstrap_interval
from segdiff_jax.runtime.checkpoint import MEMBERS
from segdiff_jax.runtime.command import argument_parser
from segdiff_jax.runtime.files import absolute, write_file
from segdiff_jax.schema import OF_SPLITS
from tools.runs import Run, Training, check_side_by_side, ious_of, train_side_by_side

SCORES = "samples_out_of_fold"  # the folder in --out that sample.py writes to


def compare(ours: Path, theirs: Path) -> str:
    """The mean difference of the IoU of two folders of scores, with its interval.

    A ValueError says that they are of other images.
    """
    mine, other = ious_of(ours), ious_of(theirs)
    if mine.keys() != other.keys():
        raise ValueError(f"{ours} and {theirs} hold the scores of different images")
    differences = np.array([mine[id] - other[id] for id in mine])
    low, high = bootstrap_interval(differences)
    return (
        f"IoU minus that of {theirs}: {differences.mean():+.4f} "
        f"(95% interval {low:+.4f} to {high:+.4f}, {len(differences)} images)"
    )


def trainings_in(folder: Path, configs: list[str], fields: dict, name: str) -> list[Training]:
    """The training of each config, in this folder or, of several configs, in folders of it.

    `fields` are name -> value of the fields that change. Of several, a file lists the folders, so
    that `load` finds them.
    """
    if len(configs) == 1:
        name = name or name_of(configs[0])
        return [Training(Run(folder, only_print=False), name, configs[0], fields)]
    found = {}
    for i, config in enumerate(configs):
        seed = configs[:i].count(config)
        member = name_of(config) + (f"_seed{seed}" if seed else "")
        changed = fields | ({"seed": seed} if seed else {})
        run = Run(folder / member, only_print=False)
        found[member] = Training(run, f"{name} {member}".strip(), config, changed)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / MEMBERS, json.dumps([*found]))
    return [*found.values()]


def name_of(config: str) -> str:
    """The name of a config's file, as part of a path."""
    return re.sub(r"\W+", "_", config.removeprefix("configs/").replace(".py", ""))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--config", required=True, action="append", help="a file of configs/; may be repeated"
    )
    parser.add_argument("--folds", type=int, default=0, help="number of folds; 0: none")
    parser.add_argument("--minutes", type=float, help="of each training")
    parser.add_argument("--side_by_side", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=absolute, help="folder of the runs; runs/CONFIGS")
    parser.add_argument("--against", type=absolute, help="--out of another cross-validation")
    options, flags = parser.parse_known_args()
    check_side_by_side(parser, options.side_by_side)
    if options.folds < 0 or options.folds == 1:
        parser.error(f"--folds={options.folds}: at least 2, or 0")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes={options.minutes}: above 0")
    if options.against and not (options.against / SCORES / "metrics.csv").is_file():
        parser.error(f"--against={options.against} holds no {SCORES}/metrics.csv")
    if options.against and not options.folds:
        parser.error("--against needs --folds")
    fields = {"data.folds": options.folds, "validation.every": 0} if options.folds else {}
    fields |= {} if options.minutes is None else {"train.max_minutes": options.minutes}
    given = {flag: flag.partition("=")[0].removeprefix("--config.") for flag in flags}
    if fixed := [flag for flag, name in given.items() if name in {*fields, "data.fold"}]:
        parser.error(f"{' '.join(fixed)}: leave it out, because this command sets it")
    name = "_".join(map(name_of, options.config))
    out = options.out or absolute(f"runs/folds_{name}" if options.folds else f"runs/{name}")
    folders = {out: fields}
    if options.folds:
        folds = range(options.folds)
        folders = {out / f"fold{fold}": fields | {"data.fold": fold} for fold in folds}
    trainings = []
    for folder, changed in folders.items():
        called = f"fold {changed['data.fold']}" if options.folds else ""
        trainings += trainings_in(folder, options.config, changed, called)
    places = [flag for flag, name in given.items() if name in OF_SPLITS]
    scores = ("--split=out_of_fold", f"--out={out / SCORES}") if options.folds else ()
    try:
        train_side_by_side(trainings, options.side_by_side, flags)
        workdirs = [f"--workdir={folder}" for folder in folders]
        command = "sample.py", *workdirs, *scores, *places
        subprocess.run([sys.executable, *command], check=True)
        if options.against:
            print(compare(out / SCORES, options.against / SCORES))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # Its message stands above.
    except (ChildProcessError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
