"""The Medical Transformer against a slow loop, its branches and its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segdiff_jax.models import make_model, variables_like
from segdiff_jax.models.baselines import medt
from segdiff_jax.models.baselines.medt import (
    AxialAttention,
    AxialBlock,
    MedT,
    join_patches,
    split_patches,
)


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
    model = AxialAttention(16, groups=4, positions=positions, gated=gated)
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
    model = AxialAttention(16)
    params = model.init(jax.random.key(0), jnp.zeros((2, 4, 16)), train=False)["params"]
    np.testing.assert_allclose(params["gates"], [0.1, 0.1, 1.0, 0.1])


def test_a_block_attends_along_the_height_then_the_width():
    block = AxialBlock(8, 2, 4, True, True, None)
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
    branch = medt.AxialUNet(8, (1, 1), True, 8, True, True, None)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = random_variables(branch, image)
    loss = lambda params: jnp.sum(branch.apply({**variables, "params": params}, image, False) ** 2)
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if path[-1].key == "kernel":
            assert jnp.abs(gradient).max() > 1e-6, path


@pytest.mark.parametrize(
    "variant, count",
    [("axial", 1_326_833), ("gated", 1_326_897), ("logo", 1_384_361), ("medt", 1_384_385)],
)
def test_parameter_counts(variant, count):
    """At the paper's 128 px, where its table 1 says 1.3 and, of the last two, 1.4 million."""
    params = variables_like(MedT(variant), 128)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count


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
    branch = medt.AxialUNet(8, (1, 1, 1, 1), True, 8, False, False, None)
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
        ({"variant": "local"}, 16, r"model\.variant='local': choose one of"),
        ({"channels": 12}, 16, r"model\.channels=12 must be a multiple of model\.groups=8"),
        ({}, 18, "image size 18 x 18 must be divisible by 4"),
    ],
)
def test_what_cannot_be_is_named(fields, size, message):
    with pytest.raises(ValueError, match=message):
        variables_like(make_model({"name": "medt", **fields}), size)
