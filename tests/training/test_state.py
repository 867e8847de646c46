"""Optimiser, learning rate and moving average, by hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from segdiff_jax.training import state as state_module
from segdiff_jax.training.losses import bce_dice, mse
from segdiff_jax.training.state import (
    apply_gradients,
    create_state,
    learning_rate,
    make_optimizer,
    nonfinite_in_a_row,
)


def test_moving_averages_warm_up():
    """Of the parameters, which here follow 1, 2, and of each batch's statistics, here 1, 2, too."""
    tx, zero = optax.sgd(1.0), jnp.zeros(())
    start = create_state({"params": {"w": zero}, "batch_stats": {"s": zero}}, tx)

    def update(state, number, *options, **more):
        state = apply_gradients(
            state, {"w": jnp.array(-1.0)}, {"s": jnp.float32(number)}, tx, *options, **more
        )
        assert float(state.batch_stats["s"]) == float(state.ema_params["w"])
        return state

    warm = update(start, 1, 0.15)
    assert float(warm.ema_params["w"]) == pytest.approx(0.9)  # Decay min(0.15, 1 / 10).
    warm = update(warm, 2, 0.15)
    assert float(warm.ema_params["w"]) == pytest.approx(0.15 * 0.9 + 0.85 * 2)  # Not 2 / 11.
    cold = update(start, 1, 0.15, ema_warmup=False)
    assert float(cold.ema_params["w"]) == pytest.approx(0.85)
    assert int(warm.step) == 2 and float(warm.params["w"]) == 2.0


@pytest.mark.parametrize(
    "schedule, expected",
    [
        # (updates done, minutes done): rate
        ("constant", {(0, 0): 0.2, (1, 3): 0.4, (3, 0): 0.8, (4, 0): 1.0, (15, 9): 1.0}),
        (
            "cosine",
            {(0, 0): 0.2, (4, 0): 0.75, (6, 0): 0.5, (5, 4): 0.5, (8, 4): 0.25, (12, 0): 0.0}
            | {(1, 8): 0.0, (13, 9): 0.0},
        ),
    ],
)
def test_learning_rate(schedule, expected):
    """The cosine ends after 12 steps or 8 minutes, whichever is nearer."""
    config = default.get_config()
    config.train.update(
        learning_rate=1.0, warmup_steps=4, num_steps=12, max_minutes=8.0, schedule=schedule
    )
    for when, rate in expected.items():
        assert learning_rate(config, *when) == pytest.approx(rate, abs=1e-6), when
    config.train.max_minutes = 0.0
    unlimited = {"constant": 1.0, "cosine": 0.5}[schedule]
    assert learning_rate(config, 6, 1e9) == pytest.approx(unlimited)


def test_bad_schedule_is_named():
    config = default.get_config()
    config.train.schedule = "linear"
    with pytest.raises(ValueError, match="train.schedule='linear': choose"):
        learning_rate(config, 0, 0.0)


def test_the_rate_scales_the_update():
    tx = optax.sgd(1.0)
    state = create_state({"params": {"w": jnp.zeros(())}}, tx)
    half = apply_gradients(state, {"w": jnp.array(-1.0)}, {}, tx, 0.0, rate=0.5)
    assert float(half.params["w"]) == 0.5


