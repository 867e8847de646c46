"""G: the Residual-in-Residual Dense Block network that encodes the image.

Wang et al. 2018 (ESRGAN, arXiv 1809.00219), figure 4, without the upsampling; used by SegDiff
(Amit et al. 2021, arXiv 2112.00390, section 3). All arrays are NHWC.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from segdiff_jax.models.convolution import KERNEL_INIT, NUMBERS, Conv, kernel_gradient

SAME = (1, 1), (1, 1)
same_conv = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding=SAME, dimension_numbers=NUMBERS
)
leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)

# Channels from which on `dense_block` has the faster gradient.
LEAST_GROWTH = 8


class Weights(nn.Module):
    """A convolution's kernel f32[3, 3, C, features] and bias f32[features]."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing all before it; 0.2 of the last is added to the input."""

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
        x = x.astype(self.dtype)
        if self.growth < LEAST_GROWTH:
            return _dense_block(x, kernels, biases)[0]
        return dense_block(x, kernels, biases)


@jax.custom_vjp
def dense_block(x: Array, kernels: list[Array], biases: list[Array]) -> Array:
    """What `DenseBlock` computes.

    In its gradient, what several convolutions saw alike is one convolution with all their kernels
    side by side (the convolution of a concatenation is the sum of the parts' convolutions): as many
    products, but in fewer and wider calls, and nothing to add up in between.

    Args:
        x: f[B, H, W, width].
        kernels: five, f[3, 3, C, growth or, of the last, width].
        biases: f[growth] or f[width].
    """
    return _dense_block(x, kernels, biases)[0]


def _dense_block(x: Array, kernels: list[Array], biases: list[Array]) -> tuple[Array, Array]:
    """The result and all that the last convolution sees."""
    *inner, last = [
        lambda x, kernel=kernel, bias=bias: same_conv(x, kernel) + bias[None, None, None]
        for kernel, bias in zip(kernels, biases, strict=True)
    ]
    features = x
    for conv in inner:
        features = jnp.concatenate([features, leaky_relu(conv(features))], axis=-1)
    return 0.2 * last(features) + x, features


def _forward(
    x: Array, kernels: list[Array], biases: list[Array]
) -> tuple[Array, tuple[Array, list[Array]]]:
    out, features = _dense_block(x, kernels, biases)
    return out, (features, kernels)


def _backward(
    saved: tuple[Array, list[Array]], gradient: Array
) -> tuple[Array, list[Array], list[Array]]:
    features, kernels = saved
    width, growth = gradient.shape[-1], kernels[0].shape[-1]
    # What the i-th convolution adds to the features, x at first.
    parts = [slice(0, width)]
    parts += [slice(width + i * growth, width + (i + 1) * growth) for i in range(4)]

    def to_part(i, later):
        """The gradient of a part from those of the results of all convolutions that see it."""
        kernel = jnp.concatenate([kernel[:, :, parts[i]] for kernel in kernels[i:]], axis=-1)
        return same_conv(later, kernel[::-1, ::-1].swapaxes(2, 3))

    later = 0.2 * gradient
    for i in (4, 3, 2, 1):
        grown = to_part(i, later)
        grown = jnp.where(features[..., parts[i]] >= 0, grown, 0.2 * grown)
        later = jnp.concatenate([grown, later], axis=-1)
    to_kernels = [[] for _ in kernels]
    for i in range(5):
        seen, of_all = features[..., parts[i]], later[..., i * growth :]
        like = jnp.zeros((3, 3, seen.shape[-1], of_all.shape[-1]), seen.dtype)
        wide = kernel_gradient(seen, like, of_all, (1, 1), SAME, dimension_numbers=NUMBERS)
        edges = [k * growth for k in range(1, 5 - i)]
        for to_kernel, own in zip(to_kernels[i:], jnp.split(wide, edges, axis=-1), strict=True):
            to_kernel.append(own)
    to_biases = jnp.split(later.sum((0, 1, 2)), [k * growth for k in range(1, 5)])
    to_kernels = [jnp.concatenate(of, axis=2) for of in to_kernels]
    return to_part(0, later) + gradient, to_kernels, to_biases


dense_block.defvjp(_forward, _backward)


class RRDB(nn.Module):
    """Three dense blocks; 0.2 of their output is added to the input, f[B, H, W, width]."""

    growth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        out = x
        for i in range(1, 4):
            out = DenseBlock(self.growth, self.dtype, name=f"dense{i}")(out)
        return 0.2 * out + x


class RRDBNet(nn.Module):
    """The image encoder G.

    Attributes:
        out_channels: channels of the features, the U-Net's base width.
        blocks, width, growth: number of RRDB blocks, their channels, channels a convolution adds.
        scan: one compiled block, scanned over stacked parameters: compiles faster on accelerators;
            on CPU its backward pass is 16 times slower, so the default unrolls.
        remat: recompute each block in the backward pass, for memory.
        dtype: of the computation; parameters are float32.
    """

    out_channels: int
    blocks: int = 6
    width: int = 64
    growth: int = 32
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """image f32[B, H, W, 3] -> features dtype[B, H, W, out_channels]."""
        conv = functools.partial(Conv, dtype=self.dtype)
        first = conv(self.width, name="conv_first")(image)
        block = nn.remat(RRDB) if self.remat else RRDB
        if self.scan:
            trunk, _ = nn.scan(
                lambda module, x, _: (module(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.blocks,
            )(block(self.growth, self.dtype, name="blocks"), first, None)
        else:
            trunk = first
            for i in range(self.blocks):
                trunk = block(self.growth, self.dtype, name=f"block{i}")(trunk)
        features = first + conv(self.width, name="conv_trunk")(trunk)
        features = leaky_relu(conv(self.width, name="conv_hr")(features))
        return conv(self.out_channels, name="conv_last")(features)
