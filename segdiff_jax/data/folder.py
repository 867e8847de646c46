"""Images, with or without masks, from files."""

import functools
import glob
import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = ("_Segmentation", "_mask", "")  # of a mask's name, after the image's


class Folder(NamedTuple):
    """Where one's own images and masks lie: the arguments of `FolderSource`; the masks' classes."""

    images: str = ""
    masks: str = ""
    mask_endings: Sequence[str] = MASK_ENDINGS
    classes: Classes = TWO


class FolderSource:
    """Random access to {"id" str, "image" bytes, "mask" bytes or absent}, sorted by id.

    An id is a file's path from the folder, without its ending, as "2024/photo 1". Names are
    compared in Unicode's composed form (NFC), which not every system writes. `files` holds {id:
    paths}, `failures` {file: why it is no record}, and `unused` the masks of no image.
    """

    def __init__(
        self, images: str, masks: str | None = None, mask_endings: Sequence[str] = MASK_ENDINGS
    ):
        """Reads names only; a UserError says that there is no image or mask, or both in one folder.

        `images` is a folder, with all folders in it; a file; or a pattern such as "photos/*.jpg",
        in which "**" stands for any folders. `masks` is a folder; masks lie in the subfolders of
        their images, or all in none. Their names end with one of `mask_endings`, in any case.
        """
        both = masks and os.path.isdir(images) and os.path.isdir(masks)
        if both and os.path.samefile(images, masks):
            raise UserError(f"{masks} holds images and masks: put them into two folders")
        self.failures: dict[str, str] = {}
        files: dict[str, tuple[Path, ...]] = {}
        named, images_of, used = defaultdict(list), defaultdict(list), set()
        some = " or ".join(filter(None, mask_endings))
        endings = some and f", {'with or without' if '' in mask_endings else 'with'} {some}"
        for name, paths in files_by_name(masks).items() if masks else ():
            named[name.lower()] += paths
        for name, paths in files_by_name(images, masks).items():
            shown = [_shown(f"{name.rpartition('/')[0]}/{path.name}".strip("/")) for path in paths]
            found = _masks_of(name, named, mask_endings)
            found = found or _masks_of(Path(name).name, named, mask_endings)
            used.update(found)
            reason = None
            if _shown(name) != name:
                reason = "its name is not Unicode: rename it"
            elif len(paths) > 1:
                reason = f"{' and '.join(shown)} have the same name: rename one"
            elif len(found) > 1:
                reason = f"two masks: {found[0].name} and {found[1].name}"
            elif masks and not found:
                reason = f"no mask in {masks}: it would have the image's name{endings}"
            if reason:
                self.failures |= dict.fromkeys(shown, reason)
                continue
            files[name] = (*paths, *found)
            for mask in found:
                images_of[mask].append(name)
        for mask, names in images_of.items():
            reason = f"{mask.name} is the mask of {len(names)} images: sort masks into folders, too"
            for name in names if len(names) > 1 else ():
                self.failures[name] = reason
                del files[name]
        self.files, self.ids = dict(sorted(files.items())), sorted(files)
        self.unused = sorted(p for paths in named.values() for p in paths if p not in used)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        id = self.ids[index]
        files = zip(("image", "mask"), self.files[id], strict=False)
        return {"id": id} | {kind: path.read_bytes() for kind, path in files}


def _shown(name: str) -> str:
    """A file's name, with the bytes that are no text written out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def files_by_name(pattern: str, other: str | None = None) -> dict[str, list[Path]]:
    """Path from the folder, without ending -> image files; `pattern` and errors as above.

    Hidden files and folders, `other` and folders that sample.py wrote are passed over.
    """
    root, paths = Path(pattern), []

    @functools.cache
    def passed_over(folder: Path) -> bool:
        written = any((folder / name).is_dir() for name in ("results", "records"))  # New, old.
        ours = written and (folder / "settings.json").is_file()
        same = other is not None and Path(other).exists() and folder.samefile(other)
        return folder.name.startswith(".") or ours or same

    if root.is_dir():
        for place, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not passed_over(Path(place, name))]
            paths += [Path(place, name) for name in names]
    elif root.is_file():
        root, paths = root.parent, [root]
    elif glob.has_magic(pattern):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), root.parts))
        paths = [
            path
            for path in map(Path, glob.glob(pattern, recursive=True))
            if not any(map(passed_over, [p for p in path.parents if p.is_relative_to(root)][:-1]))
        ]
    else:
        raise UserError(f"{pattern} is no folder, file or pattern of files")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        unwanted = path.name.startswith(".") or path.stem.endswith("_superpixels")  # ISIC's.
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not unwanted:
            name = path.relative_to(root).with_suffix("").as_posix()
            files[unicodedata.normalize("NFC", name)].append(path)
    if not files:
        raise UserError(f"{pattern} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _masks_of(name: str, named: Mapping[str, Sequence[Path]], endings: Sequence[str]) -> list[Path]:
    """`named`: lower-case name without ending -> files; those in the image's own case win."""
    names = dict.fromkeys((name + ending).lower() for ending in endings)
    found = [path for each in names for path in named.get(each, ())]
    stem = name.rpartition("/")[2]
    own = [p for p in found if unicodedata.normalize("NFC", p.stem).startswith(stem)]
    return sorted(own or found)
