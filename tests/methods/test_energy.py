"""Predictions that are samples: the loss energy, its noise, and annotators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from segdiff_jax.config import default_config
from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.methods.diffusion import LATENTS, Diffusion
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.methods.losses import Noised, energy_of_masks, soft_distance

SCHEDULE = make_schedule("linear", 100)
PROCESS = Process(SCHEDULE, "x0", logits=True, latent=True)


def keys_of(*shape):
    return jax.random.split(jax.random.key(0), shape)


def noised(mask):
    """What the loss reads of a batch of clean masks, from -1 to +1."""
    return Noised(mask, mask, *[None] * 3)


def test_of_binary_masks_the_distance_is_one_minus_iou():
    rng = np.random.default_rng(0)
    a, b = (rng.random((5, 30, 40, 1)) < 0.4 for _ in range(2))
    common, union = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3))
    found = soft_distance(jnp.float32(a), jnp.float32(b))
    np.testing.assert_allclose(found, 1 - common / union, atol=0.002)  # 1 is added to the union.
    np.testing.assert_array_equal(soft_distance(jnp.float32(a), jnp.float32(a)), 0)
    empty = jnp.zeros((1, 4, 4, 1))
    assert soft_distance(empty, empty) == 0
    slope = jax.grad(lambda p: soft_distance(p, empty).sum())(jnp.full_like(empty, 0.01))
    assert (slope > 0).all()


def test_the_loss_is_the_energy_score_of_the_masks_of_each_example():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2 * 3, 4, 5, 1)).astype(np.float32)
    mask = np.float32(np.where(rng.random((2, 4, 5, 1)) < 0.5, 1, -1))
    terms = energy_of_masks(PROCESS, jnp.array(logits), noised(jnp.array(mask)))
    p, truth = 1 / (1 + np.exp(-logits)).reshape(2, 3, 20), (mask.reshape(2, 20) + 1) / 2
    d = lambda a, b: 2 * abs(a - b).sum() / ((a + b).sum() + abs(a - b).sum() + 1)
    for i in range(2):
        to_truth = np.mean([d(p[i, k], truth[i]) for k in range(3)])
        between = np.mean([d(p[i, k], p[i, m]) for k, m in itertools.combinations(range(3), 2)])
        assert terms["distance"][i] == pytest.approx(to_truth, abs=1e-6)
        assert terms["less_half_diversity"][i] == pytest.approx(-between / 2, abs=1e-6)


def test_the_right_distribution_has_the_least_loss():
    """The clean mask is the left half or the right half, each in half of the cases."""
    left = np.zeros((8, 8, 1), np.float32)
    left[:, :4] = 1
    right = 1 - left
    truths = jnp.float32([2 * left - 1, 2 * right - 1])

    def loss(*masks):
        """The mean over both truths and over pairs of the masks, which are equally likely."""
        logits = [
            jnp.float32(80 * mask - 40) for pair in itertools.product(masks, masks) for mask in pair
        ]
        logits = jnp.stack(logits)
        found = [
            energy_of_masks(PROCESS, logits, noised(jnp.repeat(truth[None], len(logits) // 2, 0)))
            for truth in truths
        ]
        return float(np.mean([sum(terms.values()) for terms in found]))

    best = loss(left, right)
    for other in (
        [left],
        [left, left, right],
        [left * 0.5 + right * 0.5],
        [left + right, left * 0],
    ):
        assert loss(*other) > best + 0.01


class Latent(nn.Module):
    """Its logits are the first numbers of z, one for each column."""

    def encode_image(self, image):
        return image[..., :1]

    def denoise(self, x_t, features, t, z):
        return jnp.broadcast_to(8 * z[:, None, :, None], x_t.shape)


def test_each_sample_has_noise_of_its_own_whatever_the_batch():
    config = default_config()
    config.sampler.update(name="ddim", steps=2, samples=3)
    method = Diffusion(Latent(), PROCESS, image_size=LATENTS).with_sampler(config)
    images, keys = np.zeros((40, LATENTS, LATENTS, 3), np.uint8), keys_of(40, 3)
    sample = lambda i: np.asarray(
        sample_masks(method, {}, images[i], make_draw(keys[i], np.arange(3), 1))
    )
    masks = sample(slice(None))
    assert masks.shape == (3, 40, LATENTS, LATENTS, 1)
    signs = np.sign(masks[:, :, 0, :, 0]).reshape(120, LATENTS)
    assert (signs == np.sign(masks[..., 0]).reshape(120, LATENTS, LATENTS).mean(axis=1)).all()
    assert abs(signs.mean()) < 0.1 and abs(np.corrcoef(signs.T) - np.eye(LATENTS)).max() < 0.4
    np.testing.assert_allclose(sample(slice(2, 3))[:, 0], masks[:, 2], atol=1e-6)


def test_several_masks_of_an_example_share_x_t_and_differ_in_their_noise():
    seen = []

    def loss(process, output, noised):
        seen.append((output, noised))
        return {"energy": jnp.zeros(len(noised.mask))}

    class Seen(Latent):
        def __call__(self, x_t, image, t, train, z):
            assert t.shape == (6,) and image.shape[0] == 2 and x_t.shape[-1] == 1
            return jnp.concatenate([x_t, jnp.broadcast_to(z[:, None, None], (6, 4, 4, 8))], -1)

    method = Diffusion(Seen(), PROCESS, loss=loss, train_samples=3)
    batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.ones((2, 4, 4, 1))}
    eps, keys = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), keys_of(2)
    terms, _ = method.loss_at({"params": {}}, batch, jnp.array([10, 60]), eps, keys)
    ((output, of_batch),) = seen
    assert terms["energy"].shape == (2,)
    of_images = np.asarray(output).reshape(2, 3, 4, 4, 1 + LATENTS)
    for i in range(2):
        np.testing.assert_allclose(of_images[i, :, ..., :1], np.stack([of_batch.x_t[i]] * 3))
    z = of_images[..., 0, 0, 1:].reshape(6, LATENTS)
    assert len(np.unique(z)) == 6 * LATENTS and 0.6 < z.std() < 1.4


def small_config(**data):
    config = default_config()
    config.data.update(image_size=16, **data)
    config.model.update(channels=8, channel_mult=(1, 2), attention_resolutions=(), norm_groups=4)
    config.model.update(rrdb_width=4, rrdb_growth=2, num_heads=1)
    config.diffusion.update(loss="energy", timestep_power=0.1)
    config.sampler.update(steps=1, samples=16)
    return config


def test_the_network_draws_like_the_annotator_it_is_told():
    config = small_config(annotators=("ann", "ben"))
    plain = jax.jit(lambda: init_variables(make_method(config), 0))()
    table = jnp.repeat(jnp.array([[0.0], [3.0], [-3.0]]), 32, axis=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), plain["params"])
    params["unet"]["annotator"]["embedding"] = table
    variables = {"params": params}
    images = rng.integers(0, 255, (1, 16, 16, 3), dtype=np.uint8)
    found = {}
    for name in ("", "ann", "ben"):
        config.sampler.annotator = name
        method = make_method(config)
        draw = make_draw(keys_of(1, 16), np.arange(16), 1)
        found[name] = np.asarray(
            jax.jit(lambda m=method, d=draw: sample_masks(m, variables, images, d))()
        )
    assert not np.allclose(found["ann"], found["ben"])
    # The pool has the embedding 0 here: as if there were no annotators.
    del variables["params"]["unet"]["annotator"]
    none = make_method(small_config())
    draw = make_draw(keys_of(1, 16), np.arange(16), 1)
    same = jax.jit(lambda: sample_masks(none, variables, images, draw))()
    np.testing.assert_allclose(same, found[""], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "energy"])
def test_a_tiny_network_learns_to_draw_either_of_two_masks(loss):
    """By the noise of a chain whose predictions are means, or by that of its predictions."""
    config = small_config()
    if loss == "bce":
        config.diffusion.update(loss="bce", timestep_power=1.0)
        config.sampler.update(steps=10, eta=1.0)
    method = make_method(config)
    tx = optax.adam(optax.cosine_decay_schedule(5e-3, 600))
    variables = jax.jit(lambda: init_variables(method, 0))()
    state = variables["params"], tx.init(variables["params"])
    left = jnp.broadcast_to(jnp.where(jnp.arange(16) < 8, 1.0, -1.0)[:, None], (1, 16, 16, 1))

    @jax.jit
    def step(state, key):
        params, opt_state = state
        which, *rest = jax.random.split(key, 4)
        sign = jnp.where(jax.random.bernoulli(which, 0.5, (8, 1, 1, 1)), 1.0, -1.0)
        batch = {"image": jnp.zeros((8, 16, 16, 3)), "mask": sign * left}
        keys = jax.random.split(rest[0], (8, 3))

        def objective(params):
            return sum(method.losses({"params": params}, batch, keys).terms.values()).mean()

        grads = jax.grad(objective)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    for i in range(600):
        state = step(state, jax.random.key(i))
    images = np.full((8, 16, 16, 3), 127, np.uint8)
    draw = make_draw(keys_of(8, 16), np.arange(16), 1)
    masks = np.asarray(sample_masks(method, {"params": state[0]}, images, draw)) > 0
    shares = np.stack([masks[..., :8, 0].mean((2, 3)), masks[..., 8:, 0].mean((2, 3))])
    is_left, is_right = ((shares[i] > 0.9) & (shares[1 - i] < 0.1) for i in (0, 1))
    assert (is_left | is_right).mean() > 0.9
    assert 0.25 < is_left.mean() < 0.75
