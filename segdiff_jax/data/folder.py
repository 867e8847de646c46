"""Images, with or without masks, from folders of files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
MASK_ENDINGS = ("_segmentation", "_mask", "")  # of a mask's name, after the image's


class FolderSource:
    """Random access to {"id" str, "image" bytes, "mask" bytes or absent}, sorted by id.

    Raises:
        ValueError: if a folder is missing or holds no image, if two files have the same id, or,
            where masks are given, an image has none or more than one; the files are named.
    """

    def __init__(self, images: str, masks: str | None = None):
        self._images = files_by_stem(images)
        self._masks = files_by_stem(masks) if masks else {}
        if masks:
            named: dict[str, list[Path]] = {}
            for path in self._masks.values():
                named.setdefault(path.stem.lower(), []).append(path)
            self._masks = {stem: _mask_of(stem, named, masks) for stem in self._images}
            missing = [path.name for stem, path in self._images.items() if not self._masks[stem]]
            if missing:
                raise ValueError(
                    f"{masks}: no mask for {len(missing)} images: {', '.join(missing[:20])}; a "
                    "mask has its image's name, with or without _Segmentation or _mask"
                )
        self._ids = sorted(self._images)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        name = self._ids[index]
        record = {"id": name, "image": self._images[name].read_bytes()}
        if self._masks:
            record["mask"] = self._masks[name].read_bytes()
        return record


def files_by_stem(folder: str) -> dict[str, Path]:
    """Name without ending -> image file, of the files right in a folder; ValueError as above."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        if (
            not path.is_file()
            or path.suffix.lower() not in IMAGE_SUFFIXES
            or path.name.startswith(".")
            or path.stem.endswith("_superpixels")  # lie among the official images
        ):
            continue
        if path.stem in files:
            raise ValueError(f"{files[path.stem]} and {path.name} have the same name: rename one")
        files[path.stem] = path
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _mask_of(stem: str, named: Mapping[str, Sequence[Path]], folder: str) -> Path | None:
    """`named`: lower-case name without ending -> files; those in the image's own case win."""
    found = [path for ending in MASK_ENDINGS for path in named.get((stem + ending).lower(), ())]
    found = sorted(path for path in found if path.stem.startswith(stem)) or found
    if len(found) > 1:
        raise ValueError(f"{folder}: two masks for {stem}: {found[0].name} and {found[1].name}")
    return found[0] if found else None
