"""3x3 convolutions as all parts of the network use them. NHWC."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolve(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated`, but on CPU its gradient is up to twice as fast.

    XLA's gradient of a kernel there is slow for images of a batch together: where it pays, it is
    the sum of those of the images one by one.

    Args:
        x: [B, H, W, C_in].
        kernel: [h, w, C_in, C_out].
        args, options: as there.
    """
    conv = lambda x, kernel: lax.conv_general_dilated(x, kernel, *args, **options)
    if len(x) == 1 or min(x.shape[1:3]) < 32 or min(kernel.shape[2:]) < 32:
        return conv(x, kernel)

    def kernel_gradient(x, gradient):
        return jax.linear_transpose(functools.partial(conv, x), kernel)(gradient)[0]

    def one_by_one(x, gradient):
        return sum(kernel_gradient(x[i, None], gradient[i, None]) for i in range(len(x)))

    def backward(saved, gradient):
        x, kernel = saved
        (to_x,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(gradient)
        to_kernel = {"cpu": one_by_one, "default": kernel_gradient}
        return to_x, lax.platform_dependent(x, gradient, **to_kernel)

    fast = jax.custom_vjp(conv)
    fast.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return fast(x, kernel)


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
        kernels = jnp.einsum("yik,xjl,klcf->yxijcf", sums, sums, kernel).astype(self.dtype)

        def pixels(row, column):
            pads = (1 - row, row), (1 - column, column)
            numbers = "NHWC", "HWIO", "NHWC"
            return convolve(x, kernels[row, column], (1, 1), pads, dimension_numbers=numbers)

        x = x.astype(self.dtype)
        rows = [jnp.stack([pixels(row, 0), pixels(row, 1)], axis=3) for row in (0, 1)]
        large = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, self.features)
        return large + bias[None, None, None]
