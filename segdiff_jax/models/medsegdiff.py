"""Dynamic conditioning: the noisy mask's features steer the image encoder, at each level.

Wu et al. 2022 (MedSegDiff, arXiv 2211.00611), sections 3.2 and 3.3, on SegDiff's own blocks. This
follows the paper. The authors' repository (KidsWithTokens/MedSegDiff, its version v1) has another
network. There, the U-Net sees the image and the noisy mask together. A second U-Net, the "highway",
sees the image alone. The first one's features go through FF-Parsers and then multiply the highway's
features after its poolings, without layer norms. The highway's deepest features are added before
the first one's middle blocks. The highway also predicts a mask of its own, with a loss of its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from segdiff_jax.models.convolution import Conv
from segdiff_jax.models.norms import Norm
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.models.unet import ResBlock
from segdiff_jax.runtime.errors import UserError


class FFParser(nn.Module):
    """A learned factor for each frequency and channel: F^-1[A * F[m]] (section 3.3).

    A is complex, as in the authors' code; "map" f32[H, W // 2 + 1, C, 2] holds its real and
    imaginary parts. It starts at 1, the identity; the authors' starts at random, around 0.
    """

    @nn.compact
    def __call__(self, m: Array) -> Array:
        """dtype[B, H, W, C] -> f32[B, H, W, C]."""
        spectrum = jnp.fft.rfft2(m.astype(jnp.float32), axes=(1, 2), norm="ortho")
        ones = lambda _, shape: jnp.zeros(shape).at[..., 0].set(1.0)
        real, imaginary = jnp.moveaxis(self.param("map", ones, (*spectrum.shape[1:], 2)), -1, 0)
        spectrum = jax.lax.complex(real, imaginary)[None] * spectrum
        return jnp.fft.irfft2(spectrum, m.shape[1:3], (1, 2), norm="ortho")


class ImageLevel(nn.Module):
    """One level of the image encoder: a residual block, then the mask's features gate it.

        (LN(m_I) * LN(FF-Parser(m_x))) * m_I        (section 3.2)

    With `downsample`, a convolution halves the size first. The other fields are `ResBlock`'s.
    """

    channels: int
    downsample: bool
    dropout: float
    scale_shift_norm: bool
    norm: Norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, m_image: Array, m_mask: Array, emb: Array, train: bool) -> Array:
        """The image's features of the level before and the mask's of this one -> the image's.

        dtype[B, H', W', C], dtype[B, H, W, channels], the timestep's embedding f32[B, E] ->
        dtype[B, H, W, channels]; H' and W' are twice H and W with `downsample`.
        """
        if self.downsample:
            m_image = Conv(m_image.shape[-1], strides=2, dtype=self.dtype, name="down")(m_image)
        fields = self.channels, self.dropout, self.scale_shift_norm, self.norm, self.dtype
        m_image = ResBlock(*fields, name="res")(m_image, emb, train)
        norms = [nn.LayerNorm(dtype=jnp.float32, name=f"norm_{of}") for of in ("image", "mask")]
        affinity = norms[0](m_image) * norms[1](FFParser(name="ff_parser")(m_mask))
        return affinity.astype(self.dtype) * m_image


class MedSegDiff(SegDiff):
    """SegDiff whose image encoder goes on, level by level, beside the mask's.

    The mask's encoder sees F(x_t) alone. The image's encoder starts from G(I), all that depends on
    neither t nor x_t. The decoder D sees the sum of both, at the end of every level. The maps of
    the FF-Parsers fix the size of the image.
    """

    def setup(self):
        super().setup()
        if self.image_encoder != "rrdb":
            raise UserError(
                f"model.image_encoder={self.image_encoder!r}: model.name='medsegdiff' knows 'rrdb'"
            )
        remat = nn.remat(ImageLevel, static_argnums=(4,))
        self.image_levels = [
            (remat if 2**level in self.remat_resolutions else ImageLevel)(
                channels=mult * self.channels,
                downsample=level > 0,
                dropout=self.dropout,
                scale_shift_norm=self.scale_shift_norm,
                norm=self.norm,
                dtype=jnp.dtype(self.dtype),
            )
            for level, mult in enumerate(self.channel_mult)
        ]

    def denoise(
        self,
        x_t: Array,
        features: Array,
        t: Array,
        train: bool = False,
        annotator: Array | None = None,
    ) -> Array:
        """D(E^x(F(x_t), t) + E^I(features, x_t, t), t); see `SegDiff.denoise`."""
        features = jnp.repeat(features, len(x_t) // len(features), axis=0)
        return self.unet(self.F(x_t), t, train, annotator, features, self.image_levels)
