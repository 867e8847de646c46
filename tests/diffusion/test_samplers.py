"""Samplers against the original's recorded chains, and against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.diffusion.process import Prediction, Process
from segdiff_jax.diffusion.samplers import (
    START,
    Step,
    ddim_step,
    ddpm_step,
    dpm_solver_pp_2m_step,
    gaussian_noise,
    sample,
    uniform_noise,
)
from segdiff_jax.diffusion.schedule import Schedule, make_schedule, respace, space_timesteps
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.original.weights import config_from_torch, params_from_torch

# name -> (schedule, T, spacing, clip, step, network, factor on the timesteps)
fixed_small = functools.partial(ddpm_step, variance="fixed_small")
learned = functools.partial(ddpm_step, variance="learned_range")
CHAINS = {
    "ddim10_of_linear100_eta0_clip0": ("linear", 100, "ddim10", False, ddim_step, "A", 1),
    "ddim10_of_linear100_eta0_clip1": ("linear", 100, "ddim10", True, ddim_step, "A", 1),
    "ddim10_of_linear100_eta1_clip1": (
        "linear", 100, "ddim10", True, functools.partial(ddim_step, eta=1.0), "A", 1
    ),
    "ddpm_cosine10_clip0": ("cosine", 10, "10", False, ddpm_step, "A", 1),
    "ddpm_cosine10_clip1": ("cosine", 10, "10", True, ddpm_step, "A", 1),
    "ddpm_linear100_resp10_clip0": ("linear", 100, "10", False, ddpm_step, "A", 1),
    "ddpm_linear100_resp10_clip0_rescale": ("linear", 100, "10", False, ddpm_step, "A", 10),
    "ddpm_linear100_resp10_clip1_sigmasmall": ("linear", 100, "10", True, fixed_small, "A", 1),
    "ddpm_linear100_resp10_learned_clip1": ("linear", 100, "10", True, learned, "B", 1),
}  # fmt: skip
LONG = {
    "ddpm_linear25_clip0": ("linear", 25, "25", False, ddpm_step, "A", 1),
    "ddpm_linear100_full_clip0": ("linear", 100, "100", False, ddpm_step, "A", 1),
}


@pytest.fixture(scope="module")
def networks(golden_state_dict):
    """networks("A") -> (encode, denoise), jitted with the recipe's parameters."""

    @functools.cache
    def build(name):
        state_dict = golden_state_dict(f"model_{name}")
        model = SegDiff(**config_from_torch(state_dict))
        variables = {"params": params_from_torch(state_dict)}
        encode = jax.jit(lambda image: model.apply(variables, image, method="encode_image"))
        denoise = jax.jit(lambda *args: model.apply(variables, *args, method="denoise"))
        return encode, denoise

    return build


def run_chain(arrays, networks, name, settings):
    """Runs a recorded chain with its recorded noise; (ours, the original's), NCHW."""
    kind, num_timesteps, spacing, clip, step_fn, network, factor = settings
    schedule = make_schedule(kind, num_timesteps)
    schedule = respace(schedule, space_timesteps(num_timesteps, spacing))
    process = Process(schedule, clip=clip)
    timesteps = jnp.asarray(factor * schedule.timesteps, jnp.float32)
    encode, denoise = networks(network)
    features = encode(jnp.moveaxis(arrays["chain/image"], 1, -1))
    x_T = jnp.moveaxis(arrays[f"chain/{name}/x_T"], 1, -1)
    noises = jnp.zeros((len(schedule), 1))
    if f"chain/{name}/noises" in arrays:
        noises = jnp.moveaxis(arrays[f"chain/{name}/noises"], 2, -1)

    def denoise_fn(x_t, t, previous=None):
        return process.predict(denoise(x_t, features, timesteps[t][None]), x_t, t)

    # The original draws its noise on the way down from T.
    noise_fn = lambda t: noises[len(schedule) - 1 - t]
    x_0 = jax.jit(lambda x_T: sample(denoise_fn, x_T, schedule, step_fn, noise_fn))(x_T)[0]
    return np.moveaxis(np.asarray(x_0), -1, 1), arrays[f"chain/{name}/x_0"]


def check_chain(ours, expected, clip):
    # A random network's unclipped chain reaches 1000: compared relative to that.
    scale = 1.0 if clip else np.abs(expected).max()
    np.testing.assert_allclose(ours / scale, expected / scale, atol=1e-4 if clip else 1e-5)


