"""Stochastic segmentation networks: integrals, covariances, and two experts who disagree."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from numpy.polynomial.hermite_e import hermegauss

from configs import compare
from segdiff_jax.check import check
from segdiff_jax.config import changes, default_config
from segdiff_jax.inference.driver import Driver, image_names
from segdiff_jax.inference.export import export_model
from segdiff_jax.inference.load import load
from segdiff_jax.methods import make_method
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.methods.losses import bce_dice
from segdiff_jax.methods.ssn import SSN, make_logits
from segdiff_jax.methods.supervised import Supervised
from segdiff_jax.methods.views import make_views
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import NETWORK, RUN
from segdiff_jax.training.loop import train
from tests.drivers import config_of, example_keys

NEVER = -1e4  # log D where D is 0
VIEWS = make_views(flips=True, rotations=True)


class Network:
    """`output`, a function of an image, as a network without parameters."""

    def __init__(self, output, mask_stride=1):
        self.output, self.mask_stride = output, mask_stride

    def apply(self, variables, image, train=False, mutable=None):
        output = jax.vmap(self.output)(image)
        return (output, {}) if train else output


def constant(mean, variance, factor, **options):
    """The same mu f32[s, s, C], D f32[s, s, C] and P f32[s, s, C, R] for every image."""
    root = np.sqrt(factor.shape[-1]) * factor.reshape(*mean.shape[:2], -1)
    output = jnp.float32(np.concatenate([mean, np.log(variance), root], axis=-1))
    return Network(lambda image: output, **options)


def losses_of(method, masks, keys):
    """f32[B], the loss of each mask f32[B, s, s, C] from 0 to 1."""
    batch = {"image": jnp.zeros((len(masks), 4, 4, 3)), "mask": 2 * jnp.float32(masks) - 1}
    losses = lambda batch, keys: method.losses({"params": {}}, batch, keys).terms["nll"]
    return jax.jit(losses)(batch, keys)


def loss_of(method, mask):
    return float(losses_of(method, mask[None], jax.random.split(jax.random.key(0), (1, 3)))[0])


def samples_of(method, numbers, keys=None, corners=None, variables=None):
    """f32[V, B, S, S, C] of black images of 4 x 4 pixels, by default of one."""
    keys = example_keys(0, ["a"], numbers) if keys is None else keys
    draw = make_draw(keys, np.asarray(numbers), len(method.views), corners)
    images = jnp.zeros((len(keys), 4, 4, 3), jnp.uint8)
    sample = jax.jit(lambda variables, draw: sample_masks(method, variables, images, draw))
    return np.asarray(sample(variables or {}, draw))


def test_without_variance_the_loss_is_the_cross_entropy():
    """Of shares of a pixel, of no and of all pixels, whatever the rank and number of samples."""
    rng = np.random.default_rng(0)
    mean, shares = rng.normal(size=(4, 4, 3)), rng.uniform(size=(4, 4, 3))
    for rank in (0, 2):
        rest = np.broadcast_to([NEVER] * 3 + [0] * 3 * rank, (4, 4, 3 + 3 * rank))
        output = jnp.float32(np.concatenate([mean, rest], axis=-1))
        method = SSN(Network(lambda image, output=output: output), rank)
        for mask in (shares, np.zeros_like(shares), np.ones_like(shares)):
            bce = bce_dice(jnp.float32(mean)[None], jnp.float32(mask)[None])["bce"][0]
            assert loss_of(method, mask) == pytest.approx(float(bce), rel=1e-6)


def expectation(function, mean, deviation):
    """E function(mean + deviation n), n standard normal, by Gauss-Hermite quadrature."""
    nodes, weights = hermegauss(60)
    return function(np.asarray(mean)[..., None] + deviation * nodes) @ weights / weights.sum()


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 1, 2)], ids=["pixels", "channels"])
def test_the_loss_is_the_integral(shape):
    """Of two pixels, or of two channels of one, that are correlated; one of them is a share."""
    mean, variance = np.array([-0.4, -1.0]), np.array([0.3, 2.0])
    factor, y = np.array([[2.0, 1.0], [1.5, 1.5]]), np.array([1.0, 0.8])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    bernoulli = lambda i: lambda eta: sigmoid(eta) ** y[i] * sigmoid(-eta) ** (1 - y[i])
    likelihood = lambda i, z: expectation(
        bernoulli(i), mean[i] + z @ factor[i], np.sqrt(variance[i])
    )
    nodes, weights = hermegauss(60)
    z = np.stack(np.meshgrid(nodes, nodes), axis=-1)  # Given z, both are independent.
    both = weights @ (likelihood(0, z) * likelihood(1, z)) @ weights / weights.sum() ** 2
    marginal = np.sqrt(variance + (factor**2).sum(axis=1))
    alone = [expectation(bernoulli(i), mean[i], marginal[i]) for i in range(2)]
    model = constant(mean.reshape(shape), variance.reshape(shape), factor.reshape(*shape, 2))
    loss = loss_of(SSN(model, rank=2, train_samples=200_000), y.reshape(shape))
    assert loss == pytest.approx(-np.log(both) / 2, abs=0.002)
    assert abs(loss + np.log(np.prod(alone)) / 2) > 0.02  # It is not that of independent pixels.


def test_the_loss_of_an_example_does_not_depend_on_its_batch():
    rng = np.random.default_rng(0)
    ones = np.ones((4, 4, 1))
    method = SSN(constant(0 * ones, ones, np.ones((4, 4, 1, 3))), 3, 5)
    masks = rng.uniform(size=(3, 4, 4, 1))
    keys = jax.random.split(jax.random.key(0), (3, 3))
    together = losses_of(method, masks, keys)
    for i in range(3):
        alone = losses_of(method, masks[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-6)
    np.testing.assert_allclose(losses_of(method, masks, keys[::-1])[1], together[1], rtol=1e-6)
    assert (losses_of(method, masks, keys[::-1])[::2] != together[::2]).all()


def test_gradients_are_finite():
    """Of certain and of equal samples, of variances that swallow the mean, of empty masks."""

    def loss(numbers, mask):
        output = numbers.reshape(1, 1, 4) * jnp.ones((4, 4, 1))
        batch = {"image": jnp.zeros((1, 4, 4, 3)), "mask": jnp.full((1, 4, 4, 1), mask)}
        method, keys = (
            SSN(Network(lambda _: output), 2),
            jax.random.split(jax.random.key(0), (1, 3)),
        )
        return method.losses({"params": {}}, batch, keys).terms["nll"][0]

    cases = itertools.product([-1e3, 0.0, 1e3], [NEVER, 0.0, 20.0], [0.0, 1e3], [-1.0, 1.0])
    mean, log_variance, factor, mask = np.float32(list(cases)).T
    numbers = np.stack([mean, log_variance, factor, 0 * factor], axis=-1)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(numbers, mask)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()


def test_samples_have_the_mean_and_the_covariance():
    """Of 8 logits: 2 x 2 pixels of 2 channels; the errors of 40,000 samples are about 0.5%."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(2, 2, 2)), rng.uniform(0.1, 0.5, (2, 2, 2))
    factor = 0.6 * rng.normal(size=(2, 2, 2, 3))
    numbers = np.arange(40_000)
    method = SSN(constant(mean, variance, factor), rank=3, samples=len(numbers))
    samples = np.float64(samples_of(method, numbers)).reshape(len(numbers), 8)
    logits = 2 * np.arctanh(samples)
    flat = factor.reshape(8, 3)
    covariance = flat @ flat.T + np.diag(variance.ravel())
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.3
    np.testing.assert_allclose(logits.mean(axis=0), mean.ravel(), atol=0.025)
    np.testing.assert_allclose(np.cov(logits.T), covariance, atol=0.03)
    # So the mean of (x + 1) / 2 is the probability.
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    deviations = np.sqrt(np.diag(covariance))
    expected = [expectation(sigmoid, *of) for of in zip(mean.ravel(), deviations, strict=True)]
    np.testing.assert_allclose((samples.mean(axis=0) + 1) / 2, expected, atol=0.005)


