"""Ends a run when the system or its user asks for it, at the end of a step."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from segdiff_jax import parallel


class Stopped(Exception):
    """A run was told to stop and has saved its state.

    Attributes:
        signum: the signal.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Within, SIGTERM and SIGINT are noted; a second SIGINT ends the process as ever.

    Yields:
        step -> the signal that came, if one did. Several processes of a run all hear of it at the
        same step, so each of them must ask at every step.
    """
    received: list[int] = []

    def note(signum, frame):
        if signum == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signum)

    def pass_on(signum, frame):
        received.append(signum)
        os.kill(os.getpid(), signal.SIGTERM)  # Which jax tells all processes of.

    if parallel.process_count() > 1:
        handlers = {signal.SIGINT: pass_on}  # Of SIGTERM, jax keeps its own.
        ask = lambda step: signal.SIGTERM if parallel.all_told_to_stop(step) else None
    else:
        handlers = {signal.SIGINT: note, signal.SIGTERM: note}
        ask = lambda step: signal.Signals(received[0]) if received else None
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # Python gives signals to the main thread alone.
    former = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield ask
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
