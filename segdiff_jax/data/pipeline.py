"""From encoded records to fixed batches of uint8: decode, resize, cache, shuffle, batch.

Records are dicts with `id` (bytes or str), `image` and `mask` (encoded bytes) and, if several
annotators drew masks, the fields of annotations.py. Masks may be absent where there is no truth.
Reading is Grain's, so its position can be saved and restored.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import grain
import numpy as np
from PIL import Image

from segdiff_jax.data.annotations import annotators_of, decode_annotations, numbers_of
from segdiff_jax.data.classes import TWO, Classes, most_likely
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.data.decode import decode_image, decode_labels, naming_memory
from segdiff_jax.data.sources import fingerprint
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import replacing

Size = tuple[int, int]  # height and width
LONG_SIDE = 256  # pixels at which masks are compared and conditions measured
RESIZE_VERSION = 2  # of how images and masks are resized; a file of another version is not read


def size_within(size: Size, long_side: int) -> Size:
    """The size of an image shrunk to at most `long_side` pixels, its aspect kept."""
    scale = min(1, long_side / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def resize_image(image: np.ndarray, size: int | Callable[[Size], Size]) -> np.ndarray:
    """Resizes u8[H, W, 3] to u8[size, size, 3], or to size((H, W)); bilinear with antialiasing."""
    height, width = size(image.shape[:2]) if callable(size) else (size, size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, size: Size, classes: Classes = TWO) -> np.ndarray:
    """Labels u8[H, W] -> u8[*size, C], 255 times each class's share of the pixel's area.

    Rounded down, so that it is above 127 where the class fills over half of the area.
    """
    shares = (np.where(labels == k, 255, 0).astype(np.float32) for k in classes.of_channels)
    areas = [Image.fromarray(x).resize(size[::-1], Image.Resampling.BOX) for x in shares]
    return np.stack([np.asarray(area).astype(np.uint8) for area in areas], axis=-1)


def shrink_labels(labels: np.ndarray, classes: Classes = TWO) -> np.ndarray:
    """Masks u8[V, H, W] of an image, with at most `LONG_SIDE` pixels on the long side."""
    size = size_within(labels.shape[1:], LONG_SIDE)
    if size == labels.shape[1:]:
        return labels
    return np.stack([most_likely(resize_labels(one, size, classes), 127) for one in labels])


class ResizedSource:
    """Random access to {"image" u8[S, S, 3], "mask" u8[S, S, C]}, see `resize_labels`.

    If the records have masks of several annotators, "mask" is their majority or, with
    `annotators`, u8[S, S, A] holds each of them. A is the most masks of an image, and "annotators"
    i32[A] says of each one who drew it, see `annotations.numbers_of`; -1 if there is no such mask.

    After their first use they are kept in memory and, once all are there, in a file for later runs.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        image_size: int,
        limit: int | None = None,
        colour_constancy: str = "none",
        data_dir: str | Path | None = None,
        classes: Classes = TWO,
        annotators: Sequence[str] | None = None,
    ):
        """Reads no record yet; S is `image_size`, and only the first `limit` records count.

        `colour_constancy` is applied to resized images. `annotators` are names that get numbers of
        their own; None: the majority is read. The file lies in `resized` of `data_dir`,
        the folder of built data sets; there is none if that is None or the records have no
        `fingerprint`, see `records.Records`.
        """
        self._correct = COLOUR_CONSTANCY[colour_constancy]
        self.members = getattr(records, "members", "")  # Of `records.Records`, as `extra`.
        self.extra = getattr(records, "extra", 0)
        self._records, self._size, self._classes = records, image_size, classes
        length = len(records) if limit is None else min(limit, len(records))
        most_masks = 0 if annotators is None else getattr(records, "most_masks", 0)
        self._annotators = annotators if most_masks else None
        square, numbers = (image_size, image_size), [("annotators", np.int32, (most_masks,))]
        masks = "mask", np.uint8, (*square, most_masks or classes.channels)
        kind = np.dtype([("image", np.uint8, (*square, 3)), masks, *numbers[: most_masks > 0]])
        self._cached, self._ready = np.zeros(length, kind), np.zeros(length, bool)
        self._file, self._lock, of_records = None, Lock(), getattr(records, "fingerprint", None)
        if data_dir is not None and of_records:
            # The fingerprint belongs to a build, whose name tells classes from others.
            name = f"{of_records}-{length}-{image_size}-{colour_constancy}-v{RESIZE_VERSION}"
            if most_masks:
                name += f"-annotators-{fingerprint(tuple(annotators))}"
            self._file = Path(data_dir) / "resized" / f"{name}.npy"
            with contextlib.suppress(OSError, ValueError, EOFError):  # It is absent or broken.
                kept = np.load(self._file, mmap_mode="r")
                if (kept.shape, kept.dtype) == ((length,), kind):
                    self._cached, self._ready[:] = kept, True

    def __len__(self) -> int:
        return len(self._ready)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not self._ready[index]:
            self._fill(index)
        example = self._cached[index]
        return {name: example[name] for name in example.dtype.names}

    def _fill(self, index: int) -> None:
        record = self._records[index]
        name = record_id(record)
        image = self._correct(resize_image(decode_image(record["image"], name), self._size))
        several = self._annotators is not None
        if several and "annotations" in record:
            with naming_memory(name):
                labels = decode_annotations(record)
        else:
            labels = [decode_labels(record["mask"], name, self._classes)]
        square = self._size, self._size
        masks = [resize_labels(one, square, self._classes) for one in labels]
        example = self._cached[index]
        example["image"] = image
        example["mask"][..., : len(masks) * self._classes.channels] = np.concatenate(masks, -1)
        if several:
            numbers = numbers_of(annotators_of(record), self._annotators)
            example["annotators"] = numbers + [-1] * (len(example["annotators"]) - len(numbers))
        with self._lock:  # Several threads read, and one of them writes the file.
            self._ready[index] = True
            if self._file is None or not self._ready.all():
                return
            path, self._file = self._file, None
        try:
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, self._cached)
        except OSError as error:
            print(f"the resized images are not kept for the next run: {error}", flush=True)


