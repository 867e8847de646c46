"""The files that a data set is built of: where they lie, and whether they changed."""

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segdiff_jax.runtime.errors import UserError


def imported(package: str, reader: str) -> Any:
    """A package that few users have; if it is absent, a UserError says that `reader` needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        how = "pip install -r requirements-data.txt"
        raise UserError(f"{reader} needs {error.name}: {how}") from error


def find_root(manual_dir: Path, *markers: str) -> Path | None:
    """The first folder, at most two levels deep, that holds all `markers`: names or patterns."""
    folders = [manual_dir, *sorted(manual_dir.glob("*/")), *sorted(manual_dir.glob("*/*/"))]
    held = (folder for folder in folders if all(any(folder.glob(m)) for m in markers))
    return next(held, None)


def sources(root: Path, files: Iterable[Path]) -> dict[str, int | str]:
    """The number of files under `root`, and a fingerprint of their names, sizes and times.

    The fingerprint tells whether a build was made of these files, wherever `root` lies.
    """
    known = []
    for path in sorted(files):
        stat = path.stat() if path.exists() else path.lstat()  # A link that leads nowhere.
        known.append((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns))
    return {"files": len(known), "fingerprint": fingerprint(known)}


def fingerprint(what: object) -> str:
    """16 hexadecimal digits that differ if `repr(what)` differs."""
    return digest(repr(what).encode())[:16]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
