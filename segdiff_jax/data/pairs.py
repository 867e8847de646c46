"""What the builders of images with masks share: features, check of the pairs, examples."""

import contextlib
import hashlib
import inspect
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from segdiff_jax.data.decode import decode_grey, decode_image, decode_mask
from segdiff_jax.data.folder import files_by_name

_LISTED = 20


class File(NamedTuple):
    """A file, read when it is needed.

    Attributes:
      name: for messages.
      read: gives its encoded bytes; a mask's are of 0 and 255, or of several classes' values.
    """

    name: str
    read: Callable[[], bytes]


class Pair(NamedTuple):
    """An image and its mask."""

    image: File
    mask: File


def describe(
    builder: tfds.core.DatasetBuilder, homepage: str | None = None, image_format: str | None = None
) -> tfds.core.DatasetInfo:
    """What `_info` returns: features {id, image, mask, height, width}, encoded bytes.

    Args:
      builder: the data set's.
      homepage: where it comes from.
      image_format: "jpeg" or "png", if all images have one.
    """
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format=image_format),
        "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "height": np.int32,
        "width": np.int32,
    }
    return builder.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features),
        homepage=homepage,
        metadata=tfds.core.MetadataDict(),
    )


def check(
    pairs: Mapping[str, Pair],
    problems: defaultdict,
    name: str,
    look: Callable[[str, np.ndarray, np.ndarray], None] = lambda id, image, mask: None,
    decode: Callable[[bytes, str], np.ndarray] = decode_mask,
) -> dict[str, tuple[int, int]]:
    """Decodes every image and mask.

    Args:
      pairs: by id.
      problems: kind -> files; what is wrong is added here.
      name: of what is checked.
      look: gets the id, image u8[H, W, 3] and mask u8[H, W] of each that is right.
      decode: a mask's bytes and name -> u8[H, W].
    Returns:
      id -> (height, width), of the ids with a readable image and mask of one size.
    """
    sizes = {}
    for id, pair in tqdm(pairs.items(), desc=f"Checking {name}", unit=" images", leave=False):
        image = _decoded(pair.image, decode_image, problems)
        mask = _decoded(pair.mask, decode, problems)
        if image is None or mask is None:
            continue
        (height, width), mask_size = image.shape[:2], mask.shape
        if (height, width) == mask_size:
            sizes[id] = height, width
            look(id, image, mask)
        else:
            sides = "image {} x {}, mask {} x {}".format(height, width, *mask_size)
            problems["image and mask of different sizes"].append(f"{pair.image.name}: {sides}")
    return sizes


def _decoded(file: File, decode: Callable, problems: defaultdict) -> np.ndarray | None:
    """A file that decodes in full; None, and a problem, of another."""
    try:
        return decode(file.read(), file.name)
    except Exception as error:  # zipfile raises RuntimeError, zlib.error and others for bad files.
        reason = str(error).removeprefix(f"{file.name}: ")
        problems["unreadable file"].append(f"{file.name}: {reason}")
    return None


def examples(pairs: Mapping[str, Pair], sizes: Mapping[str, tuple[int, int]]) -> Iterator[tuple]:
    """What `_generate_examples` yields."""
    for id, pair in pairs.items():
        height, width = sizes[id]
        example = {"id": id, "image": pair.image.read(), "mask": pair.mask.read()}
        yield id, example | {"height": height, "width": width}


def checked_examples(
    builder: tfds.core.DatasetBuilder, splits: Mapping[str, Mapping[str, Pair]], problems: dict
) -> dict[str, Iterator[tuple]]:
    """What `_split_generators` returns, of pairs that are all right.

    Raises:
      ValueError: with all `problems`, those of the pairs added.
    """
    sizes = {}
    for split, pairs in splits.items():
        sizes[split] = check(pairs, problems, f"{builder.name}, {split}")
        if not pairs:
            problems["empty split"].append(split)
    raise_problems(builder, problems)
    return {split: examples(pairs, sizes[split]) for split, pairs in splits.items()}


