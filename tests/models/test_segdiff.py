"""The networks against the original's recorded outputs, and their options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segdiff_jax.models import init_variables, make_model, variables_like
from segdiff_jax.models.medsegdiff import MedSegDiff
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.models.unet import timestep_embedding
from segdiff_jax.original.weights import config_from_torch, params_from_torch
from segdiff_jax.runtime.errors import UserError

TINY = {
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "rrdb_blocks": 2,
    "rrdb_width": 8,
    "rrdb_growth": 4,
}


REMAT = {"rrdb_remat": True, "remat_resolutions": (1,)}


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in "BC"]


@pytest.mark.parametrize("name", ["A", *SLOW])
def test_golden_networks(golden, golden_state_dict, name):
    arrays, state_dict = golden(f"model_{name}"), golden_state_dict(f"model_{name}")
    model = SegDiff(**config_from_torch(state_dict))
    variables = {"params": params_from_torch(state_dict)}
    encode = jax.jit(lambda image: model.apply(variables, image, method="encode_image"))
    denoise = jax.jit(lambda *args: model.apply(variables, *args, method="denoise"))
    features = encode(nhwc(arrays["image"]))
    np.testing.assert_allclose(features[:1, ..., :8], nhwc(arrays["rrdb_out"]), atol=1e-5)
    for t, eps in (("timesteps", "eps"), ("timesteps_frac", "eps_frac")):
        t = jnp.asarray(arrays[t], jnp.float32)
        output = denoise(nhwc(arrays["x_t"]), features, t)
        np.testing.assert_allclose(output, nhwc(arrays[eps]), atol=2e-5)


@pytest.mark.parametrize("dim", [32, 33, 128])
def test_timestep_embedding(golden, dim):
    t = golden("diffusion")["helpers/timestep_embedding_t"]
    expected = golden("diffusion")[f"helpers/timestep_embedding_{dim}"]
    np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), dim), expected, atol=1e-4)


def count(params, name=None):
    return sum(x.size for x in jax.tree.leaves(params if name is None else params[name]))


@pytest.mark.slow
def test_parameter_counts_of_the_papers_networks():
    params = variables_like(SegDiff(), 64)["params"]
    assert count(params) == 159_838_209
    assert count(params, "G") == 4_466_048
    assert count(variables_like(SegDiff(rrdb_blocks=12), 64)) == 164_154_753


def random_params(model):
    """Parameters without zeros, since a zero-initialised convolution hides what is before it."""
    leaves, tree = jax.tree.flatten(variables_like(model, 16)["params"])
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draw = lambda key, leaf: 0.1 * jax.random.normal(key, leaf.shape) + (leaf.ndim == 1)
    return jax.tree.unflatten(tree, [draw(k, x) for k, x in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module")
def tiny():
    """(parameters, inputs, output of the float32 network) of a tiny network."""
    model = SegDiff(**TINY)
    params, rng = random_params(model), np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(2, 16, 16, c)), jnp.float32) for c in (1, 3)]
    inputs.append(jnp.array([3.0, 70.0]))
    return params, inputs, apply(model, params, inputs)


def apply(model, params, inputs):
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))(
        params, *inputs
    )


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32(tiny):
    params, inputs, expected = tiny
    output = apply(SegDiff(**TINY, dtype="bfloat16"), params, inputs)
    assert output.dtype == jnp.float32
    error = float(jnp.abs(output - expected).max() / jnp.abs(expected).max())
    assert 1e-6 < error < 0.05
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@pytest.mark.slow
def test_remat_changes_neither_output_nor_gradient(tiny):
    _, inputs, _ = tiny
    fields = TINY | {"channel_mult": (1,), "attention_resolutions": (1,), "rrdb_blocks": 1}
    fields |= {"rrdb_growth": 8}  # From which on the dense block has a gradient of its own.
    params = random_params(MedSegDiff(**fields))

    def gradient(model):
        loss = lambda params: jnp.sum(model.apply({"params": params}, *inputs) ** 2)
        return jax.jit(jax.value_and_grad(loss))(params)

    plain, remat = gradient(MedSegDiff(**fields)), gradient(MedSegDiff(**fields, **REMAT))
    difference = jax.tree.map(jnp.subtract, plain, remat)
    assert float(optax.tree.norm(plain)) > 1
    assert float(optax.tree.norm(difference) / optax.tree.norm(plain)) < 1e-5


@pytest.mark.parametrize("network", [SegDiff, pytest.param(MedSegDiff, marks=pytest.mark.slow)])
def test_several_masks_of_an_image_share_its_features_and_all_share_one_timestep(tiny, network):
    params, (x_t, image, _), _ = tiny
    model = network(**TINY)
    if network is MedSegDiff:
        params = random_params(model)
    masks = jnp.concatenate([x_t, -x_t, 2 * x_t])
    apply_jitted = jax.jit(model.apply, static_argnames="method")
    features = apply_jitted({"params": params}, image, method="encode_image")
    denoise = lambda *args: apply_jitted({"params": params}, masks, *args, method="denoise")
    output = denoise(features, jnp.array([3.0]))
    repeated = denoise(jnp.repeat(features, 3, axis=0), jnp.full(6, 3.0))
    np.testing.assert_allclose(output, repeated, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(output[0] - output[3]).max()) > 0.1


@pytest.mark.slow
def test_dropout_needs_training_and_a_key(tiny):
    params, inputs, expected = tiny
    model = SegDiff(**TINY, dropout=0.5)
    dropped = jax.jit(
        lambda key: model.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})
    )
    first, second = dropped(jax.random.key(0)), dropped(jax.random.key(1))
    assert float(jnp.abs(first - second).max()) > 0.01
    np.testing.assert_allclose(apply(model, params, inputs), expected, atol=1e-5)


@pytest.mark.slow
def test_a_new_network_predicts_zero():
    model = SegDiff(**TINY)
    params = jax.jit(lambda: init_variables(model, 0, 16)["params"])()
    inputs = jnp.ones((1, 16, 16, 1)), jnp.ones((1, 16, 16, 3)), jnp.ones(1)
    assert not np.any(apply(model, params, inputs))
    assert float(jnp.std(params["F"]["kernel"])) == pytest.approx((1 / 3 / 9) ** 0.5, rel=0.2)


def test_norm_groups_of_zero_is_batch_norm_everywhere():
    """Each GroupNorm's parameters keep their names, and get running statistics."""
    grouped, batch = (variables_like(SegDiff(**TINY, norm_groups=g), 16) for g in (32, 0))
    assert "batch_stats" not in grouped
    names = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert names(batch["params"]) == names(grouped["params"])
    stats = batch["batch_stats"]["unet"]
    assert set(stats) == set(batch["params"]["unet"]) & set(stats) and "out_norm" in stats
    for block, params in batch["params"]["unet"].items():
        norms = {name for name in params if "norm" in name}
        assert norms == set(stats.get(block, {})) or block == "out_norm"


