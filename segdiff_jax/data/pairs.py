"""What the builders share: how images and masks become pairs, are checked and are stored."""

import contextlib
import functools
import hashlib
import importlib
import inspect
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.data.decode import (
    decode_blurred_mask,
    decode_image,
    decode_labels,
    decode_mask,
)
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.runtime.errors import UserError

_LISTED = 20  # files that a message names for each kind of problem


class File(NamedTuple):
    """What messages call a file, and a function that reads its encoded bytes when needed."""

    name: str
    read: Callable[[], bytes]


class Pair(NamedTuple):
    """An image and its mask, which holds 0 and 255, or the values of several classes."""

    image: File
    mask: File


Splits = dict[str, dict[str, Pair]]  # {split: {id: pair}}


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A base class; define `_find`, `_pairs` and `_files`, or override what calls them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    HOMEPAGE: ClassVar[str | None] = None
    IMAGE_FORMAT: ClassVar[str | None] = None  # "jpeg" or "png" if all images have this format

    def _find(self, manual_dir: Path) -> Any:
        """The root: the folder in `manual_dir` that holds the data set; None or empty if absent."""

    def _get(self, dl_manager: tfds.download.DownloadManager) -> Any:
        """The root if `_find` does not find one."""
        raise UserError(
            f"{self.info.full_name} cannot be built: data.manual_dir is not given or does not "
            "hold the data set, which you have to download yourself.\n"
            + inspect.cleandoc(self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        )

    def _files(self, root: Path) -> Iterable[Path]:
        """The files that a build reads; those that do not exist do not count."""

    def _pairs(self, root: Any, problems: defaultdict) -> Splits:
        """The pairs of each split; adds faults to `problems`, {kind: files}."""

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format=self.IMAGE_FORMAT)
        mask = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        features = {"id": tfds.features.Text(), "image": image, "mask": mask}
        features |= {"height": np.int32, "width": np.int32}
        features, metadata = tfds.features.FeaturesDict(features), tfds.core.MetadataDict()
        return self.dataset_info_from_configs(
            features=features, homepage=self.HOMEPAGE, metadata=metadata
        )

    def manual_sources(self, manual_dir: str | Path) -> dict:
        """The `sources` of a build; {} if `manual_dir` does not hold the data set."""
        root = self._find(Path(manual_dir))
        return self._sources(root) if root else {}

    def _sources(self, root: Any) -> dict:
        return sources(root, filter(Path.is_file, self._files(root)))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root = None
        with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
            root = self._find(Path(dl_manager.manual_dir))
        root = root or self._get(dl_manager)
        self.info.metadata["sources"] = self._sources(root)
        problems, examples = defaultdict(list), {}
        splits = self._pairs(root, problems)
        for split, pairs in splits.items():
            sizes = check(pairs, problems, f"{self.name}, {split}")
            examples[split] = self._generate_examples(pairs, sizes)
            if not pairs:
                total = sum(map(len, splits.values()))
                problems["empty split"].append(f"{split} (there are {total} images)")
        raise_problems(self, problems)
        return examples

    def _generate_examples(self, pairs: dict[str, Pair], sizes: dict) -> Iterator[tuple[str, dict]]:
        for id, pair in pairs.items():
            height, width = sizes[id]
            example = {"id": id, "image": pair.image.read(), "mask": pair.mask.read()}
            yield id, example | {"height": height, "width": width}


def check(
    pairs: Mapping[str, Pair],
    problems: defaultdict,
    name: str,
    look: Callable[[str, np.ndarray, np.ndarray], None] = lambda id, image, mask: None,
    classes: Classes = TWO,
) -> dict[str, tuple[int, int]]:
    """Decodes every image and mask -> {id: (height, width)} of the good pairs.

    In a good pair both can be read and have one size; `look` is called with its id, image
    u8[H, W, 3] and labels u8[H, W]. Other pairs are added to `problems`, {kind: files}.
    """
    sizes, decode = {}, functools.partial(decode_labels, classes=classes)
    for id, pair in tqdm(pairs.items(), desc=f"Checking {name}", unit=" images", leave=False):
        decoded = []
        for file, read in (pair.image, decode_image), (pair.mask, decode):
            try:
                decoded.append(read(file.read(), file.name))
            except MemoryError:
                raise
            except Exception as error:  # zipfile raises RuntimeError, zlib.error and others.
                reason = str(error).removeprefix(f"{file.name}: ")
                problems["unreadable file"].append(f"{file.name}: {reason}")
        if len(decoded) < 2:
            continue
        image, labels = decoded
        if image.shape[:2] == labels.shape:
            sizes[id] = labels.shape
            look(id, image, labels)
        else:
            sides = "image {} x {}, mask {} x {}".format(*image.shape[:2], *labels.shape)
            problems["image and mask of different sizes"].append(f"{pair.image.name}: {sides}")
    return sizes


