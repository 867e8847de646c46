"""SegDiff: eps_hat(x_t, I, t) = D(E(F(x_t) + G(I), t), t) (Amit et al. 2021, arXiv 2112.00390)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models.convolution import Conv
from segdiff_jax.models.norms import Norm, make_norm
from segdiff_jax.models.rrdb import RRDBNet
from segdiff_jax.models.unet import UNet


class SegDiff(nn.Module):
    """F, G, E and D put together; the defaults are the paper's network for 256 px.

    Attributes are explained in `RRDBNet`, `UNet` and, `norm_groups` and `axis_name`, `make_norm`;
    `rrdb_remat` is the first one's `remat`. With `image_mean` and `image_std`, of colours from 0 to
    255, G sees (image - mean) / std, as in the original.

    Any height and width divisible by 2^(levels - 1) will do; others raise a ValueError.
    `dtype` is "float32" or "bfloat16"; parameters are float32 either way.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 32)
    num_heads: int = 4
    dropout: float = 0.0
    scale_shift_norm: bool = False
    out_channels: int = 1
    norm_groups: int = 32
    rrdb_blocks: int = 6
    rrdb_width: int = 64
    rrdb_growth: int = 32
    rrdb_scan: bool = False
    rrdb_remat: bool = False
    remat_resolutions: tuple[int, ...] = ()
    attention: str = "xla"
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    dtype: str = "float32"
    axis_name: str | None = None

    def setup(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype={self.dtype!r}: choose 'float32' or 'bfloat16'")
        if self.attention not in ("xla", "cudnn"):
            raise ValueError(f"model.attention={self.attention!r}: choose 'xla' or 'cudnn'")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("model.attention='cudnn' needs model.dtype='bfloat16'")
        if not len(self.image_mean) == len(self.image_std) in (0, 3) or 0 in self.image_std:
            raise ValueError(
                f"model.image_mean={tuple(self.image_mean)}, "
                f"model.image_std={tuple(self.image_std)}: give three numbers for each, or none"
            )
        levels = [2**level for level in range(len(self.channel_mult))]
        if not set(self.remat_resolutions) <= set(levels):
            raise ValueError(
                f"model.remat_resolutions={tuple(self.remat_resolutions)}: the factors of the "
                f"levels are {levels}"
            )
        dtype = jnp.dtype(self.dtype)
        self.F = Conv(self.channels, dtype=dtype)
        self.G = RRDBNet(
            self.channels,
            self.rrdb_blocks,
            self.rrdb_width,
            self.rrdb_growth,
            self.rrdb_scan,
            self.rrdb_remat,
            dtype,
        )
        self.unet = UNet(
            self.channels,
            tuple(self.channel_mult),
            self.num_res_blocks,
            tuple(self.attention_resolutions),
            self.num_heads,
            self.dropout,
            self.scale_shift_norm,
            self.out_channels,
            self.make_norm(),
            tuple(self.remat_resolutions),
            self.attention,
            dtype,
        )

    def make_norm(self) -> Norm:
        """Of the U-Net; a ValueError if the width does not allow it, or dropout does not."""
        if self.norm_groups < 0 or (self.norm_groups and self.channels % self.norm_groups):
            raise ValueError(
                f"model.channels={self.channels} must be a multiple of "
                f"model.norm_groups={self.norm_groups}"
            )
        if self.dropout and not self.norm_groups:
            raise ValueError(
                f"model.dropout={self.dropout} is drawn for each example alone, which batch norm "
                "does not allow: set model.norm_groups above 0"
            )
        return make_norm(self.norm_groups, self.axis_name)

    def encode_image(self, image: Array) -> Array:
        """G(I), which depends on neither t nor x_t: computed once per image.

        Args:
            image: f32[B, H, W, 3], from -1 to +1.
        Returns:
            dtype[B, H, W, channels].
        """
        if self.image_mean:
            mean, std = (jnp.array(x)[None, None, None] for x in (self.image_mean, self.image_std))
            image = (127.5 * (image + 1) - mean) / std
        return self.G(image)

    def denoise(self, x_t: Array, features: Array, t: Array, train: bool = False) -> Array:
        """D(E(F(x_t) + features, t), t).

        Args:
            x_t: f32[B, H, W, C], the noisy mask, see `Process.network_input`.
            features: dtype[N, H, W, channels], from `encode_image`, each of B / N masks in a row.
            t: i32[B] or f32[B], timesteps of the training chain, not rescaled; of length 1, of all.
            train: apply dropout (needs a "dropout" key).
        Returns:
            f32[B, H, W, out_channels].
        """
        h = self.F(x_t)
        masks = h.reshape(len(features), -1, *h.shape[1:]) + features[:, None]
        return self.unet(masks.reshape(h.shape), t, train)

    def __call__(self, x_t: Array, image: Array, t: Array, train: bool = False) -> Array:
        """`denoise` of `encode_image`; shapes as there."""
        return self.denoise(x_t, self.encode_image(image), t, train)
