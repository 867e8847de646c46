"""Compares two folders of sample.py, image by image: python -m tools.difference OURS THEIRS.

It prints the mean difference of IoU and, for single masks, of the energy scores, each with its
standard error and its 95% interval (bootstrap over the images).
"""

from pathlib import Path

import numpy as np

from segdiff_jax.evaluation.metrics import bootstrap_interval
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute
from tools.runs import column_of

SCORES = {"iou": "IoU", "energy": "energy score", "boundary_energy": "energy score of outlines"}


def difference(ours: Path, theirs: Path, score: str = "iou") -> str:
    """The mean difference of a score of two folders, its standard error and interval.

    A UserError says that they are of other images, or that one lacks the score.
    """
    mine, other = column_of(ours, score), column_of(theirs, score)
    if mine.keys() != other.keys():
        raise UserError(f"{ours} and {theirs} hold the scores of different images")
    differences = np.array([mine[id] - other[id] for id in mine])
    low, high = bootstrap_interval(differences)
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return (
        f"{SCORES[score]} minus that of {theirs}: {differences.mean():+.4f} ± {error:.4f} "
        f"(standard error; 95% interval {low:+.4f} to {high:+.4f}, {len(differences)} images)"
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("ours", type=absolute)
    parser.add_argument("theirs", type=absolute)
    options = parser.parse_args()
    run_simple(lambda: [print(difference(options.ours, options.theirs, s)) for s in SCORES])


if __name__ == "__main__":
    main()
