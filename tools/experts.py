"""Draws what annotators drew beside single masks of a model: python -m tools.experts --workdir=RUN.

A row for each image of a split whose records have several masks: the image, masks of annotators,
samples of the network, and level sets of its probability.
"""

from pathlib import Path

import numpy as np

import segdiff_jax
from segdiff_jax.evaluation.examples import NativeExamples, open_split
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute
from tools.annotators import single_masks
from tools.picture import draw_grid

MASKS = 4  # of each kind in a row


def draw(
    workdir: Path, split: str, rows: int, first: int, data_dir: Path | None, out: Path
) -> None:
    """Writes the picture; raises what `load` and `open_split` do."""
    model = segdiff_jax.load(workdir, samples=16, samples_from="network")
    models = {"sample": model, "level set": model.with_fields(samples_from="levels")}
    places = {"data.dir": str(data_dir)} if data_dir else {}
    examples = NativeExamples(open_split(model.config, split, places), model)
    chosen = [examples[i] for i in range(first, min(first + rows, len(examples)))]
    if not chosen or chosen[0]["truths"] is None:
        raise UserError(f"{model.config.data.dataset}, {split}: no masks of several annotators")
    titles = ["image", *(f"{k} {i}" for k in ("annotator", *models) for i in range(1, MASKS + 1))]
    lines = []
    found = single_masks([*models.values()], chosen, "sampling")
    for example, *kinds in zip(chosen, *found, strict=True):
        none = [np.zeros(example["image"].shape[:2])] * MASKS
        kinds = [[*example["truths"], *none], *kinds]
        lines.append([example["image"], *(mask for kind in kinds for mask in kind[:MASKS])])
    draw_grid(lines, titles, out)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--workdir", type=absolute, required=True, help="of train.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rows", type=int, default=6, help="images")
    parser.add_argument("--first", type=int, default=0, help="place of the first image")
    parser.add_argument("--data_dir", type=absolute, help="where the built data set lies now")
    parser.add_argument("--out", type=absolute, default="experts.png")
    options = parser.parse_args()
    run_simple(lambda: draw(**vars(options)))


if __name__ == "__main__":
    main()
