"""Seconds and memory of a training step, by batch and by what is computed again (remat).

python -m benchmarks.training --network=m1 --batches 1 4 8 --remat nothing G all

Beside the whole step (augmentation, draws, network, optimiser, moving average) stand the network's
bare forward pass and gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.networks import get_config, random_batch, randomised
from benchmarks.timing import Row, finish_speed, matrix_peak, parser, program_cost, time_rows
from segdiff_jax.methods import init_variables, make_method, variables_like
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.command import run_simple
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import make_train_step

REMAT = ("nothing", "G", "all")


def set_remat(config: ConfigDict, what: str) -> None:
    """Makes the backward pass compute one of `REMAT` again."""
    config.model.rrdb_remat = what != "nothing"
    levels = range(len(config.model.channel_mult))
    config.model.remat_resolutions = tuple(2**k for k in levels) if what == "all" else ()


def step_row(config: ConfigDict, batch_size: int) -> Row:
    """A whole training step on all devices, `batch_size` images on each."""
    method, tx = make_method(config, parallel.AXIS), make_optimizer(config.train)
    step = parallel.pmap_train_step(make_train_step(config, method, tx, parallel.AXIS))
    create = jax.jit(lambda: create_state(init_variables(method, 0), tx))
    images = batch_size * jax.local_device_count()
    batch = parallel.shard(random_batch(images, config.data.image_size))
    key, rate = jax.random.key(0), np.float32(1e-4)
    held = {"state": parallel.replicate(create())}
    compiled = step.lower(held["state"], batch, key, rate).compile()

    def run() -> None:
        held["state"], metrics = step(held["state"], batch, key, rate)
        jax.block_until_ready((held["state"], metrics))

    run()
    devices = jax.local_device_count()
    images, cost = batch_size * devices, program_cost(compiled)
    return Row(f"step, batch {images}", run, *cost, images, devices)


def bare_rows(config: ConfigDict, batch_size: int) -> list[Row]:
    """The network alone on one device: forward, and the gradient of its mean square."""
    method, size = make_method(config), config.data.image_size
    model, channels = method.model, method.process.input_channels
    variables = randomised(variables_like(method))
    stats = {name: of for name, of in variables.items() if name != "params"}
    x_t, image = (jnp.ones((batch_size, size, size, c)) for c in (channels, 3))
    inputs = x_t, image, jnp.arange(batch_size)

    def forward(params: Any, inputs: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.square(model.apply({"params": params} | stats, *inputs)).mean()

    rows = []
    for name, fn in (("forward", forward), ("gradient", jax.value_and_grad(forward))):
        args = variables["params"], inputs
        compiled = jax.jit(fn).lower(*args).compile()
        run = lambda compiled=compiled, args=args: jax.block_until_ready(compiled(*args))
        run()
        cost = program_cost(compiled)
        rows.append(Row(f"{name}, batch {batch_size}", run, *cost, batch_size))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[4], help="images on a device")
    options.add_argument("--remat", nargs="+", choices=REMAT, default=["nothing"])
    options.add_argument("--no_bare", action="store_true", help="the whole step alone")
    options, fields = options.parse_known_args()
    rows, peak = [], 0.0
    for remat in options.remat:
        config = get_config(options.network, fields)
        set_remat(config, remat)
        for batch_size in options.batches:
            new = [step_row(config, batch_size)]
            if remat == "nothing" and not options.no_bare:
                new += bare_rows(config, batch_size)
            for row in new:
                row.name += "" if remat == "nothing" else f", {remat} again"
                # One after the other, as a training does it: programs in turn would take new
                # memory from the system at every run.
                time_rows([row], options.repeats)
                row.run = None
            peak = max(peak, matrix_peak(config.model.dtype))
            rows += new
    finish_speed(options, rows, peak, config.model.dtype)


if __name__ == "__main__":
    run_simple(main)
