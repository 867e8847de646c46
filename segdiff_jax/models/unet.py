"""E and D: the U-Net of improved diffusion (Nichol and Dhariwal 2021, arXiv 2102.09672), NHWC.

Their U-Net starts with a convolution. This one starts with its input: in SegDiff, F(x_t) + G(I).
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from segdiff_jax.models.convolution import KERNEL_INIT, Conv, UpsampleConv, ZerosConv
from segdiff_jax.models.norms import Norm
from segdiff_jax.runtime.errors import UserError

Dense = functools.partial(nn.Dense, kernel_init=KERNEL_INIT)
ZerosDense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)


def timestep_embedding(t: Array, dim: int) -> Array:
    """Sinusoids of the timestep (Vaswani et al. 2017, section 3.5), cosines first.

    f32[B] or i32[B] -> f32[B, dim] in [-1, 1]; an odd `dim` ends with a zero. The slowest
    sinusoid's wavelength is 2 pi 10000 timesteps.
    """
    half = dim // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    args = t.astype(jnp.float32)[:, None] * freqs[None]
    embedding = jnp.concatenate([jnp.cos(args), jnp.sin(args)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class ResBlock(nn.Module):
    """Norm, SiLU, conv, timestep, norm, SiLU, dropout, conv, plus the input.

    With `scale_shift_norm`, the timestep scales and shifts the second norm's result; otherwise it
    is added before that norm. Parameters and norms are float32, whatever `dtype` is.
    """

    channels: int
    dropout: float
    scale_shift_norm: bool
    norm: Norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        """x dtype[B, H, W, C_in], emb f32[B, E] -> dtype[B, H, W, channels]."""
        h = nn.silu(self.norm(train, "norm_in")(x)).astype(self.dtype)
        h = Conv(self.channels, dtype=self.dtype, name="conv_in")(h)
        width = 2 * self.channels if self.scale_shift_norm else self.channels
        emb = Dense(width, dtype=self.dtype, name="time")(nn.silu(emb))[:, None, None, :]
        norm = self.norm(train, "norm_out")
        if self.scale_shift_norm:
            scale, shift = jnp.split(emb.astype(jnp.float32), 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = ZerosConv(self.channels, dtype=self.dtype, name="conv_out")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention by cuDNN: q, k and v bf16[B, L, heads, C] -> bf16[B, L, heads, C].

    A jax without GPU support cannot even trace cuDNN's attention. There, this is XLA's. A
    NotImplementedError says that cuDNN does not know the shape; C must be a multiple of 8.
    """
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    except RuntimeError as error:
        if "not detected" not in str(error):
            raise
        return jax.nn.dot_product_attention(q, k, v, implementation="xla")


