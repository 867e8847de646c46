"""From encoded records to fixed batches of uint8: decode, resize, cache, shuffle, batch.

Records are dicts with `id` (bytes or str), `image` and `mask` (encoded bytes); the mask may be
absent where there is no truth. Reading is Grain's, so its position can be saved and restored.
"""

import io
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import grain
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segdiff_jax.data.classes import Classes, mask_channels
from segdiff_jax.data.colour import find_colour_constancy

# Of how images and masks are resized: another one makes former files unread.
RESIZE_VERSION = 2
# Whatever a file is called; not EPS, which is a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # of an image that is decoded: Pillow's own limit, where it only warns
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # Else it is printed.


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Encoded image -> u8[H, W, 3], upright; an alpha channel is left out.

    Raises:
        ValueError: naming the image if it cannot be decoded, has more than 8 bits a channel or more
            than `MOST_PIXELS`.
    """
    return np.asarray(_open(data, name, "RGB"))


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Encoded mask -> u8[H, W], 0 or 255, upright.

    Raises:
        ValueError: as above, or if it holds other values (labels 0 and 1, or several classes).
    """
    mask = decode_grey(data, name)
    others = np.setdiff1d(mask, [0, 255])
    if len(others):
        some = ", ".join(map(str, others[:3]))
        raise ValueError(
            f"{name}: the mask has values other than 0 and 255 ({some}): make it 0 on the "
            "background and 255 on the foreground"
        )
    return mask


def decode_two_values(data: bytes, name: str) -> np.ndarray:
    """Encoded mask of 0 and any one other value -> u8[H, W], 0 or 255, upright.

    Raises:
        ValueError: as of `decode_image`, or if it holds more values.
    """
    mask = decode_grey(data, name)
    values = np.unique(mask)
    if len(values[values > 0]) > 1:
        some = ", ".join(map(str, values[:8])) + ", ..." * (len(values) > 8)
        raise ValueError(
            f"{name}: the mask has {len(values)} values ({some}): make it 0 and one other value, "
            "or, if it has several classes, name them in data.classes; JPEG blurs masks, save them "
            "as PNG"
        )
    return np.where(mask, 255, 0).astype(np.uint8)


def decode_grey(data: bytes, name: str) -> np.ndarray:
    """Encoded image of any values -> u8[H, W], upright; ValueError as of `decode_image`."""
    return np.asarray(_open(data, name, "L"))


def decode_labels(data: bytes, name: str, classes: Classes) -> np.ndarray:
    """Encoded mask of several classes -> labels u8[H, W], upright; of a palette, the indices.

    Raises:
        ValueError: as of `decode_image`, or if it is in colours or holds values of no class.
    """
    image = _open(data, name)
    if image.mode in ("RGB", "RGBA") and np.ptp(np.asarray(image)[..., :3], axis=-1).any():
        raise ValueError(
            f"{name}: the mask is in colours: make it grey or a palette, of data.mask_values"
        )
    # Of a palette with transparency, too.
    image = image.getchannel(0) if image.mode in ("P", "PA") else image.convert("L")
    return classes.labels(np.asarray(image), name)


def _open(data: bytes, name: str, mode: str | None = None) -> Image.Image:
    """Encoded image -> upright image of a Pillow mode or its own; ValueError as above."""
    if not data:
        raise ValueError(f"{name}: the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format in ("TIFF", "WEBP") and image.n_frames > 1:
            raise ValueError(f"it holds {image.n_frames} images")
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
        # Pillow drops the lower half of a colour's 16 bits without a word; a BMP's BGR;16 is of
        # 16 bits for all three.
        raw = [str(tile.args).replace("BGR;16", "") for tile in image.tile]
        deep = image.mode[0] in "IF" or any(";16" in args for args in raw)
        image = ImageOps.exif_transpose(image)
        image = image.convert(mode) if mode and not deep else image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name}: {re.search('[0-9]+', str(error))[0]} pixels may be a decompression bomb: "
            f"make it smaller than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Exception as error:  # Of broken files, Pillow raises all kinds, such as SyntaxError.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{name}: cannot be decoded as an image ({reason}): replace the file or remove it"
        ) from error
    if deep:
        raise ValueError(f"{name}: more than 8 bits a channel: convert it to 8 bits")
    return image


