"""Cross-validation: trains a config once for each fold, and scores each image by a model new to it.

python -m tools.cross_validate --config=configs/isic2016_128.py --config.data.manual_dir=FOLDER

It prints the score of each fold, their mean and standard deviation, and writes the scores of all
images to metrics.csv and a report. The last checkpoint of each fold counts: a fold does not choose
among checkpoints. --against=FOLDER compares with another cross-validation, image by image. What was
trained before is kept, and an interrupted training resumes. Options that are not listed here are
train.py's.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from segdiff_jax.evaluation.metrics import bootstrap_interval
from segdiff_jax.runtime.files import absolute
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--folds", type=int, default=5, help="number of folds")
    parser.add_argument("--minutes", type=float, help="of training, each fold")
    parser.add_argument("--side_by_side", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=absolute, help="folder of the runs; runs/folds_CONFIG")
    parser.add_argument("--against", type=absolute, help="--out of another cross-validation")
    options, flags = parser.parse_known_args()
    check_side_by_side(parser, options.side_by_side)
    if options.folds < 2:
        parser.error(f"--folds={options.folds}: at least 2")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes={options.minutes}: above 0")
    if options.against and not (options.against / SCORES / "metrics.csv").is_file():
        parser.error(f"--against={options.against} holds no {SCORES}/metrics.csv")
    fields = {"data.folds": options.folds, "validation.every": 0}
    fields |= {} if options.minutes is None else {"train.max_minutes": options.minutes}
    given = {flag: flag.partition("=")[0].removeprefix("--config.") for flag in flags}
    if fixed := [flag for flag, name in given.items() if name in {*fields, "data.fold"}]:
        parser.error(f"{' '.join(fixed)}: leave it out, because each fold sets this field")
    name = re.sub(r"\W+", "_", options.config.removeprefix("configs/").replace(".py", ""))
    out = options.out or absolute(f"runs/folds_{name}")
    trainings = [
        Training(
            Run(out / f"fold{fold}", only_print=False),
            f"fold {fold}",
            options.config,
            fields | {"data.fold": fold},
        )
        for fold in range(options.folds)
    ]
    places = [flag for flag, name in given.items() if name in OF_SPLITS]
    try:
        train_side_by_side(trainings, options.side_by_side, flags)
        workdirs = [f"--workdir={training.run.workdir}" for training in trainings]
        command = "sample.py", *workdirs, "--split=out_of_fold", f"--out={out / SCORES}", *places
        subprocess.run([sys.executable, *command], check=True)
        if options.against:
            print(compare(out / SCORES, options.against / SCORES))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # Its message stands above.
    except (ChildProcessError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
