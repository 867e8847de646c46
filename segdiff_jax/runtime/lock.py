"""One writer for a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from segdiff_jax.runtime.files import naming


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file; waits, and says so, while another process holds it.

    The system releases the lock of a process that is killed. A file system without locks has none.
    `what` the lock stands for is named in the message.
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
