"""Devices and processes: the only file that names pmap.

State stays a plain tree, not stacked over devices: it enters with in_axes=None and leaves with
out_axes=None. Batches are split by `shard`.
"""

import functools
import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

AXIS = "devices"


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of those of a run; comes before everything else that jax does.

    Args:
        coordinator: "HOST:PORT" where process 0 can be reached.
        num_processes: of the run; 1: this one alone, wherever it was started.
        process_id: this one's number, from 0.

    What is None is asked of SLURM, Kubernetes, Open MPI or the TPU pod that has started the
    process; if it was none of them, it is alone.

    Raises:
        ValueError: if the others cannot be joined.
    """
    if num_processes == 1:
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except Exception as error:  # Kubernetes raises errors of its own.
        alone = (coordinator, num_processes, process_id) == (None, None, None)
        if alone and "coordinator_address should be defined" in str(error):
            return
        raise ValueError(
            f"the processes of the run cannot be joined ({error}); give all of --coordinator, "
            "--num_processes and --process_id, or --num_processes=1 to run alone"
        ) from error
    # jax would note it for those who ask; `training.stop` does so itself, and else it is the end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # gloo connects the devices when they first average; a process that came 30 s late to that,
    # since it read or compiled longer, would be taken for lost. Here all are there.
    wait_for_all("processes have joined")
    jax.block_until_ready(any_process(False))


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

    It runs on this process's devices; other processes need not run it. The arguments of the numbers
    `donate` give their memory to the results.
    """
    in_axes = (None,) * num_whole + (0,) * num_sharded
    devices = jax.local_devices()
    return jax.pmap(fn, AXIS, in_axes=in_axes, out_axes=0, donate_argnums=donate, devices=devices)


def program_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """The memory of a device that a pmapped function takes for such arguments; compiles it."""
    memory = fn.lower(*args).compile().memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def free_bytes() -> float:
    """The least memory that a device of this process has free; infinity where it is not known."""
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
    """[B, ...] -> [devices, B / devices, ...] for every leaf, on the devices of this process.

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
    """Copies every leaf to this process's devices, as a training step returns it; else it compiles
    twice."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_one_device(tree: Any) -> Any:
    """Shapes of the leaves, to be placed on one device wherever they were before."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
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


def is_main() -> bool:
    """Whether this is the process that writes and talks for all."""
    return jax.process_index() == 0


def share(total: int) -> range:
    """Which of so many items are this process's: every process_count-th."""
    return range(jax.process_index(), total, jax.process_count())


def merge(values: np.ndarray) -> np.ndarray:
    """f64[N, ...] in every process, of which only its `share` counts -> all of them, exactly."""
    if jax.process_count() == 1:
        return values
    words = np.asarray(values, np.float64)[..., None].view(np.uint32)  # jax would make it f32.
    every = multihost_utils.process_allgather(words)
    rows = np.arange(len(values))
    return every[rows % jax.process_count(), rows].view(np.float64)[..., 0]


def gather(value: Any) -> list[Any]:
    """What JSON can hold, of every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    every = multihost_utils.process_allgather(padded)
    return [json.loads(of[:size].tobytes()) for of, size in zip(every, sizes, strict=True)]


def wait_for_all(what: str) -> None:
    """Returns when every process is there."""
    multihost_utils.sync_global_devices(what)


def any_process(value: bool) -> Array:
    """Whether `value` holds in any process; does not wait, and all of them must call it."""
    values = np.full(jax.local_device_count(), value)
    return _any()(values)


@functools.cache
def _any() -> Callable[[np.ndarray], Array]:
    return jax.pmap(lambda x: jax.lax.psum(x.astype(int), AXIS) > 0, AXIS, out_axes=None)


def check_same(facts: dict[str, Any]) -> None:
    """Raises a ValueError that names the first of these facts that processes do not share."""
    every = gather(facts)
    for name, value in every[0].items():
        for index, of_process in enumerate(every):
            if of_process[name] != value:
                raise ValueError(
                    f"processes 0 and {index} do not run the same: {name} is {value!r} there and "
                    f"{of_process[name]!r} here; give all of them the same flags, data and folders"
                )
