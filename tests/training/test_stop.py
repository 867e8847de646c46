"""How a run hears that it must stop."""

import os
import signal
import threading

import pytest

from segdiff_jax import parallel
from segdiff_jax.training.stop import told_to_stop


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_ends_nothing(signum):
    former = signal.getsignal(signum)
    with told_to_stop() as stop_signal:
        assert stop_signal(1) is None
        os.kill(os.getpid(), signum)
        assert stop_signal(2) == signum
    assert signal.getsignal(signum) == former


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), told_to_stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_signals_stay_as_they_are():
    found, former = [], signal.getsignal(signal.SIGTERM)

    def run():
        with told_to_stop() as stop_signal:
            found.extend([signal.getsignal(signal.SIGTERM), stop_signal(1)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [former, None]


def test_of_several_processes_all_hear_what_one_is_told(monkeypatch):
    steps, terminated = [], []
    former = signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))  # As jax does.
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "all_told_to_stop", lambda step: steps.append(step) or step == 3)
    try:
        with told_to_stop() as stop_signal:
            assert [stop_signal(step) for step in (1, 2, 3)] == [None, None, signal.SIGTERM]
            assert not terminated
            os.kill(os.getpid(), signal.SIGINT)
            assert terminated == [1]
    finally:
        signal.signal(signal.SIGTERM, former)
    assert steps == [1, 2, 3]
