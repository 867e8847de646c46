"""Images, with or without masks, from folders of files."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS = ("_segmentation", "_mask", "")  # of a mask's name, after the image's


class FolderSource:
    """Random access to {"id" str, "image" bytes, "mask" bytes or absent}, sorted by id.

    Names are compared in Unicode's composed form (NFC), which not every system writes.

    Attributes:
        ids: of the records.
        failures: file name -> why it is no record: its name is that of another file, or, where
            masks are given, it has none or more than one.
    Raises:
        ValueError: if a folder is missing or holds no image.
    """

    def __init__(self, images: str, masks: str | None = None):
        self.failures: dict[str, str] = {}
        self._images, self._masks = {}, {}
        named: dict[str, list[Path]] = defaultdict(list)
        for stem, paths in files_by_stem(masks).items() if masks else ():
            named[stem.lower()] += paths
        for stem, paths in files_by_stem(images).items():
            names, found = [shown(path.name) for path in paths], _masks_of(stem, named)
            reason = None
            if shown(stem) != stem:
                reason = "its name is not Unicode: rename it"
            elif len(paths) > 1:
                reason = f"{' and '.join(names)} have the same name: rename one"
            elif len(found) > 1:
                reason = f"two masks: {found[0].name} and {found[1].name}"
            elif masks and not found:
                reason = (
                    f"no mask in {masks}: it would have the image's name, with or without "
                    "_Segmentation or _mask"
                )
            if reason:
                self.failures |= dict.fromkeys(names, reason)
            else:
                self._images[stem], self._masks[stem] = paths[0], found
        self.ids = sorted(self._images)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        name = self.ids[index]
        record = {"id": name, "image": self._images[name].read_bytes()}
        for mask in self._masks[name]:
            record["mask"] = mask.read_bytes()
        return record


def shown(name: str) -> str:
    """A file's name, with the bytes that are no text written out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def files_by_stem(folder: str) -> dict[str, list[Path]]:
    """Name without ending -> image files, of those right in a folder; ValueError as above."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(Path(folder).iterdir()):
        if (
            path.is_file()
            and path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")
            and not path.stem.endswith("_superpixels")  # lie among the official images
        ):
            files[unicodedata.normalize("NFC", path.stem)].append(path)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _masks_of(stem: str, named: Mapping[str, Sequence[Path]]) -> list[Path]:
    """`named`: lower-case name without ending -> files; those in the image's own case win."""
    found = [path for ending in MASK_ENDINGS for path in named.get((stem + ending).lower(), ())]
    own = [p for p in found if unicodedata.normalize("NFC", p.stem).startswith(stem)]
    return sorted(own or found)
