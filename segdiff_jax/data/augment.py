"""On-device augmentation, jitted with the training step.

Geometry is shared by image and mask, since it is applied to both as one array;
colour and artefacts change the image alone. Every draw follows from the example's own key.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from segdiff_jax.data.artefacts import ARTEFACTS, IN_CAMERA, ON_SKIN

# Where each artefact's draws start, after the 11 of geometry and colour: whether, then how.
*_STARTS, _DRAWS = itertools.accumulate((1 + k for _, k in ARTEFACTS.values()), initial=11)
_START = dict(zip(ARTEFACTS, _STARTS, strict=True))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths; 0 or False turns an operation off. Called as `augment(keys, image, mask)`.

    Attributes:
        flip: mirror left-right and up-down, each for half of the images.
        right_angles: turn by 0, 90, 180 or 270 degrees.
        rotation: turn by up to this many degrees either way.
        scale: zoom by a factor between 1 - scale and 1 + scale.
        shift: move by up to this share of the side, each way.
        brightness: add up to this much, where the image spans [0, 1].
        contrast, saturation: multiply by a factor between 1 - x and 1 + x.
        hue: turn the hue by up to this share of the circle, either way.
        skin_tone, hair, ruler, gamma, colour_cast, vignette, frame, blur, jpeg, cutout: share of
            the images that get this one of `artefacts.ARTEFACTS`.
    """

    flip: bool = True
    right_angles: bool = True
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    skin_tone: float = 0.0
    hair: float = 0.0
    ruler: float = 0.0
    gamma: float = 0.0
    colour_cast: float = 0.0
    vignette: float = 0.0
    frame: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0
    cutout: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if name in ARTEFACTS:
                if not 0 <= value <= 1:
                    raise ValueError(f"augment.{name}={value} must be from 0 to 1")
            elif value < 0:
                raise ValueError(f"augment.{name}={value} is negative")
            elif name in ("scale", "contrast", "saturation") and value >= 1:
                raise ValueError(f"augment.{name}={value} must be below 1")

    def __call__(self, keys: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        """Augments a batch.

        Args:
            keys: key[B], one per example.
            image: u8[B, H, W, 3].
            mask: u8[B, H, W, C], 255 times the share of each pixel that is lesion, or of a class.
        Returns:
            image f32[B, H, W, 3] and mask f32[B, H, W, C], both in [0, 255].
        """
        return jax.vmap(self._one)(keys, image, mask)

    def _one(self, key: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        # All draws at once: every call to the generator costs compile time.
        draws = jax.random.uniform(key, (_DRAWS,))
        both = jnp.concatenate([image, mask], axis=-1).astype(jnp.float32) / 255
        both = self._geometry(draws[:7], both)
        image = self._artefacts(ON_SKIN, draws, both[..., :3])
        image = self._colour(draws[7:11], image)
        image = self._artefacts(IN_CAMERA, draws, image)
        return 255 * image, 255 * both[..., 3:]

    def _geometry(self, draws: Array, both: Array) -> Array:
        if self.right_angles:
            if both.shape[0] != both.shape[1]:
                raise ValueError("augment.right_angles needs square images")
            turns = [lambda x, k=k: pix.rot90(x, k) for k in range(4)]
            both = jax.lax.switch(jnp.int32(4 * draws[0]), turns, both)
        if self.flip:
            both = jnp.where(draws[1] < 0.5, pix.flip_left_right(both), both)
            both = jnp.where(draws[2] < 0.5, pix.flip_up_down(both), both)
        if self.rotation or self.scale or self.shift:
            both = self._affine(2 * draws[3:] - 1, both)
        return both

    def _affine(self, draws: Array, both: Array) -> Array:
        """Rotation and zoom about the centre, then a shift; borders repeat."""
        angle, zoom = jnp.deg2rad(self.rotation * draws[0]), 1 + self.scale * draws[1]
        height, width = both.shape[:2]
        cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
        # Where each output pixel comes from, in the input.
        y = jnp.arange(height)[:, None] - (height - 1) / 2 - self.shift * height * draws[2]
        x = jnp.arange(width)[None] - (width - 1) / 2 - self.shift * width * draws[3]
        y, x = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
        resample = lambda channel: map_coordinates(channel, [y, x], order=1, mode="nearest")
        return jnp.stack([resample(both[..., k]) for k in range(both.shape[-1])], axis=-1)

    def _colour(self, draws: Array, image: Array) -> Array:
        draws = 2 * draws - 1
        if self.brightness:
            image = pix.adjust_brightness(image, self.brightness * draws[0])
        if self.contrast:
            image = pix.adjust_contrast(image, 1 + self.contrast * draws[1])
        image = jnp.clip(image, 0, 1)
        if self.saturation:
            image = pix.adjust_saturation(image, 1 + self.saturation * draws[2])
        if self.hue:
            image = pix.adjust_hue(image, self.hue * draws[3])
        return jnp.clip(image, 0, 1)

    def _artefacts(self, names: Iterable[str], draws: Array, image: Array) -> Array:
        for name in names:
            if share := getattr(self, name):
                function, number = ARTEFACTS[name]
                whether, how = jnp.split(draws[_START[name] :][: 1 + number], [1])
                image = jnp.where(whether[0] < share, function(how, image), image)
        return image


def random_patch(keys: Array, image: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """The same square of image and mask, at a random place.

    Args:
        keys: key[B], one per example; what `Augmentation` draws of them is independent.
        image: u8[B, H, W, 3].
        mask: u8[B, H, W, C].
        size: S, at most H and W.
    Returns:
        u8[B, S, S, 3] and u8[B, S, S, C].
    """

    def one(key, image, mask):
        room = jnp.array(mask.shape[:2]) - size + 1
        start = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, room)
        cut = lambda x: jax.lax.dynamic_slice(x, (*start, 0), (size, size, x.shape[-1]))
        return cut(image), cut(mask)

    return jax.vmap(one)(keys, image, mask)
