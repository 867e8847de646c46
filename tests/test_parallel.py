"""Splitting over the four fake devices."""

import numpy as np
import pytest

from segdiff_jax import parallel


def test_shard_and_unshard_are_inverse():
    tree = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    sharded = parallel.shard(tree)
    assert sharded["a"].shape == (4, 2, 3)
    np.testing.assert_array_equal(sharded["b"][1], [2, 3])
    np.testing.assert_array_equal(parallel.unshard(sharded)["a"], tree["a"])


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="train.batch_size of 6 does not divide over 4 devices"):
        parallel.shard(np.zeros(6), "train.batch_size")


def test_map_runs_on_every_device():
    double = parallel.pmap_map(lambda factor, x: factor * x, 1)
    result = parallel.unshard(double(3, parallel.shard(np.arange(8))))
    np.testing.assert_array_equal(result, 3 * np.arange(8))


def test_round_up():
    assert [parallel.round_up(n) for n in (1, 4, 5)] == [4, 4, 8]


def test_a_programs_memory_is_that_of_one_devices_arguments_and_results():
    x = np.ones((4, 1000), np.float32)
    program = parallel.pmap_map(lambda factor, x: factor * x, 1)
    held = parallel.program_bytes(program, np.float32(2), x)
    assert 8000 <= held <= 9000
    donated = parallel.pmap_map(lambda factor, x: factor * x, 1, donate=(1,))
    assert parallel.program_bytes(donated, np.float32(2), x) == held - 4000


def test_free_memory_is_each_devices_share_of_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_available", lambda: 400)
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