def raise_problems(builder: tfds.core.DatasetBuilder, problems: Mapping[str, list[str]]) -> None:
    """Raises a ValueError that lists the problems by kind, each with its first files, if any."""
    lines = []
    for kind, files in problems.items():
        lines += [f"{kind} ({len(files)}):", *(f"  {file}" for file in files[:_LISTED])]
        if len(files) > _LISTED:
            lines.append(f"  and {len(files) - _LISTED} more")
    if lines:
        raise ValueError("\n".join([f"{builder.info.full_name} cannot be built.", *lines]))


def match_folders(images: Path, masks: Path, above: int, problems: defaultdict) -> dict[str, Pair]:
    """Pairs of two folders by file names, without their endings, sorted.

    Args:
      images: a folder.
      masks: a folder.
      above: a mask's foreground is above this value.
      problems: kind -> files; what is wrong is added here.
    """
    named = {}
    for folder in (images, masks):
        try:
            files = files_by_name(str(folder))
        except ValueError as error:  # There is none.
            problems["no images"].append(str(error))
            return {}
        for paths in files.values():
            if len(paths) > 1:
                problems["two files of one name"].append(f"{paths[0]} and {paths[1].name}")
        named[folder] = {name: paths[0] for name, paths in files.items()}
    for kind, some, others in (
        ("image without mask", images, masks),
        ("mask without image", masks, images),
    ):
        for name in sorted(named[some].keys() - named[others].keys()):
            problems[kind].append(str(named[some][name]))
    both = sorted(named[images].keys() & named[masks].keys())
    return {id: pair_of_paths(named[images][id], named[masks][id], above) for id in both}


def pair_of_paths(image: Path, mask: Path, above: int) -> Pair:
    """Image and mask in two files; the mask's foreground is above a value."""
    return Pair(
        File(str(image), image.read_bytes),
        File(str(mask), lambda: binary_png(mask.read_bytes(), str(mask), above)),
    )


def binary_png(data: bytes, name: str, above: int) -> bytes:
    """Encoded mask of any values -> PNG of 255 where it is above a value, and 0 elsewhere."""
    return encode_png(np.where(decode_grey(data, name) > above, 255, 0).astype(np.uint8))


def encode_png(array: np.ndarray) -> bytes:
    """u8[H, W] or u8[H, W, 3] -> PNG; bytes, unlike arrays, need no TensorFlow in TFDS."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def find_root(manual_dir: str | Path, *markers: str) -> Path | None:
    """`manual_dir`, or else a folder at most two levels below it, that holds all of `markers`."""
    top = Path(manual_dir).expanduser()
    folders = [top, *sorted(top.glob("*/")), *sorted(top.glob("*/*/"))]
    held = (folder for folder in folders if all(any(folder.glob(m)) for m in markers))
    return next(held, None)


def required_root(
    builder: tfds.core.GeneratorBasedBuilder,
    dl_manager: tfds.download.DownloadManager,
    find: Callable[[Path], Path | None],
) -> Path:
    """What `find` finds in a build's manual_dir.

    Raises:
      ValueError: saying where to get the data set and how to lay it out, if it is not there.
    """
    root = None
    with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
        root = find(Path(dl_manager.manual_dir))
    if root is None:
        how = inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
        raise ValueError(
            f"{builder.info.full_name} cannot be built: data.manual_dir is not given or does not "
            f"hold it; it is not downloaded.\n{how}"
        )
    return root


def sources_under(root: Path | None, *folders: str) -> dict[str, int | str]:
    """`sources` of all files in some folders of `root`, but for hidden ones; {} of None."""
    if root is None:
        return {}
    files = (path for folder in folders for path in (root / folder).rglob("[!.]*"))
    return sources(root, [path for path in files if path.is_file()])


def sources(root: Path, files: Iterable[Path], times: bool = False) -> dict[str, int | str]:
    """What tells whether files are still those of a build, wherever they lie.

    Args:
      root: a folder.
      files: under it, in any order.
      times: whether those of their last change count, too.
    """
    known = []
    for path in sorted(files):
        stat = path.stat()
        known.append((path.relative_to(root).as_posix(), stat.st_size, times and stat.st_mtime_ns))
    digest = hashlib.sha256(repr(known).encode()).hexdigest()
    return {"files": len(known), "fingerprint": digest[:16]}
