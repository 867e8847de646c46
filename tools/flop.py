"""How many operations a network takes, as XLA counts them: a product and a sum are 2."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from segdiff_jax.models import is_diffusion, variables_like


@functools.cache
def gflop_of_methods(network: nn.Module, size: int, mask_channels: int) -> dict[str, float]:
    """GFLOP of one pass over one image, by the method of the network."""
    variables = variables_like(network, size, mask_channels)
    x_t, image = (jnp.zeros((1, size, size, c)) for c in (mask_channels, 3))
    inputs = {"__call__": (image,)}
    if is_diffusion(network):
        encode = functools.partial(network.apply, method="encode_image")
        features = jax.eval_shape(encode, variables, image)
        inputs = {"encode_image": (image,), "denoise": (x_t, features, jnp.zeros(1))}
    gflop = {}
    for method, args in inputs.items():
        program = jax.jit(functools.partial(network.apply, method=method))
        gflop[method] = program.lower(variables, *args).cost_analysis()["flops"] / 1e9
    return gflop
