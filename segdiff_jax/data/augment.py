"""On-device augmentation, jitted with the training step.

Geometry is shared by image and mask, since it is applied to both as one four-channel array;
colour changes the image alone. Every draw follows from the example's own key.
"""

import dataclasses

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax import Array


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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"augment.{field.name}={getattr(self, field.name)} is negative")
        for name in ("scale", "contrast", "saturation"):
            if getattr(self, name) >= 1:
                raise ValueError(f"augment.{name}={getattr(self, name)} must be below 1")

    def __call__(self, keys: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        """Augments a batch.

        Args:
            keys: key[B], one per example.
            image: u8[B, H, W, 3].
            mask: u8[B, H, W, 1], 0 or 255.
        Returns:
            image f32[B, H, W, 3] in [0, 255] and mask u8[B, H, W, 1], 0 or 255.
        """
        return jax.vmap(self._one)(keys, image, mask)

    def _one(self, key: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        geometry_key, colour_key = jax.random.split(key)
        both = jnp.concatenate([image, mask], axis=-1).astype(jnp.float32) / 255
        both = self._geometry(geometry_key, both)
        image, mask = both[..., :3], both[..., 3:]
        return self._colour(colour_key, image) * 255, jnp.where(mask > 0.5, 255, 0).astype(
            jnp.uint8
        )

    def _geometry(self, key: Array, both: Array) -> Array:
        keys = jax.random.split(key, 6)
        if self.right_angles:
            if both.shape[0] != both.shape[1]:
                raise ValueError("augment.right_angles needs square images")
            turns = [lambda x, k=k: pix.rot90(x, k) for k in range(4)]
            both = jax.lax.switch(jax.random.randint(keys[0], (), 0, 4), turns, both)
        if self.flip:
            both = pix.random_flip_left_right(keys[1], both)
            both = pix.random_flip_up_down(keys[2], both)
        if self.rotation or self.scale or self.shift:
            both = self._affine(keys[3:], both)
        return both

    def _affine(self, keys: Array, both: Array) -> Array:
        """Rotation and zoom about the centre, then a shift; borders repeat."""
        degrees = jax.random.uniform(keys[0], (), minval=-self.rotation, maxval=self.rotation)
        zoom = jax.random.uniform(keys[1], (), minval=1 - self.scale, maxval=1 + self.scale)
        size = jnp.array(both.shape[:2], jnp.float32)
        shift = jax.random.uniform(keys[2], (2,), minval=-self.shift, maxval=self.shift) * size
        cos, sin = jnp.cos(jnp.deg2rad(degrees)) / zoom, jnp.sin(jnp.deg2rad(degrees)) / zoom
        # Maps output positions to input positions; the third axis, the channels, stays.
        matrix = jnp.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        centre = (size - 1) / 2
        offset = jnp.append(centre - matrix[:2, :2] @ (centre + shift), 0.0)
        return pix.affine_transform(both, matrix, offset=offset, mode="nearest")

    def _colour(self, key: Array, image: Array) -> Array:
        keys = jax.random.split(key, 4)
        if self.brightness:
            image = pix.random_brightness(keys[0], image, self.brightness)
        if self.contrast:
            image = pix.random_contrast(
                keys[1], image, lower=1 - self.contrast, upper=1 + self.contrast
            )
        image = jnp.clip(image, 0, 1)
        if self.saturation:
            image = pix.random_saturation(
                keys[2], image, lower=1 - self.saturation, upper=1 + self.saturation
            )
        if self.hue:
            image = pix.random_hue(keys[3], image, max_delta=self.hue)
        return jnp.clip(image, 0, 1)
