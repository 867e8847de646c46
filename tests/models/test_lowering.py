"""Programs for GPU and TPU hold the plain equations; those for CPU hold its workarounds."""

import re

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import isic2016, isic2016_64
from segdiff_jax.models import make_model, variables_like

CUDNN = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
CHECKS = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CUDNN]


def gradient_programs(config):
    """(the parameters' shapes, platform -> the gradient's StableHLO) of a network, four images."""
    model, size = make_model(config.model), config.data.image_size
    variables = variables_like(model, size)
    params = variables.pop("params")

    def loss(params, rest, *inputs):
        output = model.apply({"params": params, **rest}, *inputs, train=True, mutable=[*rest])[0]
        return jnp.sum(output**2)

    inputs = [jax.ShapeDtypeStruct((4, size, size, c), jnp.float32) for c in (1, 3)]
    inputs.append(jax.ShapeDtypeStruct((4,), jnp.int32))
    gradient = jax.jit(jax.grad(loss))

    def program(platform):
        export = jax.export.export(gradient, platforms=[platform], disabled_checks=CHECKS)
        return export(params, variables, *inputs).mlir_module()

    return params, {platform: program(platform) for platform in ("cpu", "cuda", "tpu")}


def convolutions(text):
    """The shapes of each convolution's two operands."""
    shapes = r"stablehlo\.convolution\(.*: \(tensor<([\dx]+)x\w+>, tensor<([\dx]+)x\w+>\)"
    found = re.findall(shapes, text)
    assert len(found) == text.count("stablehlo.convolution(")
    return [tuple(tuple(map(int, shape.split("x"))) for shape in pair) for pair in found]


def check_plain(params, text):
    """All convolutions are 3x3 and of all images: a kernel's own, and its two gradients."""
    found = convolutions(text)
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 4]
    assert len(found) == 3 * len(kernels) - 2  # Two see the inputs, which need no gradient.
    assert all(x[0] == 4 and (y[:2] == (3, 3) or y[0] == 4) for x, y in found)


@pytest.mark.slow
def test_the_papers_network(monkeypatch):
    """Two levels and some blocks short of the paper's, to trace faster; with cuDNN's attention."""
    # To trace it, jax asks for the version of cuDNN, which this machine may lack.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    config = isic2016.get_config()
    config.model.update(dtype="bfloat16", attention="cudnn", num_res_blocks=1, rrdb_blocks=1)
    config.model.update(channel_mult=(1, 1, 2, 2, 4), attention_resolutions=(4, 8))
    params, texts = gradient_programs(config)
    attentions = sum("attention" in name for name in params["unet"])
    for platform in ("cuda", "tpu"):
        check_plain(params, texts[platform])
        calls = [texts[platform].count(f"@{name}(") for name in CUDNN]
        assert calls == [attentions if platform == "cuda" else 0] * 2
    on_cpu = convolutions(texts["cpu"])
    assert any(x[0] == 1 for x, _ in on_cpu)  # One image's part of a kernel's gradient.
    assert any(y[:2] == (2, 2) for _, y in on_cpu)  # A part of an enlarged image.
    assert not any(name in texts["cpu"] for name in CUDNN)


def test_the_network_for_64_pixels():
    params, texts = gradient_programs(isic2016_64.get_config())
    for platform in ("cuda", "tpu"):
        check_plain(params, texts[platform])
    # Each of the four upsamplings is four convolutions of 2 x 2.
    assert sum(y[:2] == (2, 2) for _, y in convolutions(texts["cpu"])) >= 4 * 4


def test_attention_is_xlas_where_jax_has_no_cudnn(monkeypatch):
    def absent():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", absent)
    fields = {"channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
    fields |= {"channels": 32, "rrdb_blocks": 1, "dtype": "bfloat16", "attention": "cudnn"}
    assert variables_like(make_model({"name": "segdiff", **fields}), 16)
