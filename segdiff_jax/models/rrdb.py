"""G: the Residual-in-Residual Dense Block network that encodes the image.

Wang et al. 2018 (ESRGAN, arXiv 1809.00219), figure 4, without the upsampling; used by SegDiff
(Amit et al. 2021, arXiv 2112.00390, section 3). All arrays are NHWC.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models import cpu_gradients
from segdiff_jax.models.convolution import KERNEL_INIT, Conv

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)


class Weights(nn.Module):
    """A convolution's kernel f32[3, 3, C, features] and bias f32[features]."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def dense_features(x: Array, kernels: list[Array], biases: list[Array]) -> tuple[Array, Array]:
    """`dense_block`, and all that its last convolution sees, f[B, H, W, width + 4 growth]."""
    conv = lambda i: cpu_gradients.same_conv(features, kernels[i]) + biases[i][None, None, None]
    features = x
    for i in range(4):
        features = jnp.concatenate([features, leaky_relu(conv(i))], axis=-1)
    return 0.2 * conv(4) + x, features


@cpu_gradients.on_cpu(
    cpu_gradients.with_wide_gradient(dense_features), cpu_gradients.wide_gradient_pays
)
def dense_block(x: Array, kernels: list[Array], biases: list[Array]) -> Array:
    """Five 3x3 convolutions, each of all before it; 0.2 of the last is added to the input.

    Args:
        x: f[B, H, W, width].
        kernels: five, f[3, 3, C, growth], the last f[3, 3, C, width].
        biases: five, f[growth], the last f[width].
    Returns:
        f[B, H, W, width].
    """
    return dense_features(x, kernels, biases)[0]


class DenseBlock(nn.Module):
    """`dense_block` with parameters, which are float32."""

    growth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """f[B, H, W, width] -> dtype[B, H, W, width]."""
        width, kernels, biases = x.shape[-1], [], []
        for i in range(5):
            weights = Weights(self.growth if i < 4 else width, name=f"conv{i + 1}")
            kernel, bias = weights(width + i * self.growth)
            kernels.append(kernel.astype(self.dtype))
            biases.append(bias.astype(self.dtype))
        return dense_block(x.astype(self.dtype), kernels, biases)


class RRDB(nn.Module):
    """Three dense blocks; 0.2 of their output is added to the input."""

    growth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """f[B, H, W, width] -> dtype[B, H, W, width]."""
        out = x
        for i in range(1, 4):
            out = DenseBlock(self.growth, self.dtype, name=f"dense{i}")(out)
        return 0.2 * out + x


class RRDBNet(nn.Module):
    """The image encoder G; for most fields see `model.rrdb_...` of the config."""

    out_channels: int
    blocks: int
    width: int
    growth: int
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """image f32[B, H, W, 3] -> features dtype[B, H, W, out_channels]."""
        conv = functools.partial(Conv, dtype=self.dtype)
        first = trunk = conv(self.width, name="conv_first")(image)
        block = nn.remat(RRDB) if self.remat else RRDB
        for i in range(self.blocks):
            trunk = block(self.growth, self.dtype, name=f"block{i}")(trunk)
        features = first + conv(self.width, name="conv_trunk")(trunk)
        features = leaky_relu(conv(self.width, name="conv_hr")(features))
        return conv(self.out_channels, name="conv_last")(features)
