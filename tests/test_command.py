"""Settings from the command line, and where compiled programs are kept."""

import jax
import pytest
from ml_collections import ConfigDict

from segdiff_jax import command
from segdiff_jax.command import keep_compiled_programs, parse_settings
from segdiff_jax.trained import set_fields


def test_fields_are_set_by_yaml():
    config = ConfigDict({"threshold": 0.5, "clip": True, "votes": 5, "name": "ddim"})
    set_fields(config, parse_settings(["threshold=0.4", "clip=false", "votes=9", "name=ddpm"]))
    assert config.to_dict() == {"threshold": 0.4, "clip": False, "votes": 9, "name": "ddpm"}


@pytest.mark.parametrize(
    "setting, message",
    [
        ("vote=3", "vote=3: no such field; there are votes"),
        ("votes=many", "votes=many: votes is of type int"),
        ("votes=", "votes=: write FIELD=VALUE"),
        ("votes", "votes: write FIELD=VALUE"),
        ("votes={", "votes={: write FIELD=VALUE"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    config = ConfigDict({"votes": 5})
    with pytest.raises(ValueError, match=message):
        set_fields(config, parse_settings([setting]))
    assert config.votes == 5


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


def test_what_jax_says_gets_advice(monkeypatch):
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    said = command._sentence(full)
    assert "train.microbatches" in said and "sampler.max_memory" in said
    assert said.endswith("(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)")
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed")
    assert command._sentence(lost) == "jax failed (UNKNOWN: Gloo all-reduce failed)"
    monkeypatch.setattr(command.parallel, "process_count", lambda: 2)
    assert "another process of the run is lost: start all of them again" in command._sentence(lost)
    assert command._sentence(ValueError("a field")) == "a field"
