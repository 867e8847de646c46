"""Views: an image turned by right angles and mirrored, so that samples see it differently."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

# Quarter turns, then the axes along which the image is mirrored.
View = tuple[int, tuple[int, ...]]
FLIPS = (), (1,), (0,), (0, 1)


def make_views(flips: bool, rotations: bool) -> tuple[View, ...]:
    """The views of `sampler.flips` and `sampler.rotations`; the first is the image as it is."""
    if rotations:
        axes = FLIPS if flips else (FLIPS[0], FLIPS[3])  # Two right angles are both mirrorings.
        return tuple((turns, mirrored) for mirrored in axes for turns in (0, 1))
    return tuple((0, mirrored) for mirrored in (FLIPS if flips else FLIPS[:1]))


def to_views(images: Array, views: Sequence[View]) -> Array:
    """[B, S, S, ...] -> [B * F, S, S, ...], each image as each of F views shows it."""
    see = lambda image: [jnp.flip(jnp.rot90(image, turns), axes) for turns, axes in views]
    return jax.vmap(lambda image: jnp.stack(see(image)))(images).reshape(-1, *images.shape[1:])


def of_samples(features: Array, which: Array) -> Array:
    """[B, F, ...] of each view and i32[B, V], the view of each sample -> [B * V, ...]."""
    seen = jax.vmap(lambda of_image, views: of_image[views])(features, which)
    return seen.reshape(-1, *seen.shape[2:])


def from_views(masks: Array, views: Sequence[View], which: Array, stride: int = 1) -> Array:
    """Masks of the views i32[B, V] as the images lie, enlarged by interpolation.

    f32[B * V, S, S, C] -> f32[B, V, stride S, stride S, C].
    """
    masks = masks.reshape(*which.shape, *masks.shape[1:])
    if len(views) > 1:
        back = [lambda mask, k=k, a=a: jnp.rot90(jnp.flip(mask, a), -k) for k, a in views]
        turn = lambda mask, view: jax.lax.switch(view, back, mask)
        masks = jax.vmap(jax.vmap(turn))(masks, which)
    if stride == 1:
        return masks
    size = [stride * side for side in masks.shape[2:4]]
    return jax.image.resize(masks, (*masks.shape[:2], *size, masks.shape[-1]), "linear")
