"""The state's moving averages and updates, by hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segdiff_jax.training.state import apply_gradients, create_state, warm_decay


def test_moving_averages_warm_up():
    """Of the parameters, which here follow 1, 2, and of each batch's statistics, here 1, 2, too."""
    tx, zero = optax.sgd(1.0), jnp.zeros(())
    start = create_state({"params": {"w": zero}, "batch_stats": {"s": zero}}, tx)

    def update(state, number, decay):
        grads, stats = {"w": jnp.array(-1.0)}, {"s": jnp.float32(number)}
        state = apply_gradients(state, grads, stats, tx, decay)
        assert float(state.batch_stats["s"]) == float(state.ema_params["w"])
        return state

    warm = update(start, 1, warm_decay(0.15, start.step))
    assert float(warm.ema_params["w"]) == pytest.approx(0.9)  # Decay min(0.15, 1 / 10).
    warm = update(warm, 2, warm_decay(0.15, warm.step))
    assert float(warm.ema_params["w"]) == pytest.approx(0.15 * 0.9 + 0.85 * 2)  # Not 2 / 11.
    cold = update(start, 1, 0.15)
    assert float(cold.ema_params["w"]) == pytest.approx(0.85)
    assert int(warm.step) == 2 and float(warm.params["w"]) == 2.0


def test_the_rate_scales_the_update():
    tx = optax.sgd(1.0)
    state = create_state({"params": {"w": jnp.zeros(())}}, tx)
    half = apply_gradients(state, {"w": jnp.array(-1.0)}, {}, tx, 0.0, rate=0.5)
    assert float(half.params["w"]) == 0.5


@pytest.mark.parametrize("history", [None, {"losses": jnp.ones(3)}])
@pytest.mark.parametrize("batch_stats", [{}, {"s": jnp.full(2, 4.0)}])
def test_a_state_goes_through_the_trees_of_a_checkpoint(history, batch_stats):
    params = {"w": jnp.full(3, 2.0)}
    variables = {"params": params, "batch_stats": batch_stats}
    state = create_state(variables, optax.adam(1.0), history).replace(step=jnp.int32(5))
    trees = state.trees()
    assert trees.keys() == {"ema_params", "rest"} | ({"batch_stats"} if batch_stats else set())
    assert ("timestep_history" in trees["rest"]) == (history is not None)
    like = jax.eval_shape(lambda: state)
    again = like.from_trees(trees)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
