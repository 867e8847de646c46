"""How commands start and end, and where compiled programs are kept."""

import os
import subprocess
import sys

import jax
import pytest
from absl import flags

from segdiff_jax.runtime import command
from segdiff_jax.runtime.command import describe, keep_compiled_programs, path_flag, path_flags
from segdiff_jax.runtime.errors import UserError
from tests.conftest import ROOT

FAILS = """
import jax.numpy as jnp
from segdiff_jax.runtime.command import run_command, run_simple
from segdiff_jax.runtime.errors import UserError

def of_jax():
    jnp.concatenate([])

def of_the_user():
    raise UserError("train.batch_size=0 must be at least 1")

def of_the_disk():
    raise OSError("cannot write out")

def no_mistake():
    return 2

{runner}({name})
"""


def run(name, runner="run_command", *arguments):
    code = [sys.executable, "-c", FAILS.format(runner=runner, name=name), *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(code, cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("runner", ["run_command", "run_simple"])
def test_a_fault_of_the_program_keeps_its_traceback(runner):
    """A UserError is a ValueError, but jax raises ValueErrors too."""
    status, said = run("of_jax", runner)
    assert status == 1 and said.startswith("Traceback (most recent call last):")
    assert "in of_jax\n" in said and "\nValueError: " in said and "error: " not in said


@pytest.mark.parametrize("runner", ["run_command", "run_simple"])
@pytest.mark.parametrize(
    "name, sentence",
    [
        ("of_the_user", "train.batch_size=0 must be at least 1"),
        ("of_the_disk", "cannot write out"),
    ],
)
def test_a_mistake_of_the_user_is_a_sentence(runner, name, sentence):
    # run_simple has no --verbosity flag.
    more = {"run_command": "(--verbosity=1 shows where)\n", "run_simple": ""}
    assert run(name, runner) == (1, f"error: {sentence}\n{more[runner]}")


def test_a_mistake_shows_where_it_was_made_if_one_asks():
    status, said = run("of_the_user", "run_command", "--verbosity=1")
    assert status == 1 and "error: train.batch_size=0 must be at least 1\nTraceback " in said
    assert "in of_the_user\n" in said


def test_a_command_says_its_status():
    assert run("no_mistake") == (2, "")


@pytest.mark.parametrize("argument", ["extra", "--nosuch=1", "--config.sampler.steps=1"])
def test_an_argument_that_nothing_takes_is_named(argument):
    status, said = run("no_mistake", "run_command", argument)
    assert status == 1 and said.startswith("error: ") and "Traceback" not in said
    assert argument.strip("-").split("=")[0] in said


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/segdiff_jax/xla"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/caches"}, "/caches/segdiff_jax/xla"),
        ({"HOME": "/home/a", "JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"),
    ],
)
def test_programs_are_kept_in_the_users_cache_folder(monkeypatch, variables, folder):
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    keep_compiled_programs()
    assert kept["jax_compilation_cache_dir"] == folder


def test_paths_of_flags_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/a")
    one, several = path_flag("one_path", "help"), path_flags("some_paths", "help")
    try:
        assert one.value is None and several.value == []
        known = flags.FLAGS(["x", "--one_path=~/b", "--some_paths=c", "--some_paths=/d/*.jpg"])
        assert known == ["x"] and one.value == "/home/a/b"
        assert several.value == [f"{tmp_path}/c", "/d/*.jpg"]
        with pytest.raises(flags.Error, match="flag --one_path=: give a path"):
            flags.FLAGS(["x", "--one_path="])
        # They are in the short help of the file that defines them.
        assert flags.FLAGS.find_module_defining_flag("one_path") == __name__
    finally:
        for name in ("one_path", "some_paths"):
            delattr(flags.FLAGS, name)


def test_what_jax_says_gets_advice(monkeypatch):
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    said, more = describe(full).splitlines()
    assert "train.microbatches" in said and "sampler.max_memory" in said
    assert said.endswith("(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)")
    assert more == "(--verbosity=1 shows where)"
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed")
    try:
        raise lost
    except jax.errors.JaxRuntimeError as error:
        assert describe(error).endswith("JaxRuntimeError: UNKNOWN: Gloo all-reduce failed\n")
    monkeypatch.setattr(command.parallel, "process_count", lambda: 2)
    said = describe(lost)
    assert "another process of the run is lost: start all of them again" in said
    assert "(UNKNOWN: Gloo all-reduce failed)" in said
    assert describe(UserError("a field")).startswith("error: a field\n")
