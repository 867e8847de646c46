"""Two processes and one folder."""

import errno
import fcntl
import subprocess
import sys
import threading
import time

import pytest

from segdiff_jax.runtime.files import locked
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from segdiff_jax.runtime.files import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_second_waits_for_the_first_even_if_that_is_killed(tmp_path, capsys):
    path, order = tmp_path / "folder" / ".lock", []
    command = [sys.executable, "-c", HOLD, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == b"held\n"

        def second():
            with locked(path, "runs/a"):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first killed")
        first.kill()
        thread.join(10)
    assert order == ["first killed", "second"]
    assert capsys.readouterr().out == "another process uses runs/a: waiting for its end\n"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / ".lock", "runs/a"), locked(tmp_path / ".lock", "runs/a"):
        pass
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_is_free_again_after_an_error(tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / ".lock", "runs/a"):
            raise KeyError
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_hold_a_lock_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / ".lock"
    with pytest.raises(OSError, match=f"cannot write {path} "), locked(path, "runs/a"):
        pass
