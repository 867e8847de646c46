"""Optimiser and learning rate, by hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from segdiff_jax.training import optimizer as optimizer_module
from segdiff_jax.training.optimizer import learning_rate, make_optimizer, nonfinite_in_a_row


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
        assert learning_rate(config.train, *when) == pytest.approx(rate, abs=1e-6), when
    config.train.max_minutes = 0.0
    unlimited = {"constant": 1.0, "cosine": 0.5}[schedule]
    assert learning_rate(config.train, 6, 1e9) == pytest.approx(unlimited)


@pytest.mark.parametrize("clip, norm", [(1.0, 1.0), (0.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, norm):
    config = default.get_config()
    config.train.update(clip_norm=clip, warmup_steps=0, learning_rate=1.0)
    tx = make_optimizer(config.train)
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    _, state = tx.update({"a": jnp.array(3.0), "b": jnp.array(4.0)}, tx.init(params), params)
    mu = optax.tree.get(state, "mu")  # Adam's first moment, a tenth of the gradient.
    assert float(optax.tree.norm(mu)) == pytest.approx(0.1 * norm, rel=1e-5)


def first_update(config, grads):
    tx = make_optimizer(config.train)
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
    monkeypatch.setattr(optimizer_module, "MOST_STACKED", 100)
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
    sizes = {name: len(stack) for name, stack in optimizer_module.stacks(tree).items()}
    large = {f"kernel 3x3x4x4['layer{i}']['kernel']": 1 for i in (4, 5)}
    assert sizes == {"bias 4": 6, "kernel 3x3x2x4": 2, "kernel 6x4": 2, **large}


def test_max_skipped_is_how_many_bad_gradients_are_left_out():
    config = default.get_config()
    params, bad = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, jnp.nan, 1.0])}
    for most in (0, 2):
        config.train.max_skipped = most
        tx = make_optimizer(config.train)
        state = tx.init(params)
        for count in range(1, 4):
            updates, state = tx.update(bad, state, params)
            assert nonfinite_in_a_row(state) == count
            assert bool(jnp.isnan(updates["w"]).any()) == (count > most)
    assert nonfinite_in_a_row(optax.adam(1.0).init(params)) == 0