def seen(image):
    """A mean, a variance and a factor that differ from image to image and from pixel to pixel."""
    place = jnp.arange(16.0).reshape(4, 4, 1) / 8
    red, green = image[..., :1], image[..., 1:2]
    return jnp.concatenate([red + place, green, green - 1, red], axis=-1)


def test_samples_do_not_depend_on_the_batch_they_are_in():
    """They follow from the seed, the image's id and the sample's number."""
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    images[1], ids = images[0], list("abcdefgh")
    method = SSN(Network(seen), 2, image_size=4)
    sampled = lambda batch, which, **fields: Driver(
        method.with_sampler(config_of(flips=True, **fields)), batch
    )({}, images[which], [ids[i] for i in which], seed=3)
    every = sampled(48, np.arange(8), samples=6)
    assert every.shape == (6, 8, 4, 4, 1)
    for batch, samples in ((4, 6), (8, 5)):
        which = np.array([6, 2, 5, 7])
        some = sampled(batch, which, samples=samples)
        np.testing.assert_allclose(some, every[:samples, which], atol=1e-6)
    assert len(np.unique(every[:, :2].reshape(12, -1), axis=0)) == 12  # Two ids of one image.


@pytest.mark.slow
def test_without_variance_samples_are_those_of_the_supervised_method():
    """In every view."""
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    draw = make_draw(example_keys(0, ["a", "b"], range(8)), np.arange(8), 8)
    mean = lambda image: seen(image)[..., :1]
    rest = jnp.broadcast_to(jnp.float32([NEVER, 0, 0]), (4, 4, 3))
    certain = lambda image: jnp.concatenate([mean(image), rest], axis=-1)
    ours = SSN(Network(certain), 2, samples=8, views=VIEWS)
    other = Supervised(Network(mean), 4, VIEWS)
    found, expected = (np.asarray(sample_masks(m, {}, images, draw)) for m in (ours, other))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(found[:, 0].reshape(8, -1), axis=0)) == 8


