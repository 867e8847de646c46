"""The Medical Transformer against a slow loop, its branches and its size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segdiff_jax.models import make_model, variables_like
from segdiff_jax.models.baselines import medt
from segdiff_jax.models.baselines.medt import (
    AxialAttention,
    AxialBlock,
    MedT,
    freeze_gates,
    join_patches,
    split_patches,
)
from segdiff_jax.runtime.errors import UserError

pytestmark = pytest.mark.slow

BRANCH = {"channels": 8, "stem": 8, "lowest": True, "axis_name": None}


def attention(groups, positions, gated):
    """`AxialAttention` of the number of channels that it is called with."""
    options = {"groups": groups, "positions": positions, "gated": gated, "axis_name": None}
    return functools.partial(AxialAttention, **options)


def random_variables(model, *inputs):
    """Variables without zeros and ones, so that nothing hides behind them."""
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    leaves, tree = jax.tree.flatten(like)
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.uniform(0.2, 1, x.shape) * rng.choice([-1, 1], x.shape), "f4")
    variables = jax.tree.unflatten(tree, [draw(x) for x in leaves])
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])  # Variances.
    return variables


def slow_attention(variables, x, channels, groups, positions, gated):
    """AxialAttention of one row x[L, C], in plain numpy loops, by the docstring's equation."""
    params, stats = (jax.tree.map(np.float64, variables[k]) for k in ("params", "batch_stats"))

    def norm(name, values):
        p, s = params[name], stats[name]
        return (values - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    length, head = len(x), channels // groups
    qkv = norm("norm_qkv", x @ params["qkv"]["kernel"])
    g = params["gates"] if gated else np.ones(4)
    out = np.zeros((length, 2 if positions else 1, channels))
    logits = np.zeros((length, length, groups * (3 if positions else 1)))
    half = head // 2
    q = lambda i, h: qkv[i, 2 * head * h :][:half]
    k = lambda i, h: qkv[i, 2 * head * h + half :][:half]
    v = lambda i, h: qkv[i, 2 * head * h + head :][:head]
    # The learned vectors of the distance i - j, from -(L - 1) to L - 1.
    r = lambda i, j: params["relative"][i - j + length - 1]
    for h in range(groups):
        for i in range(length):
            for j in range(length):
                logits[i, j, h] = q(i, h) @ k(j, h)
                if positions:
                    logits[i, j, groups + h] = g[0] * (q(i, h) @ r(i, j)[:half])
                    logits[i, j, 2 * groups + h] = g[1] * (k(j, h) @ r(j, i)[half:head])
    logits = norm("norm_similarity", logits)
    for h in range(groups):
        total = sum(logits[:, :, part * groups + h] for part in range(out.shape[1] * 2 - 1))
        for i in range(length):
            weights = np.exp(total[i]) / np.exp(total[i]).sum()
            for j in range(length):
                place = slice(h * head, (h + 1) * head)
                out[i, 0, place] += g[2] * weights[j] * v(j, h)
                if positions:
                    out[i, 1, place] += g[3] * weights[j] * r(i, j)[head:]
    return norm("norm_out", out.reshape(length, -1)).reshape(length, -1, channels).sum(axis=1)


@pytest.mark.parametrize("positions, gated", [(True, True), (True, False), (False, False)])
def test_attention_equals_the_slow_loop(positions, gated):
    model = attention(4, positions, gated)(16)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 6))
    variables = random_variables(model, jnp.zeros((1, 1, 5, 6)))
    ours = jax.jit(lambda v, x: model.apply(v, x, False))(variables, jnp.asarray(x, jnp.float32))
    assert ours.shape == (2, 3, 5, 16)
    for place in ((0, 0), (1, 2)):
        expected = slow_attention(variables, x[place], 16, 4, positions, gated)
        np.testing.assert_allclose(ours[place], expected, rtol=1e-3, atol=1e-4)


