"""A look at a data set before training: its numbers and a sheet of images with their masks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.data.decode import decode_image, decode_labels
from segdiff_jax.data.pipeline import record_id, size_within
from segdiff_jax.data.records import Records
from segdiff_jax.data.statistics import format_statistics
from segdiff_jax.evaluation.outputs import TRUTH_COLOUR, class_colour, draw_contours, encode_image
from segdiff_jax.runtime.files import write_file

_SIDE, _CAPTION, _COLUMNS, _IMAGES = 200, 16, 5, 20


def show_overview(records: Records, path: Path, classes: Classes) -> None:
    """Prints what is known of a data set, and writes `contact_sheet` to a PNG file."""
    print(format_statistics(records.statistics))
    write_file(path, encode_image(contact_sheet(records, classes), "PNG"))
    print(f"  images with the outline of their masks: {path}", flush=True)


def contact_sheet(records: Records, classes: Classes = TWO) -> np.ndarray:
    """Some images, evenly chosen, with the outline of their masks and their ids: u8[H, W, 3].

    At most four rows of five images of at most 200 pixels. With several classes, each has its
    colour, and their names follow below.
    """
    count = min(_IMAGES, len(records))
    rows, columns = -(-count // _COLUMNS), min(_COLUMNS, count)
    cell = _SIDE + 8, _SIDE + 8 + _CAPTION
    legend = classes.names[1:] if classes.several else ()
    size = columns * cell[0], rows * cell[1] + _CAPTION * len(legend)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, index in enumerate(np.linspace(0, len(records) - 1, count).round().astype(int)):
        record = records[index]
        id = record_id(record)
        image = decode_image(record["image"], id)
        labels = decode_labels(record["mask"], id, classes)
        size = size_within(image.shape[:2], _SIDE)[::-1]
        image = np.asarray(Image.fromarray(image).resize(size))
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        colour = class_colour if classes.several else lambda k: TRUTH_COLOUR
        x, y = i % _COLUMNS * cell[0] + 4, i // _COLUMNS * cell[1] + 4
        sheet.paste(Image.fromarray(draw_contours(image, labels, colour)), (x, y))
        text = id.encode("ascii", "replace").decode()  # The font may lack other letters.
        draw.text((x, y + size[1] + 1), text if len(text) < 33 else f"...{text[-29:]}", "black")
    for k, name in enumerate(legend, 1):
        y = rows * cell[1] + (k - 1) * _CAPTION
        draw.rectangle((4, y + 2, 4 + _CAPTION, y + _CAPTION - 2), class_colour(k))
        draw.text((8 + _CAPTION, y), name.encode("ascii", "replace").decode(), "black")
    return np.asarray(sheet)
