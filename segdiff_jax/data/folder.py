"""Images, with or without masks, from files."""

import functools
import glob
import itertools
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdiff_jax.data.annotations import encode_annotations, masks_of_annotators
from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = ("_Segmentation", "_mask", "")  # of a mask's name, after the image's
FOREIGN = (".", "__MACOSX", "@eaDir")  # How names of systems begin: hidden ones, thumbnails.


class Folder(NamedTuple):
    """Where one's own images and masks lie: the arguments of `FolderSource`; the masks' classes."""

    images: str = ""
    masks: str = ""
    mask_endings: Sequence[str] = MASK_ENDINGS
    several_annotators: bool = False
    classes: Classes = TWO


class FolderSource:
    """Random access to {"id" str, "image" bytes, "mask" bytes or absent}, sorted by id.

    With several annotators, a record with masks has the fields of annotations.py, and `annotators`
    holds {mask: its annotator}; a UserError names a mask that cannot be decoded.

    An id is a file's path from the folder, without its ending, as "2024/photo 1". Names are
    compared in Unicode's composed form (NFC), which not every system writes. `files` holds {id:
    paths}, `failures` {file: why it is no record}, `unmasked` {file: why its record has no mask},
    `unused` the masks of no image, and `notes` lines on files that were not looked at.
    """

    def __init__(
        self,
        images: str,
        masks: str | None = None,
        mask_endings: Sequence[str] = MASK_ENDINGS,
        several_annotators: bool = False,
    ):
        """Reads names only; a UserError says that there is no image or mask, or both in one folder.

        `images` is a folder, with all folders in it; a file; or a pattern such as "photos/*.jpg",
        in which "**" stands for any folders. `masks` is a folder; masks lie in the subfolders of
        their images, or all in none, or anywhere if no other image or mask has the name. Their
        names end with one of `mask_endings`, in any case. With `several_annotators`, an image has
        all masks that `masks_of_annotators` finds.
        """
        both = masks and os.path.isdir(images) and os.path.isdir(masks)
        if both and os.path.samefile(images, masks):
            raise UserError(f"{masks} holds images and masks: put them into two folders")
        found = files_by_name(images, masks)
        found_masks = files_by_name(masks) if masks else Found({}, "")
        self.notes = [*filter(None, (found.others, found_masks.others))]
        self.annotators: dict[Path, str] = {}
        find = masks_of_annotators if several_annotators else _masks_of_images
        masks_of = find(found.files, found_masks.files, mask_endings)
        if several_annotators:
            self.annotators = {k: v for own in masks_of.values() for k, v in own.items()}
        masks_of = {name: sorted(own) for name, own in masks_of.items()}
        some = " or ".join(filter(None, mask_endings))
        endings = some and f", {'with or without' if '' in mask_endings else 'with'} {some}"
        self.failures: dict[str, str] = {}
        self.unmasked: dict[str, str] = {}
        self.files: dict[str, tuple[Path, ...]] = {}
        sound = [n for n, paths in found.files.items() if len(paths) == 1 and _shown(n) == n]
        images_of = Counter(path for name in sound for path in masks_of[name])
        for name, paths in sorted(found.files.items()):
            shown = [_shown(f"{name.rpartition('/')[0]}/{path.name}".strip("/")) for path in paths]
            own, reason = masks_of[name], None
            if _shown(name) != name:
                reason = "its name is not Unicode: rename it"
            elif len(paths) > 1:
                reason = f"{' and '.join(shown)} have the same name: rename one"
            elif len(own) > 1 and not several_annotators:
                reason = "two masks: {} and {}: remove one or, if annotators drew them, ".format(
                    *(os.path.relpath(p, masks) for p in own[:2])
                )
                reason += "set data.several_annotators=True and name the masks IMAGE_ANNOTATOR"
            elif own and images_of[own[0]] > 1:
                reason = (
                    f"{own[0].name} is the mask of {images_of[own[0]]} images: sort masks into "
                    "folders, too"
                )
            elif masks and not own:
                self.unmasked[shown[0]] = (
                    f"no mask in {masks}: it would have the image's name{endings}"
                )
            if reason:
                self.failures |= dict.fromkeys(shown, reason)
            else:
                self.files[name] = (*paths, *own)
        used = {*itertools.chain(*masks_of.values())}
        self.unused = sorted({*itertools.chain(*found_masks.files.values())} - used)
        self.ids = list(self.files)
        if masks and not used:
            self.notes.append(
                f"no image has a mask in {masks}: it would have the image's name{endings}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        id = self.ids[index]
        image, *masks = self.files[id]
        record = {"id": id, "image": read_file(image)}
        if masks and self.annotators:
            read = lambda path: decode_labels(read_file(path), str(path), any_value=True)
            labels = [read(path) for path in masks]
            if len({of_mask.shape for of_mask in labels}) > 1:
                raise UserError(f"{id}: its masks differ in size: {', '.join(map(str, masks))}")
            annotators = [self.annotators[path] for path in masks]
            return record | encode_annotations(np.stack(labels), annotators)
        return record | ({"mask": read_file(masks[0])} if masks else {})


def open_folder(images: str, masks: str | None, named: Any) -> FolderSource:
    """The images of a folder and their masks, see `FolderSource`; prints its notes.

    `named` says how masks are named: a `Folder`, or the section `data` of a config.
    """
    source = FolderSource(images, masks, named.mask_endings, named.several_annotators)
    for note in source.notes:
        print(note, flush=True)
    return source


def _shown(name: str) -> str:
    """A file's name, with the bytes that are no text written out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def read_file(path: Path) -> bytes:
    """The bytes of a file; OSError if it cannot be read."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path} is a link to {os.readlink(path)}, which is not there: get that file "
            "(git-annex leaves such links)"
        )
    return path.read_bytes()


