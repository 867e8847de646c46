"""What a chain with the loss bce draws, and like which annotator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segdiff_jax.config import default_config
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.methods.interface import make_draw, sample_masks


def keys_of(*shape):
    return jax.random.split(jax.random.key(0), shape)


def small_config(**data):
    config = default_config()
    config.data.update(image_size=16, **data)
    config.model.update(channels=8, channel_mult=(1, 2), attention_resolutions=(), norm_groups=4)
    config.model.update(rrdb_width=4, rrdb_growth=2, num_heads=1)
    config.diffusion.update(loss="bce", timestep_power=1.0)
    config.sampler.update(steps=10, eta=1.0, samples=16)
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
def test_a_tiny_network_learns_to_draw_either_of_two_masks():
    method = make_method(small_config())
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
    assert is_left.mean() == pytest.approx(0.5, abs=0.15)
