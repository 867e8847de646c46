"""Ends a run at the end of a step when the system or its user asks for it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from segdiff_jax.runtime import parallel


class Stopped(Exception):
    """A run was told to stop by the signal `signum` and has saved its state."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[], signal.Signals | None]]:
    """Notes SIGTERM and SIGINT; a second SIGINT ends the process as usual.

    It gives a function that says which signal came, or None. All processes of a run must call it at
    every step; all hear of a signal at the same step, and as SIGTERM if it came elsewhere. Only the
    main thread gets signals; in others nothing changes.
    """
    received: list[int] = []

    def note(signum, frame):
        if signum == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signum)

    answers = [False]  # To the question of the step before, so that nothing waits.

    def ask():
        stops = bool(received)
        if parallel.process_count() > 1:
            answers.append(parallel.any_process(stops))
            stops = bool(answers.pop(0))
        return signal.Signals([*received, signal.SIGTERM][0]) if stops else None

    in_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    former = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield ask
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
