"""The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597), figure 1: image -> logits. NHWC."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models.efficientnet import ImagePyramid
from segdiff_jax.models.norms import make_norm
from segdiff_jax.runtime.errors import UserError


class RonnebergerUNet(nn.Module):
    """Two 3x3 convolutions a level, poolings, up-convolutions, concatenation; the paper's widths.

    For the padding "valid", the paper's, the image is first extended by mirroring, so that the
    output covers all of it (the paper's overlap-tile strategy, section 2).
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)  # of each level; one pooling less
    padding: str = "same"
    norm: str = "batch"  # after each 3x3 convolution; or "group", see `groups_of`, or "none"
    dtype: str = "float32"  # of the computation; parameters and norms are float32
    out_channels: int = 1
    # Of `efficientnet.VARIANTS`: each level's input gets its features, see `ImagePyramid`.
    image_encoder: str = "none"
    encoder_weights: str = ""  # Training reads them.
    frozen_blocks: int = 0
    stochastic_depth: float = 0.0
    mask_stride: int = 1  # Logits have 1 / this of the image's size.
    axis_name: str | None = None  # of the devices over which training averages batch statistics

    def __post_init__(self):
        odd = [width for width in self.channels if width % groups_of(width)]
        if self.norm == "group" and odd:
            raise UserError(
                f"model.channels={self.channels}: {odd[0]} is no multiple of its "
                f"{groups_of(odd[0])} groups; choose another, or model.norm='batch'"
            )
        if self.image_encoder != "none" and self.padding == "valid":
            raise UserError(
                f"model.image_encoder={self.image_encoder!r} needs model.padding='same'"
            )
        super().__post_init__()

    def __call__(self, image: Array, train: bool = False, keys: Array | None = None) -> Array:
        """The logits of a lesion, or of each class, at every pixel.

        f32[B, H, W, 3], normalised -> f32[B, H / mask_stride, W / mask_stride, out_channels]. For
        "same", H and W must be multiples of 2^poolings, times `mask_stride`. `keys`, key[B], are
        for `stochastic_depth`.
        """
        (height, width), poolings = image.shape[1:3], len(self.channels) - 1
        multiple = 2**poolings * self.mask_stride
        if self.padding == "valid":
            more = [input_size(side, poolings) - side for side in (height, width)]
            pads = [(0, 0), *((m // 2, m - m // 2) for m in more), (0, 0)]
            image = jnp.pad(image, pads, mode="reflect")
        elif height % multiple or width % multiple:
            raise UserError(
                f"image size {height} x {width} must be divisible by {multiple}: "
                f"model.channels has {len(self.channels)} levels"
            )
        logits = self.segment(image, train, keys)
        return centre(logits, (height // self.mask_stride, width // self.mask_stride))

    @nn.compact
    def segment(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        """The network itself: "valid" makes 388 x 388 logits of a 572 x 572 image."""
        dtype = jnp.dtype(self.dtype)

        conv = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=self.padding.upper(),
            use_bias=self.norm == "none",
            kernel_init=nn.initializers.he_normal(),
            dtype=dtype,
        )

        def convs(h: Array, width: int, name: str) -> Array:
            groups = groups_of(width) if self.norm == "group" else 0
            norm = make_norm(groups, self.axis_name)
            for i in range(2):
                h = conv(width, name=f"{name}_conv{i}")(h)
                h = h if self.norm == "none" else norm(train, None)(h)
                h = nn.relu(h).astype(dtype)
            return h

        skips, pyramid = [], []
        if self.image_encoder != "none":
            x, *pyramid = ImagePyramid(
                self.image_encoder,
                (self.channels[0], *self.channels[:-1]),
                stride=self.mask_stride,
                frozen_blocks=self.frozen_blocks,
                stochastic_depth=self.stochastic_depth,
                dtype=dtype,
                name="G",
            )(x, keys)
        for level, width in enumerate(self.channels):
            if level:
                skips.append(x)
                x = nn.max_pool(x, (2, 2), (2, 2))
                x = x + pyramid[level - 1] if level <= len(pyramid) else x
            x = convs(x, width, f"down{level}")
        for level, width in reversed(list(enumerate(self.channels[:-1]))):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), dtype=dtype, name=f"up{level}_conv")(x)
            x = jnp.concatenate([centre(skips.pop(), x.shape[1:3]), x], axis=-1)
            x = convs(x, width, f"up{level}")
        return nn.Conv(self.out_channels, (1, 1), name="out_conv")(x.astype(jnp.float32))


def groups_of(width: int) -> int:
    """The number of groups that the norm "group" makes of `width` channels."""
    return max(1, min(32, width // 2))


def input_size(size: int, poolings: int) -> int:
    """The side of the image that a "valid" U-Net needs for an output of at least `size` pixels.

    It differs from `size` by an even number. Each level takes 4 pixels on the way down and 4 on the
    way up.
    """
    needed = size
    for _ in range(poolings):  # Up: to the input of each level's up-convolution.
        needed = -(-(needed + 4) // 2)
    needed += 4
    for _ in range(poolings):
        needed = 2 * needed + 4
    return needed


def centre(x: Array, size: tuple[int, int]) -> Array:
    """The middle (height, width) pixels of [B, H, W, C]."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
