"""Paths, and how files are written: whole or not at all, by one process, or with a sentence."""

import contextlib
import csv
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from segdiff_jax.runtime.errors import UserError


def absolute(path: str | os.PathLike) -> Path:
    """The same place, or pattern such as "photos/*.jpg", for use in any folder.

    "~" becomes the user's folder. ".." goes, except behind a link, where it means another place. A
    UserError says that "~NAME" is no user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no such user; write ./{path} for a file of this name")
    whole = Path(expanded).absolute()
    plain = Path(os.path.normpath(whole))
    return plain if os.path.realpath(plain) == os.path.realpath(whole) else whole


def read_given(path: str | os.PathLike, name: str) -> str:
    """The text of a file that the user gave as `name`; a UserError says why it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} cannot be read: it is not UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error}") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError within says that `path` cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): free some space on the disk, or "
            "choose a folder that can be written to"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, a file or folder, that takes its place at the end.

    After an error, or where nothing was written, `path` stays as it was and nothing is left over.
    An OSError names `path` if it cannot be written.
    """
    part = path.with_name(f".{secrets.token_hex(4)}.part")  # However long the name is.
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a whole file; OSError as of `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file; while another process holds it, waits and says that it uses `what`.

    The system releases the lock of a process that is killed. A file system without locks has none.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    lock = FileLock(path, fallback_to_soft=False)  # A soft lock would outlive a killed process.
    with contextlib.suppress(OSError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"another process uses {what}: waiting for its end", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def complete_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, which may be absent, without a line that a killed run left torn."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
