"""Seconds and memory of a training step to expect on many devices: computed, not measured.

python -m benchmarks.scaling --network=paper --device=h100 --config.model.dtype=bfloat16

A step takes its operations, as XLA counts them, at `--utilisation` of the device's peak, and then
one ring all-reduce of the gradient (float32): 2 (n - 1) / n of its bytes over the slowest link.
None of it overlaps, the worst case; but small networks take longer than that, since the time to
start their many small kernels is not counted. A device holds parameters, moving average, optimiser,
gradient and, for each image, what a program compiled here for one more image takes more.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.networks import get_config, random_batch
from benchmarks.timing import finish, matrix_peak, parser, program_cost
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.command import run_simple
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import make_train_step
from tools.runs import table


@dataclasses.dataclass(frozen=True)
class Device:
    """What the vendor says: FLOP/s (bfloat16, dense), GiB, and bytes/s each way of its links.

    Attributes:
        peak: FLOP/s.
        memory: GiB.
        within, between: bytes/s of a ring through devices of one host, and of several.
    """

    peak: float
    memory: float
    within: float
    between: float


# NVIDIA H100 SXM and A100 SXM data sheets (NVLink 900 and 600 GB/s both ways); between hosts eight
# network cards of 400 and 200 Gb/s, as in DGX, over all of which NCCL spreads a ring. Jouppi et al.
# 2023 (arXiv 2304.01433): six 50 GB/s links of a TPU v4.
DEVICES = {
    "h100": Device(989e12, 80, 450e9, 400e9),
    "a100": Device(312e12, 80, 300e9, 200e9),
    "tpu-v4": Device(275e12, 32, 300e9, 300e9),
}


def this_machine() -> Device:
    """A CPU as one device: its measured peak and free memory, and a 10 Gb/s network."""
    return Device(1e9 * matrix_peak(), parallel.free_bytes() / 2**30, 1.25e9, 1.25e9)


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        flop: of one image.
        update: FLOP of what is done once a step, such as the optimiser's.
        gradient: bytes.
        state: bytes of parameters, moving averages and optimiser.
        image: bytes that one more image takes; None: not known.
    """

    flop: float
    update: float
    gradient: float
    state: float
    image: float | None


def measure_step(config: ConfigDict, compiles: bool) -> Step:
    """Counts the operations of a step and, if it may compile it, its memory."""
    method, tx = make_method(config), make_optimizer(config.train)
    size = config.data.image_size
    step = jax.jit(make_train_step(config, method, tx), donate_argnums=0)
    state = jax.eval_shape(lambda: create_state(init_variables(method, 0), tx))
    lowered = [
        step.lower(state, random_batch(count, size), jax.random.key(0), np.float32(1))
        for count in (1, 2)
    ]
    once, twice = (of.cost_analysis()["flops"] for of in lowered)
    flop, update = twice - once, max(0.0, 2 * once - twice)
    num_bytes = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    image = None
    if compiles:
        one, two = (program_cost(of.compile())[1] * 2**20 for of in lowered)
        image = two - one
    return Step(flop, update, num_bytes(state.params), num_bytes(state), image)


def expect(
    step: Step, device: Device, batch: int, devices: int, utilisation: float, per_host: int
) -> tuple[float, float, float | None]:
    """Seconds of computing, seconds of the all-reduce and GiB on a device; see above.

    Args:
        batch: images on a device.
        devices: of all hosts, `per_host` on each.
    """
    link = device.within if devices <= per_host else device.between
    computes = (batch * step.flop + step.update) / (utilisation * device.peak)
    reduces = 2 * (devices - 1) / devices * step.gradient / link
    if step.image is None:
        return computes, reduces, None
    return computes, reduces, (step.state + step.gradient + batch * step.image) / 2**30


def rows(step: Step, device: Device, options: argparse.Namespace) -> list[Sequence[str]]:
    """Lines of the table, by batch and number of devices."""
    lines = []
    for batch in options.batches:
        for devices in options.devices:
            computes, reduces, gib = expect(
                step, device, batch, devices, options.utilisation, options.devices_per_host
            )
            seconds, images = computes + reduces, batch * devices
            memory = "" if gib is None else f"{gib:.1f}" + (gib > device.memory) * " (too much)"
            speed = f"{seconds:.3g}", f"{images / seconds:.4g}", f"{computes / seconds:.0%}"
            lines.append((f"{batch}", f"{devices}", f"{images}", *speed, memory))
    return lines


def main() -> None:
    options = parser(__doc__, "isic2016_64")
    options.add_argument("--device", choices=[*DEVICES, "cpu"], default="h100")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options.add_argument("--devices_per_host", type=int, default=8)
    options.add_argument("--utilisation", type=float, default=0.4, help="share of the peak")
    for field in dataclasses.fields(Device):
        options.add_argument(f"--{field.name}", type=float, help="instead of the device's own")
    options.add_argument("--no_memory", action="store_true", help="compiles nothing")
    options, fields = options.parse_known_args()
    step = measure_step(get_config(options.network, fields), not options.no_memory)
    device = DEVICES.get(options.device) or this_machine()
    head = (
        "images a device | devices | images a step | seconds | images/s | of linear | GiB a device"
    )
    own = {name: getattr(options, name) for name in dataclasses.asdict(device)}
    device = dataclasses.replace(device, **{k: v for k, v in own.items() if v is not None})
    lines = rows(step, device, options)
    mib = lambda x: "unknown" if x is None else f"{x / 2**20:.0f} MiB"
    figures = {
        "computed": f"not measured: {options.device} at {options.utilisation:.0%} of its peak",
        "step": f"{step.flop / 1e9:.4g} GFLOP an image and {step.update / 1e9:.4g} once; gradient "
        f"{mib(step.gradient)}, state {mib(step.state)}, one more image {mib(step.image)}",
        "device": dataclasses.asdict(device),
        "rows": [dict(zip(head.split(" | "), line, strict=True)) for line in lines],
    }
    finish(options, table(head, lines), figures)


if __name__ == "__main__":
    run_simple(main)
