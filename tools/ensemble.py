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

import argparse
import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

from segdiff_jax.runtime.checkpoint import MEMBERS, read_members
from segdiff_jax.runtime.command import argument_parser
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, write_file
from segdiff_jax.schema import OF_SPLITS
from tools.difference import difference
from tools.runs import (
    Run,
    Training,
    check_side_by_side,
    config_of,
    train_side_by_side,
)

SCORES = "samples_out_of_fold"  # the folder in --out that sample.py writes to


def trainings_in(folder: Path, configs: list[str], fields: dict, name: str) -> list[Training]:
    """The training of each config, in this folder or, of several configs, in folders of it.

    `fields` are name -> value of the fields that change; `name` is for messages.
    """
    if len(configs) == 1:
        name = name or name_of(configs[0])
        return [Training(Run(folder, only_print=False), name, configs[0], fields)]
    trainings = []
    for i, config in enumerate(configs):
        member, changed = name_of(config), fields
        if again := configs[:i].count(config):
            seed = config_of(config, {}).seed + again
            member, changed = f"{member}_seed{seed}", fields | {"seed": seed}
        run = Run(folder / member, only_print=False)
        trainings.append(Training(run, f"{name} {member}".strip(), config, changed))
    return trainings


def list_members(folder: Path, names: list[str]) -> None:
    """Writes which folders in `folder` hold its models, so that `load` finds them; [] for itself.

    A ValueError says that the folder holds something else.
    """
    is_run = (folder / "checkpoints").exists()
    if (is_run and names) or not {*read_members(folder)} <= {*names}:
        raise ValueError(f"{folder} holds other models: give another --out, or move it away")
    if names:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / MEMBERS, json.dumps(names))


def name_of(config: str) -> str:
    """The name of a config's file, as part of a path."""
    return re.sub(r"\W+", "_", config.removeprefix("configs/").replace(".py", ""))


def options_of() -> tuple[argparse.Namespace, list[str]]:
    """The options of the command line, and those that are train.py's; ends if they are wrong."""
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
    fixed = {"data.folds", "data.fold", "validation.every"} if options.folds else set()
    fixed |= {"train.max_minutes"} if options.minutes is not None else set()
    fixed |= {"seed"} if len({*options.config}) < len(options.config) else set()
    if wrong := [flag for flag in flags if _field(flag) in fixed]:
        parser.error(f"{' '.join(wrong)}: leave it out, because this command sets it")
    if options.out is None:
        name = "_".join(map(name_of, options.config))
        options.out = absolute(f"runs/folds_{name}" if options.folds else f"runs/{name}")
    return options, flags


def plan(options: argparse.Namespace) -> dict[Path, list[Training]]:
    """The trainings of each folder: of the only one, or of each fold."""
    fields = {} if options.minutes is None else {"train.max_minutes": options.minutes}
    if not options.folds:
        return {options.out: trainings_in(options.out, options.config, fields, "")}
    fields |= {"data.folds": options.folds, "validation.every": 0}
    found = {}
    for fold in range(options.folds):
        folder, changed = options.out / f"fold{fold}", fields | {"data.fold": fold}
        found[folder] = trainings_in(folder, options.config, changed, f"fold {fold}")
    return found


def _field(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--config.")


def main() -> None:
    options, flags = options_of()
    folders, scores = plan(options), options.out / SCORES
    workdirs = [f"--workdir={folder}" for folder in folders]
    places = [flag for flag in flags if _field(flag) in OF_SPLITS]
    of_folds = ["--split=out_of_fold", f"--out={scores}"] if options.folds else []
    try:
        for folder, trainings in folders.items():
            several = len(trainings) > 1
            list_members(folder, [t.run.workdir.name for t in trainings] if several else [])
        train_side_by_side([*chain(*folders.values())], options.side_by_side, flags)
        command = [sys.executable, "sample.py", *workdirs, *of_folds, *places]
        subprocess.run(command, check=True)
        if options.against:
            print(difference(scores, options.against / SCORES))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # Its message stands above.
    except (ChildProcessError, ValueError, UserError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
