"""Devices and processes: the only file that names pmap.

A state is a plain tree, not stacked over devices: it enters with in_axes=None and leaves with
out_axes=None. `shard` splits batches. `device_count` is the number of devices of all processes.
"""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax import Array, device_count, process_count, process_index
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from segdiff_jax.runtime.errors import UserError

AXIS = "devices"


def join_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins this process to the others of a run; comes before everything else that jax does.

    `coordinator` is the "HOST:PORT" of process 0; this is process `index` of `count`, from 0. If
    `count` is 1, it stays alone, wherever it was started. For None, jax asks SLURM, Kubernetes,
    Open MPI or the TPU pod that started the process; if none of them did, the process is alone. If
    the others cannot be joined, a UserError says so.
    """
    if count == 1:
        return
    try:
        jax.distributed.initialize(coordinator, count, index)
    except Exception as error:  # Kubernetes raises errors of its own.
        alone = (coordinator, count, index) == (None, None, None)
        if alone and "coordinator_address should be defined" in str(error):
            return
        raise UserError(
            f"the processes of the run cannot be joined ({error}); give all of --coordinator, "
            "--num_processes and --process_id, or --num_processes=1 to run alone"
        ) from error
    # jax takes SIGTERM for itself; `runtime.stop` wants it, and elsewhere it must end the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # gloo connects the devices when they first average, and takes a process that comes 30 s late
    # (it read or compiled longer) for lost. Here all are there.
    wait_for_all("processes have joined")
    jax.block_until_ready(any_process(False))


def pmap_train_step(step: Callable) -> Callable:
    """(state, sharded batch, key, rate) -> (state, metrics) on all devices; state is donated.

    `step` must average gradients and metrics over the axis `AXIS`.
    """
    in_axes, out_axes = (None, 0, None, None), (None, None)
    return jax.pmap(step, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=(0,))


def pmap_map(fn: Callable, num_whole: int, num_sharded: int, donate: tuple = ()) -> Callable:
    """(*`num_whole` trees, *`num_sharded` sharded ones) -> sharded results, no communication.

    It runs on this process's devices; other processes need not run it. The arguments whose numbers
    are in `donate` give their memory to the results. The arguments must not happen to have as many
    leaves as there are arguments: pmap (0.12) would take `in_axes` for the axes of the leaves.
    """
    in_axes = (None,) * num_whole + (0,) * num_sharded
    devices = jax.local_devices()
    return jax.pmap(fn, AXIS, in_axes=in_axes, out_axes=0, donate_argnums=donate, devices=devices)


def program_bytes(fn: Callable, *args: Any) -> int:
    """Bytes of a device that a pmapped function takes for these arguments; compiles it.

    Give it the very arguments of the call: for arguments elsewhere, it would be compiled twice.
    """
    memory = fn.lower(*args).compile().memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def free_bytes() -> float:
    """The least memory that a device of this process has free; infinity if it is not known."""
    if jax.default_backend() == "cpu":
        available = psutil.virtual_memory().available
        return min(available, _left_to_container()) / jax.local_device_count()
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min(s.get("bytes_limit", math.inf) - s.get("bytes_in_use", 0) for s in stats)


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container or a batch system still grants."""
    try:
        most, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return int(most) - int(used)
    except (OSError, ValueError):  # There is no limit.
        return math.inf


def shard(tree: Any) -> Any:
    """[B, ...] -> [devices, B / devices, ...] for every leaf; a ValueError if that is not whole."""
    devices = jax.local_device_count()

    def split(x):
        if len(x) % devices:
            much = f"a batch of {len(x)} does not divide over {devices} devices"
            raise ValueError(f"{much}: choose a multiple of {devices}")
        return x.reshape(devices, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def unshard(tree: Any) -> Any:
    """[devices, b, ...] -> numpy [devices * b, ...] for every leaf."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def round_up(batch_size: int) -> int:
    """The smallest multiple of this process's devices that is at least `batch_size`."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def batch_size(most: int, total: int) -> int:
    """Images of one call: `most`, or fewer where there are fewer in all."""
    return min(most, round_up(total))


def replicate(tree: Any) -> Any:
    """Copies every leaf to this process's devices, as a training step returns it.

    A step that takes a state from one device and returns it replicated would be compiled twice.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_one_device(tree: Any) -> Any:
    """Shapes of the leaves, to be placed on one device, wherever they were before."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(like, tree)


def describe_devices() -> str:
    """Such as "4 x NVIDIA H100"."""
    return f"{device_count()} x {jax.devices()[0].device_kind}"


def is_main() -> bool:
    """Whether this is the process that writes and talks for all."""
    return process_index() == 0


def share(total: int) -> range:
    """The numbers of this process's items among `total`: every process_count-th."""
    return range(process_index(), total, process_count())


def merge(values: np.ndarray) -> np.ndarray:
    """f64[N, ...], of which each process knows its `share` -> all of them, exactly."""
    if process_count() == 1:
        return values
    every = np.array(gather(values.tolist()))  # As text: jax would make it float32.
    rows = np.arange(len(values))
    return every[rows % process_count(), rows]


def gather(value: Any) -> list[Any]:
    """A value that JSON can hold -> the values of all processes, in order."""
    if process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    longest = multihost_utils.process_allgather(np.int32(len(text))).max()
    padded = np.frombuffer(text.ljust(longest), np.uint8)  # With spaces, which JSON ignores.
    return [json.loads(of.tobytes()) for of in multihost_utils.process_allgather(padded)]


def wait_for_all(what: str) -> None:
    """Returns when every process is there."""
    multihost_utils.sync_global_devices(what)


_any = jax.pmap(lambda x: jax.lax.psum(x.astype(int), AXIS) > 0, AXIS, out_axes=None)


def any_process(value: bool) -> Array:
    """Whether `value` holds in any process. Does not wait; all processes must call it."""
    return _any(np.full(jax.local_device_count(), value))


def check_same(facts: dict[str, Any]) -> None:
    """Raises a UserError that names the first fact in which processes differ."""
    every = gather(facts)
    for name, value in every[0].items():
        for index, of_process in enumerate(every):
            if of_process[name] != value:
                raise UserError(
                    f"processes 0 and {index} do not run the same: {name} is {value!r} there and "
                    f"{of_process[name]!r} here; give all of them the same flags, data and folders"
                )
