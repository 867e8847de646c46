"""Official archives of images or masks, read in place, and their pairs."""

import functools
import re
import zipfile
from collections import defaultdict
from pathlib import Path, PurePath, PurePosixPath

from segdiff_jax.data.pairs import File, Pair

MOST_BYTES = 2**30  # of an unpacked file
IMAGE = re.compile(r"(.+)\.jpe?g", re.IGNORECASE)
MASK = re.compile(r"(.+)_segmentation\.png", re.IGNORECASE)


class Archive:
    """The files of one official archive, by image id.

    Args:
      name: the official name, without `.zip`.
      path: the zip file, or the folder it was extracted to.
      pattern: IMAGE or MASK; other files are ignored.
      problems: kind -> files; what is wrong is added here.
    """

    def __init__(self, name: str, path: Path, pattern: re.Pattern, problems: defaultdict):
        self.name, self.files, self._zip = name, {}, None
        try:
            if not path.is_dir():
                self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            problems["corrupt archive"].append(f"{name}: {error}")
            return
        for member in visible_files(path) if self._zip is None else self._zip.infolist():
            file = PurePath(getattr(member, "filename", member))
            match = pattern.fullmatch(file.name)
            if not match:
                continue
            if self._zip and leads_outside(member.filename):
                problems["path that leads out of its archive"].append(f"{name}: {member.filename}")
                continue
            if self._zip and is_hidden(file):
                continue
            if match[1] in self.files:
                problems["duplicate id"].append(f"{name}: {match[1]}")
            self.files[match[1]] = member
        if not self.files:
            problems["no file of the expected name"].append(name)

    def read(self, id: str) -> bytes:
        """The original bytes of a file; nothing is ever unpacked to disk.

        Raises:
          ValueError: if they are more than `MOST_BYTES`.
        """
        member = self.files[id]
        size = member.file_size if self._zip else member.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"unpacks to {size} bytes, more than an image has: a zip bomb?")
        return self._zip.read(member) if self._zip else member.read_bytes()

    def file(self, id: str) -> File:
        """A file, read when it is needed."""
        return File(self.where(id), functools.partial(self.read, id))

    def where(self, id: str) -> str:
        """Name of the archive and of the file in it, for messages."""
        return f"{self.name}/{PurePath(getattr(self.files[id], 'filename', self.files[id])).name}"


def is_hidden(file: PurePath) -> bool:
    """Whether a file is an operating system's own: a dotfile, or under `__MACOSX`."""
    return any(part.startswith((".", "__MACOSX")) for part in file.parts)


def leads_outside(name: str) -> bool:
    """Whether a path is absolute or holds "..", on any system ("zip slip")."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def visible_files(folder: Path) -> list[Path]:
    """All files under a folder, except hidden ones."""
    files = (path for path in folder.rglob("*") if not is_hidden(path.relative_to(folder)))
    return sorted(path for path in files if path.is_file())


def source_size(path: Path) -> int:
    """Bytes of an archive, or number of files of a folder: changes when the data does."""
    return len(visible_files(path)) if path.is_dir() else path.stat().st_size


def match_pairs(images: Archive, masks: Archive, problems: defaultdict) -> dict[str, Pair]:
    """Pairs by id; what has no partner is added to `problems`."""
    for kind, some, others in (
        ("image without mask", images, masks),
        ("mask without image", masks, images),
    ):
        for id in sorted(some.files.keys() - others.files.keys()):
            problems[kind].append(some.where(id))
    ids = sorted(images.files.keys() & masks.files.keys())
    return {id: Pair(images.file(id), masks.file(id)) for id in ids}
