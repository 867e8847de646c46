"""Draws how images are segmented: python -m tools.picture --workdir=runs/isic --images=photos.

A row for each image: itself with the predicted contour, four single masks, the probability of
lesion, and where single masks differ.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import segdiff_jax
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.outputs import PREDICTION_COLOUR, draw_contour
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute

SAMPLES = 4


def draw(workdir: Path, images: Path, samples: int, out: Path) -> None:
    """Writes the picture; raises what `load` and `FolderSource` do."""
    if samples < SAMPLES:
        raise UserError(f"--samples={samples}: at least {SAMPLES} are drawn")
    model = segdiff_jax.load(workdir, samples=samples)
    if model.classes.several:
        raise UserError(f"data.classes={model.classes.names}: the picture shows two classes")
    examples = list(NativeExamples(FolderSource(str(images)), model))
    titles = ["image and mask", *[f"single mask {i + 1}" for i in range(SAMPLES)]]
    titles += ["probability", "disagreement"]
    rows = []
    for example in examples:
        inputs = np.stack([example["input"]] * model.batch_size)
        made = model.sample(inputs, [example["id"]] * len(inputs))[:, 0]
        found = model.segment(made, example["image"].shape[:2], example["id"])
        rows.append([draw_contour(example["image"], found.mask, PREDICTION_COLOUR)])
        rows[-1] += [*found.samples[:SAMPLES], found.probability]
        rows[-1].append(plt.cm.inferno(2 * found.deviation))
    draw_grid(rows, titles, out)


def draw_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], out: Path) -> None:
    """Writes a picture of rows of images, or of numbers [H, W] from 0 (black) to 1 (white)."""
    shape, size = (len(rows), len(titles)), (1.4 * len(titles), 1.55 * len(rows))
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for axis, image in zip(axes.flat, itertools.chain(*rows), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--workdir", type=absolute, required=True, help="of train.py")
    parser.add_argument("--images", type=absolute, required=True, help="folder, file or pattern")
    parser.add_argument("--samples", type=int, default=8, help=f"at least {SAMPLES}")
    parser.add_argument("--out", type=absolute, default="picture.png")
    options = parser.parse_args()
    run_simple(lambda: draw(**vars(options)))


if __name__ == "__main__":
    main()
