"""EfficientNet-Lite, an image encoder with published weights that have seen ImageNet. NHWC.

Tan and Le 2019 (arXiv 1905.11946), table 1, as the "lite" variants of
https://github.com/tensorflow/tpu: no squeeze and excitation, ReLU6, and a stem, a first and a last
stage that do not grow. Batch norm is part of the convolutions, as `pretrained` folds it into them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segdiff_jax.models.convolution import Conv, depthwise_conv
from segdiff_jax.models.cpu_gradients import NUMBERS
from segdiff_jax.runtime.errors import UserError

STEM = 32  # channels


class Stage(NamedTuple):
    """Blocks of one width; `stride` is the first one's."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (  # of lite0
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
VARIANTS = {  # How much wider and deeper each is than lite0.
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def blocks_of(variant: str) -> list[Stage]:
    """The blocks of a variant in their order, each as a stage of one."""
    width, depth = VARIANTS[variant]
    found = []
    for i, stage in enumerate(STAGES):
        grows = 0 < i < len(STAGES) - 1
        repeats = math.ceil(depth * stage.repeats) if grows else stage.repeats
        first = stage._replace(repeats=1, channels=_rounded(width * stage.channels))
        found += [first, *[first._replace(stride=1)] * (repeats - 1)]
    return found


def _rounded(channels: float) -> int:
    """The multiple of 8 that is nearest, but at least nine tenths of it."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 * (nearest < 0.9 * channels)


class Convolution(nn.Module):
    """A convolution with TensorFlow's padding "SAME" and a bias, then ReLU6 if it `activates`."""

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activates: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """f[B, H, W, C] -> dtype[B, H / stride, W / stride, features]."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = self.kernel, self.kernel, inputs, self.features
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            x = depthwise_conv(x, kernel, self.stride)
        elif self.kernel == 1:
            x = x @ kernel[0, 0]  # On CPU, XLA's gradient of such a convolution is slow.
        else:
            strides = (self.stride, self.stride)
            x = lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=NUMBERS)
        x = x + bias[None, None, None]
        return jnp.clip(x, 0, 6) if self.activates else x


class Block(nn.Module):
    """An inverted bottleneck: expand, filter each channel, project; plus the input if it fits."""

    stage: Stage
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, factor: Array | None = None) -> Array:
        """f[B, H, W, C] -> dtype[B, H / stride, W / stride, channels].

        `factor`, f32[B], multiplies what is added to the input.
        """
        _, kernel, stride, expansion, channels = self.stage
        h, wide = x, expansion * x.shape[-1]
        if expansion > 1:
            h = Convolution(wide, dtype=self.dtype, name="expand")(h)
        fields = {"depthwise": True, "dtype": self.dtype, "name": "depthwise"}
        h = Convolution(wide, kernel, stride, **fields)(h)
        h = Convolution(channels, activates=False, dtype=self.dtype, name="project")(h)
        if stride > 1 or x.shape[-1] != channels:
            return h
        return x + (h if factor is None else factor.astype(h.dtype)[:, None, None, None] * h)


class EfficientNetLite(nn.Module):
    """The blocks of a variant, without its classifier. The first `frozen_blocks` are not trained.

    A frozen block has no backward pass; with one or more, the stem is frozen, too.
    """

    variant: str = "efficientnet_lite0"
    frozen_blocks: int = 0
    stochastic_depth: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, keys: Array | None = None) -> list[Array]:
        """f32[B, H, W, 3] from -1 to +1 -> features dtype[B, H / s, W / s, C], s = 2, 4, 8, 16, 32.

        H and W are multiples of 32. The weights know (x - 127) / 128 of colours from 0 to 255. With
        `keys`, key[B], each image skips some blocks, see `block_factors`.
        """
        factors = block_factors(keys, self.stochastic_depth, len(blocks_of(self.variant)))
        x = (127.5 * (image + 1) - 127) / 128
        x = Convolution(STEM, 3, 2, dtype=self.dtype, name="stem")(x)
        found = []
        for i, stage in enumerate(blocks_of(self.variant)):
            if stage.stride > 1:
                found.append(x)
            trained = i >= self.frozen_blocks
            x = Block(stage, self.dtype, name=f"block{i}")(x, factors[i] if trained else None)
            if i + 1 == self.frozen_blocks:
                x = lax.stop_gradient(x)
                found = [lax.stop_gradient(features) for features in found]
        return [*found, x]


def block_factors(keys: Array | None, rate: float, number: int) -> Sequence[Array | None]:
    """f32[number, B], what each block's sum is multiplied by; Nones if nothing is skipped.

    Block i of n is skipped with probability rate (i + 1) / n (Huang et al. 2016, arXiv 1603.09382,
    eq. 4): its factor is 0. Others are scaled up, so that the mean is 1, as in EfficientNet.
    """
    if keys is None or not rate:
        return [None] * number
    rates = rate * np.arange(1, number + 1, dtype=np.float32) / number
    draw = lambda key: (jax.random.uniform(key, (number,)) >= rates) / (1 - rates)
    return jax.vmap(draw)(keys).T


def slow(updates: dict[str, Any], rate: float, frozen_blocks: int) -> dict[str, Any]:
    """The updates of an `EfficientNetLite` times `rate`, and 0 in its frozen blocks.

    These need the 0: weight decay would move them although their gradient is 0.
    """
    frozen = {"stem", *(f"block{i}" for i in range(frozen_blocks))} if frozen_blocks else ()
    times = lambda factor, of: jax.tree.map(lambda x: factor * x, of)
    return {name: times(0 if name in frozen else rate, of) for name, of in updates.items()}


class ImagePyramid(nn.Module):
    """G with published weights: what each level of a U-Net adds to its input.

    Level k has 1 / 2^k of the masks' size, which is 1 / `stride` of the image's. It gets the
    features of its size by a 1x1 convolution, and the deepest level also those of smaller sizes,
    enlarged. Level 0 also gets a 3x3 convolution of the image; if it is larger than all features,
    the largest are enlarged. Levels that are smaller than all features get none.
    """

    variant: str
    widths: tuple[int, ...]  # of the levels' inputs
    stride: int = 1
    frozen_blocks: int = 0
    stochastic_depth: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, keys: Array | None = None) -> list[Array]:
        """f32[B, H, W, 3] from -1 to +1 -> dtype[B, h / 2^k, w / 2^k, widths[k]] of each level k.

        `keys` are for `EfficientNetLite`. h and w are H and W divided by the stride. UserError if H
        or W is no multiple of 32.
        """
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise UserError(
                f"image size {image.shape[1]} x {image.shape[2]} must be divisible by 32: "
                f"model.image_encoder={self.variant!r} halves it five times"
            )
        features = EfficientNetLite(
            self.variant,
            frozen_blocks=self.frozen_blocks,
            stochastic_depth=self.stochastic_depth,
            dtype=self.dtype,
            name="encoder",
        )(image, keys)
        conv = Conv(self.widths[0], strides=self.stride, dtype=self.dtype, name="image")
        first = self.stride.bit_length() - 1  # The masks have 1 / 2^first of the image's size.
        deepest = min(len(self.widths) - 1, len(features) - first)
        found = [conv(image), *[0.0] * deepest]
        for size, of_size in list(enumerate(features, 1))[max(0, first - 1) :]:
            levels = {min(size - first, deepest)} | ({0} if size == max(1, first) else set())
            for at in levels:
                name = f"level{at}_of{size}"
                h = nn.Dense(self.widths[at], use_bias=False, dtype=self.dtype, name=name)(of_size)
                found[at] += enlarge(h, 2 ** (size - first - at))
        return found


def enlarge(x: Array, factor: int) -> Array:
    """[B, H, W, C] -> [B, factor H, factor W, C], each pixel repeated."""
    return x.repeat(factor, axis=1).repeat(factor, axis=2)
