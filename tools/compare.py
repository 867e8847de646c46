"""Every model of configs/compare.py on the same data, for the same time: a part of docs/results.md.

python -m tools.compare --minutes=30 --config.data.manual_dir=FOLDER

trains each, SegDiff and the U-Net from several seeds, samples the validation and the test split,
and writes tables and a plot of IoU against seconds. --recipe=isic2016_128 does so with the models
that can have its image encoder. What was trained or scored before is kept, and an interrupted
training resumes, so it can be stopped at any time. Options that are not listed here are train.py's.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from adjustText import adjust_text
from ml_collections import ConfigDict

from configs.compare import RECIPES
from segdiff_jax.config import set_fields
from segdiff_jax.evaluation.metrics import bootstrap_interval
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.runtime.command import keep_compiled_programs
from segdiff_jax.runtime.files import absolute
from tools import flop
from tools.comparison import (
    BASELINE,
    DIFFUSION,
    ENSEMBLE,
    MAIN,
    SPLITS,
    Comparison,
    Row,
)
from tools.runs import cell, check_side_by_side, table

SCORES = {
    "iou": "IoU",
    "dice": "Dice",
    "thresholded_jaccard": "thresholded Jaccard",
    "fbound": "FBound",
}


def report(comparison: Comparison, seconds: dict[Row, float]) -> str:
    """The tables, in Markdown."""
    parts = [model_table(comparison)]
    for split, name in SPLITS.items():
        parts += [f"Scores, {name}:", score_table(comparison, split, seconds)]
    parts += ["IoU by condition, stand-in test:", condition_table(comparison)]
    parts += ["Differences of the IoU, image by image:", difference_table(comparison)]
    parts += ["Uncertainty:", uncertainty_table(comparison)]
    return "\n\n".join(parts)


def model_table(comparison: Comparison) -> str:
    """Size and speed of each network."""
    lines = []
    for model in comparison.models:
        params = variables_like(make_method(comparison.config(model)))["params"]
        parameters = sum(x.size for x in jax.tree.leaves(params))
        speeds, steps = comparison.training(model)
        lines.append([model, f"{parameters:,}", cell(speeds, 1), cell(steps, 0)])
    return table("model | parameters | images/s in training | steps", lines)


def gflop_an_image(row: Row, config_of: Callable[[str], ConfigDict]) -> float:
    """GFLOP of all passes of all models, as XLA counts them: a product and a sum are 2.

    Args:
        config_of: a model, by its name.
    """
    total = 0.0
    for model in row.models:
        config = config_of(model)
        set_fields(config, {f"sampler.{name}": value for name, value in row.sampler.items()})
        total += flop.gflop_an_image(config)
    return total


def score_table(comparison: Comparison, split: str, seconds: dict[Row, float]) -> str:
    """Mean scores of every way to predict, and its cost."""
    lines = []
    for row in comparison.rows:
        numbers = [cell(comparison.scores(row, split, "mean", score)) for score in SCORES]
        cost = f"{gflop_an_image(row, comparison.config):.2f}", f"{1000 * seconds[row]:.1f}"
        lines.append([row.label, *cost, *numbers])
    return table(" | ".join(["", "GFLOP an image", "ms an image", *SCORES.values()]), lines)


def condition_table(comparison: Comparison) -> str:
    """Mean IoU of every condition of the test split."""
    conditions, lines = comparison.metrics(BASELINE, "test", 0)["conditions"], []
    rows = [row for row in MAIN if row in comparison.rows]
    for condition, values in conditions.items():
        for value, of in values.items():
            path = "conditions", condition, value, "iou"
            ious = [cell(comparison.scores(row, "test", *path)) for row in rows]
            lines.append([f"{condition.replace('_', ' ')}: {value}", str(of["num_images"]), *ious])
    return table(" | ".join(["condition", "images", *(row.label for row in rows)]), lines)


def difference_table(comparison: Comparison) -> str:
    """Mean differences, and their paired bootstrap intervals over the images."""
    pairs = [(row, BASELINE) for row in comparison.rows if row != BASELINE]
    lines = []
    for row, reference in [*pairs, (ENSEMBLE, DIFFUSION)]:
        line = [f"{row.label} minus {reference.label}"]
        for split in SPLITS:
            ours, theirs = comparison.ious(row, split), comparison.ious(reference, split)
            differences = ours - theirs[: len(ours)]
            low, high = bootstrap_interval(differences.mean(axis=0))
            by_seed = ", ".join(f"{difference:+.4f}" for difference in differences.mean(axis=1))
            line += [f"{differences.mean():+.4f}", f"{low:+.4f} to {high:+.4f}", by_seed]
        lines.append(line)
    columns = [
        column for name in SPLITS.values() for column in (name, "95% interval", "seed by seed")
    ]
    return table(" | ".join(["", *columns]), lines)


def uncertainty_table(comparison: Comparison) -> str:
    """Calibration error, and the rank correlation of the samples' disagreement with 1 - IoU."""
    lines = []
    for row in comparison.rows:
        numbers = []
        for split in SPLITS:
            of = lambda name, row=row, split=split: comparison.scores(
                row, split, "uncertainty", name
            )
            numbers += [cell(of("ece"), 4), cell(of("correlation"), 2)]
        lines.append([row.label, *numbers])
    columns = [f"{what}, {name}" for name in SPLITS.values() for what in ("ECE", "correlation")]
    return table(" | ".join(["", *columns]), lines)


