"""Images, with or without masks, from files."""

import functools
import glob
import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segdiff_jax.data.classes import Classes
from segdiff_jax.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = ("_Segmentation", "_mask", "")  # of a mask's name, after the image's


class Folder(NamedTuple):
    """Where one's own images and masks lie: the arguments of `FolderSource`; the masks' classes."""

    images: str
    masks: str
    mask_endings: Sequence[str] = MASK_ENDINGS
    classes: Classes | None = None


class FolderSource:
    """Random access to {"id" str, "image" bytes, "mask" bytes or absent}, sorted by id.

    An id is a file's path from the folder, without its ending, as "2024/photo 1". Names are
    compared in Unicode's composed form (NFC), which not every system writes.

    Attributes:
        ids: of the records.
        failures: file -> why it is no record: its name is that of another file, or, where masks are
            given, it has none, more than one or that of another image.
        unused: masks of no image.
    """

    def __init__(
        self, images: str, masks: str | None = None, mask_endings: Sequence[str] = MASK_ENDINGS
    ):
        """Reads names only.

        Args:
            images: a folder, with all folders in it; a file; or a pattern such as "photos/*.jpg",
                in which "**" stands for any folders.
            masks: a folder; each mask lies in the same subfolder as its image, or all of them in
                none.
            mask_endings: what a mask's name may have after the image's, in any case.
        Raises:
            UserError: if there is no image, or no mask, or both are in one folder.
        """
        both = masks and os.path.isdir(images) and os.path.isdir(masks)
        if both and os.path.samefile(images, masks):
            raise UserError(f"{masks} holds images and masks: put them into two folders")
        self.failures: dict[str, str] = {}
        self._images, self._masks = {}, {}
        named: dict[str, list[Path]] = defaultdict(list)
        used: set[Path] = set()
        for name, paths in files_by_name(masks).items() if masks else ():
            named[name.lower()] += paths
        for name, paths in files_by_name(images, masks).items():
            files = [shown(f"{name.rpartition('/')[0]}/{path.name}".strip("/")) for path in paths]
            reason, found = None, _masks_of(name, named, mask_endings)
            found = found or _masks_of(Path(name).name, named, mask_endings)
            used.update(found)
            if shown(name) != name:
                reason = "its name is not Unicode: rename it"
            elif len(paths) > 1:
                reason = f"{' and '.join(files)} have the same name: rename one"
            elif len(found) > 1:
                reason = f"two masks: {found[0].name} and {found[1].name}"
            elif masks and not found:
                whose = f"the image's name{_followed_by(mask_endings)}"
                reason = f"no mask in {masks}: it would have {whose}"
            if reason:
                self.failures |= dict.fromkeys(files, reason)
            else:
                self._images[name], self._masks[name] = paths[0], found
        for mask, names in _shared(self._masks).items():
            reason = f"{mask.name} is the mask of {len(names)} images: sort masks into folders, too"
            self.failures |= dict.fromkeys(names, reason)
            for name in names:
                del self._images[name]
        self.ids = sorted(self._images)
        self.unused = sorted(p for paths in named.values() for p in paths if p not in used)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        name = self.ids[index]
        record = {"id": name, "image": self._images[name].read_bytes()}
        for mask in self._masks[name]:
            record["mask"] = mask.read_bytes()
        return record

    def paths(self, id: str) -> tuple[Path, ...]:
        """The files of a record: the image and, if there is one, the mask."""
        return (self._images[id], *self._masks[id])


def _shared(masks: Mapping[str, Sequence[Path]]) -> dict[Path, list[str]]:
    """Masks of more than one image -> the names of these."""
    names: dict[Path, list[str]] = defaultdict(list)
    for name, paths in masks.items():
        for path in paths:
            names[path].append(name)
    return {path: of for path, of in names.items() if len(of) > 1}


def shown(name: str) -> str:
    """A file's name, with the bytes that are no text written out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def files_by_name(pattern: str, other: str | None = None) -> dict[str, list[Path]]:
    """Path from the folder, without ending -> image files; `pattern` and errors as above.

    Hidden files and folders, `other` and folders that sample.py wrote are passed over.
    """
    root, paths = Path(pattern), []
    if root.is_dir():
        paths = _files_in(root, other)
    elif root.is_file():
        root, paths = root.parent, [root]
    elif glob.has_magic(pattern):
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), root.parts)
        root = Path(*fixed)
        passed_over = functools.cache(lambda folder: _passed_over(folder, other))
        paths = [
            path
            for path in map(Path, glob.glob(pattern, recursive=True))
            if not any(map(passed_over, [p for p in path.parents if p.is_relative_to(root)][:-1]))
        ]
    else:
        raise UserError(f"{pattern} is no folder, file or pattern of files")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        if (
            path.is_file()
            and path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")
            and not path.stem.endswith("_superpixels")  # lie among the official images
        ):
            name = path.relative_to(root).with_suffix("").as_posix()
            files[unicodedata.normalize("NFC", name)].append(path)
    if not files:
        raise UserError(f"{pattern} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _files_in(folder: Path, other: str | None) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _passed_over(Path(place, name), other)]
        yield from (Path(place, name) for name in names)


def _passed_over(folder: Path, other: str | None) -> bool:
    written = any((folder / name).is_dir() for name in ("results", "records"))  # Today's, former.
    ours = written and (folder / "settings.json").is_file()
    same = other is not None and Path(other).exists() and folder.samefile(other)
    return folder.name.startswith(".") or ours or same


def _masks_of(name: str, named: Mapping[str, Sequence[Path]], endings: Sequence[str]) -> list[Path]:
    """`named`: lower-case name without ending -> files; those in the image's own case win."""
    names = dict.fromkeys((name + ending).lower() for ending in endings)
    found = [path for each in names for path in named.get(each, ())]
    stem = name.rpartition("/")[2]
    own = [p for p in found if unicodedata.normalize("NFC", p.stem).startswith(stem)]
    return sorted(own or found)


def _followed_by(endings: Sequence[str]) -> str:
    """What a message says of the endings, such as ", with or without _mask"."""
    some = " or ".join(ending for ending in endings if ending)
    return some and f", {'with or without' if '' in endings else 'with'} {some}"
