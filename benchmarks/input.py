"""Images a second of the input pipeline, from photographs of a camera's size.

python -m benchmarks.input --height=2304 --width=3072

Times decoding and resizing at first, then memory, and the file that the next run starts from. A
training step waits for data only if it takes more images a second than this; every run logs the
share of its time that it waited as data_share in metrics.csv.
"""

import argparse
import functools
import io
import tempfile
from pathlib import Path

import grain
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.timing import Row, figures_of, finish, from_to, parser, time_rows
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.data.pipeline import ResizedSource, train_iterator
from tools.runs import table


class Photographs(list):
    """Encoded records, as the builders give them."""

    fingerprint = "benchmark"


def photograph(number: int, size: tuple[int, int]) -> dict[str, bytes]:
    """A drawn lesion, enlarged, with the grain of a camera: a record of a JPEG and a PNG."""
    image, mask = (Image.fromarray(x).resize(size[::-1]) for x in draw(number, 512)[:2])
    noise = np.random.default_rng(number).normal(0, 6, (*size, 3))
    image = Image.fromarray(np.uint8(np.clip(np.asarray(image) + noise, 0, 255)))
    files = io.BytesIO(), io.BytesIO()
    image.save(files[0], "JPEG", quality=92)
    mask.point(lambda value: 255 * (value > 127)).save(files[1], "PNG")
    return {"id": str(number), "image": files[0].getvalue(), "mask": files[1].getvalue()}


def rows_of(records: Photographs, options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of the table."""
    source = functools.partial(ResizedSource, records, options.size)

    def read_once(threads: int) -> None:
        dataset = grain.MapDataset.source(source())
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        for _ in dataset.to_iter_dataset(read):
            pass

    rows = []
    for threads in options.threads:
        run = functools.partial(read_once, threads)
        rows.append(Row(f"decoded and resized, {threads} threads", run, images=len(records)))

    def opened() -> grain.DatasetIterator:
        return train_iterator(source(data_dir=folder), options.batch, 0)

    run = lambda: next(opened())
    kept = source(data_dir=folder)
    for i in range(len(records)):
        kept[i]
    rows.append(Row("a later run, its first batch", run, images=options.batch))
    batches = opened()
    run = lambda: [next(batches) for _ in range(100)]
    rows.append(Row("a later run, on and on", run, images=100 * options.batch))
    return rows


def main() -> None:
    options = parser(__doc__, None)
    options.add_argument("--height", type=int, default=2304)
    options.add_argument("--width", type=int, default=3072)
    options.add_argument("--images", type=int, default=16, help="photographs")
    options.add_argument("--size", type=int, default=64, help="they are resized to")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = options.parse_args()
    size = options.height, options.width
    numbers = tqdm(range(options.images), desc="drawing", unit="image")
    records = Photographs(photograph(number, size) for number in numbers)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(records, options, Path(folder))
        time_rows(rows, options.repeats)
    lines = []
    for row in rows:
        paces = [row.images / seconds for seconds in row.seconds]
        lines.append([row.name, f"{row.images / row.median:.4g}", from_to(paces, ".4g")])
    mean = sum(len(record["image"]) for record in records) / len(records) / 2**20
    photographs = f"{options.images} JPEGs of {options.width} x {options.height}, {mean:.1f} MiB"
    figures = {"photographs": photographs, "rows": figures_of(rows)}
    finish(options, table(" | images/s | from ... to", lines), figures)


if __name__ == "__main__":
    main()