@pytest.mark.parametrize("size", [(15, 16), (16, 18)])
def test_sizes_that_do_not_divide_are_named(size):
    model = SegDiff(**TINY | {"channel_mult": (1, 1, 1)})
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} must be divisible by 4"):
        jax.eval_shape(
            lambda: model.init(
                jax.random.key(0), jnp.ones((1, *size, 1)), jnp.ones((1, *size, 3)), jnp.ones(1)
            )
        )


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"name": "segdiff", "channels": 48},
            "model.channels=48 must be a multiple of model.norm_groups=32",
        ),
        (
            {"name": "segdiff", "attention": "cudnn"},
            "model.attention='cudnn' needs model.dtype='bfloat16'",
        ),
        (
            {"name": "segdiff", "channel_mult": (1, 1), "remat_resolutions": (1, 4)},
            r"model.remat_resolutions=\(1, 4\): the factors of the levels are \[1, 2\]",
        ),
        (
            {"name": "segdiff", "channel_mult": (1, 1, 2, 2)},
            r"model.attention_resolutions=\(16, 32\): the factors of the levels are \[1, 2, 4, 8\]",
        ),
        (
            {"name": "medsegdiff", "num_heads": 3},
            "model.num_heads=3 must divide the 256 channels of the attention at factor 16",
        ),
        (
            {"name": "segdiff", "attention_resolutions": (), "num_heads": 3},
            "model.num_heads=3 must divide the 512 channels of the attention at factor 64",
        ),
        (
            {"name": "medsegdiff", "norm_groups": 0, "dropout": 0.1},
            "model.dropout=0.1 is drawn for each example alone",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        variables_like(make_model(fields), 64)