def raise_problems(builder: tfds.core.DatasetBuilder, problems: Mapping[str, list[str]]) -> None:
    """Raises a UserError if there are problems; it lists the first files of each kind."""
    lines = []
    for kind, files in problems.items():
        lines += [f"{kind} ({len(files)}):", *(f"  {file}" for file in files[:_LISTED])]
        if len(files) > _LISTED:
            lines.append(f"  and {len(files) - _LISTED} more")
    if lines:
        raise UserError("\n".join([f"{builder.info.full_name} cannot be built.", *lines]))


def match(images: dict[str, File], masks: dict[str, File], problems: dict) -> dict[str, Pair]:
    """{id: image} and {id: mask} -> {id: pair}, sorted; a file without a partner is a problem."""
    for id in sorted(images.keys() - masks.keys()):
        problems["image without mask"].append(images[id].name)
    for id in sorted(masks.keys() - images.keys()):
        problems["mask without image"].append(masks[id].name)
    return {id: Pair(images[id], masks[id]) for id in sorted(images.keys() & masks.keys())}


def match_folders(
    images: str, masks: str, mask_endings: Sequence[str], problems: defaultdict
) -> dict[str, tuple[Path, ...]]:
    """{id: paths of image and mask} of a `FolderSource`, whose faults are added to `problems`."""
    try:
        source = FolderSource(images, masks, mask_endings)
    except UserError as error:
        problems["no pairs"].append(str(error))
        return {}
    for file, reason in source.failures.items():
        problems["image without a mask of its own"].append(f"{images}/{file}: {reason}")
    for mask in source.unused:
        problems["mask without image"].append(str(mask))
    return source.files


def by_split(pairs: Mapping[str, Pair], ids: Mapping[str, Sequence[str]]) -> Splits:
    """{id: pair} and {split: ids} -> the pairs of each split."""
    return {split: {id: pairs[id] for id in some} for split, some in ids.items()}


def mask_file(path: Path, blurred: bool = False) -> File:
    """A mask that is stored as a PNG: 255 on the foreground, see `data.decode`, and 0 elsewhere."""
    name, decode = str(path), decode_blurred_mask if blurred else decode_mask
    return File(name, lambda: binary_png(decode(path.read_bytes(), name)))


def binary_png(mask: np.ndarray) -> bytes:
    """[H, W] of any values -> PNG of 255 where they are above 0, and 0 elsewhere."""
    return encode_png(np.where(mask > 0, 255, 0).astype(np.uint8))


def encode_png(array: np.ndarray) -> bytes:
    """u8[H, W] or u8[H, W, 3] -> PNG. TFDS needs no TensorFlow for bytes, but for arrays."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def imported(package: str, reader: str) -> Any:
    """A package that few users have; if it is absent, a UserError says that `reader` needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        how = "pip install -r requirements-data.txt"
        raise UserError(f"{reader} needs {error.name}: {how}") from error


def find_root(manual_dir: Path, *markers: str) -> Path | None:
    """The first folder, at most two levels deep, that holds all `markers`: names or patterns."""
    top = manual_dir.expanduser()
    folders = [top, *sorted(top.glob("*/")), *sorted(top.glob("*/*/"))]
    held = (folder for folder in folders if all(any(folder.glob(m)) for m in markers))
    return next(held, None)


def sources(root: Path, files: Iterable[Path], times: bool = False) -> dict[str, int | str]:
    """The number of files under `root`, and a fingerprint of their names and sizes.

    The fingerprint tells whether a build was made of these files, wherever `root` lies. With
    `times`, it also depends on when the files last changed.
    """
    known = []
    for path in sorted(files):
        stat = path.stat()
        known.append((path.relative_to(root).as_posix(), stat.st_size, times and stat.st_mtime_ns))
    return {"files": len(known), "fingerprint": fingerprint(known)}


def fingerprint(what: object) -> str:
    """16 hexadecimal digits that differ if `repr(what)` differs."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]