def test_the_gates_start_as_in_the_paper():
    like = variables_like(MedT(), 16)["params"]
    gates = [path for path, _ in jax.tree_util.tree_leaves_with_path(like) if "gates" in str(path)]
    assert len(gates) == 2 * (1 + 2)  # Of height and width in each block of the global branch.
    model = attention(8, positions=True, gated=True)(16)
    params = model.init(jax.random.key(0), jnp.zeros((2, 4, 16)), train=False)["params"]
    np.testing.assert_allclose(params["gates"], [0.1, 0.1, 1.0, 0.1])


def test_a_block_attends_along_the_height_then_the_width():
    block = AxialBlock(8, 2, attention(4, positions=True, gated=True), axis_name=None)
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 6))
    variables = random_variables(block, jnp.zeros((1, 4, 4, 6)))
    ours = jax.jit(lambda x: block.apply(variables, x, False))(jnp.asarray(x, jnp.float32))
    params, stats = (jax.tree.map(np.float64, variables[k]) for k in ("params", "batch_stats"))

    def conv_and_norm(name, x):
        p, s = params[f"norm_{name}"], stats[f"norm_{name}"]
        x = x @ params[f"conv_{name}"]["kernel"][0, 0]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def attend(name, x):
        of = {kind: variables[kind][name] for kind in ("params", "batch_stats")}
        return np.stack([slow_attention(of, row, 8, 4, True, True) for row in x])

    h = np.maximum(conv_and_norm("down", x[0]), 0)
    h = attend("height", h.swapaxes(0, 1)).swapaxes(0, 1)
    h = attend("width", h).reshape(2, 2, 2, 2, 8).mean(axis=(1, 3))
    h = conv_and_norm("up", np.maximum(h, 0)) + conv_and_norm("skip", x[0, ::2, ::2])
    np.testing.assert_allclose(ours[0], np.maximum(h, 0), rtol=1e-3, atol=1e-3)


def test_every_level_reaches_the_output():
    attend = attention(8, positions=True, gated=True)
    branch = medt.AxialUNet(blocks=(1, 1), attention=attend, **BRANCH)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = random_variables(branch, image)
    loss = lambda params: jnp.sum(branch.apply({**variables, "params": params}, image, False) ** 2)
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if path[-1].key == "kernel":
            assert jnp.abs(gradient).max() > 1e-6, path


@pytest.mark.parametrize(
    "variant, count",
    [("axial", 1_326_833), ("gated", 1_326_897), ("logo", 1_529_481), ("medt", 1_524_553)],
)
def test_parameter_counts(variant, count):
    """At the paper's 128 px; with two classes and its unused layers, the authors' code has more."""
    params = variables_like(MedT(variant), 128)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    # A 1x1 convolution with bias in each block of medt's local branch, and an output layer.
    convs = [16, 32, 32, 64, 64, 64, 64, 128]
    unused = {"logo": 34, "medt": 34 + sum(c * c + c for c in convs)}.get(variant, 0)
    authors = {"axial": 1_326_850, "gated": 1_326_914, "logo": 1_529_532, "medt": 1_560_140}
    assert count + 17 + unused == authors[variant]


@pytest.mark.parametrize("variant, tables", [("logo", 2 * (3 + 8)), ("medt", 2 * 3)])
def test_the_local_branch_is_the_authors(variant, tables):
    """Its stem is 64 channels wide; it has positions in logo, and none in medt."""
    params = variables_like(MedT(variant), 128)["params"]
    kernels = [params["local"][f"stem{i}_conv"]["kernel"].shape for i in range(3)]
    assert kernels == [(7, 7, 3, 64), (3, 3, 64, 128), (3, 3, 128, 64)]
    paths = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert sum("relative" in path for path in paths) == tables
    assert not any("gates" in path for path in paths if "local" in path or variant == "logo")


