"""SegDiff: eps_hat(x_t, I, t) = D(E(F(x_t) + G(I), t), t) (Amit et al. 2021, arXiv 2112.00390)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models.convolution import Conv
from segdiff_jax.models.efficientnet import ImagePyramid
from segdiff_jax.models.norms import make_norm
from segdiff_jax.models.rrdb import RRDBNet
from segdiff_jax.models.unet import UNet, add_features
from segdiff_jax.runtime.errors import UserError

Features = Array | list[Array]


class SegDiff(nn.Module):
    """F, G, E and D put together; the defaults are the paper's network for 256 px.

    Height and width must be divisible by 2^(levels - 1). The fields are `config.model`'s, and
    `axis_name` is of the devices that batch norm averages over in training. A field that does not
    fit is a UserError when variables are made or used.
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
    rrdb_remat: bool = False
    remat_resolutions: tuple[int, ...] = ()
    attention: str = "xla"
    image_encoder: str = "rrdb"
    encoder_weights: str = ""  # Training reads them; see `pretrained`.
    frozen_blocks: int = 0
    stochastic_depth: float = 0.0
    pyramid: bool = True
    mask_stride: int = 1
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    dtype: str = "float32"
    num_annotators: int = 0  # in config.data.annotators
    axis_name: str | None = None

    def setup(self):
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError("model.attention='cudnn' needs model.dtype='bfloat16'")
        if not len(self.image_mean) == len(self.image_std) in (0, 3) or 0 in self.image_std:
            raise UserError(
                f"model.image_mean={self.image_mean}, model.image_std={self.image_std}: give three "
                "numbers for each, or none"
            )
        levels = [2**level for level in range(len(self.channel_mult))]
        for field in ("remat_resolutions", "attention_resolutions"):
            if not set(getattr(self, field)) <= set(levels):
                raise UserError(
                    f"model.{field}={getattr(self, field)}: the factors of the levels are {levels}"
                )
        for factor, mult in zip(levels, self.channel_mult, strict=True):
            attends = factor in self.attention_resolutions or factor == levels[-1]
            if attends and mult * self.channels % self.num_heads:
                raise UserError(
                    f"model.num_heads={self.num_heads} must divide the {mult * self.channels} "
                    f"channels of the attention at factor {factor}"
                )
        if self.norm_groups and self.channels % self.norm_groups:
            raise UserError(
                f"model.channels={self.channels} must be a multiple of "
                f"model.norm_groups={self.norm_groups}"
            )
        if self.dropout and not self.norm_groups:
            raise UserError(
                f"model.dropout={self.dropout} is drawn for each example alone, which batch norm "
                "does not allow: set model.norm_groups above 0"
            )
        if self.image_mean and self.image_encoder != "rrdb":
            raise UserError(
                f"model.image_mean={self.image_mean}: model.image_encoder={self.image_encoder!r} "
                "has its own: leave out image_mean and image_std"
            )
        dtype = jnp.dtype(self.dtype)
        self.norm = make_norm(self.norm_groups, self.axis_name)
        self.F = Conv(self.channels, dtype=dtype)
        if self.image_encoder == "rrdb":
            self.G = RRDBNet(
                out_channels=self.channels,
                blocks=self.rrdb_blocks,
                width=self.rrdb_width,
                growth=self.rrdb_growth,
                remat=self.rrdb_remat,
                dtype=dtype,
            )
        else:
            widths = self.channels, *(mult * self.channels for mult in self.channel_mult[:-1])
            self.G = ImagePyramid(
                self.image_encoder,
                widths if self.pyramid else widths[:1],
                stride=self.mask_stride,
                frozen_blocks=self.frozen_blocks,
                stochastic_depth=self.stochastic_depth,
                dtype=dtype,
            )
        self.unet = UNet(
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=self.attention_resolutions,
            num_heads=self.num_heads,
            dropout=self.dropout,
            scale_shift_norm=self.scale_shift_norm,
            out_channels=self.out_channels,
            norm=self.norm,
            remat_resolutions=self.remat_resolutions,
            attention=self.attention,
            dtype=dtype,
            num_annotators=self.num_annotators,
        )

    def encode_image(self, image: Array, keys: Array | None = None) -> Features:
        """G(I), which depends on neither t nor x_t: computed once per image.

        f32[B, H, W, 3] from -1 to +1 -> dtype[B, H, W, channels]; with a pretrained encoder, a list
        of this and of more for the levels of E, see `ImagePyramid`, all of them `mask_stride`
        times smaller. With `image_mean`, G sees the colours from 0 to 255, normalised by it and by
        `image_std`, as in the original. `keys`, key[B], are for `stochastic_depth`.
        """
        if self.image_mean:
            mean, std = (jnp.array(x)[None, None, None] for x in (self.image_mean, self.image_std))
            image = (127.5 * (image + 1) - mean) / std
        return self.G(image) if keys is None else self.G(image, keys)

    def denoise(
        self,
        x_t: Array,
        features: Features,
        t: Array,
        train: bool = False,
        annotator: Array | None = None,
    ) -> Array:
        """D(E(F(x_t) + features, t), t); of a list, E adds each further one at its level.

        Args:
            x_t: f32[B, H, W, C], the noisy mask, see `Process.network_input`.
            features: dtype[N, ...], from `encode_image`; each image's are for B / N masks in a
                row.
            t: i32[B] or f32[B], timesteps of the training chain, not rescaled; or of length 1, for
                all of the batch.
            train: apply dropout (needs a "dropout" key), and normalise by the batch's statistics.
            annotator: i32[B], or of length 1, whose style the mask has: 1 + the place in
                `config.data.annotators`, or 0, anyone's. It is embedded beside the timestep.
        Returns:
            f32[B, H, W, out_channels].
        """
        levels = features if isinstance(features, list) else [features]
        h = add_features(self.F(x_t), levels[0])
        return self.unet(h, t, train, annotator, pyramid=levels)

    def __call__(
        self,
        x_t: Array,
        image: Array,
        t: Array,
        train: bool = False,
        keys: Array | None = None,
        annotator: Array | None = None,
    ) -> Array:
        """`denoise` of `encode_image`; shapes as there."""
        return self.denoise(x_t, self.encode_image(image, keys), t, train, annotator)
