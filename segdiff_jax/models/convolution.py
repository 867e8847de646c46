"""Convolutions as all parts of the network use them. NHWC."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from segdiff_jax.models import cpu_gradients

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

Conv = functools.partial(
    nn.Conv,
    kernel_size=(3, 3),
    padding=1,
    kernel_init=KERNEL_INIT,
    conv_general_dilated=cpu_gradients.convolve,
)
ZerosConv = functools.partial(Conv, kernel_init=nn.initializers.zeros)


@cpu_gradients.on_cpu(cpu_gradients.upsample_conv)
def upsample_conv(x: Array, kernel: Array) -> Array:
    """dtype[B, H, W, C], f32[3, 3, C, features] -> dtype[B, 2H, 2W, features]."""
    large = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return cpu_gradients.same_conv(large, kernel.astype(x.dtype))


def depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """f[B, H, W, C], f[k, k, 1, C] -> f[B, H', W', C]: each channel alone, padding "SAME"."""
    fast, plain = (
        functools.partial(conv, stride=stride)
        for conv in (cpu_gradients.depthwise_conv, plain_depthwise_conv)
    )
    return cpu_gradients.on_cpu(fast)(plain)(x, kernel)


def plain_depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """The same as XLA computes it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=cpu_gradients.NUMBERS,
        feature_group_count=x.shape[-1],
    )


class UpsampleConv(nn.Module):
    """Each pixel as 2 x 2 pixels, then a 3x3 convolution. Parameters are float32."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """f[B, H, W, C] -> dtype[B, 2H, 2W, features]."""
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return upsample_conv(x.astype(self.dtype), kernel) + bias[None, None, None]
