"""Splitting over the four fake devices."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from jax.experimental import multihost_utils

from segdiff_jax.runtime import parallel


def test_shard_and_unshard_are_inverse():
    tree = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    sharded = parallel.shard(tree)
    assert sharded["a"].shape == (4, 2, 3)
    np.testing.assert_array_equal(sharded["b"][1], [2, 3])
    np.testing.assert_array_equal(parallel.unshard(sharded)["a"], tree["a"])


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 4 devices"):
        parallel.shard(np.zeros(6))


def test_map_runs_on_every_device():
    double = parallel.pmap_map(lambda factor, x: factor * x, 1, 1)
    result = parallel.unshard(double(3, parallel.shard(np.arange(8))))
    np.testing.assert_array_equal(result, 3 * np.arange(8))


def test_round_up():
    assert [parallel.round_up(n) for n in (1, 4, 5)] == [4, 4, 8]


def test_processes_share_items_and_merge_what_they_found_exactly(monkeypatch):
    total, count = 7, 3
    exact = np.random.default_rng(0).random(total)
    found = [np.full(total, np.nan) for _ in range(count)]
    monkeypatch.setattr(parallel, "process_count", lambda: count)
    for index, values in enumerate(found):
        monkeypatch.setattr(parallel, "process_index", lambda i=index: i)
        assert parallel.is_main() == (index == 0)
        mine = list(parallel.share(total))
        values[mine] = exact[mine]
    assert mine == [2, 5]
    texts = [np.frombuffer(json.dumps(values.tolist()).encode(), np.uint8) for values in found]
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: gathered(texts, value))
    np.testing.assert_array_equal(parallel.merge(found[1]), exact)


def gathered(texts, value):
    """The lengths of the texts, or the texts themselves, as `value` asks for."""
    assert value.dtype in (np.int32, np.uint8)  # jax would make float64 float32.
    if value.ndim == 0:
        return np.array([len(text) for text in texts])
    padded = [text.tobytes().ljust(len(value)) for text in texts]
    return np.stack([np.frombuffer(text, np.uint8) for text in padded])


def test_processes_gather_text_of_any_length(monkeypatch):
    values = [{"done": ["a"]}, {"done": ["b" * 9, "ä"]}]
    texts = [np.frombuffer(json.dumps(value).encode(), np.uint8) for value in values]
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: gathered(texts, value))
    assert parallel.gather(values[0]) == parallel.gather(values[1]) == values


def test_what_processes_do_not_share_is_named(monkeypatch):
    facts = [{"seed": 1, "the data": "a"}, {"seed": 1, "the data": "b"}]
    monkeypatch.setattr(parallel, "gather", lambda value: facts)
    with pytest.raises(
        ValueError, match="processes 0 and 1 .*: the data is 'a' there and 'b' here"
    ):
        parallel.check_same(facts[0])
    facts[1]["the data"] = "a"
    parallel.check_same(facts[0])


def test_any_process():
    assert bool(parallel.any_process(True)) and not bool(parallel.any_process(False))


def test_one_process_merges_and_gathers_nothing():
    values = np.arange(3.0)
    assert parallel.merge(values) is values
    assert parallel.gather(values) == [values] and list(parallel.share(3)) == [0, 1, 2]


def test_a_programs_memory_is_that_of_one_devices_arguments_and_results():
    x = np.ones((4, 1000), np.float32)
    program = parallel.pmap_map(lambda factor, x: factor * x, 1, 1)
    held = parallel.program_bytes(program, np.float32(2), x)
    assert 8000 <= held <= 9000
    donated = parallel.pmap_map(lambda factor, x: factor * x, 1, 1, donate=(1,))
    assert parallel.program_bytes(donated, np.float32(2), x) == held - 4000


def test_free_memory_is_each_devices_share_of_what_is_left(tmp_path, monkeypatch):
    memory = SimpleNamespace(available=400)
    monkeypatch.setattr(parallel.psutil, "virtual_memory", lambda: memory)
    assert parallel.free_bytes() == 100
    monkeypatch.setattr(parallel, "_left_to_container", lambda: 200)
    assert parallel.free_bytes() == 50


def test_the_memory_of_a_container(tmp_path):
    assert parallel._left_to_container(tmp_path) == np.inf
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert parallel._left_to_container(tmp_path) == np.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert parallel._left_to_container(tmp_path) == 700