class Found(NamedTuple):
    """Files by name, and a line on the files of other endings, if there are any."""

    files: dict[str, list[Path]]
    others: str


def files_by_name(pattern: str, other: str | None = None) -> Found:
    """Path from the folder, without ending -> image files; `pattern` and errors as above.

    `walk` says which folders are looked into; `other` and folders that sample.py wrote are not. A
    link that leads nowhere counts as a file.
    """
    root = Path(pattern)

    @functools.cache
    def passed_over(folder: Path) -> bool:
        written = any((folder / name).is_dir() for name in ("results", "records"))  # New, old.
        ours = written and (folder / "settings.json").is_file()
        return ours or (other is not None and Path(other).exists() and folder.samefile(other))

    if root.is_dir():
        paths = [path for _, paths in walk(root, passed_over) for path in paths]
    elif root.is_file():
        root, paths = root.parent, [root]
    elif glob.has_magic(pattern):
        # Folders that are there are no pattern, such as "exp [1]".
        root = next(folder for folder in root.parents if folder.is_dir())
        paths = {*_expand(root, Path(pattern).relative_to(root).parts, passed_over)}
        left_out = lambda folder: is_foreign(folder.name) or passed_over(folder)
        inner = lambda path: [p for p in path.parents if p.is_relative_to(root)][:-1]
        paths = [path for path in paths if not any(map(left_out, inner(path)))]
    else:
        raise UserError(f"{pattern} is no folder, file or pattern of files")
    files: dict[str, list[Path]] = defaultdict(list)
    others: Counter[str] = Counter()
    for path in sorted(paths):
        there = path.is_file() or (path.is_symlink() and not path.exists())
        if not there or is_foreign(path.name) or path.stem.endswith("_superpixels"):  # ISIC's.
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            kind = path.suffix.lower() or "no ending"
            others[kind if path.exists() else "broken link"] += 1
        else:
            name = path.relative_to(root).with_suffix("").as_posix()
            files[unicodedata.normalize("NFC", name)].append(path)
    kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
    line = f"{pattern}: files with other endings, not looked at: {others.total()} ({kinds})"
    if not files:
        more = f"; {line}" if others else ""
        raise UserError(f"{pattern} holds no images ({', '.join(IMAGE_SUFFIXES)}){more}")
    return Found(files, line if others else "")


def is_foreign(name: str) -> bool:
    """Whether a file or folder is hidden, or a system made it for itself, by its name."""
    return name.startswith(FOREIGN)


def walk(
    top: Path, passed_over: Callable[[Path], bool] = lambda folder: False
) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and its subfolders, linked ones too, each with its files, but for `is_foreign`.

    A subfolder that is `passed_over` is not entered, nor a link to a folder above it, which would
    lead in a circle. An OSError names a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    def leads_up(folder: Path) -> bool:
        above = [path for path in folder.parents if path == top or top in path.parents]
        target = os.path.realpath(folder)
        return any(Path(os.path.realpath(path)).is_relative_to(target) for path in above)

    for place, folders, names in os.walk(top, onerror=fail, followlinks=True):
        paths = [Path(place, name) for name in sorted(folders) if not is_foreign(name)]
        folders[:] = [
            path.name
            for path in paths
            if not (path.is_symlink() and leads_up(path)) and not passed_over(path)
        ]
        yield Path(place), [Path(place, name) for name in names if not is_foreign(name)]


def all_files(top: Path) -> list[Path]:
    """The files of `walk`, sorted."""
    return sorted(path for _, paths in walk(top) for path in paths)


def _expand(
    root: Path, parts: Sequence[str], passed_over: Callable[[Path], bool]
) -> Iterator[Path]:
    """`glob.glob` of a pattern's parts in a folder, without the circles that its "**" runs in."""
    if "**" not in parts:
        yield from (root / path for path in glob.glob(os.path.join(*parts), root_dir=root))
        return
    first = parts.index("**")
    places = _expand(root, parts[:first], passed_over) if first else [root]
    for place in filter(Path.is_dir, places):
        for folder, _ in walk(place, passed_over):
            yield from _expand(folder, parts[first + 1 :] or ["*"], passed_over)


def _masks_of_images(
    images: Mapping[str, Sequence[Path]],
    masks: Mapping[str, Sequence[Path]],
    endings: Sequence[str],
) -> dict[str, list[Path]]:
    """{name of an image: its masks}: of its path, or of its name alone.

    The latter lie at the top or, if no other image or mask has the name, in any folder.
    """
    named, by_stem = defaultdict(list), defaultdict(list)
    stem = lambda name: name.rpartition("/")[2]
    for name, paths in masks.items():
        named[name.lower()] += paths
        by_stem[stem(name).lower()] += paths
    count = Counter(stem(name).lower() for name in images)

    def of(name: str) -> list[Path]:
        own = _masks_of(name, named, endings) or _masks_of(stem(name), named, endings)
        return (
            own
            or (count[stem(name).lower()] == 1 and _masks_of(stem(name), by_stem, endings))
            or []
        )

    return {name: of(name) for name in images}


def _masks_of(name: str, named: Mapping[str, Sequence[Path]], endings: Sequence[str]) -> list[Path]:
    """`named`: lower-case name without ending -> files; those in the image's own case win."""
    names = dict.fromkeys((name + ending).lower() for ending in endings)
    found = [path for each in names for path in named.get(each, ())]
    stem = name.rpartition("/")[2]
    own = [p for p in found if unicodedata.normalize("NFC", p.stem).startswith(stem)]
    return sorted(own or found)
