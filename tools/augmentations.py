"""Draws what augmentation does: python -m tools.augmentations --config=configs/isic2016_64.py.

One row for each image: clean, with each artefact alone, and with all that the config asks for,
four times, the mask's contour drawn.
"""

import functools

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageDraw

from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.augment import augment, random_patch
from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.pipeline import ResizedSource
from segdiff_jax.data.prepare import load_training_source, where
from segdiff_jax.evaluation.outputs import draw_contour, draw_contours
from segdiff_jax.runtime.command import run_command

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
OUT = flags.DEFINE_string("out", "augmentations.png", "The picture.")
IMAGES = flags.DEFINE_integer("images", 8, "Images of the training split.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of images, and of all draws.")

CELL, GAP, WHOLE = 128, 4, 4  # Pixels; how often the whole augmentation is drawn.
GREEN = (0, 255, 0)


def draw_columns(config: ConfigDict, count: int, seed: int) -> dict[str, np.ndarray]:
    """The sheet's columns by their labels, each u8[count, CELL, CELL, 3]."""
    data = config.data
    records = load_training_source(data.dataset, data.extra_datasets, *where(data))
    looks = {"colour_constancy": data.colour_constancy, "classes": classes_of(data)}
    source = ResizedSource(records, data.full_size or data.image_size, **looks)
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    image, mask = (np.stack([source[i][k] for i in chosen]) for k in ("image", "mask"))
    if data.full_size:
        keys = jax.random.split(jax.random.key(seed), count)
        image, mask = map(np.asarray, random_patch(keys, image, mask, data.image_size))
    columns = {"clean": enlarge(image)}
    make = lambda strengths: jax.jit(functools.partial(augment, strengths))
    off, whole = dict.fromkeys(config.augment, 0), make(config.augment)
    augments = {name: make(off | {name: 1.0}) for name in ARTEFACTS}
    augments |= {f"config {number}": whole for number in range(1, 1 + WHOLE)}
    keys = jax.random.split(jax.random.key(seed), (len(augments), len(image)))
    for (name, change), key in zip(augments.items(), keys, strict=True):
        moved, moved_mask = change(key, image, mask)
        columns[name] = enlarge(np.asarray(moved))
        if change is whole:
            masks = enlarge(moved_mask)
            if masks.shape[-1] > 1:
                masks, draw = masks.argmax(axis=-1), draw_contours
            else:
                masks, draw = masks[..., 0] > 127, functools.partial(draw_contour, colour=GREEN)
            columns[name] = np.stack([*map(draw, columns[name], masks)])
    return columns


def enlarge(images: np.ndarray) -> np.ndarray:
    """[N, S, S, C], from 0 to 255 -> u8[N, CELL, CELL, C], bilinear."""
    shape = (len(images), CELL, CELL, images.shape[-1])
    return np.asarray(jax.image.resize(images.astype(np.float32), shape, "bilinear")).astype(
        np.uint8
    )


def draw_sheet() -> None:
    columns = draw_columns(CONFIG.value, IMAGES.value, SEED.value)
    step, rows = CELL + GAP, len(columns["clean"])
    sheet = Image.new("RGB", (step * len(columns), step * rows + 20), "white")
    for number, (label, cells) in enumerate(columns.items()):
        ImageDraw.Draw(sheet).text((step * number + 4, 4), label, fill="black")
        for row, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (step * number, step * row + 20))
    sheet.save(OUT.value)
    print(OUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    run_command(draw_sheet)
