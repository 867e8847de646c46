"""Seconds to sample an image: naively, as segdiff_jax does it, in few steps, and by MONAI.

python -m benchmarks.sampling --network=m1

Naive sampling is one compiled loop too, but encodes the image at every step and for every sample,
as the original does. MONAI's DiffusionModelUNet, as large as the U-Net and without an image
encoder, is timed if it is installed (requirements-bench.txt).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.networks import get_config, random_batch, randomised
from benchmarks.peers import monai_sampler
from benchmarks.timing import Row, finish_speed, matrix_peak, parser, program_cost, time_rows
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.diffusion.samplers import START, STEPS, gaussian_noise, sample
from segdiff_jax.diffusion.schedule import respace, space_timesteps
from segdiff_jax.inference import driver
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.runtime.command import run_simple
from tools.flop import gflop_of_passes, passes


def naive_row(name: str, config: ConfigDict, method: Diffusion, variables: Any) -> Row:
    """The image of each sample goes through the whole network at every step."""
    samples, size, steps = config.sampler.samples, config.data.image_size, config.sampler.steps
    model, process = method.model, method.process
    T = len(process.schedule)
    schedule = respace(process.schedule, space_timesteps(T, str(steps)))
    process = dataclasses.replace(process, schedule=schedule, clip=config.sampler.clip)
    respaced = jnp.asarray(schedule.timesteps, jnp.int32)
    noise_fn = gaussian_noise(jax.random.split(jax.random.key(0), samples), (size, size, 1))

    @jax.jit
    def run(variables, images):
        def denoise_fn(x_t, t, previous):
            # Else XLA sees that the features are the same at every step.
            x_t, image = jax.lax.optimization_barrier((x_t, images))
            inputs = process.network_input(x_t, t, previous), image, jnp.full(samples, respaced[t])
            return process.predict(model.apply(variables, *inputs), x_t, t)

        step_fn = STEPS[config.sampler.name]
        return sample(denoise_fn, noise_fn(START), schedule, step_fn, noise_fn)[0]

    image = normalise_image(jnp.asarray(random_batch(1, size)["image"]))
    images = jnp.repeat(image, samples, axis=0)
    compiled = run.lower(variables, images).compile()
    flop = gflop_of_passes(method)
    gflop = samples * steps * (flop["encode_image"] + flop["denoise"])
    _, mib = program_cost(compiled)
    return Row(name, lambda: compiled(variables, images).block_until_ready(), gflop, mib)


def our_row(name: str, config: ConfigDict, variables: Any) -> Row:
    """Sampling as sample.py does it, warmed up by a run."""
    method = make_method(config)
    sampling = driver.Driver(method, config.sampler.max_batch)
    image = random_batch(jax.local_device_count(), config.data.image_size)["image"]
    run = functools.partial(sampling, variables, image, [str(i) for i in range(len(image))])
    run()
    flop = gflop_of_passes(method)
    gflop = len(image) * sum(count * flop[of] for of, count in passes(method).items())
    return Row(name, run, gflop, sampling.memory / 2**20, len(image), len(image))


def rows_of(config: ConfigDict, naive: bool) -> list[Row]:
    """All that can be timed here."""
    method = make_method(config)
    variables = randomised(variables_like(method))
    steps, samples = config.sampler.steps, config.sampler.samples
    label = f"{samples} samples x {steps} steps"
    rows = [naive_row(f"naive, {label}", config, method, variables)] if naive else []
    rows.append(our_row(f"ours, {label}", config, variables))
    part, driver.MOST_STEPS = driver.MOST_STEPS, steps
    rows.append(our_row(f"ours, {label}, the chain in one program", config, variables))
    driver.MOST_STEPS = part
    few = config.copy_and_resolve_references()
    few.sampler.update(name="ddim", steps=min(10, steps), samples=min(3, samples))
    few.sampler.spacing = "trailing"
    few_label = f"{few.sampler.samples} samples x {few.sampler.steps} steps"
    rows.append(our_row(f"ours, {few_label}", few, variables))
    run = monai_sampler(config)
    if run is None:
        print("MONAI is not installed: pip install -r requirements-bench.txt")
        return rows
    return [*rows, Row(f"MONAI's DiffusionModelUNet on the CPU, {label}", run)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--samples", type=int, default=9)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--no_naive", action="store_true", help="leave out the slowest row")
    options, fields = options.parse_known_args()
    config = get_config(options.network, fields)
    samples = options.samples
    config.sampler.update(steps=options.steps, samples=samples, max_batch=samples)
    rows = rows_of(config, not options.no_naive)
    peak = matrix_peak(config.model.dtype)
    time_rows(rows, options.repeats)
    peak = max(peak, matrix_peak(config.model.dtype))
    finish_speed(options, rows, peak, config.model.dtype)


if __name__ == "__main__":
    run_simple(main)