def test_the_noise_of_windows_belongs_to_pixels_and_to_the_sample():
    """Where two windows of an image overlap, a sample is the same in both, whatever the view."""
    ones = np.ones((4, 4, 1))
    method = SSN(constant(0 * ones, 0.5 * ones, np.ones((4, 4, 1, 2))), 2, samples=8, views=VIEWS)
    keys = example_keys(0, ["a", "a"], range(8))
    corners = np.array([[0, 0], [1, 2]], np.uint32)
    samples = samples_of(method, range(8), keys, corners)
    np.testing.assert_allclose(samples[:, 0, 1:, 2:], samples[:, 1, :3, :2], atol=1e-6)
    logits = 2 * np.arctanh(np.float64(samples[:, 0])).reshape(8, 16)
    assert len(np.unique(logits)) == 8 * 16
    # z moves all pixels of a sample alike; in each, 0.5 is the variance of the pixels.
    assert logits.var(axis=1).mean() == pytest.approx(0.5, rel=0.4)
    assert logits.mean(axis=1).var() > 0.7


def test_small_masks_are_enlarged():
    mean = np.float32([[-1, 1], [-1, 1]])[..., None]
    model = constant(mean, np.full((2, 2, 1), 1e-9), np.zeros((2, 2, 1, 1)), mask_stride=2)
    found = samples_of(SSN(model, 1), [0])[0, 0, 0, :, 0]
    # Linear, with half-pixel centres.
    np.testing.assert_allclose(found, np.tanh(0.5) * np.array([-1, -0.5, 0.5, 1]), atol=1e-4)


def test_logits_are_float32():
    output = jnp.ones((2, 2, 4), jnp.bfloat16)
    logits = make_logits(output, jnp.array([0.5, -1.0]), jnp.full((2, 2, 1), 0.25))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, 1 - 0.5 / 2**0.5 + 0.25 * np.exp(0.5), rtol=1e-6)


class Table(nn.Module):
    """A parameter for each number of the output, the same for every image."""

    @nn.compact
    def __call__(self, image, train=False):
        table = self.param("table", nn.initializers.normal(0.1), (1, 4, 4, 4))
        return jnp.tile(table, (len(image), 1, 1, 1))


def test_two_experts_who_disagree_are_both_sampled():
    """One says left and the other right, as often; there is hardly any mixture of both."""
    left = np.where(np.arange(4) < 2, 1, -1).reshape(1, 4, 1) * np.ones((4, 1, 1))
    method = SSN(Table(), 2, 20, 4, samples=1000)
    batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.float32(np.stack([left, -left]))}
    variables, tx = method.model.init(jax.random.key(0), batch["image"]), optax.adam(0.1)

    @jax.jit
    def step(variables, state, key):
        keys = jax.random.split(key, (2, 3))
        loss = lambda variables: method.losses(variables, batch, keys).terms["nll"].mean()
        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(variables, updates), state, value

    state, losses = tx.init(variables), []
    for key in jax.random.split(jax.random.key(1), 500):
        variables, state, loss = step(variables, state, key)
        losses.append(float(loss))
    samples = samples_of(method, range(1000), variables=variables)[:, 0]
    agreement = ((samples > 0) == (left > 0)).mean(axis=(1, 2, 3))
    shares = [(agreement >= 15 / 16).mean(), (agreement <= 1 / 16).mean()]
    np.testing.assert_allclose(shares, 0.5, atol=0.07)
    assert sum(shares) > 0.95
    # The least loss is the entropy of the experts, log 2; of independent pixels, it is 16 log 2.
    assert np.log(2) < 16 * np.mean(losses[-100:]) < 2


