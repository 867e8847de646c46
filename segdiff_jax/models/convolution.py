"""3x3 convolutions as all parts of the network use them. NHWC."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


Pads = Sequence[tuple[int, int]]
NUMBERS = "NHWC", "HWIO", "NHWC"
MOST_BYTES = 2**20  # of a part's gradient, which is read nine times: a core's cache holds it
MOST_PARTS = 16  # of the images of a batch: each takes time to compile


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads, **options: Any) -> Array:
    """`lax.conv_general_dilated`, with `kernel_gradient` where that pays.

    Args:
        x: [B, H, W, C_in].
        kernel: [h, w, C_in, C_out].
        strides, pads: of height and width.
        options: as there.
    """
    conv = lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, pads, **options)
    if len(x) == 1 or min(x.shape[1:3]) < 32 or min(kernel.shape[2:]) < 32:
        return conv(x, kernel)

    def backward(saved, gradient):
        x, kernel = saved
        (to_x,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(gradient)
        return to_x, kernel_gradient(x, kernel, gradient, strides, pads, **options)

    fast = jax.custom_vjp(conv)
    fast.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return fast(x, kernel)


def kernel_gradient(
    x: Array, kernel: Array, gradient: Array, strides: Sequence[int], pads: Pads, **options: Any
) -> Array:
    """The gradient of a convolution's kernel; on CPU, the sum of those of parts of the batch.

    XLA is up to four times as slow there for all images together, or for many channels of a large
    image.

    Args:
        kernel: read for its shape and dtype alone.
        gradient: [B, H', W', C_out], of what `convolve` gives for the other arguments.
    """

    def at_once(x, gradient, pads=pads):
        conv = lambda kernel: lax.conv_general_dilated(x, kernel, strides, pads, **options)
        return jax.linear_transpose(conv, kernel)(gradient)[0]

    def by_parts(x, gradient):
        batch, height, width, channels = gradient.shape
        images = -(-batch // MOST_PARTS)
        rows, row_bytes = height, width * channels * gradient.dtype.itemsize
        while rows % 2 == 0 and rows > height // 4 and rows * row_bytes > MOST_BYTES:
            rows //= 2
        x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0)))
        seen = strides[0] * (rows - 1) + kernel.shape[0]
        total = jnp.zeros(kernel.shape, jnp.float32)
        for i, row in itertools.product(range(0, batch, images), range(0, height, rows)):
            of_images = slice(i, i + images)
            part = x[of_images, strides[0] * row :][:, :seen]
            total += at_once(part, gradient[of_images, row : row + rows], ((0, 0), pads[1]))
        return total.astype(kernel.dtype)

    by_platform = by_parts if jax.default_backend() == "cpu" else at_once
    return by_platform(x, gradient)


Conv = functools.partial(
    nn.Conv, kernel_size=(3, 3), padding=1, kernel_init=KERNEL_INIT, conv_general_dilated=convolve
)
ZerosConv = functools.partial(Conv, kernel_init=nn.initializers.zeros)


class UpsampleConv(nn.Module):
    """Each pixel as 2 x 2 pixels, then a 3x3 convolution.

    Each of the four pixels sees 2 x 2 of the small image, so that it takes a 2 x 2 convolution each
    of the small one, of sums of the kernel's rows and columns: 16 products a pixel and pair of
    channels instead of 36, and no large image in between.

    Attributes:
        features: channels of the output.
        dtype: of the computation; parameters are float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """dtype[B, H, W, C] -> dtype[B, 2H, 2W, features]."""
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        # What of the rows or columns before, at and after it sees an even pixel, and an odd one.
        sums = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)
        kernels = jnp.einsum("yik,xjl,klcf->yxijcf", sums, sums, kernel, precision="highest")
        kernels = kernels.astype(self.dtype)

        def pixels(row, column):
            pads = (1 - row, row), (1 - column, column)
            return convolve(x, kernels[row, column], (1, 1), pads, dimension_numbers=NUMBERS)

        x = x.astype(self.dtype)
        rows = [jnp.stack([pixels(row, 0), pixels(row, 1)], axis=3) for row in (0, 1)]
        large = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, self.features)
        return large + bias[None, None, None]
