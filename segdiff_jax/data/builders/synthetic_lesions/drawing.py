"""Draws dermoscopy-like pictures with exact masks.

Everything comes from one numpy Generator. Each part of the scene (skin, shape, pigment, hair, ...)
has its own stream, so that adding hair moves no pixel of the lesion.
"""

import numpy as np
from scipy import ndimage

from segdiff_jax.data.builders.synthetic_lesions import occluders
from segdiff_jax.data.builders.synthetic_lesions.lesion import draw_pigment, draw_shape
from segdiff_jax.data.builders.synthetic_lesions.skin import draw_skin

# How often each condition is drawn, independently of the others.
CONDITION_PROBABILITIES = {
    "colour_cast": 0.20,  # strong white-balance shift of the whole picture
    "dark_corners": 0.20,  # nearly black outside a round field of view
    "faint": 0.15,  # a lesion of nearly the skin's colour
    "hair": 0.35,  # dark curved hairs over lesion and skin
    "ruler": 0.15,  # tick marks of a scale along one side
}
CONDITIONS = tuple(sorted(CONDITION_PROBABILITIES))

# Gains of red, green and blue.
_CASTS = (
    (1.15, 0.88, 0.62),  # orange
    (1.10, 0.84, 0.88),  # pink
    (0.82, 0.92, 1.24),  # blue
    (0.98, 0.90, 1.10),  # violet
    (0.99, 1.00, 0.84),  # yellow-green
)


def draw(seed, size, conditions=None):
    """Draws one picture of a skin lesion and its exact mask.

    The same seed and size give the same bytes, whatever was drawn before. (A numpy release may
    change its random streams, and another processor or JAX release may round a pixel differently.)

    Args:
      seed: anything `numpy.random.default_rng` takes: an int, a tuple of ints such as (seed,
        index), or a Generator, which is advanced.
      size: int, pixels a side.
      conditions: which of CONDITIONS to draw; None draws them from CONDITION_PROBABILITIES. Lesion
        shape, mask and skin are the same whatever the conditions. ValueError if one is unknown.

    Returns:
      image: u8[size, size, 3], sRGB.
      mask: u8[size, size], 255 where the pigment is over half its presence and 0 elsewhere;
        occluders do not change it.
      conditions: sorted tuple of str, those drawn.
    """
    # One stream for each part. A new part comes last, so that the others keep their streams.
    seeds = np.random.default_rng(seed).integers(2**63, size=10)
    choice, skin, shape, pigment, bubbles, hair, ruler, cast, corners, camera = map(
        np.random.default_rng, seeds
    )
    conditions = _choose_conditions(choice, conditions)
    mask, depth = draw_shape(shape, size)
    absorbance = draw_pigment(pigment, depth, faint="faint" in conditions)
    image = draw_skin(skin, size) * np.exp(-absorbance)
    if bubbles.random() < 0.15:
        image = occluders.add_bubbles(bubbles, image)
    if "hair" in conditions:
        image = occluders.add_hair(hair, image)
    if "ruler" in conditions:
        image = occluders.add_ruler(ruler, image)
    if "colour_cast" in conditions:
        image = image * (cast.choice(_CASTS) * np.exp(0.03 * cast.standard_normal(3)))
    blur = camera.uniform(0.0, 0.0035) * size
    image = ndimage.gaussian_filter(image, (blur, blur, 0))
    image = image + camera.uniform(0.8, 3.0) * camera.standard_normal(image.shape)
    if "dark_corners" in conditions:
        image = occluders.add_dark_corners(corners, image, mask)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, mask.astype(np.uint8) * np.uint8(255), conditions


def _choose_conditions(rng, conditions):
    """The given conditions, checked and sorted, or drawn ones if they are None."""
    if conditions is None:
        return tuple(c for c in CONDITIONS if rng.random() < CONDITION_PROBABILITIES[c])
    unknown = sorted(set(conditions) - set(CONDITIONS))
    if unknown:
        raise ValueError(f"conditions: {unknown} not among {CONDITIONS}.")
    return tuple(sorted(set(conditions)))
