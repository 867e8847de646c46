"""How a run hears that it must stop."""

import os
import signal
import threading

import pytest

from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.stop import told_to_stop


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_ends_nothing(signum):
    former = signal.getsignal(signum)
    with told_to_stop() as stop_signal:
        assert stop_signal() is None
        os.kill(os.getpid(), signum)
        assert stop_signal() == signum
    assert signal.getsignal(signum) == former


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), told_to_stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_signals_stay_as_they_are():
    found, former = [], signal.getsignal(signal.SIGTERM)

    def run():
        with told_to_stop() as stop_signal:
            found.extend([signal.getsignal(signal.SIGTERM), stop_signal()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [former, None]


@pytest.mark.parametrize("ours, heard", [([], signal.SIGTERM), ([signal.SIGINT], signal.SIGINT)])
def test_of_several_processes_all_hear_what_one_is_told(monkeypatch, ours, heard):
    """Here or elsewhere; what was asked at one step is answered at the next."""
    told = []
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    elsewhere = iter([False, not ours, False])
    monkeypatch.setattr(parallel, "any_process", lambda v: told.append(v) or (v or next(elsewhere)))
    with told_to_stop() as stop_signal:
        assert stop_signal() is None
        for signum in ours:
            os.kill(os.getpid(), signum)
        assert [stop_signal(), stop_signal()] == [None, heard]
    assert told == [False, bool(ours), bool(ours)]