QUICK = ("ddim10_of_linear100_eta0_clip0",)  # to compile; others are alike


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CHAINS]
)
def test_chains_match_the_original(golden, networks, name):
    check_chain(*run_chain(golden("chains"), networks, name, CHAINS[name]), CHAINS[name][3])


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_chains_match_the_original(shared, networks, name):
    arrays = np.load(shared / "golden" / "diffusion.npz")
    check_chain(*run_chain(arrays, networks, name, LONG[name]), LONG[name][3])


MEAN, STD = 0.4, 0.5


def gaussian_denoiser(schedule):
    """The exact Prediction where x_0 ~ N(MEAN, STD^2): E[x_0 | x_t] by Bayes' rule."""
    process = Process(schedule, "x0")
    abar = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

    def denoise_fn(x_t, t, previous=None):
        variance = abar[t] * STD**2 + 1 - abar[t]
        x_start = MEAN + jnp.sqrt(abar[t]) * STD**2 / variance * (x_t - jnp.sqrt(abar[t]) * MEAN)
        return process.predict(x_start, x_t, t)

    return denoise_fn


def sample_gaussian(step_fn, spacing="200", count=4096):
    schedule = respace(make_schedule("linear", 1000), space_timesteps(1000, spacing))
    noise_fn = gaussian_noise(jax.random.split(jax.random.key(0), count), (1, 1, 1))
    run = jax.jit(lambda x_T: sample(gaussian_denoiser(schedule), x_T, schedule, step_fn, noise_fn))
    return np.asarray(run(noise_fn(START))[0])


@pytest.mark.parametrize(
    "step_fn",
    [
        ddpm_step,
        fixed_small,
        ddim_step,
        functools.partial(ddim_step, eta=0.5),
        dpm_solver_pp_2m_step,
    ],
    ids=["ddpm", "ddpm_small", "ddim", "ddim_half", "dpm_solver"],
)
def test_an_exact_denoiser_gives_the_target_distribution(step_fn):
    x_0 = sample_gaussian(step_fn)
    assert abs(x_0.mean() - MEAN) < 0.03
    assert abs(x_0.std() - STD) < 0.03


@pytest.mark.parametrize(
    "step_fn, low, high", [(ddim_step, -1.5, -0.8), (dpm_solver_pp_2m_step, -2.5, -1.7)]
)
def test_the_order_of_a_solver(step_fn, low, high):
    """The error against the exact solution shrinks with this power of the number of steps."""
    counts = (20, 40, 80)
    errors = [order_error(step_fn, n) for n in counts]
    order = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert low < order < high, errors


def order_error(step_fn, count):
    """Mean error where x_0 is Gaussian, so that x_t = sqrt(abar_t) MEAN + std_t z for one z."""
    abar = 1 / (1 + np.exp(-2 * np.linspace(3, -3, count + 1)))  # Even in log SNR.
    schedule = Schedule(1 - abar / np.append(1, abar[:-1]), np.arange(count + 1))
    denoise_fn, std = gaussian_denoiser(schedule), np.sqrt(abar * STD**2 + 1 - abar)
    z = jnp.linspace(-2, 2, 64).reshape(64, 1, 1, 1)
    x_T, x_end = (np.sqrt(abar[i]) * MEAN + std[i] * z for i in (-1, 0))
    x_0 = jax.jit(lambda x: sample(denoise_fn, x, schedule, step_fn, lambda t: 0.0))(x_T)[0]
    # The last step, to the clean mask, is the denoiser's estimate for both solvers.
    return np.abs(x_0 - denoise_fn(x_end, 0).x_start).mean()


@pytest.mark.parametrize("steps", [1, 3])
def test_level_sets_of_nested_masks_are_exact_in_few_steps_and_means_are_not(steps):
    """The clean mask is the first k of 8 pixels, with a k from 0 to 8 at random."""
    schedule = respace(make_schedule("linear", 100), space_timesteps(100, f"trailing{steps}"))
    process = Process(schedule, "x0", input_scale=0.5)
    abar = jnp.asarray(schedule.alphas_cumprod, jnp.float32)
    masks = 2 * jnp.float32(np.arange(8) < np.arange(9)[:, None]) - 1  # [9, 8]
    keys = jax.random.split(jax.random.key(0), 20_000)
    noise_fn, u = gaussian_noise(keys, (1, 8, 1)), uniform_noise(keys, (1, 1, 1))

    def denoise_fn(level_sets, x_t, t, previous=None):
        far = x_t[:, :, :, 0] - jnp.sqrt(abar[t]) * 0.5 * masks[None]
        posterior = jax.nn.softmax(-jnp.sum(far**2, -1) / (2 * (1 - abar[t])))
        prediction = process.predict((posterior @ masks)[:, None, :, None], x_t, t)
        return process.level_set(prediction, x_t, t, u(1000 + t)) if level_sets else prediction

    def error(level_sets):
        """The largest error of a k's share."""
        args = noise_fn(START), schedule, functools.partial(ddim_step, eta=1.0), noise_fn
        x_0 = jax.jit(lambda: sample(functools.partial(denoise_fn, level_sets), *args)[0])()
        shares = np.bincount((np.asarray(x_0) > 0).sum((1, 2, 3)), minlength=9) / len(keys)
        return abs(shares - 1 / 9).max()

    assert error(True) < 0.01
    assert error(False) > 0.03


