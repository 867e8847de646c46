"""On-device augmentation, jitted with the training step.

Image and mask move together, as one array; colour and artefacts change the image alone. The key of
an example determines all its draws.
"""

import dataclasses
from collections.abc import Mapping

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates

from segdiff_jax.data.artefacts import ARTEFACTS


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
        artefacts: (name, share) pairs: what share of the images gets this one of
            `artefacts.ARTEFACTS`.
    Raises:
        ValueError: names the field, as augment.FIELD, if a strength or share is out of range or
            an artefact is unknown.
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
    artefacts: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        for name, value in vars(self).items():
            if name != "artefacts" and value < 0:
                raise ValueError(f"augment.{name}={value} is negative")
            if name in ("scale", "contrast", "saturation") and value >= 1:
                raise ValueError(f"augment.{name}={value} must be below 1")
        for name, share in self.artefacts:
            if name not in ARTEFACTS:
                known = ", ".join(ARTEFACTS)
                raise ValueError(f"augment.{name} is unknown; the artefacts are {known}")
            if not 0 <= share <= 1:
                raise ValueError(f"augment.{name}={share} must be from 0 to 1")

    def __call__(self, keys: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        """Augments a batch.

        Args:
            keys: key[B], one per example.
            image: u8[B, H, W, 3].
            mask: u8[B, H, W, C], 255 times each pixel's share of the lesion, or of a class.
        Returns:
            image f32[B, H, W, 3] and mask f32[B, H, W, C], both in [0, 255].
        """
        return jax.vmap(self._one)(keys, image, mask)

    def _one(self, key: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        # All draws at once: every call to the generator costs compile time. An artefact takes one
        # more draw, its first, which decides whether the image gets it.
        sizes = [7, 4, *(1 + artefact.draws for artefact in ARTEFACTS.values())]
        draws = jax.random.uniform(key, (sum(sizes),))
        geometry, colour, *rest = jnp.split(draws, np.cumsum(sizes)[:-1])
        rest = dict(zip(ARTEFACTS, rest, strict=True))
        both = jnp.concatenate([image, mask], axis=-1).astype(jnp.float32) / 255
        both = self._geometry(geometry, both)
        image = self._artefacts(rest, both[..., :3], on_skin=True)
        image = self._colour(colour, image)
        image = self._artefacts(rest, image, on_skin=False)
        return 255 * image, 255 * both[..., 3:]

    def _geometry(self, draws: Array, both: Array) -> Array:
        if self.right_angles:
            if both.shape[0] != both.shape[1]:
                raise ValueError("augment.right_angles needs square images")
            turns = [lambda x, k=k: jnp.rot90(x, k) for k in range(4)]
            both = jax.lax.switch(jnp.int32(4 * draws[0]), turns, both)
        if self.flip:
            both = jnp.where(draws[1] < 0.5, jnp.fliplr(both), both)
            both = jnp.where(draws[2] < 0.5, jnp.flipud(both), both)
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
            image = image + self.brightness * draws[0]
        if self.contrast:
            image = pix.adjust_contrast(image, 1 + self.contrast * draws[1])
        image = jnp.clip(image, 0, 1)
        if self.saturation:
            image = pix.adjust_saturation(image, 1 + self.saturation * draws[2])
        if self.hue:
            image = pix.adjust_hue(image, self.hue * draws[3])
        return jnp.clip(image, 0, 1)

    def _artefacts(self, draws: dict[str, Array], image: Array, on_skin: bool) -> Array:
        for name, share in sorted(self.artefacts, key=lambda pair: ARTEFACTS[pair[0]].order):
            function, _, order, _ = ARTEFACTS[name]
            if share and (order < 0) == on_skin:
                whether, how = jnp.split(draws[name], [1])
                image = jnp.where(whether[0] < share, function(how, image), image)
        return image


def make_augmentation(fields: Mapping[str, float]) -> Augmentation:
    """The augmentation that the section `config.augment` describes.

    Args:
        fields: values by name: fields of `Augmentation`, and shares of artefacts.
    Raises:
        ValueError: see `Augmentation`.
    """
    own = {field.name for field in dataclasses.fields(Augmentation)} - {"artefacts"}
    strengths = {name: value for name, value in fields.items() if name in own}
    shares = tuple((name, value) for name, value in fields.items() if name not in own)
    return Augmentation(**strengths, artefacts=shares)


def random_patch(keys: Array, image: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Cuts the same square out of image and mask, at a random place.

    Args:
        keys: key[B], one per example. `Augmentation` may take the same keys: its draws differ.
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
