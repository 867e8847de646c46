"""Seconds to sample an image: naively, as segdiff_jax does it, in few steps, and by MONAI.

python -m benchmarks.sampling --network=m1

Naive is one compiled loop, too, but encodes the image at every step and for every vote, as the
original does. MONAI's DiffusionModelUNet, of the U-Net's size, without an image encoder, is timed
where it is installed (requirements-bench.txt).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks.networks import get_config, random_batch, randomised
from benchmarks.peers import monai_sampler
from benchmarks.timing import (
    Row,
    figures_of,
    finish,
    matrix_peak,
    parser,
    program_cost,
    speed_table,
    time_rows,
)
from segdiff_jax.command import keep_compiled_programs
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.diffusion.process import Process, make_process
from segdiff_jax.diffusion.samplers import START, STEPS, gaussian_noise, sample
from segdiff_jax.diffusion.schedule import respace, space_timesteps
from segdiff_jax.evaluation import denoise
from segdiff_jax.evaluation.predict import make_predictor
from segdiff_jax.models import make_model, variables_like
from tools.flop import gflop_of_methods


def naive_row(
    name: str, config: ConfigDict, model: nn.Module, process: Process, variables: Any
) -> Row:
    """The image of each vote goes through the whole network at every step."""
    votes, size, steps = config.sampler.votes, config.data.image_size, config.sampler.steps
    T = len(process.schedule)
    schedule = respace(process.schedule, space_timesteps(T, str(steps)))
    process = dataclasses.replace(process, schedule=schedule, clip=config.sampler.clip)
    respaced = jnp.asarray(schedule.timesteps, jnp.int32)
    noise_fn = gaussian_noise(jax.random.split(jax.random.key(0), votes), (size, size, 1))

    @jax.jit
    def run(variables, images):
        def denoise_fn(x_t, t, previous):
            # Else XLA sees that the features are the same at every step.
            x_t, image = jax.lax.optimization_barrier((x_t, images))
            inputs = process.network_input(x_t, t, previous), image, jnp.full(votes, respaced[t])
            return process.predict(model.apply(variables, *inputs), x_t, t)

        return sample(denoise_fn, noise_fn(START), schedule, STEPS[config.sampler.name], noise_fn)[
            0
        ]

    image = normalise_image(jnp.asarray(random_batch(1, size)["image"]))
    images = jnp.repeat(image, votes, axis=0)
    compiled = run.lower(variables, images).compile()
    flop = gflop_of_methods(model, size, process.input_channels)
    gflop = votes * steps * (flop["encode_image"] + flop["denoise"])
    _, mib = program_cost(compiled)
    return Row(name, lambda: compiled(variables, images).block_until_ready(), gflop, mib)


def our_row(
    name: str, config: ConfigDict, model: nn.Module, process: Process, variables: Any
) -> Row:
    """As sample.py does it; one run on one image warms up."""
    predictor = make_predictor(model, process, config.sampler, 0)
    image = random_batch(jax.local_device_count(), config.data.image_size)["image"]
    ids = [str(i) for i in range(len(image))]
    run = functools.partial(predictor, variables, image, ids, lambda share: None)
    run()
    flop = gflop_of_methods(model, config.data.image_size, process.input_channels)
    gflop = len(image) * sum(n * flop[method] for method, n in predictor.passes.items())
    return Row(name, run, gflop, predictor.memory / 2**20, len(image), len(image))


def rows_of(config: ConfigDict, naive: bool) -> list[Row]:
    """All that can be timed here."""
    model, process = make_model(config.model), make_process(config.diffusion)
    size = config.data.image_size
    variables = randomised(variables_like(model, size, process.input_channels))
    args = config, model, process, variables
    steps, votes = config.sampler.steps, config.sampler.votes
    label = f"{votes} votes x {steps} steps"
    rows = [naive_row(f"naive, {label}", *args)] if naive else []
    rows.append(our_row(f"ours, {label}", *args))
    parts, denoise.MOST_STEPS = denoise.MOST_STEPS, steps
    rows.append(our_row(f"ours, {label}, the chain in one program", *args))
    denoise.MOST_STEPS = parts
    few = config.copy_and_resolve_references()
    few.sampler.update(name="ddim", steps=min(10, steps), votes=min(3, votes), spacing="trailing")
    label = f"{few.sampler.votes} votes x {few.sampler.steps} steps"
    rows.append(our_row(f"ours, {label}", few, *args[1:]))
    run = monai_sampler(config)
    if run is None:
        print("MONAI is not installed: pip install -r requirements-bench.txt")
        return rows
    label = f"{votes} votes x {steps} steps"
    return [*rows, Row(f"MONAI's DiffusionModelUNet on the CPU, {label}", run)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--votes", type=int, default=9)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--no_naive", action="store_true", help="leave out the slowest row")
    options = options.parse_args()
    keep_compiled_programs()
    config = get_config(options.network, options.set)
    config.sampler.update(steps=options.steps, votes=options.votes, max_batch=options.votes)
    rows = rows_of(config, not options.no_naive)
    peak = matrix_peak(config.model.dtype)
    time_rows(rows, options.repeats)
    peak = max(peak, matrix_peak(config.model.dtype))
    text = speed_table(rows, peak)
    figures = {"peak": f"{peak:.0f} GFLOP/s, {config.model.dtype} matrix product"}
    finish(options, text, figures | {"rows": figures_of(rows)})


if __name__ == "__main__":
    main()
