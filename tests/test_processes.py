"""A run of several processes, as users start it, against one process."""

import csv
import json
import shutil
import signal
import socket

import numpy as np
import pytest
from PIL import Image

from tests.test_end_to_end import TINY, finish, saved_steps, start, wait_for_save

LOGGED = "step", "loss", "bce", "dice", "grad_norm", "learning_rate", "validation_iou"


def start_all(processes, devices, script, *arguments, slurm=False):
    """Processes of so many devices each, told of each other by flags or as SLURM does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in map(str, range(processes)):
        env, flags = {"JAX_NUM_CPU_DEVICES": str(devices)}, []
        if slurm:
            env |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
            env |= {"SLURM_PROCID": number, "SLURM_LOCALID": number}
            env |= {"JAX_COORDINATOR_PORT": str(port)}
        elif processes > 1:
            flags = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            flags += [f"--process_id={number}"]
        own = [str(argument).replace("PROCESS", number) for argument in arguments]
        started.append(start(script, *own, *flags, env=env))
    return started


def run_all(*arguments):
    return [finish(process) for process in start_all(*arguments)]


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        lines = [[row[name] for name in LOGGED] for row in csv.DictReader(file)]
    return np.array([[float(cell or "nan") for cell in line] for line in lines])


def masks(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted((folder / "masks").iterdir())}


@pytest.fixture(scope="module")
def command(tiny_isic, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    flags = [f"--config.data.manual_dir={tiny_isic}", f"--config.data.dir={data}"]
    flags += ["--config.train.checkpoint_every=4", "--config.validation.num_images=3"]
    return lambda steps, workdir: (
        *("train.py", *TINY, *flags, f"--config.train.num_steps={steps}", f"--workdir={workdir}"),
    )


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run_all(1, 1, *command(20, workdir))
    return workdir


def assert_same_run(workdir, alone):
    ours, expected = rows(workdir), rows(alone)
    np.testing.assert_array_equal(ours[:, 0], expected[:, 0])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_four_devices_train_as_one(command, alone, tmp_path):
    ((out, _),) = run_all(1, 4, *command(20, tmp_path))
    assert "4 x cpu" in out
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_of_two_devices_train_and_sample_as_one_even_when_killed(
    command, alone, tmp_path
):
    workdir = tmp_path / "exp [lr=1e-3]"
    first = start_all(2, 2, *command(20, workdir))
    wait_for_save(first[0], workdir)
    first[1].send_signal(signal.SIGKILL)
    finish(first[1], -signal.SIGKILL)
    first[0].communicate(timeout=200)  # It cannot go on, and ends by itself.
    assert first[0].returncode not in (None, 0)
    done = max(saved_steps(workdir))
    assert 4 <= done < 20
    (out, err), (silent, _) = run_all(2, 2, *command(20, workdir))
    assert f"resuming {workdir} at step {done}" in out and "4 x cpu" in out
    assert "trained: 20 steps" in out and "images/s" in err
    assert "steps" not in silent  # But for what C++ says.
    assert_same_run(workdir, alone)
    sampled = "sample.py", f"--workdir={workdir}", "--split=train[:13]"
    ((out, _),) = run_all(1, 1, *sampled, f"--out={workdir / 'one'}")
    (shared, _), (silent, _) = run_all(2, 2, *sampled, f"--out={workdir / 'two'}")
    scores = out[out.index("iou ") :].splitlines()[:-1]
    assert shared[shared.index("iou ") :].splitlines()[:-1] == scores
    assert "iou" not in silent
    one, two = (json.loads((workdir / k / "metrics.json").read_text()) for k in ("one", "two"))
    assert two["num_images"] == one["num_images"] == 13
    assert two["mean"]["iou"] == pytest.approx(one["mean"]["iou"], abs=1e-6)
    ours, expected = masks(workdir / "two"), masks(workdir / "one")
    assert ours.keys() == expected.keys() and len(ours) == 13
    assert all((ours[name] != expected[name]).mean() < 1e-3 for name in ours)
    # On one device again, it goes on as the one that never left it.
    shutil.copytree(alone, workdir / "alone")
    for each in (workdir, workdir / "alone"):
        ((out, _),) = run_all(1, 1, *command(24, each))
        assert f"resuming {each} at step 20" in out and "1 x cpu" in out
    assert_same_run(workdir, workdir / "alone")


@pytest.mark.slow
def test_two_processes_that_slurm_starts_are_told_to_stop_through_one(command, tmp_path):
    processes = start_all(2, 1, *command(100_000, tmp_path), slurm=True)
    wait_for_save(processes[0], tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    (_, main), (_, other) = (finish(process, 143) for process in processes)
    (step,) = saved_steps(tmp_path)
    message = f"stopped by SIGTERM after step {step}, which is saved; the same command resumes from"
    assert message in main and f"process 1: {message}" in other
    assert rows(tmp_path)[-1, 0] == step


@pytest.mark.slow
def test_processes_that_do_not_run_the_same_are_told(command, alone, tmp_path):
    """The second sees another folder, without the checkpoint."""
    shutil.copytree(alone, tmp_path / "0")
    first, second = start_all(2, 1, *command(24, f"{tmp_path}/PROCESS"))
    for process in (first, second):
        _, err = finish(process, 1)
        assert "processes 0 and 1 do not run the same: the last checkpoint is 20 there" in err


@pytest.mark.slow
def test_processes_that_cannot_be_joined_get_a_sentence():
    alone = start("sample.py", "--workdir=/nowhere", "--num_processes=1")
    wrong = ["--num_processes=2"], ["--coordinator=localhost:1", "--process_id=0"]
    for process in [start("sample.py", "--workdir=x", *flags) for flags in wrong]:
        _, err = finish(process, 1)
        assert "the processes of the run cannot be joined" in err and "Traceback" not in err
        assert "give all of --coordinator, --num_processes and --process_id" in err
    _, err = finish(alone, 1)
    assert "/nowhere: no checkpoint there" in err
