"""How files are written: whole or not at all, by one process, with a sentence if that fails."""

import contextlib
import csv
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


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
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process uses {what}: waiting for its end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def complete_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, which may be absent, without a line that a killed run left torn."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
