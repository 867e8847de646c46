"""The forward process and the reading of outputs, against the original and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.diffusion import process as P
from segdiff_jax.diffusion.schedule import make_schedule


@pytest.fixture(scope="module")
def pm(golden):
    """pm("x0") -> the recorded array, NHWC."""

    def get(name):
        value = golden("diffusion")[f"pm/{name}"]
        return jnp.asarray(np.moveaxis(value, 1, -1) if value.ndim == 4 else value)

    return get


@pytest.mark.parametrize("name", ["linear", "cosine"])
class TestAgainstTheOriginal:
    def test_q_sample_and_posterior(self, pm, name):
        schedule = make_schedule(name, 100)
        t = pm("t")
        x_t = P.q_sample(schedule, pm("x0"), t, pm("noise"))
        np.testing.assert_allclose(x_t, pm(f"{name}/q_sample"), atol=1e-6)
        mean = P.posterior_mean(schedule, pm("x0"), pm("x_t"), t)
        np.testing.assert_allclose(mean, pm(f"{name}/q_posterior_mean"), atol=1e-5)

    @pytest.mark.parametrize("clip", [0, 1])
    @pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned_range"])
    def test_mean_and_variance(self, pm, name, variance, clip):
        schedule, t = make_schedule(name, 100), pm("t")
        process = P.Process(schedule, clip=bool(clip))
        output = pm("eps")
        if variance == "learned_range":
            output = jnp.concatenate([output, pm("var_values")], axis=-1)
        prediction = process.predict(output, pm("x_t"), t)
        mean = P.posterior_mean(schedule, prediction.x_start, pm("x_t"), t)
        log_var = P.log_variance(schedule, variance, t, 4, prediction.variance_values)
        prefix = f"{name}/{variance}/clip{clip}"
        for ours, theirs in (
            (prediction.x_start, "pred_xstart"),
            (mean, "mean"),
            (jnp.broadcast_to(log_var, mean.shape), "log_variance"),
            (jnp.broadcast_to(jnp.exp(log_var), mean.shape), "variance"),
        ):
            expected = pm(f"{prefix}/{theirs}")
            if theirs == "variance":  # At t = 0 the original's is 0, but it samples by the log.
                ours, expected = ours[t > 0], expected[t > 0]
            scale = max(1.0, float(jnp.abs(expected).max()))
            np.testing.assert_allclose(ours, expected, atol=2e-6 * scale, err_msg=theirs)


def test_eps_and_x_start_are_each_others_inverse():
    schedule = make_schedule("linear", 100)
    rng = np.random.default_rng(0)
    x_start, eps = (jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 40, 80])
    x_t = P.q_sample(schedule, x_start, t, eps)
    of_x_start, of_eps = P.Process(schedule, "x0"), P.Process(schedule, "eps")
    np.testing.assert_allclose(of_x_start.predict(x_start, x_t, t).eps, eps, atol=1e-4)
    np.testing.assert_allclose(of_eps.predict(eps, x_t, t).x_start, x_start, atol=1e-3)


@pytest.mark.parametrize("prediction", P.PREDICTIONS)
def test_a_perfect_output_gives_back_mask_and_noise(prediction):
    process = P.Process(make_schedule("linear", 100), prediction, input_scale=0.5)
    rng = np.random.default_rng(0)
    x_start, eps = (jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32) for _ in range(2))
    t = jnp.array([5, 40, 80])
    x_t = P.q_sample(process.schedule, x_start, t, eps)
    found = process.predict(process.target(x_start, t, eps), x_t, t)
    np.testing.assert_allclose(found.x_start, x_start, atol=1e-3)
    np.testing.assert_allclose(found.eps, eps, atol=1e-4)


def test_v_at_the_ends_is_noise_and_the_negative_mask():
    process = P.Process(make_schedule("cosine", 1000), "v")
    x_start, eps = jnp.full((2, 1, 1, 1), 0.25), jnp.full((2, 1, 1, 1), 0.75)
    v = process.target(x_start, jnp.array([0, 999]), eps)
    np.testing.assert_allclose(v[:, 0, 0, 0], [0.75, -0.25], atol=0.01)


@pytest.mark.parametrize("b", [1.0, 0.3])
def test_min_snr_weighs_the_mask_s_error_the_same_for_every_prediction(b):
    schedule = make_schedule("linear", 100)
    abar = schedule.alphas_cumprod
    snr = b**2 * abar / (1 - abar)
    weights = {
        p: P.Process(schedule, p, input_scale=b).loss_weights("min_snr") for p in P.PREDICTIONS
    }
    np.testing.assert_allclose(weights["x0"], np.minimum(snr, 5))
    np.testing.assert_allclose(weights["eps"], np.minimum(1, 5 / snr))
    if b == 1:
        np.testing.assert_allclose(weights["v"], np.minimum(snr, 5) / (snr + 1))
    # An error d of v is one of sqrt(1 - abar) d of x_0, and so on.
    np.testing.assert_allclose(weights["v"] * b**2 / (1 - abar), weights["x0"])


def test_self_conditioning_adds_the_estimate_as_a_channel():
    process = P.Process(make_schedule("linear", 100), "x0", input_scale=0.5, self_conditioning=True)
    x_t = jnp.full((2, 3, 3, 1), 0.7)
    assert process.input_channels == 2
    inputs = process.network_input(x_t, jnp.int32(3), jnp.full_like(x_t, 0.5))
    np.testing.assert_allclose(inputs[1, 2, 2], [0.7, 1.0])
    np.testing.assert_allclose(process.network_input(x_t, jnp.int32(3))[0, 0, 0], [0.7, 0.0])


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_network_sees_unit_variance(scale):
    process = P.Process(
        make_schedule("linear", 100), "x0", True, input_scale=scale, normalise_input=True
    )
    rng = np.random.default_rng(0)
    mask = scale * np.sign(rng.normal(size=(5, 100, 100, 1)))
    t = jnp.array([0, 10, 30, 60, 99])
    x_t = P.q_sample(
        process.schedule, jnp.asarray(mask), t, jnp.asarray(rng.normal(size=mask.shape))
    )
    std = np.std(process.network_input(x_t, t), axis=(1, 2, 3))
    np.testing.assert_allclose(std, 1, atol=0.03)
    assert abs(float(jnp.std(x_t[0])) - scale) < 0.03


def test_logits_become_the_expected_mask():
    process = P.Process(make_schedule("linear", 100), "x0", True, input_scale=0.5)
    p = jnp.array([0.01, 0.3, 0.5, 0.9]).reshape(1, 2, 2, 1)
    prediction = process.predict(jnp.log(p / (1 - p)), jnp.zeros((1, 2, 2, 1)), jnp.int32(50))
    np.testing.assert_allclose(prediction.x_start, 0.5 * (2 * p - 1), atol=1e-6)


def test_clipping_recomputes_eps():
    schedule = make_schedule("linear", 100)
    x_t = jnp.full((1, 1, 1, 1), 2.0)
    t = jnp.int32(90)
    prediction = P.Process(schedule, clip=True).predict(-x_t, x_t, t)
    assert prediction.x_start.item() == 1.0
    again = P.q_sample(schedule, prediction.x_start, t, prediction.eps)
    np.testing.assert_allclose(again, x_t, rtol=1e-6)
    unclipped = P.Process(schedule).predict(-x_t, x_t, t)
    assert unclipped.x_start.item() > 100 and unclipped.eps.item() == -2.0


CONFIG = {
    "schedule": "linear",
    "num_timesteps": 100,
    "prediction": "x0",
    "loss": "bce_dice",
    "input_scale": 0.3,
    "normalise_input": True,
    "self_conditioning": False,
}


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("prediction", "y", "prediction 'y' with logits=True: choose one of"),
        ("prediction", "eps", "prediction 'eps' with logits=True: .*; logits need 'x0'"),
        ("schedule", "sine", "schedule 'sine', num_timesteps=100: choose one of"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    process = P.make_process(CONFIG)
    assert process.logits
    with pytest.raises(ValueError, match="weight 'none' is unknown: choose one of"):
        process.loss_weights("none")
    with pytest.raises(ValueError, match=message):
        P.make_process(CONFIG | {field: value})


def test_bad_arguments_are_named():
    schedule = make_schedule("linear", 100)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\) but eps has \(1, 2, 2, 2\)"):
        P.q_sample(schedule, jnp.zeros((1, 2, 2, 1)), jnp.int32(0), jnp.zeros((1, 2, 2, 2)))
    with pytest.raises(ValueError, match="variance 'big' is unknown: choose one of"):
        P.log_variance(schedule, "big", jnp.int32(0), 4)
    with pytest.raises(ValueError, match="needs a network with twice the channels of the mask"):
        P.log_variance(schedule, "learned_range", jnp.int32(0), 4)


def test_a_level_set_has_one_threshold_for_all_pixels():
    process = P.Process(make_schedule("linear", 100), "x0", input_scale=0.5)
    p = jnp.array([0.1, 0.4, 0.6, 0.9])
    x_start = jnp.broadcast_to(0.5 * (2 * p - 1).reshape(1, 2, 2, 1), (3, 2, 2, 1))
    x_t, t = jnp.full((3, 2, 2, 1), 0.3), jnp.int32(40)
    u = jnp.array([0.05, 0.5, 0.7]).reshape(3, 1, 1, 1)
    found = process.level_set(process.predict(2 * x_start, x_t, t), x_t, t, u)
    expected = np.where(np.asarray(p) > np.asarray(u).reshape(3, 1), 0.5, -0.5).reshape(3, 2, 2, 1)
    np.testing.assert_array_equal(found.x_start, expected)
    again = P.q_sample(process.schedule, found.x_start, t, found.eps)
    np.testing.assert_allclose(again, x_t, atol=1e-6)


def test_of_several_classes_a_level_set_has_each_with_its_probability():
    process = P.Process(make_schedule("linear", 100), "x0", mask_channels=3)
    p = np.float32([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]]).reshape(1, 1, 2, 3)
    x_start = jnp.broadcast_to(2 * p - 1, (20_000, 1, 2, 3))
    u = jax.random.uniform(jax.random.key(0), (20_000, 1, 1, 3), minval=1e-6)
    x_t, t = jnp.zeros_like(x_start), jnp.int32(40)
    found = process.level_set(process.predict(x_start, x_t, t), x_t, t, u).x_start
    assert (np.sort(found, axis=-1) == [-1, -1, 1]).all()
    np.testing.assert_allclose((found > 0).mean(axis=0)[None], p, atol=0.012)