@pytest.mark.parametrize("clip, norm", [(1.0, 1.0), (0.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, norm):
    config = default.get_config()
    config.train.update(clip_norm=clip, warmup_steps=0, learning_rate=1.0)
    tx = make_optimizer(config)
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    _, state = tx.update({"a": jnp.array(3.0), "b": jnp.array(4.0)}, tx.init(params), params)
    mu = optax.tree.get(state, "mu")  # Adam's first moment, a tenth of the gradient.
    assert float(optax.tree.norm(mu)) == pytest.approx(0.1 * norm, rel=1e-5)


def first_update(config, grads):
    tx = make_optimizer(config)
    return jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(grads)


def test_muon_orthogonalises_kernels():
    """Same singular vectors, singular values near 0.2 sqrt(max(n, m)); biases by NAdam."""
    config = default.get_config()
    config.train.optimizer = "muon"
    kernel, bias = jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), jnp.array([3.0, -1e-3])
    layer = {"kernel": kernel, "bias": bias}
    update = first_update(config, {"conv": layer})["conv"]
    step = 0.9 * 0.1 / (1 - 0.9**2) + 1  # Dozat 2016, algorithm 2, for the first gradient.
    np.testing.assert_allclose(update["bias"], [-step, step], rtol=1e-3)
    U, values, Vt = np.linalg.svd(kernel.reshape(18, 4), full_matrices=False)
    core = -U.T @ np.asarray(update["kernel"]).reshape(18, 4) @ Vt.T / (0.2 * 18**0.5)
    np.testing.assert_allclose(core - np.diag(np.diag(core)), np.zeros((4, 4)), atol=1e-4)
    assert np.all((np.diag(core) > 0.65) & (np.diag(core) < 1.25))
    assert values.max() / values.min() > 1.3  # Which the update has evened out.


def test_muon_takes_scanned_blocks_one_by_one():
    config = default.get_config()
    config.train.update(optimizer="muon", clip_norm=0.0)
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 4))
    layer = lambda kernel: {"kernel": kernel, "bias": jnp.ones((*kernel.shape[:-4], 4))}
    both = first_update(config, layer(kernels))
    for i in range(2):
        one = first_update(config, layer(kernels[i]))
        # The iterations that orthogonalise raise the rounding.
        np.testing.assert_allclose(both["kernel"][i], one["kernel"], atol=5e-5)
        np.testing.assert_allclose(both["bias"][i], one["bias"], atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_updates_of_stacks_are_those_of_each_leaf(optimizer, monkeypatch):
    monkeypatch.setattr(state_module, "MOST_STACKED", 100)
    config = default.get_config()
    config.train.update(optimizer=optimizer, clip_norm=0.0, weight_decay=0.1)
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    shapes = [(3, 3, 2, 4), (3, 3, 2, 4), (6, 4), (6, 4), (3, 3, 4, 4), (3, 3, 4, 4)]
    tree = {
        f"layer{i}": {"kernel": draw(i, *shape), "bias": draw(10 + i, shape[-1])}
        for i, shape in enumerate(shapes)
    }
    together = first_update(config, tree)
    for name, layer in tree.items():
        for leaf, update in first_update(config, layer).items():
            np.testing.assert_allclose(together[name][leaf], update, atol=5e-5)  # As above.
    sizes = {name: len(stack) for name, stack in state_module.stacks(tree).items()}
    large = {f"kernel 3x3x4x4['layer{i}']['kernel']": 1 for i in (4, 5)}
    assert sizes == {"bias 4": 6, "kernel 3x3x2x4": 2, "kernel 6x4": 2, **large}


def test_unknown_optimizer_is_named():
    config = default.get_config()
    config.train.optimizer = "sgd"
    with pytest.raises(ValueError, match="train.optimizer='sgd': choose"):
        make_optimizer(config)


def test_max_skipped_is_how_many_bad_gradients_are_left_out():
    config = default.get_config()
    params, bad = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, jnp.nan, 1.0])}
    for most in (0, 2):
        config.train.max_skipped = most
        tx = make_optimizer(config)
        state = tx.init(params)
        for count in range(1, 4):
            updates, state = tx.update(bad, state, params)
            assert nonfinite_in_a_row(state) == count
            assert bool(jnp.isnan(updates["w"]).any()) == (count > most)
    assert nonfinite_in_a_row(optax.adam(1.0).init(params)) == 0


def test_mse_is_a_mean_over_pixels():
    output = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    both = jnp.concatenate([output, jnp.zeros_like(output)])
    np.testing.assert_allclose(mse(both, jnp.zeros_like(both))["mse"], [7.5, 0.0])


def test_bce_dice_by_hand():
    logits = jnp.log(jnp.array([0.8, 0.4])).reshape(1, 1, 2, 1) - jnp.log(
        jnp.array([0.2, 0.6])
    ).reshape(1, 1, 2, 1)
    mask = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    bce = -(np.log(0.8) + np.log(0.6)) / 2
    dice = 1 - (2 * 0.8 + 1) / (1.2 + 1 + 1)
    terms = bce_dice(logits, mask)
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
