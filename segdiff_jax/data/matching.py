"""Which masks belong to an image: pairs of files, which are read later."""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from segdiff_jax.data.folder import Folder, open_folder, read_file
from segdiff_jax.runtime.errors import UserError


class File(NamedTuple):
    """What messages call a file, and a function that reads its encoded bytes when needed."""

    name: str
    read: Callable[[], bytes]
    annotator: str = ""  # Of a mask, if there are several: names of who drew it, see annotations.py


class Pair(NamedTuple):
    """An image and its masks, as their files hold them: one, or those of several annotators."""

    image: File
    masks: Sequence[File]


Pairs = dict[str, Pair]  # by id


def match(images: dict[str, File], masks: dict[str, File], problems: dict) -> Pairs:
    """{id: image} and {id: mask} -> {id: pair}, sorted; a file without a partner is a problem."""
    for id in sorted(images.keys() - masks.keys()):
        problems["image without mask"].append(images[id].name)
    for id in sorted(masks.keys() - images.keys()):
        problems["mask without image"].append(masks[id].name)
    return {id: Pair(images[id], [masks[id]]) for id in sorted(images.keys() & masks.keys())}


def match_folders(folder: Folder, problems: defaultdict) -> Pairs:
    """The pairs of a `FolderSource`, whose faults are added to `problems`; prints its notes."""
    try:
        source = open_folder(folder.images, folder.masks, folder)
    except (UserError, OSError) as error:
        problems["no pairs"].append(str(error))
        return {}
    for file, reason in (source.failures | source.unmasked).items():
        problems["image without a mask of its own"].append(f"{folder.images}/{file}: {reason}")
    for mask in source.unused:
        problems["mask without image"].append(str(mask))
    whole = {id: paths for id, paths in source.files.items() if len(paths) > 1}
    file = lambda path: file_of(path, source.annotators.get(path, ""))
    return {id: Pair(file_of(image), [*map(file, masks)]) for id, (image, *masks) in whole.items()}


def file_of(path: Path, annotator: str = "") -> File:
    return File(str(path), functools.partial(read_file, path), annotator)
