"""Programs for GPU and TPU hold the plain equations; those for CPU hold its workarounds."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import isic2016, isic2016_64, isic2016_128
from segdiff_jax import models
from segdiff_jax.inference.driver import sample_keys
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import make_train_step

CUDNN = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
CHECKS = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CUDNN]


def programs(config):
    """(kernels of the network, platform -> StableHLO) of a training step and of the sampler.

    Both are for four images, the sampler for `sampler.samples` of each.
    """
    method, size = make_method(config), config.data.image_size
    tx = make_optimizer(config.train, method.model)
    step, variables = make_train_step(config, method, tx), variables_like(method)
    state = jax.eval_shape(functools.partial(create_state, tx=tx), variables)
    shape = jax.ShapeDtypeStruct
    image, mask = (shape((4, size, size, c), jnp.uint8) for c in (3, 1))
    index, rate = shape((4,), jnp.int32), shape((), jnp.float32)

    def train(state, image, mask, index, rate):
        batch = {"image": image, "mask": mask, "index": index}
        return step(state, batch, jax.random.key(0), rate)

    def sample(variables, image, names):
        numbers = np.arange(method.samples)
        draw = make_draw(sample_keys(0, names, np.uint32(numbers)), numbers, len(method.views))
        return sample_masks(method, variables, image, draw)

    def lower(function, *arguments):
        export = lambda platform: jax.export.export(
            jax.jit(function), platforms=[platform], disabled_checks=CHECKS
        )
        return {p: export(p)(*arguments).mlir_module() for p in ("cpu", "cuda", "tpu")}

    training = lower(train, state, image, mask, index, rate)
    sampling = lower(sample, variables, image, shape((4,), jnp.uint32))
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 4]
    return len(kernels), training, sampling


def convolutions(text):
    """The shapes of each convolution's two operands."""
    shapes = r"stablehlo\.convolution\(.*: \(tensor<([\dx]+)x\w+>, tensor<([\dx]+)x\w+>\)"
    found = re.findall(shapes, text)
    assert len(found) == text.count("stablehlo.convolution(")
    return [tuple(tuple(map(int, shape.split("x"))) for shape in pair) for pair in found]


def check_plain(count, training, sampling, samples, views=1):
    """All convolutions are 3x3 and of all images; in training, each kernel has two gradients."""
    found = convolutions(training)
    assert len(found) == 3 * count - 2  # Two see the inputs, which need no gradient.
    assert all(x[0] == 4 and (y[:2] == (3, 3) or y[0] == 4) for x, y in found)
    found = convolutions(sampling)
    assert len(found) == count and all(y[:2] == (3, 3) for _, y in found)
    assert {x[0] for x, _ in found} == {4 * views, 4 * samples}


@pytest.mark.slow
def test_the_papers_config(monkeypatch):
    """Two levels and some blocks short of the paper's, to trace faster; with cuDNN's attention."""
    # To trace it, jax asks for the version of cuDNN, which this machine may lack.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    config = isic2016.get_config()
    config.model.update(dtype="bfloat16", attention="cudnn", num_res_blocks=1, rrdb_blocks=1)
    config.model.update(channel_mult=(1, 1, 2, 2, 4), attention_resolutions=(4, 8))
    count, training, sampling = programs(config)
    attentions = 1 + 2 * (1 + 2)  # In the middle; on two levels down and up.
    for platform in ("cuda", "tpu"):
        check_plain(count, training[platform], sampling[platform], 9)
        there = attentions if platform == "cuda" else 0
        assert [training[platform].count(f"@{name}(") for name in CUDNN] == [there] * 2
        assert [sampling[platform].count(f"@{name}(") for name in CUDNN] == [there, 0]
    on_cpu = convolutions(training["cpu"])
    assert any(x[0] == 1 for x, _ in on_cpu)  # One image's part of a kernel's gradient.
    assert any(y[:2] == (2, 2) for _, y in on_cpu)  # A part of an enlarged image.
    assert not any(name in training["cpu"] + sampling["cpu"] for name in CUDNN)


@pytest.mark.slow
def test_the_config_for_64_pixels():
    count, training, sampling = programs(isic2016_64.get_config())
    for platform in ("cuda", "tpu"):
        check_plain(count, training[platform], sampling[platform], samples=4, views=4)
    # Each of the four upsamplings is four convolutions of 2 x 2.
    for text in (training["cpu"], sampling["cpu"]):
        assert sum(y[:2] == (2, 2) for _, y in convolutions(text)) >= 4 * 4


@pytest.mark.slow
def test_an_image_encoder():
    """GPUs and TPUs convolve single channels by XLA, with two gradients each; CPUs do not."""
    config = isic2016_128.get_config()
    config.model.update(channel_mult=(1, 1), channels=16)
    config.data.image_size = 64
    _, training, _ = programs(config)
    single = lambda text: len(re.findall(r"(?:feature|batch)_group_count = (?!1 )\d+", text))
    assert single(training["cpu"]) == 0
    for platform in ("cuda", "tpu"):
        assert single(training[platform]) == 3 * 21


def test_attention_is_xlas_where_jax_has_no_cudnn(monkeypatch):
    def absent():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", absent)
    fields = {"channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
    fields |= {"channels": 32, "rrdb_blocks": 1, "dtype": "bfloat16", "attention": "cudnn"}
    assert models.variables_like(models.make_model({"name": "segdiff", **fields}), 16)
