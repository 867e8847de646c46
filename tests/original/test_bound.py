"""The variational bound, and losses with it, against the original and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.diffusion.process import Prediction, Process, q_sample
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods.losses import Noised
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.original.bound import (
    discretised_log_likelihood,
    normal_cdf,
    normal_kl,
    prior_term,
    variational_bound,
    vb_term,
)
from segdiff_jax.original.losses import bound_loss
from segdiff_jax.original.weights import config_from_torch, params_from_torch

SCHEDULE = make_schedule("linear", 100)


@pytest.fixture(scope="module")
def recorded(golden):
    """recorded("loss/x0") -> the original's array, NHWC."""
    arrays = golden("bound")

    def get(name):
        value = arrays[name]
        return jnp.asarray(np.moveaxis(value, -3, -1) if value.ndim > 3 else value)

    return get


@pytest.fixture(scope="module")
def networks(golden_state_dict):
    """networks("A") -> (encode, denoise), jitted with the recipe's parameters."""
    built = {}

    def build(name):
        if name not in built:
            state_dict = golden_state_dict(f"model_{name}")
            model = SegDiff(**config_from_torch(state_dict))
            variables = {"params": params_from_torch(state_dict)}
            apply = lambda method: jax.jit(lambda *x: model.apply(variables, *x, method=method))
            built[name] = apply("encode_image"), apply("denoise")
        return built[name]

    return build


@pytest.fixture(scope="module")
def outputs(recorded, networks):
    """outputs("A") -> (x_start, x_t, t, eps, the network's output there)."""
    x_start, eps, t = recorded("loss/x0"), recorded("loss/noise"), recorded("loss/t")
    x_t = q_sample(SCHEDULE, x_start, t, eps)
    found = {}

    def get(name):
        if name not in found:
            encode, denoise = networks(name)
            found[name] = denoise(x_t, encode(recorded("loss/image")), t)
        return x_start, x_t, t, eps, found[name]

    return get


def losses(process, name, variance, output, x_start, x_t, t, eps):
    """The terms of a loss; masks are -1 or +1."""
    return bound_loss(name, variance)(process, output, Noised(x_start, x_start, t, eps, x_t))


TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize(
    "name, variance",
    [
        ("A", "fixed_large"),
        ("A_small", "fixed_small"),
        ("B", "learned_range"),
    ],
)
def test_terms_match_the_original(recorded, outputs, name, variance, clip):
    x_start, x_t, t, _, output = outputs(name[0])
    process = Process(SCHEDULE, clip=bool(clip))
    prediction = process.predict(output, x_t, t)
    vb = vb_term(process, variance, prediction, x_start, x_t, t)
    np.testing.assert_allclose(vb, recorded(f"vb/{name}/clip{clip}/output"), **TOLERANCE)
    expected = recorded(f"vb/{name}/clip{clip}/pred_xstart")
    scale = np.abs(expected).max()
    atol = scale * (1e-3 if clip else 5e-6)  # Near t = T, errors are amplified 200 times.
    np.testing.assert_allclose(prediction.x_start[:, ::8, ::8], expected, rtol=0, atol=atol)


def test_the_prior_matches_the_original(recorded):
    prior = prior_term(Process(SCHEDULE), recorded("loss/x0"))
    np.testing.assert_allclose(prior, recorded("vb/prior_bpd"), atol=1e-8)