def draw(comparison: Comparison, seconds: dict[Row, float], path: Path) -> None:
    """IoU against the time of an image, a panel for each split."""
    colours = {model: f"C{i}" for i, model in enumerate(comparison.models)}
    figure, axes = plt.subplots(1, len(SPLITS), figsize=(12, 5), layout="constrained")
    for axis, (split, name) in zip(axes, SPLITS.items(), strict=True):
        labels = []
        for row in comparison.rows:
            place = 1000 * seconds[row], np.mean(comparison.scores(row, split, "mean", "iou"))
            colour = colours[row.models[0]] if len(set(row.models)) == 1 else "black"
            axis.plot(*place, "o", color=colour)
            labels.append(axis.text(*place, row.label, fontsize=8, color=colour))
        axis.set(xscale="log", xlabel="milliseconds an image", ylabel="mean IoU", title=name)
        axis.grid(alpha=0.3)
        axis.margins(x=0.2, y=0.1)
        adjust_text(labels, expand=(1.1, 1.7), ax=axis, arrowprops={"arrowstyle": "-", "lw": 0.5})
    figure.savefig(path)
    plt.close(figure)


def around_marks(path: Path, recipe: str) -> tuple[str, str]:
    """The text of a Markdown file up to the first mark of a recipe, and from the second one on.

    Raises:
        ValueError: if the marks are missing.
    """
    begin, end = (f"<!-- {edge}: tools.compare {recipe} -->" for edge in ("begin", "end"))
    before, _, rest = path.read_text().partition(begin)
    if end not in rest:
        raise ValueError(f"{path} has no lines {begin} and {end} to write between")
    return before + begin, end + rest.partition(end)[2]


def insert(path: Path, recipe: str, text: str) -> None:
    """Puts the text between the marks of a Markdown file, see `around_marks`."""
    before, after = around_marks(path, recipe)
    path.write_text(f"{before}\n\n{text}\n\n{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--recipe", choices=RECIPES, default="isic2016_64", help="a config's name")
    parser.add_argument("--minutes", type=float, default=30, help="of training, each run")
    parser.add_argument("--seeds", type=int, default=3, help="at most this many seeds a model")
    parser.add_argument("--side_by_side", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=absolute, help="folder of the runs; runs/compare_RECIPE")
    parser.add_argument(
        "--results", type=absolute, default="docs/results.md", help="what the tables go into"
    )
    options, flags = parser.parse_known_args()
    results = options.results
    check_side_by_side(parser, options.side_by_side)
    keep_compiled_programs()
    out = options.out or absolute(f"runs/compare_{options.recipe}")
    comparison = Comparison(out, options.seeds, options.recipe)
    try:
        around_marks(results, options.recipe)  # Its mistakes show now, not after hours.
        comparison.train(options.minutes, options.side_by_side, flags)
    except (ChildProcessError, ValueError) as error:
        sys.exit(f"error: {error}")
    seconds = comparison.seconds(comparison.rows)
    picture = f"compare_{options.recipe}.svg"
    draw(comparison, seconds, results.with_name(picture))
    text = report(comparison, seconds) + f"\n\n![IoU against the time of an image]({picture})"
    insert(results, options.recipe, text)
    print(f"{text}\n\nwritten to {results}")


if __name__ == "__main__":
    main()