def record_id(record: dict[str, Any]) -> str:
    """The record's id as text (TFDS gives bytes)."""
    return record["id"].decode() if isinstance(record["id"], bytes) else record["id"]


def train_iterator(
    source: ResizedSource,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    extra_share: float = 0.0,
) -> grain.DatasetIterator:
    """Endless batches, shuffled anew each epoch; `get_state` and `set_state` restore the place.

    `batch_size` is over all processes, of which each takes every process_count-th example. A batch
    is {"image" u8[b, S, S, 3], "mask" u8[b, S, S, C], "index" i32[b]} with b = batch_size /
    process_count and each example's place in the global batch, and with what else examples have.
    `num_threads` threads decode ahead.
    With `extra_share`, this share of the examples are among the last `source.extra` ones.
    A UserError says that there are no examples, or none to mix, or that the batch does not divide.
    """
    if not len(source):
        raise UserError("the training split is empty")
    if batch_size % process_count:
        raise UserError(
            f"train.batch_size={batch_size} must be divisible by {process_count} processes"
        )
    local = batch_size // process_count
    index = (np.arange(local) * process_count + process_index).astype(np.int32)
    dataset = grain.MapDataset.source(source).seed(seed)
    if extra_share:
        if not 0 < source.extra < len(source):
            raise UserError(
                f"data.extra_share={extra_share}: {source.extra} of {len(source)} training images "
                "are of data.extra_datasets, so there is nothing to mix"
            )
        own = len(source) - source.extra
        parts = [part.shuffle().repeat() for part in (dataset[:own], dataset[own:])]
        dataset = grain.MapDataset.mix(parts, [1 - extra_share, extra_share])
    else:
        dataset = dataset.shuffle().repeat()
    dataset = dataset[process_index::process_count].batch(local, drop_remainder=True)
    dataset = dataset.map(lambda batch: {**batch, "index": index})
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def padded_batches(examples: Iterator[dict], batch_size: int) -> Iterator[tuple[list, np.ndarray]]:
    """Groups of exactly `batch_size` examples, the last example repeated to fill the last group.

    Each comes with bool[batch_size], False for the repeats.
    """
    while group := list(itertools.islice(examples, batch_size)):
        valid = np.arange(batch_size) < len(group)
        yield group + [group[-1]] * (batch_size - len(group)), valid
