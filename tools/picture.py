"""Draws how images are segmented: python -m tools.picture --workdir=runs/isic --images=photos.

A row for each image: itself with the predicted contour, four of its samples, the probability of
lesion, and where the samples disagree.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import segdiff_jax
from segdiff_jax.command import MISTAKES
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.evaluation.ensemble import resize_samples
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.outputs import PREDICTION_COLOUR, draw_contour

SAMPLES = 4


def draw(workdir: str, images: str, votes: int, out: str) -> None:
    """Writes the picture; raises what `load` and `FolderSource` do."""
    model = segdiff_jax.load(workdir, votes=votes)
    data = model.config.data
    if data.classes:
        raise ValueError(f"data.classes={tuple(data.classes)}: the picture is of two classes")
    examples = list(NativeExamples(FolderSource(images), data.image_size, data.colour_constancy))
    titles = ["image and mask", *[f"sample {i + 1}" for i in range(SAMPLES)]]
    titles += ["probability", "disagreement"]
    shape, size = (len(examples), len(titles)), (1.6 * len(titles), 1.75 * len(examples))
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        inputs = np.stack([example["input"]] * model.predictor.batch_size)
        ids = [example["id"]] * len(inputs)
        samples = model.predictor(model.variables, inputs, ids)[:, 0]
        native = resize_samples(samples, example["image"].shape[:2])
        combined = model.predictor.combine(native)
        row[0].imshow(draw_contour(example["image"], combined.mask, PREDICTION_COLOUR))
        for axis, sample in zip(row[1:], native[:SAMPLES], strict=False):
            axis.imshow(sample, cmap="gray", vmin=-1, vmax=1)
        row[-2].imshow(combined.probability, cmap="gray", vmin=0, vmax=1)
        row[-1].imshow(combined.deviation, cmap="inferno", vmin=0, vmax=0.5)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", required=True, help="of train.py")
    parser.add_argument("--images", required=True, help="folder, file or pattern of files")
    parser.add_argument("--votes", type=int, default=8, help=f"at least {SAMPLES}")
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    options = parser.parse_args()
    try:
        if options.votes < SAMPLES:
            raise ValueError(f"--votes={options.votes}: at least {SAMPLES} are drawn")
        draw(options.workdir, options.images, options.votes, options.out)
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
