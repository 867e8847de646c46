"""Two processes and one folder."""

import subprocess
import sys
import threading
import time

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
