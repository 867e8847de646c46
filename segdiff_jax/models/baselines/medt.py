"""The Medical Transformer (Valanarasu et al. 2021, arXiv 2102.10662): image -> logits. NHWC.

Axial attention with learned relative positions (Wang et al. 2020, arXiv 2003.07853) and gates on
them, in a network of a global and a local branch. It computes what the authors' code computes
(github.com/jeya-maria-jose/Medical-Transformer), and leaves out the layers that it never uses.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from segdiff_jax.models.norms import batch_norm
from segdiff_jax.runtime.errors import UserError

# Whether there are gates, a local branch, and positions in the local branch.
VARIANTS = {
    "axial": (False, False, False),
    "gated": (True, False, False),
    "logo": (False, True, True),
    "medt": (True, True, False),
}
GATES = (0.1, 0.1, 1.0, 0.1)  # At the start: of q's and of k's positions, of v, of v's positions.
PATCHES = 4  # A side; the local branch sees each patch alone.


class AxialAttention(nn.Module):
    """Multi-head self-attention along one axis, gated as in eq. 2 of the Medical Transformer.

    With q, k and v of a position and r^q, r^k, r^v the learned vectors of the distance between two
    positions, shared by the heads:

        y_i = sum_j softmax_j(q_i k_j + g_1 q_i r^q_ij + g_2 k_j r^k_ij) (g_3 v_j + g_4 r^v_ij)

    Batch norms follow q, k, v, each of the three similarities and each of the two sums. But for
    their epsilon, they undo the scale of the gates, as in the authors' code.
    """

    channels: int  # of the output and of v, a multiple of 2 `groups`; q and k have half as many
    groups: int  # heads
    positions: bool  # use the learned vectors r; without, only q, k and v count
    gated: bool  # learn the four gates g; without, they are 1
    axis_name: str | None  # of the devices over which training averages batch statistics

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """f32[..., L, C_in] -> f32[..., L, channels], attention along L."""
        norm = batch_norm(train, self.axis_name)
        length, head = x.shape[-2], self.channels // self.groups
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        qkv = nn.Dense(2 * self.channels, use_bias=False, kernel_init=init, name="qkv")(x)
        qkv = norm(name="norm_qkv")(qkv).reshape(*x.shape[:-1], self.groups, 2 * head)
        q, k, v = jnp.split(qkv, [head // 2, head], axis=-1)
        similarities = [jnp.einsum("...igc,...jgc->...ijg", q, k)]
        gates = (1.0, 1.0, 1.0, 1.0)
        if self.positions:
            init = nn.initializers.normal(head**-0.5)
            table = self.param("relative", init, (2 * length - 1, 2 * head))
            here = jnp.arange(length)
            relative = table[here[:, None] - here[None] + length - 1]
            q_pos, k_pos, v_pos = jnp.split(relative, [head // 2, head], axis=-1)
            if self.gated:
                gates = self.param("gates", lambda _: jnp.array(GATES))
            similarities += [
                gates[0] * jnp.einsum("...igc,ijc->...ijg", q, q_pos),
                gates[1] * jnp.einsum("...jgc,jic->...ijg", k, k_pos),
            ]
        similarities = norm(name="norm_similarity")(jnp.concatenate(similarities, axis=-1))
        similarity = sum(jnp.split(similarities, similarities.shape[-1] // self.groups, axis=-1))
        weights = jax.nn.softmax(similarity, axis=-2)
        sums = [gates[2] * jnp.einsum("...ijg,...jgc->...igc", weights, v)]
        if self.positions:
            sums.append(gates[3] * jnp.einsum("...ijg,ijc->...igc", weights, v_pos))
        flat = [part.reshape(*x.shape[:-1], self.channels) for part in sums]
        out = norm(name="norm_out")(jnp.concatenate(flat, axis=-1))
        return sum(jnp.split(out, len(sums), axis=-1))


class AxialBlock(nn.Module):
    """1x1 convolution, attention along height, then width, 1x1 convolution, plus the input."""

    channels: int  # within the block; twice as many come out
    stride: int  # 2 halves the size (rounded up) after the attention
    attention: Callable[..., AxialAttention]  # called with the channels and a name
    axis_name: str | None  # see `AxialAttention`

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """f32[B, H, W, C] -> f32[B, H / stride, W / stride, 2 channels]."""
        norm = batch_norm(train, self.axis_name)
        conv = functools.partial(conv_without_bias, kernel_size=(1, 1))
        h = nn.relu(norm(name="norm_down")(conv(self.channels, name="conv_down")(x)))
        attend = lambda name, h: self.attention(self.channels, name=name)(h, train)
        h = jnp.swapaxes(attend("height", jnp.swapaxes(h, 1, 2)), 1, 2)
        h = attend("width", h)
        # XLA on CPU has wrong gradients of poolings whose window is larger than the image.
        strides = tuple(min(self.stride, side) for side in x.shape[1:3])
        if self.stride > 1:
            h = nn.avg_pool(h, strides, strides, padding="SAME", count_include_pad=False)
        h = norm(name="norm_up")(conv(2 * self.channels, name="conv_up")(nn.relu(h)))
        if self.stride > 1 or x.shape[-1] != 2 * self.channels:
            x = conv(2 * self.channels, strides=strides, name="conv_skip")(x)
            x = norm(name="norm_skip")(x)
        return nn.relu(h + x)


class AxialUNet(nn.Module):
    """Convolution stem, levels of axial blocks, and a decoder of 3x3 convolutions: one branch."""

    attention: Callable[..., AxialAttention]  # see `AxialBlock`
    axis_name: str | None
    channels: int  # level k has 2^(k+1) times as many within its blocks
    stem: int  # channels of the stem's first and last convolution; the second has 16 `channels`
    blocks: tuple[int, ...]  # of each level; every level but the first halves the size
    lowest: bool  # a convolution of the last level comes first in the decoder

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        """f32[B, H, W, 3] -> f32[B, H, W, 2 channels]."""
        norm = batch_norm(train, self.axis_name)
        x, stem = image, [(self.stem, 7, 2), (16 * self.channels, 3, 1), (self.stem, 3, 1)]
        for i, (width, size, stride) in enumerate(stem):
            # Padded on both sides, as torch does it.
            conv = conv_without_bias(width, (size, size), stride, size // 2, name=f"stem{i}_conv")
            x = nn.relu(norm(name=f"stem{i}_norm")(conv(x)))
        skips = []
        for level, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if level and i == 0 else 1
                fields = self.channels * 2 ** (level + 1), stride, self.attention, self.axis_name
                x = AxialBlock(*fields, name=f"level{level}_block{i}")(x, train)
            skips.append(x)
        if self.lowest:
            x = self.decode(x, x.shape[-1], skips[-1], "lowest", stride=2) + skips[-1]
        for level in reversed(range(1, len(self.blocks))):
            skip = skips[level - 1]
            x = self.decode(x, skip.shape[-1], skip, f"decode{level}") + skip
        return self.decode(x, 2 * self.channels, image, "decode0")

    def decode(self, x: Array, width: int, like: Array, name: str, stride: int = 1) -> Array:
        """3x3 convolution, enlarged bilinearly to the height and width of `like`, ReLU."""
        x = nn.Conv(width, (3, 3), strides=stride, padding=1, name=name)(x)
        return nn.relu(jax.image.resize(x, (*like.shape[:3], width), "bilinear"))


class MedT(nn.Module):
    """The Medical Transformer and what its paper compares it with; the defaults are the paper's.

    The variants have these numbers of parameters, for one class and images of 128 px. The authors'
    code has 17 more for its second class, and has parameters that its forward pass never uses.

        variant   here        authors' code, of which unused
        axial     1,326,833   1,326,850        0
        gated     1,326,897   1,326,914        0
        logo      1,529,481   1,529,532       34
        medt      1,524,553   1,560,140   35,570

    The unused ones are a second output layer (34) and, in medt, a 1x1 convolution in each block of
    the local branch. The batch norms of the local branch see all patches at once; the authors' see
    them in turn. The authors' local branch always cuts patches of 32 px; here, patches are a
    quarter of the image's height and width, which is the same at 128 px.

    "axial" is one branch of axial attention. "gated" has gates on its positions. "logo" adds a
    local branch, on 4 x 4 patches, to a global branch of two levels; neither has gates. "medt" is
    "logo" with gates in the global branch and without positions in the local branch.

    The stem's `channels` are the paper's 64 s with s = 1 / 8. The local branch's stem has eight
    times as many, since the authors' code makes it as wide as the output of the global levels.
    """

    variant: str = "medt"
    channels: int = 8
    blocks: tuple[int, ...] = (1, 2, 4, 1)
    groups: int = 8
    out_channels: int = 1
    frozen_gate_epochs: float = 10.0
    axis_name: str | None = None

    def __post_init__(self):
        if self.channels % self.groups:
            raise UserError(
                f"model.channels={self.channels} must be a multiple of model.groups={self.groups}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> Array:
        """The logits of a lesion, or of each class, at every pixel.

        f32[B, H, W, 3], normalised -> f32[B, H, W, out_channels]. The tables of positions have
        the image's size. With a local branch, H and W must be multiples of 4.
        """

        axis, stem = self.axis_name, self.channels

        def branch(name, stem, blocks, **kind):
            attend = functools.partial(AxialAttention, groups=self.groups, axis_name=axis, **kind)
            lowest = name != "global"
            return AxialUNet(attend, axis, self.channels, stem, blocks, lowest, name=name)

        gated, has_local, positions = VARIANTS[self.variant]
        name, blocks = ("global", self.blocks[:2]) if has_local else ("branch", self.blocks)
        x = branch(name, stem, blocks, positions=True, gated=gated)(image, train)
        if has_local:
            local = branch("local", 8 * stem, self.blocks, positions=positions, gated=False)
            x = x + join_patches(local(split_patches(image), train))
            x = nn.relu(nn.Conv(x.shape[-1], (3, 3), padding=1, name="fuse")(x))
        return nn.Conv(self.out_channels, (1, 1), name="out_conv")(x)


def split_patches(image: Array) -> Array:
    """[B, H, W, C] -> [16 B, H / 4, W / 4, C], row by row; UserError unless 4 divides H and W."""
    batch, height, width, channels = image.shape
    if height % PATCHES or width % PATCHES:
        raise UserError(
            f"image size {height} x {width} must be divisible by {PATCHES}: model.variant has a "
            f"local branch on {PATCHES} x {PATCHES} patches"
        )
    grid = image.reshape(batch, PATCHES, height // PATCHES, PATCHES, width // PATCHES, channels)
    return grid.swapaxes(2, 3).reshape(-1, height // PATCHES, width // PATCHES, channels)


def join_patches(patches: Array) -> Array:
    """The inverse of `split_patches`."""
    _, height, width, channels = patches.shape
    grid = patches.reshape(-1, PATCHES, PATCHES, height, width, channels).swapaxes(2, 3)
    return grid.reshape(-1, PATCHES * height, PATCHES * width, channels)


conv_without_bias = functools.partial(
    nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal()
)


class FrozenGates(NamedTuple):
    """i32[], the updates so far, and the state of the wrapped optimiser."""

    count: Array
    inner: optax.OptState


def freeze_gates(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`tx`, but in its first `steps` updates no gate moves.

    Gates are all leaves named "gates", or "gates " and more, as `training.optimizer.stacks` names
    them. In those updates, `tx` sees their gradient as 0, and their update is 0 whatever `tx` says.
    So neither averages of the gradient nor weight decay touch them.

    The authors' code gives the gates no gradient in its first 11 epochs, and PyTorch's Adam skips
    parameters without one: no averages, no weight decay, no count of their updates. Here, the
    averages are 0 after those updates, too. But Adam has one count for all parameters, so its bias
    correction counts the frozen updates. After many of them, the gates get no correction. With
    decays of 0.9 and 0.999 and a steady gradient, the n-th update that moves the gates is then
    (1 - 0.9^n) / sqrt(1 - 0.999^n) times the authors': 3.2 at first, 6.6 at most (n = 12) and 1.3
    for n = 1000.
    """

    def init(params):
        return FrozenGates(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates, state, params=None):
        def without_gates(path, leaf):
            is_gate = jax.tree_util.keystr(path[-1:], simple=True).split(" ")[0] == "gates"
            return jnp.where(state.count < steps, 0, leaf) if is_gate else leaf

        freeze = functools.partial(jax.tree_util.tree_map_with_path, without_gates)
        updates, inner = tx.update(freeze(updates), state.inner, params)
        return freeze(updates), FrozenGates(optax.safe_increment(state.count), inner)

    return optax.GradientTransformation(init, update)
