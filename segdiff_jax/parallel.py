"""Devices and processes: the only file that names pmap.

State stays a plain tree, not stacked over devices: it enters with in_axes=None and leaves with
out_axes=None. Batches are split by `shard`.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

AXIS = "devices"


def pmap_train_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """(state, sharded batch, key, rate) -> (state, metrics) on all devices; state is donated.

    `step` must average gradients and metrics over the axis `AXIS`.
    """
    in_axes, out_axes = (None, 0, None, None), (None, None)
    return jax.pmap(step, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=(0,))


def pmap_map(
    fn: Callable[..., Any], num_sharded: int, num_whole: int = 1, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """(*`num_whole` trees, *`num_sharded` sharded ones) -> sharded results, no communication.

    The arguments of the numbers `donate` give their memory to the results.
    """
    in_axes = (None,) * num_whole + (0,) * num_sharded
    return jax.pmap(fn, AXIS, in_axes=in_axes, out_axes=0, donate_argnums=donate)


def program_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """The memory of a device that a pmapped function takes for such arguments; compiles it."""
    memory = fn.lower(*args).compile().memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def free_bytes() -> float:
    """The least memory that a device has free.

    Infinity where that is not known, or where several processes, which must all run the same
    programs, would each see another.
    """
    if jax.process_count() > 1:
        return math.inf
    if jax.default_backend() == "cpu":
        return min(_available(), _left_to_container()) / jax.local_device_count()
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min(s.get("bytes_limit", math.inf) - s.get("bytes_in_use", 0) for s in stats)


def _available() -> float:
    """Bytes of the machine's memory."""
    path = Path("/proc/meminfo")
    kib = re.search(r"MemAvailable: *(\d+) kB", path.read_text()) if path.exists() else None
    return 1024 * int(kib[1]) if kib else math.inf


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes of what a container or a batch system grants."""
    try:
        most, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return int(most) - int(used)
    except (OSError, ValueError):  # There is no limit.
        return math.inf


def shard(tree: Any, batch_name: str = "batch") -> Any:
    """[B, ...] -> [devices, B / devices, ...] for every leaf.

    Raises:
        ValueError: naming both numbers, if they do not divide.
    """
    devices = jax.local_device_count()

    def split(x):
        if x.shape[0] % devices:
            raise ValueError(
                f"a {batch_name} of {x.shape[0]} does not divide over {devices} devices: "
                f"choose a multiple of {devices}"
            )
        return x.reshape(devices, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def unshard(tree: Any) -> Any:
    """[devices, b, ...] -> numpy [devices * b, ...] for every leaf."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def round_up(batch_size: int) -> int:
    """The smallest multiple of the number of devices that is at least `batch_size`."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def replicate(tree: Any) -> Any:
    """Copies every leaf to all devices, as a training step returns it; else it compiles twice."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def on_one_device(tree: Any) -> Any:
    """Shapes of the leaves, to be placed on one device wherever they were before."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(like, tree)


def device_count() -> int:
    """The number of devices of all processes."""
    return jax.device_count()


def describe_devices() -> str:
    """Such as "4 x NVIDIA H100"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def process_index() -> int:
    """This process's number, from 0."""
    return jax.process_index()


def process_count() -> int:
    """The number of processes of this run."""
    return jax.process_count()