def test_one_step_of_any_deterministic_solver_is_the_estimate():
    schedule = respace(make_schedule("linear", 100), space_timesteps(100, "trailing1"))
    denoise_fn, x_T = gaussian_denoiser(schedule), jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
    for step_fn in (ddim_step, dpm_solver_pp_2m_step):
        x_0, _ = sample(denoise_fn, x_T, schedule, step_fn, lambda t: jnp.zeros_like(x_T))
        np.testing.assert_allclose(x_0, denoise_fn(x_T, 0).x_start, atol=1e-6)


def test_the_estimate_of_the_step_before_is_passed_on():
    schedule, x_T = make_schedule("linear", 100), jnp.ones((1, 1, 1, 1))

    def denoise_fn(x_t, t, previous):
        return Prediction(previous + 1, x_t)

    x_0, _ = sample(denoise_fn, x_T, schedule, lambda step: step.prediction.x_start, lambda t: x_T)
    assert x_0.item() == 100


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance():
    ours = sample_gaussian(functools.partial(ddim_step, eta=1.0), "20", 16)
    np.testing.assert_allclose(ours, sample_gaussian(fixed_small, "20", 16), atol=1e-5)


def test_scan_equals_a_python_loop():
    schedule = respace(make_schedule("linear", 100), space_timesteps(100, "10"))
    denoise_fn = gaussian_denoiser(schedule)
    noise_fn = gaussian_noise(jax.random.split(jax.random.key(1), 2), (3, 3, 1))
    x = x_T = noise_fn(jnp.int32(10))
    for t in reversed(range(10)):
        x = ddpm_step(Step(schedule, denoise_fn(x, t), x, jnp.int32(t), noise_fn(jnp.int32(t))))
    scanned = jax.jit(lambda x: sample(denoise_fn, x, schedule, ddpm_step, noise_fn))(x_T)[0]
    np.testing.assert_allclose(scanned, x, atol=1e-5)


@pytest.mark.parametrize("step_fn", [ddpm_step, dpm_solver_pp_2m_step])
def test_a_chain_in_parts_is_the_chain_in_one(step_fn):
    schedule = respace(make_schedule("linear", 100), space_timesteps(100, "10"))
    denoise_fn = gaussian_denoiser(schedule)
    noise_fn = gaussian_noise(jax.random.split(jax.random.key(1), 2), (3, 3, 1))
    run = lambda *part: sample(denoise_fn, part[0], schedule, step_fn, noise_fn, *part[1:])
    whole = jax.jit(run)(noise_fn(START))
    first = jax.jit(run)(noise_fn(START), jnp.arange(9, 5, -1))
    second = jax.jit(run)(first[0], jnp.arange(5, -1, -1), first[1])
    np.testing.assert_allclose(second, whole, atol=1e-5)
    assert float(jnp.abs(first[0] - second[0]).max()) > 0.1


def test_the_network_is_traced_once():
    schedule, traces = make_schedule("linear", 100), []

    def denoise_fn(x_t, t, previous=None):
        traces.append(t)
        return Prediction(x_t, x_t)

    noise_fn = gaussian_noise(jax.random.split(jax.random.key(0), 1), (2, 2, 1))
    run = jax.jit(lambda x: sample(denoise_fn, x, schedule, ddim_step, noise_fn))
    run(jnp.zeros((1, 2, 2, 1)))
    run(jnp.ones((1, 2, 2, 1)))
    assert len(traces) == 1


def test_noise_follows_from_the_key_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    together = gaussian_noise(keys, (2, 2, 1))(jnp.int32(7))
    alone = gaussian_noise(keys[1:2], (2, 2, 1))(jnp.int32(7))
    np.testing.assert_array_equal(together[1:2], alone)
    assert not np.allclose(together[0], together[1])
    assert not np.allclose(together, gaussian_noise(keys, (2, 2, 1))(jnp.int32(8)))
