"""G: the Residual-in-Residual Dense Block network that encodes the image.

Wang et al. 2018 (ESRGAN, arXiv 1809.00219), figure 4, without the upsampling; used by SegDiff
(Amit et al. 2021, arXiv 2112.00390, section 3). All arrays are NHWC.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models.convolution import Conv

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing all before it; 0.2 of the last is added to the input."""

    growth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x
        for i in range(1, 5):
            grown = leaky_relu(Conv(self.growth, dtype=self.dtype, name=f"conv{i}")(features))
            features = jnp.concatenate([features, grown], axis=-1)
        return 0.2 * Conv(x.shape[-1], dtype=self.dtype, name="conv5")(features) + x


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
