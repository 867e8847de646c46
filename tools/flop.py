"""How many operations a method takes, as XLA counts them: a product and a sum are 2."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from segdiff_jax.methods import Method, make_method
from segdiff_jax.models import mask_stride, variables_like


def passes(method: Method) -> dict[str, int]:
    """How often each method of the network runs for one image."""
    steps = method.samples * len(method.timesteps)
    views = len(method.views)
    return {"encode_image": views, "denoise": steps} if steps else {"__call__": views}


def gflop_of_passes(method: Method) -> dict[str, float]:
    """GFLOP of one pass over one image, by the method of the network."""
    return _gflop_of_passes(method.model, method.image_size, method.input_channels)


@functools.cache  # Tracing a network takes seconds.
def _gflop_of_passes(model: nn.Module, size: int, mask_channels: int) -> dict[str, float]:
    variables = variables_like(model, size, mask_channels)
    image = jnp.zeros((1, size, size, 3))
    inputs = {"__call__": (image,)}
    if mask_channels:
        encode = functools.partial(model.apply, method="encode_image")
        features = jax.eval_shape(encode, variables, image)
        side = size // mask_stride(model)
        x_t = jnp.zeros((1, side, side, mask_channels))
        inputs = {"encode_image": (image,), "denoise": (x_t, features, jnp.zeros(1))}
    gflop = {}
    for name, args in inputs.items():
        program = jax.jit(functools.partial(model.apply, method=name))
        gflop[name] = program.lower(variables, *args).cost_analysis()["flops"] / 1e9
    return gflop


def gflop_an_image(config: ConfigDict) -> float:
    """GFLOP of all passes over one image as `config.sampler` says."""
    method = make_method(config)
    gflop = gflop_of_passes(method)
    return sum(count * gflop[name] for name, count in passes(method).items())
