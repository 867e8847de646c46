"""Losses by hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods.losses import LOSSES, Noised, bce_dice, mse


def test_mse_is_a_mean_over_pixels():
    process = Process(make_schedule("linear", 100), "x0")
    output = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    both = jnp.concatenate([output, jnp.zeros_like(output)])
    zero = jnp.zeros_like(both)
    noised = Noised(zero, zero, jnp.int32([3, 50]), zero, zero)
    np.testing.assert_allclose(mse(process, both, noised)["mse"], [7.5, 0.0])
    with pytest.raises(AssertionError, match="shape"):
        mse(process, jnp.zeros((2, 2, 2, 2)), noised)


def test_bce_dice_by_hand():
    logits = jnp.log(jnp.array([0.8, 0.4])).reshape(1, 1, 2, 1) - jnp.log(
        jnp.array([0.2, 0.6])
    ).reshape(1, 1, 2, 1)
    mask = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    bce = -(np.log(0.8) + np.log(0.6)) / 2
    dice = 1 - (2 * 0.8 + 1) / (1.2 + 1 + 1)
    terms = bce_dice(logits, mask)
    alone = LOSSES["bce"](None, logits, Noised(2 * mask - 1, *[None] * 4))
    np.testing.assert_allclose(alone.pop("bce"), [bce], rtol=1e-5)
    assert not alone
    np.testing.assert_allclose(terms["bce"], [bce], rtol=1e-5)
    np.testing.assert_allclose(terms["dice"], [dice], rtol=1e-5)


def test_bce_dice_is_least_at_the_share_of_a_pixel():
    """The usual Dice term, 1 - 2 sum(p m) / ..., would be less at p = 1 than at p = 0.6."""
    mask = jnp.array([1.0, 0.6, 0.3, 0.0]).reshape(1, 2, 2, 1)
    logits = jax.scipy.special.logit(jnp.clip(mask, 1e-6, 1 - 1e-6))
    loss = jax.jit(lambda logits: sum(bce_dice(logits, mask).values()))
    best = loss(logits)
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4) + 0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / 4
    np.testing.assert_allclose(best, [entropy], atol=1e-4)
    for row in range(2):
        for step in (-0.3, 0.3):
            moved = loss(logits.at[0, row, 1 - row, 0].add(step))
            assert moved[0] > best[0] + 1e-3


def test_bce_dice_is_the_mean_of_each_channels():
    rng = np.random.default_rng(0)
    logits = jnp.float32(3 * rng.standard_normal((4, 6, 5, 3)))
    mask = jnp.float32(rng.random(logits.shape))
    terms = bce_dice(logits, mask)
    alone = [bce_dice(logits[..., k : k + 1], mask[..., k : k + 1]) for k in range(3)]
    for name in ("bce", "dice"):
        expected = np.mean([term[name] for term in alone], axis=0)
        assert terms[name].shape == (4,)
        np.testing.assert_allclose(terms[name], expected, rtol=1e-6)
    p = 1 / (1 + np.exp(-np.float64(logits)))
    dice = np.abs(p - mask).sum((1, 2)) / (p.sum((1, 2)) + mask.sum((1, 2)) + 1)
    np.testing.assert_allclose(terms["dice"], dice.mean(axis=-1), rtol=1e-5)
