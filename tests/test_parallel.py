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