def ssn_config(config):
    config.method, config.model.out_channels = "ssn", 12
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.out_channels": 1}, r"out_channels=1 .* data.classes=\(\) and ssn.rank=10: set 12"),
        ({"ssn.rank": 2}, r"out_channels=12 does not .* and ssn.rank=2: set 4"),
        (
            {"data.dataset": "paired_folder", "data.classes": ("a", "b", "c")},
            r"out_channels=12 does not fit data.classes=\('a', 'b', 'c'\) and ssn.rank=10: set 36",
        ),
        ({"method": "diffusion"}, "method='diffusion' .*'unet': set 'supervised' or 'ssn'"),
        ({"ssn.rank": -1}, "ssn.rank=-1 must be at least 0"),
        ({"ssn.train_samples": 0}, "ssn.train_samples=0 must be at least 1"),
        (
            {
                "model.image_encoder": "efficientnet_lite0",
                "model.mask_stride": 2,
                "sampler.native": True,
            },
            "sampler.native=True needs model.mask_stride=1, not 2",
        ),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    config = ssn_config(default_config("unet"))
    check(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_denoiser_is_no_ssn():
    config = default_config()
    config.method = "ssn"
    with pytest.raises(UserError, match="method='ssn' .* model.name='segdiff': set 'diffusion'"):
        check(config)


def test_the_method_is_of_the_config():
    config = ssn_config(default_config("medt"))
    config.ssn.update(rank=4, train_samples=7)
    config.model.out_channels = 6
    config.sampler.update(samples=3, flips=True)
    check(config)
    method = make_method(config)
    assert (method.rank, method.train_samples, method.samples) == (4, 7, 3)
    assert method.views == make_views(True, False)[:3]
    assert not {"samples", "flips", "rotations"} & {*method.unread}


def test_a_run_keeps_its_rank():
    before, now = (ssn_config(default_config("unet")) for _ in range(2))
    now.ssn.update(rank=2, train_samples=5)
    now.diffusion.variance = "fixed_small"
    assert [*changes(before, now, (NETWORK,))] == ["ssn.rank"]
    assert [*changes(before, now, (RUN, NETWORK))] == ["ssn.rank", "ssn.train_samples"]
    before.method = now.method = "supervised"  # It reads neither section.
    assert not changes(before, now, (RUN, NETWORK))


def test_the_ssn_of_the_comparison_is_its_unet():
    ssn, unet = (compare.get_config(name) for name in ("ssn", "unet"))
    check(ssn)
    free = ["method", "model.out_channels", "sampler.samples", "sampler.samples_from"]
    free += ["validation.samples"]
    assert sorted(changes(unet, ssn)) == sorted(free)


@pytest.mark.slow
def test_a_run_is_trained_sampled_and_exported(tiny_config, tmp_path):
    config = ssn_config(tiny_config("unet"))
    config.sampler.update(samples=3, flips=True)
    train(config, str(tmp_path))
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    # The best of a few samples is hardly better than a coin yet.
    assert first["nll"] == first["loss"] and 0.2 < float(first["nll"]) < 1.5
    assert first["bce"] == first["dice"] == ""
    model = load(tmp_path, seed=5)
    assert (model.settings["method"], model.settings["seed"]) == ("ssn", 5)
    assert model.settings["samples"] == 3 and "steps" not in model.settings
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    samples = model.sample(images, ids := list("abcd"))
    assert samples.shape == (3, 4, 16, 16, 1) and np.abs(samples).max() <= 1
    names = jnp.asarray(image_names(ids))
    exported = export_model(model, ["cpu"]).call(jnp.asarray(images), names, jnp.uint32(5))
    np.testing.assert_allclose(
        np.moveaxis(exported["samples"], 1, 0), samples[..., 0], rtol=1e-4, atol=1e-5
    )
    segmented = model.predict(images, ids=ids)
    for i, found in enumerate(segmented):
        np.testing.assert_allclose(
            found.probability, (samples[:, i, ..., 0].mean(axis=0) + 1) / 2, atol=1e-6
        )