@pytest.mark.parametrize("name", ["gates", "gates 4"])
def test_frozen_gates_neither_move_nor_count_in_averages(name):
    """Under Adam with weight decay, and after clipping, which does not see their gradient."""
    rate, decays, frozen, steady = 0.1, np.array([0.9, 0.999]), 3, 12
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, *decays, weight_decay=0.5))
    tx = freeze_gates(tx, frozen)
    params = {"block": {name: jnp.full(4, 2.0), "kernel": jnp.full(2, 2.0)}}
    grads = {"block": {name: jnp.full(4, 3.0), "kernel": jnp.full(2, 0.6)}}
    state = tx.init(params)
    assert state.count == 0
    update = jax.jit(tx.update)
    for n in range(frozen):
        updates, state = update(grads, state, params)
        assert state.count == n + 1
        np.testing.assert_array_equal(updates["block"][name], np.zeros(4))
        # The kernel's gradient has norm 0.85 and is not clipped; Adam's step is that of its sign.
        np.testing.assert_allclose(updates["block"]["kernel"], -rate * (1 + 0.5 * 2), rtol=1e-4)
        averages = optax.tree.get(state, "mu")["block"], optax.tree.get(state, "nu")["block"]
        assert not any(np.any(average[name]) for average in averages)
    grads["block"] = {name: jnp.full(4, 0.25), "kernel": jnp.zeros(2)}
    for n in range(1, steady + 1):
        updates, state = update(grads, state, params)
        first, second = (1 - decays**n) / (1 - decays ** (frozen + n))
        expected = -rate * (first / np.sqrt(second) + 0.5 * 2)
        np.testing.assert_allclose(updates["block"][name], expected, rtol=1e-4)


def test_without_frozen_steps_the_optimizer_is_as_it_was():
    params = {"gates": jnp.ones(4), "kernel": jnp.ones(2)}
    plain, tx = optax.adam(0.1), freeze_gates(optax.adam(0.1), 0)
    expected, _ = plain.update(params, plain.init(params))
    ours, _ = tx.update(params, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_names_that_only_contain_gates_are_not_frozen():
    tx = freeze_gates(optax.sgd(1.0), 1)
    grads = {"gates": {"kernel": jnp.ones(1)}, "floodgates": jnp.ones(1), "gates_2": jnp.ones(1)}
    updates, _ = tx.update(grads, tx.init(grads))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, [-1.0]), updates)


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("variant", ["logo", "medt"])
def test_logo_takes_any_size(variant, size):
    model = MedT(variant)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, size, size, 3))))
    output = jax.eval_shape(model.apply, like, jax.ShapeDtypeStruct((2, size, size, 3), "f4"))
    assert output.shape == (2, size, size, 1)
    table = like["params"]["global"]["level0_block0"]["height"]["relative"]
    assert table.shape == (size - 1, 4)  # 2 (size / 2) - 1 distances; of 8 heads of 2 channels.


@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_local_branch_sees_each_patch_alone(size):
    """A change of one patch moves the local features of that patch only."""
    attend = attention(8, positions=False, gated=False)
    branch = medt.AxialUNet(blocks=(1, 1, 1, 1), attention=attend, **BRANCH)
    image = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    part = size // 4
    variables = random_variables(branch, jnp.zeros((1, part, part, 3)))
    local = jax.jit(lambda x: join_patches(branch.apply(variables, split_patches(x), False)))
    changed = image.copy()
    changed[0, part : 2 * part, 2 * part : 3 * part] += 1
    moved = np.abs(local(changed) - local(image)).max(axis=-1)[0] > 1e-6
    assert moved[part : 2 * part, 2 * part : 3 * part].mean() > 0.5
    moved[part : 2 * part, 2 * part : 3 * part] = False
    assert not moved.any()


def test_patches_are_joined_where_they_were():
    image = jnp.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    patches = split_patches(image)
    np.testing.assert_array_equal(patches[16 + 4 + 2], image[1, 2:4, 6:9])  # Row 1, column 2.
    np.testing.assert_array_equal(join_patches(patches), image)


@pytest.mark.parametrize(
    "fields, size, message",
    [
        ({"channels": 12}, 16, r"model\.channels=12 must be a multiple of model\.groups=8"),
        ({}, 18, "image size 18 x 18 must be divisible by 4"),
    ],
)
def test_what_cannot_be_is_named(fields, size, message):
    with pytest.raises(UserError, match=message):
        variables_like(make_model({"name": "medt", **fields}), size)