@pytest.mark.slow
def test_the_whole_bound_matches_the_original(recorded, networks):
    process = Process(make_schedule("cosine", 10), clip=True)
    encode, denoise = networks("A")
    noises = recorded("bpd/noises")  # Drawn on the way down from T.

    @jax.jit
    def run(x_start, features):
        denoise_fn = lambda x_t, t: process.predict(denoise(x_t, features, t[None]), x_t, t)
        noise_fn = lambda t: noises[9 - t]
        return variational_bound(process, "fixed_large", denoise_fn, x_start, noise_fn)

    bound = run(recorded("loss/x0")[:2], encode(recorded("loss/image")[:2]))
    np.testing.assert_allclose(bound.vb[:, ::-1], recorded("bpd/vb"), rtol=2e-5)
    np.testing.assert_allclose(bound.x_start_mse[:, ::-1], recorded("bpd/xstart_mse"), rtol=2e-5)
    np.testing.assert_allclose(bound.eps_mse[:, ::-1], recorded("bpd/mse"), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(bound.prior, recorded("bpd/prior_bpd"), atol=1e-8)
    np.testing.assert_allclose(bound.total, recorded("bpd/total_bpd"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, loss, prediction",
    [
        ("A_mse", "mse", "eps"),
        ("A_predict_xstart", "mse", "x0"),
        ("A_rescaled_mse", "rescaled_mse", "eps"),
        ("A_rescaled_kl", "rescaled_kl", "eps"),
        ("B_mse", "mse", "eps"),
        ("B_rescaled_mse", "rescaled_mse", "eps"),
        ("B_rescaled_kl", "rescaled_kl", "eps"),
    ],
)
def test_losses_match_the_original(golden, recorded, outputs, name, loss, prediction):
    x_start, x_t, t, eps, output = outputs(name[0])
    variance = {"A": "fixed_large", "B": "learned_range"}[name[0]]
    process = Process(SCHEDULE, prediction)
    terms = losses(process, loss, variance, output, x_start, x_t, t, eps)
    known = {"mse", "vb"} & {
        key.rpartition("/")[2] for key in golden("bound") if f"/{name}/" in key
    }
    assert terms.keys() == (known or {"vb"})
    for term in known:
        np.testing.assert_allclose(terms[term], recorded(f"loss/{name}/{term}"), **TOLERANCE)
    # Without a learned variance, the original's is the sum over pixels.
    pixels = 64 * 64 if known == {"mse"} else 1
    total = pixels * sum(terms.values())
    np.testing.assert_allclose(total, recorded(f"loss/{name}/loss"), **TOLERANCE)


@pytest.mark.slow
def test_kl_is_rescaled_kl_without_the_number_of_timesteps(outputs):
    *inputs, output = outputs("B")
    x_start, x_t, t, eps = inputs
    one, all_of_them = (
        losses(Process(SCHEDULE), loss, "learned_range", output, x_start, x_t, t, eps)
        for loss in ("kl", "rescaled_kl")
    )
    np.testing.assert_allclose(100 * one["vb"], all_of_them["vb"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss, reaches_mean", [("rescaled_mse", False), ("kl", True)])
def test_which_channels_the_bound_trains(outputs, loss, reaches_mean):
    x_start, x_t, t, eps, output = outputs("B")

    def vb(output):
        inputs = output, x_start, x_t, t, eps
        return losses(Process(SCHEDULE), loss, "learned_range", *inputs)["vb"].sum()

    mean, values = np.moveaxis(np.asarray(jax.grad(vb)(output)), -1, 0)
    assert ((values != 0).mean((1, 2)) > 0.9).all()
    assert ((mean != 0).mean((1, 2)) > 0.9).all() if reaches_mean else (mean == 0).all()


@pytest.mark.slow
def test_the_squared_error_does_not_train_the_variance(outputs):
    x_start, x_t, t, eps, output = outputs("B")

    def mse(output):
        inputs = output, x_start, x_t, t, eps
        return losses(Process(SCHEDULE), "mse", "learned_range", *inputs)["mse"].sum()

    gradient = jax.grad(mse)(output)
    assert (gradient[..., 1] == 0).all() and (gradient[..., 0] != 0).all()


def test_normal_kl_is_the_integral():
    x = np.linspace(-30, 30, 200_001)
    density = lambda mean, log_var: (
        np.exp(-((x - mean) ** 2) / 2 / np.exp(log_var)) / np.sqrt(2 * np.pi * np.exp(log_var))
    )
    for parameters in ((0.0, 0.0, 1.0, 0.5), (0.3, -1.0, -0.2, 0.7), (2.0, 1.0, 2.0, 1.0)):
        p, q = density(*parameters[:2]), density(*parameters[2:])
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.sum(np.where(p > 0, p * np.log(p / q), 0)) * (x[1] - x[0])
        np.testing.assert_allclose(normal_kl(*map(jnp.float32, parameters)), expected, atol=1e-5)


def test_the_256_values_have_all_the_probability():
    x = jnp.linspace(-1, 1, 256).reshape(1, 16, 16, 1)
    for mean, scale in ((0.1, 0.3), (-0.9, 0.5), (1.5, 0.2)):
        p = jnp.exp(discretised_log_likelihood(x, jnp.full_like(x, mean), jnp.log(scale)))
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        at_end = normal_cdf(jnp.float32((mean - 1 + 1 / 255) / scale))
        assert float(p[0, -1, -1, 0]) == pytest.approx(float(at_end), rel=1e-4)
    exact = [0.00135, 0.158655, 0.5, 0.977250]
    np.testing.assert_allclose(normal_cdf(jnp.array([-3.0, -1.0, 0.0, 2.0])), exact, atol=3e-4)


@pytest.mark.parametrize("x", [-1.0, 1.0])
def test_tails_of_less_than_the_resolution_count_as_the_least(x):
    z = jnp.array([4.8, 5.2, 9.0, 1e4]) + 1 / 255
    ours, slope = jax.vmap(
        jax.value_and_grad(lambda z: discretised_log_likelihood(jnp.float32(x), x - x * z, 0.0))
    )(z)
    inside = np.sqrt(2 / np.pi) * (4.8 + 0.044715 * 4.8**3)
    expected = [-np.log1p(np.exp(2 * inside)), *[np.log(1e-12)] * 3]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert slope[0] < -1 and (slope[1:] == 0).all()


@pytest.mark.parametrize("b", [1.0, 0.3])
def test_a_perfect_network_pays_for_the_last_step_alone(b):
    """The variance there is the only uncertainty that is left, in units of the mask."""
    process = Process(SCHEDULE, input_scale=b)
    x_start = b * jnp.sign(jax.random.normal(jax.random.key(0), (2, 8, 8, 1)))
    noise_fn = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x_start.shape)
    denoise_fn = lambda x_t, t: Prediction(x_start, noise_fn(t))
    bound = jax.jit(
        lambda: variational_bound(process, "fixed_small", denoise_fn, x_start, noise_fn)
    )()
    np.testing.assert_allclose(bound.vb[:, 1:], 0, atol=1e-6)
    std = np.exp(0.5 * SCHEDULE.posterior_log_variance_clipped[0]) / b
    p = normal_cdf(jnp.float32(1 / 255 / std))
    np.testing.assert_allclose(bound.vb[:, 0], -np.log2(p), rtol=1e-3)
    assert (bound.x_start_mse == 0).all() and (bound.eps_mse == 0).all()
    np.testing.assert_allclose(bound.total, bound.prior + bound.vb.sum(1), rtol=1e-6)


def test_errors_are_those_of_the_mask_as_one():
    process = Process(make_schedule("cosine", 4), "x0", input_scale=0.5)
    x_start = jnp.full((1, 2, 2, 1), 0.5)
    denoise_fn = lambda x_t, t: process.predict(jnp.full_like(x_t, 0.8), x_t, t)
    bound = variational_bound(process, "fixed_large", denoise_fn, x_start, lambda t: 0 * x_start)
    np.testing.assert_allclose(bound.x_start_mse, np.full((1, 4), 0.2**2), rtol=1e-5)
    assert bound.vb.shape == (1, 4) and (bound.vb > 0).all()
