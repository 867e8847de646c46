"""Official archives of images or masks, read where they lie."""

import functools
import re
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from segdiff_jax.data.folder import all_files, is_foreign, read_file
from segdiff_jax.data.matching import File
from segdiff_jax.runtime.errors import UserError

MOST_BYTES = 2**30  # of an unpacked file
IMAGE = re.compile(r"(.+)\.jpe?g", re.IGNORECASE)
MASK = re.compile(r"(.+)_segmentation\.png", re.IGNORECASE)


def files_of(
    name: str,
    path: Path,
    pattern: re.Pattern,
    problems: defaultdict,
    may_be_empty: bool = False,
) -> dict[str, File]:
    """{id: file} of the images or masks of one archive; nothing is ever unpacked to disk.

    `path` is the zip file, or the folder into which it was unpacked, and `name` its official name,
    without `.zip`. The first group of `pattern`, such as IMAGE or MASK, is the id; files of other
    names are ignored. What is wrong is added to `problems`, {kind: files}. To read a file of more
    than `MOST_BYTES` is a UserError.
    """
    files = {}
    try:
        archive = None if path.is_dir() else zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        problems["corrupt archive"].append(f"{name}: {error}")
        return {}
    for member in archive.infolist() if archive else all_files(path):
        path_in = member.filename if archive else member.name
        file = PurePosixPath(path_in.replace("\\", "/"))
        match = pattern.fullmatch(file.name)
        if match and archive and leads_outside(member.filename):
            problems["path that leads out of its archive"].append(f"{name}: {member.filename}")
        elif match and not (archive and any(map(is_foreign, file.parts))):
            if match[1] in files:
                problems["duplicate id"].append(f"{name}: {match[1]}")
            files[match[1]] = File(f"{name}/{file.name}", functools.partial(_read, archive, member))
    if not (files or may_be_empty):
        problems["no file of the expected name"].append(name)
    return files


def _read(archive: zipfile.ZipFile | None, member: zipfile.ZipInfo | Path) -> bytes:
    """The bytes of a file in an archive, or of a file on disk if there is no archive."""
    size = member.file_size if archive else member.lstat().st_size
    if size > MOST_BYTES:
        raise UserError(f"unpacks to {size} bytes, more than an image has: a zip bomb?")
    return archive.read(member) if archive else read_file(member)


def leads_outside(name: str) -> bool:
    """Whether a path is absolute or holds "..", on any system ("zip slip")."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]