def size_within(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(height, width) of an image shrunk to at most `long_side` pixels, its aspect kept."""
    scale = min(1, long_side / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def resize_image(
    image: np.ndarray, size: int | Callable[[tuple[int, int]], tuple[int, int]]
) -> np.ndarray:
    """u8[H, W, 3] -> u8[size, size, 3], bilinear with antialiasing; the aspect is not kept.

    `size` may also be a function from (H, W) to another height and width.
    """
    height, width = size(image.shape[:2]) if callable(size) else (size, size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """u8[H, W], 0 or 255 -> u8[size, size], 255 times the share of the pixel's area that is lesion.

    Rounded down, so that it is above 127 where the lesion fills over half of the area.
    """
    area = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(area).astype(np.uint8)


def resize_labels(labels: np.ndarray, size: int, count: int) -> np.ndarray:
    """Labels u8[H, W] -> u8[size, size, count], `resize_mask` of each class."""
    shares = [resize_mask(np.where(labels == k, 255, 0), size) for k in range(count)]
    return np.stack(shares, axis=-1)


class ResizedSource:
    """Random access to resized examples, kept as uint8 after their first use.

    Elements: `image` u8[S, S, 3] and `mask` u8[S, S, 1] or, of K classes, u8[S, S, K], from 0 to
    255, see `resize_mask` and `resize_labels`.

    They are kept in memory and, once all are there, in a file, from which they are read the next
    time.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        image_size: int,
        cache: bool = True,
        limit: int | None = None,
        colour_constancy: str = "none",
        data_dir: str | Path | None = None,
        classes: Classes | None = None,
    ):
        """Reads nothing yet.

        Args:
            records: what is read; without a `fingerprint`, see `prepare.Records`, not from a file.
            image_size: S.
            cache: whether to keep what was read.
            limit: only the first so many records.
            colour_constancy: applied to the resized images, see `colour.COLOUR_CONSTANCY`.
            data_dir: where built data sets are kept, and the files in `resized`; None: no file.
            classes: of the masks; None: lesion or not.
        Raises:
            ValueError: if `colour_constancy` is unknown.
        """
        self._correct = find_colour_constancy(colour_constancy)
        self._records, self._size, self._cache = records, image_size, cache
        self._classes = classes
        length = len(records) if limit is None else min(limit, len(records))
        shape = length if cache else 0, image_size, image_size, 3 + mask_channels(classes)
        self._file, self._lock, fingerprint = None, Lock(), getattr(records, "fingerprint", None)
        if cache and length and data_dir is not None and fingerprint:
            how = colour_constancy + ("-" + "_".join(map(str, classes.values)) if classes else "")
            name = f"{fingerprint}-{length}-{image_size}-{how}-v{RESIZE_VERSION}.npy"
            self._file = Path(data_dir) / "resized" / name
        kept = self._file and read_array(self._file, shape)
        self._cached = np.zeros(shape, np.uint8) if kept is None else kept
        self._ready = np.full(length, kept is not None)

    def __len__(self) -> int:
        return len(self._ready)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if self._ready[index]:
            both = self._cached[index]
        else:
            both = self._read(index)
            if self._cache:
                self._keep(index, both)
        return {"image": both[..., :3], "mask": both[..., 3:]}

    def _keep(self, index: int, both: np.ndarray) -> None:
        with self._lock:  # Several threads read, and one of them writes the file.
            self._cached[index], self._ready[index] = both, True
            if self._file is None or not self._ready.all():
                return
            path, self._file = self._file, None
        try:
            write_array(path, self._cached)
        except OSError as error:
            print(f"the resized images are not kept for the next run: {path}: {error}", flush=True)

    def _read(self, index: int) -> np.ndarray:
        record = self._records[index]
        name = record_id(record)
        image = self._correct(resize_image(decode_image(record["image"], name), self._size))
        if self._classes:
            labels = decode_labels(record["mask"], name, self._classes)
            mask = resize_labels(labels, self._size, self._classes.count)
        else:
            mask = resize_mask(decode_mask(record["mask"], name), self._size)[..., None]
        return np.concatenate([image, mask], axis=-1)


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """u8[shape] from a file, read as it is used; None if it is absent or broken."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
) -> grain.DatasetIterator:
    """Endless batches, shuffled anew each epoch; `get_state` and `set_state` restore the place.

    Args:
        source: the training examples.
        batch_size: of all processes together.
        seed: of the order.
        process_index, process_count: this process takes every process_count-th example.
        num_threads: that decode ahead.
    Returns:
        An iterator over {"image" u8[b, S, S, 3], "mask" u8[b, S, S, C], "index" i32[b]} with
        b = batch_size / process_count and each example's place in the global batch.
    Raises:
        ValueError: if there are no examples, or the batch does not divide.
    """
    if not len(source):
        raise ValueError("the training split is empty")
    if batch_size % process_count:
        raise ValueError(
            f"train.batch_size={batch_size} must be divisible by {process_count} processes"
        )
    local = batch_size // process_count
    index = (np.arange(local) * process_count + process_index).astype(np.int32)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = dataset[process_index::process_count].batch(local, drop_remainder=True)
    dataset = dataset.map(lambda batch: {**batch, "index": index})
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def padded_batches(
    examples: Iterator[dict[str, Any]], batch_size: int
) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
    """Groups examples by `batch_size`, every example once.

    Yields:
        (examples, valid): a list of exactly `batch_size`, the last one repeated to fill it, and
        bool[batch_size], False for the repeats.
    """
    group: list[dict[str, Any]] = []
    for example in examples:
        group.append(example)
        if len(group) == batch_size:
            yield group, np.ones(batch_size, bool)
            group = []
    if group:
        valid = np.arange(batch_size) < len(group)
        yield group + [group[-1]] * (batch_size - len(group)), valid