class AttentionBlock(nn.Module):
    """Self-attention over all positions, plus the input.

    q, k and v lie head by head ([head][q|k|v][channel]). Parameters, norm and softmax are float32.
    The implementation "cudnn" is for bfloat16, and only in programs for NVIDIA GPUs.
    """

    heads: int
    norm: Norm
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """dtype[B, H, W, C] -> dtype[B, H, W, C]."""
        batch, height, width, channels = x.shape
        h = self.norm(train, "norm")(x).reshape(batch, height * width, channels)
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        qkv = qkv.reshape(batch, height * width, self.heads, 3, channels // self.heads)
        q, k, v = jnp.moveaxis(qkv, 3, 0)
        attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")
        if self.implementation == "cudnn":
            h = lax.platform_dependent(q, k, v, cuda=cudnn_attention, default=attend)
        else:
            h = attend(q, k, v)
        h = h.reshape(batch, height, width, channels)
        return x + ZerosDense(channels, dtype=self.dtype, name="proj")(h)


def add_features(h: Array, features: Array) -> Array:
    """[B, H, W, C] and [N, H, W, C] -> [B, H, W, C]; each of N is for B / N in a row."""
    masks = h.reshape(len(features), -1, *h.shape[1:]) + features[:, None]
    return masks.reshape(h.shape)


class UNet(nn.Module):
    """E and D. There are `num_res_blocks` per level on the way down, and one more on the way up."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int
    dropout: float
    scale_shift_norm: bool
    out_channels: int
    norm: Norm
    remat_resolutions: tuple[int, ...]
    attention: str
    dtype: jnp.dtype
    num_annotators: int = 0  # whose style it knows, beside the pool's

    @nn.compact
    def __call__(
        self,
        h: Array,
        t: Array,
        train: bool = False,
        annotator: Array | None = None,
        image: Array | None = None,
        image_levels: Sequence[Callable[[Array, Array, Array, bool], Array]] = (),
        pyramid: Sequence[Array] = (),
    ) -> Array:
        """dtype[B, H, W, channels] -> f32[B, H, W, out_channels].

        `t` and `annotator` are as in `SegDiff.denoise`.

        Args:
            image: dtype[B, H, W, channels], features of the image, for `image_levels`.
            image_levels: an image encoder beside E, as one function for each level, or none: (its
                features of the level before, h of this level, the embedding of t, train) -> its
                features of this level. D sees the sum of h and them.
            pyramid: what is added to the input of each level from 1 on, as far as it goes, see
                `add_features`.
        Raises:
            UserError: if the height or width is not divisible by 2^(levels - 1).
        """
        multiple = 2 ** (len(self.channel_mult) - 1)
        if h.shape[1] % multiple or h.shape[2] % multiple:
            raise UserError(
                f"mask size {h.shape[1]} x {h.shape[2]} must be divisible by {multiple}: "
                f"model.channel_mult has {len(self.channel_mult)} levels"
            )
        emb = timestep_embedding(t, self.channels)
        emb = nn.silu(Dense(4 * self.channels, name="time_0")(emb))
        emb = Dense(4 * self.channels, name="time_1")(emb)
        if self.num_annotators:
            annotator = jnp.zeros(1, jnp.int32) if annotator is None else annotator
            table = nn.Embed(self.num_annotators + 1, 4 * self.channels, name="annotator")
            emb = emb + table(annotator)

        def block_of(block, level, num_args):
            remat = 2**level in self.remat_resolutions
            return nn.remat(block, static_argnums=(num_args,)) if remat else block

        def res(h, width, level, name):
            fields = width, self.dropout, self.scale_shift_norm, self.norm, self.dtype
            return block_of(ResBlock, level, 3)(*fields, name=name)(h, emb, train)

        def attend(h, level, name):
            fields = self.num_heads, self.norm, self.attention, self.dtype
            return block_of(AttentionBlock, level, 2)(*fields, name=name)(h, train)

        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for i in range(self.num_res_blocks):
                h = res(h, mult * self.channels, level, f"down{level}_res{i}")
                if 2**level in self.attention_resolutions:
                    h = attend(h, level, f"down{level}_attention{i}")
                skips.append(h)
            if image_levels:
                image = image_levels[level](image, h, emb, train)
                skips[-1] = h + image
            if level < len(self.channel_mult) - 1:
                name = f"down{level}_downsample"
                h = Conv(h.shape[-1], strides=2, dtype=self.dtype, name=name)(h)
                if level + 1 < len(pyramid):
                    h = add_features(h, pyramid[level + 1])
                skips.append(h)

        h = res(skips[-1], h.shape[-1], level, "middle_res0")
        h = attend(h, level, "middle_attention")
        h = res(h, h.shape[-1], level, "middle_res1")

        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(h, mult * self.channels, level, f"up{level}_res{i}")
                if 2**level in self.attention_resolutions:
                    h = attend(h, level, f"up{level}_attention{i}")
            if level:
                h = UpsampleConv(h.shape[-1], self.dtype, name=f"up{level}_upsample")(h)

        h = nn.silu(self.norm(train, "out_norm")(h))
        return ZerosConv(self.out_channels, name="out_conv")(h)
