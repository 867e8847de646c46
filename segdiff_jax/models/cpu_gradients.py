"""Faster ways to compute convolutions on CPU, where XLA is slow. All arrays are NHWC.

The networks state plain equations. This file alone rewrites four of them for CPU: a convolution's
gradient, a dense block's gradient, an enlarged image's convolution, and a convolution of each
channel alone. The results are the same but for rounding. Programs for GPU and TPU hold the plain
equations.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Pads = Sequence[tuple[int, int]]
NUMBERS = "NHWC", "HWIO", "NHWC"
SAME = (1, 1), (1, 1)
MOST_BYTES = 2**20  # of a part's gradient, which is read nine times: a core's cache holds it
MOST_PARTS = 16  # of the images of a batch: each takes time to compile
LEAST_GROWTH = 8  # channels: a dense block that adds fewer gains nothing

same_conv = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding=SAME, dimension_numbers=NUMBERS
)


def on_cpu(fast: Callable[..., Array], pays: Callable[..., bool] = lambda *arrays: True) -> Any:
    """A decorator that computes a function of arrays (or lists of them) by `fast` on CPU.

    JAX chooses when it lowers a program for a platform: the program holds one of the two alone. If
    `pays` is False for the arrays, the decorated function is used on CPU, too.
    """

    def decorate(plain):
        @functools.wraps(plain)
        def either(*arrays):
            if not pays(*arrays):
                return plain(*arrays)
            return lax.platform_dependent(*arrays, cpu=fast, default=plain)

        return either

    return decorate


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads, **options: Any) -> Array:
    """`lax.conv_general_dilated`; on CPU its kernel's gradient is `gradient_by_parts`.

    f[B, H, W, C_in], f[h, w, C_in, C_out] -> f[B, H', W', C_out]; `strides` and `pads` are of
    height and width.
    """
    conv = lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, pads, **options)

    def backward(saved, gradient):
        x, kernel = saved
        (to_x,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(gradient)
        return to_x, gradient_by_parts(x, kernel, gradient, strides, pads, **options)

    fast = jax.custom_vjp(conv)
    fast.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return on_cpu(fast, _parts_pay)(conv)(x, kernel)


def _parts_pay(x: Array, kernel: Array) -> bool:
    return len(x) > 1 and min(x.shape[1:3]) >= 32 and min(kernel.shape[2:]) >= 32


def gradient_by_parts(
    x: Array, kernel: Array, gradient: Array, strides: Sequence[int], pads: Pads, **options: Any
) -> Array:
    """The gradient of a convolution's kernel: the sum of the gradients of parts of the batch.

    XLA on CPU is up to four times as slow for all images together, or for many channels of a large
    image. `gradient` f[B, H', W', C_out] is of the result of `convolve` for the other arguments.
    Only the shape and dtype of `kernel` matter.
    """
    batch, height, width, channels = gradient.shape
    images = -(-batch // MOST_PARTS)
    rows, row_bytes = height, width * channels * gradient.dtype.itemsize
    while rows % 2 == 0 and rows > height // 4 and rows * row_bytes > MOST_BYTES:
        rows //= 2
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0)))
    seen = strides[0] * (rows - 1) + kernel.shape[0]
    total = jnp.zeros(kernel.shape, jnp.float32)
    for i, row in itertools.product(range(0, batch, images), range(0, height, rows)):
        part = x[i : i + images, strides[0] * row :][:, :seen]
        conv = lambda kernel, part=part: lax.conv_general_dilated(
            part, kernel, strides, ((0, 0), pads[1]), **options
        )
        of_part = gradient[i : i + images, row : row + rows]
        total += jax.linear_transpose(conv, kernel)(of_part)[0]
    return total.astype(kernel.dtype)


def upsample_conv(x: Array, kernel: Array) -> Array:
    """`convolution.upsample_conv` on CPU: four small convolutions.

    Each pixel becomes four. Each of the four sees 2 x 2 pixels of the small image, so a 2 x 2
    convolution of the small image makes it, with sums of the kernel's rows and columns. That takes
    16 products for a pixel and a pair of channels instead of 36, and no large image in between.
    """
    batch, height, width, _ = x.shape
    # The kernel's rows that fall on each of the two small rows that a large row sees: the one
    # before its own and its own if it is even, its own and the next if it is odd. So for columns.
    sums = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)
    kernels = jnp.einsum("yik,xjl,klcf->yxijcf", sums, sums, kernel, precision="highest")
    kernels = kernels.astype(x.dtype)

    def pixels(row, column):
        pads = (1 - row, row), (1 - column, column)
        return convolve(x, kernels[row, column], (1, 1), pads, dimension_numbers=NUMBERS)

    rows = [jnp.stack([pixels(row, 0), pixels(row, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def wide_gradient_pays(x: Array, kernels: list[Array], biases: list[Array]) -> bool:
    """Whether `with_wide_gradient` is faster than plain convolutions."""
    return len(biases[0]) >= LEAST_GROWTH


def with_wide_gradient(dense_features: Callable[..., tuple[Array, Array]]) -> Callable[..., Array]:
    """`rrdb.dense_block` on CPU, with a gradient of fewer and wider convolutions.

    Several convolutions see the same features. In the gradient they become one convolution, with
    all their kernels side by side (the convolution of a concatenation is the sum of the parts'
    convolutions). There are as many products, and nothing to add up in between.
    """

    def forward(x, kernels, biases):
        result, features = dense_features(x, kernels, biases)
        return result, (features, kernels)

    dense_block = jax.custom_vjp(lambda *arrays: dense_features(*arrays)[0])
    dense_block.defvjp(forward, _dense_backward)
    return dense_block


def _dense_backward(saved, gradient):
    """The gradients of x, kernels and biases from all that the last convolution sees."""
    features, kernels = saved
    width, growth = gradient.shape[-1], kernels[0].shape[-1]
    # What the i-th convolution adds to the features, x at first.
    parts = [slice(0, width)]
    parts += [slice(width + i * growth, width + (i + 1) * growth) for i in range(4)]

    def to_part(i, later):
        """The gradient of a part from the gradients of all convolutions that see it."""
        kernel = jnp.concatenate([kernel[:, :, parts[i]] for kernel in kernels[i:]], axis=-1)
        return same_conv(later, kernel[::-1, ::-1].swapaxes(2, 3))

    later = 0.2 * gradient
    for i in (4, 3, 2, 1):
        grown = to_part(i, later)
        grown = jnp.where(features[..., parts[i]] >= 0, grown, 0.2 * grown)
        later = jnp.concatenate([grown, later], axis=-1)
    edges = [k * growth for k in range(1, 5)]
    to_kernels = [[] for _ in kernels]
    for i in range(5):
        seen, of_all = features[..., parts[i]], later[..., i * growth :]
        like = jnp.zeros((3, 3, seen.shape[-1], of_all.shape[-1]), seen.dtype)
        wide = gradient_by_parts(seen, like, of_all, (1, 1), SAME, dimension_numbers=NUMBERS)
        split = jnp.split(wide, edges[: 4 - i], axis=-1)
        for to_kernel, own in zip(to_kernels[i:], split, strict=True):
            to_kernel.append(own)
    to_biases = jnp.split(later.sum((0, 1, 2)), edges)
    to_kernels = [jnp.concatenate(of, axis=2) for of in to_kernels]
    return to_part(0, later) + gradient, to_kernels, to_biases


def depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """`convolution.depthwise_conv` on CPU: a sum of shifted images, each times its weights.

    It adds up in float32. XLA's own is 10 to 80 times as slow, and its gradients up to 200 times.
    """
    conv = jax.custom_vjp(functools.partial(_shifted_sum, stride=stride))

    def backward(saved, gradient):
        (x, kernel), gradient = saved, lax.optimization_barrier(gradient)
        to_x = _shifted_sum_transposed(gradient, kernel, stride, x.shape[1:3])
        return to_x, _shifted_products(x, gradient, len(kernel), stride)

    conv.defvjp(lambda x, kernel: (_shifted_sum(x, kernel, stride), (x, kernel)), backward)
    return conv(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's padding "SAME" adds before and after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _shifts(x: Array, kernel: int, stride: int) -> Callable[[int, int], Array]:
    """(i, j) -> what the kernel's weight in row i and column j sees."""
    height, width = x.shape[-3:-1]
    pads = _same_pads(height, kernel, stride), _same_pads(width, kernel, stride)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [stride * (-(-side // stride) - 1) + 1 for side in (height, width)]
    return lambda i, j: padded[:, i : i + last[0] : stride, j : j + last[1] : stride]


def _shifted_sum(x: Array, kernel: Array, stride: int) -> Array:
    shifted = _shifts(x, len(kernel), stride)
    places = itertools.product(range(len(kernel)), repeat=2)
    total = sum(shifted(i, j) * kernel[i, j][None, None] for i, j in places)
    return lax.optimization_barrier(total)  # Else XLA computes it wherever it is used.


def _shifted_sum_transposed(
    gradient: Array, kernel: Array, stride: int, size: tuple[int, int]
) -> Array:
    """The gradient of x. Its rows and columns of equal remainder by the stride are one sum each."""
    k = len(kernel)
    (top, _), (left, _) = (_same_pads(side, k, stride) for side in size)
    rows, columns = (-(-side // stride) for side in size)
    padded = jnp.pad(gradient, ((0, 0), (k, k), (k, k), (0, 0)))

    def places(remainder, pad):
        """Each weight that reaches these pixels, and from how many results further on."""
        return [
            (i, (remainder + pad - i) // stride)
            for i in range(k)
            if (remainder + pad - i) % stride == 0
        ]

    def pixels(row, column):
        return sum(
            padded[:, k + down : k + down + rows, k + right : k + right + columns]
            * kernel[i, j][None, None]
            for i, down in places(row, top)
            for j, right in places(column, left)
        )

    parts = [jnp.stack([pixels(r, c) for c in range(stride)], axis=3) for r in range(stride)]
    shape = len(gradient), stride * rows, stride * columns, gradient.shape[-1]
    return lax.optimization_barrier(
        jnp.stack(parts, axis=2).reshape(shape)[:, : size[0], : size[1]]
    )


def _shifted_products(x: Array, gradient: Array, k: int, stride: int) -> Array:
    """The kernel's gradient, image by image: the cache holds one, which is read k^2 times."""

    def add(total, image):
        x, gradient = image
        shifted = _shifts(x[None], k, stride)
        products = (
            (shifted(i, j)[0] * gradient).sum(0).sum(0)
            for i, j in itertools.product(range(k), repeat=2)
        )
        return total + jnp.stack(list(products)), None

    zeros = jnp.zeros((k * k, x.shape[-1]))
    return lax.scan(add, zeros, (x, gradient))[0].reshape(k, k, 1, -1)
