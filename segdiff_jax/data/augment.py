"""On-device augmentation, jitted with the training step.

Image and mask move together, and colour and artefacts change the image alone. An example's key
determines all its draws.
"""

from collections.abc import Mapping

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.data.artefacts import ARTEFACTS


def augment(strengths: Mapping, keys: Array, image: Array, mask: Array) -> tuple[Array, Array]:
    """Augments a batch: u8[B, H, W, 3] and u8[B, H, W, C] become f32 in [0, 255].

    `strengths` are all fields of the section `augment` of a config; 0 or False turns one off.
    `keys` are key[B]. Masks hold 255 times each pixel's share of the lesion, or of a class. If
    images are not square, `right_angles` raises a ValueError.
    """
    # All draws at once: every call to the generator costs compile time. An artefact takes one
    # more draw, its first, which decides whether the image gets it.
    sizes = [7, 4, *(1 + artefact.draws for artefact in ARTEFACTS.values())]

    def one(key, image, mask):
        draws = jax.random.uniform(key, (sum(sizes),))
        geometry, colour, *rest = jnp.split(draws, np.cumsum(sizes)[:-1])
        rest = dict(zip(ARTEFACTS, rest, strict=True))
        both = jnp.concatenate([image, mask], axis=-1).astype(jnp.float32) / 255
        both = _change_geometry(strengths, geometry, both)
        image = _add_artefacts(strengths, rest, both[..., :3], on_skin=True)
        image = _change_colour(strengths, colour, image)
        image = _add_artefacts(strengths, rest, image, on_skin=False)
        return 255 * image, 255 * both[..., 3:]

    return jax.vmap(one)(keys, image, mask)


def _change_geometry(strengths: Mapping, draws: Array, both: Array) -> Array:
    height, width = both.shape[:2]
    if strengths["right_angles"]:
        if height != width:
            raise ValueError("augment.right_angles needs square images")
        turns = [lambda x, k=k: jnp.rot90(x, k) for k in range(4)]
        both = jax.lax.switch(jnp.int32(4 * draws[0]), turns, both)
    if strengths["flip"]:
        both = jnp.where(draws[1] < 0.5, jnp.fliplr(both), both)
        both = jnp.where(draws[2] < 0.5, jnp.flipud(both), both)
    rotation, scale, shift = (strengths[name] for name in ("rotation", "scale", "shift"))
    if not (rotation or scale or shift):
        return both
    # Rotation and zoom about the centre, then a shift; borders repeat.
    draws = 2 * draws[3:] - 1
    angle, zoom = jnp.deg2rad(rotation * draws[0]), 1 + scale * draws[1]
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    # Where each output pixel comes from, in the input.
    y = jnp.arange(height)[:, None] - (height - 1) / 2 - shift * height * draws[2]
    x = jnp.arange(width)[None] - (width - 1) / 2 - shift * width * draws[3]
    y, x = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    return _bilinear(both, y, x)


def _bilinear(image: Array, y: Array, x: Array) -> Array:
    """What lies at row y and column x: f32[H, W, C], f32[h, w] twice -> f32[h, w, C].

    On CPU five times as fast as `map_coordinates`, which reads one channel at a time.
    """
    last = image.shape[0] - 1, image.shape[1] - 1
    y, x = jnp.clip(y, 0, last[0]), jnp.clip(x, 0, last[1])
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    rows = top.astype(int), jnp.minimum(top.astype(int) + 1, last[0])
    columns = left.astype(int), jnp.minimum(left.astype(int) + 1, last[1])
    upper, lower = (
        (1 - right) * image[row, columns[0]] + right * image[row, columns[1]] for row in rows
    )
    return (1 - down) * upper + down * lower


def _change_colour(strengths: Mapping, draws: Array, image: Array) -> Array:
    draws = 2 * draws - 1
    if strengths["brightness"]:
        image = image + strengths["brightness"] * draws[0]
    if strengths["contrast"]:
        image = pix.adjust_contrast(image, 1 + strengths["contrast"] * draws[1])
    image = jnp.clip(image, 0, 1)
    if strengths["saturation"]:
        image = pix.adjust_saturation(image, 1 + strengths["saturation"] * draws[2])
    if strengths["hue"]:
        image = pix.adjust_hue(image, strengths["hue"] * draws[3])
    return jnp.clip(image, 0, 1)


def _add_artefacts(shares: Mapping, draws: Mapping, image: Array, on_skin: bool) -> Array:
    for name, artefact in sorted(ARTEFACTS.items(), key=lambda item: item[1].order):
        if shares[name] and (artefact.order < 0) == on_skin:
            whether, how = jnp.split(draws[name], [1])
            image = jnp.where(whether[0] < shares[name], artefact.function(how, image), image)
    return image


def random_patch(keys: Array, image: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Cuts the same square out of u8[B, H, W, 3] and u8[B, H, W, C], `size` pixels a side.

    Its place is drawn with key[B]; `augment` may take the same keys, because its draws differ.
    """

    def one(key, image, mask):
        room = jnp.array(mask.shape[:2]) - size + 1
        start = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, room)
        cut = lambda x: jax.lax.dynamic_slice(x, (*start, 0), (size, size, x.shape[-1]))
        return cut(image), cut(mask)

    return jax.vmap(one)(keys, image, mask)
