"""Draws dermoscopy-like pictures with exact masks.

Everything comes from one numpy Generator. Each part of the scene (skin, shape, pigment, hair, ...)
has a stream of its own, so that adding hair moves no pixel of the lesion.
"""

import numpy as np
from scipy import ndimage

from segdiff_jax.data.builders.synthetic_lesions import lesion, occluders, skin

# How often each condition is drawn, independently of the others:
#   colour_cast: strong white-balance shift of the whole picture.
#   dark_corners: nearly black outside a round field of view.
#   faint: a lesion of nearly the skin's colour.
#   hair: dark curved hairs over lesion and skin.
#   ruler: tick marks of a scale along one side.
CONDITION_PROBABILITIES = {
    "colour_cast": 0.20,
    "dark_corners": 0.20,
    "faint": 0.15,
    "hair": 0.35,
    "ruler": 0.15,
}
CONDITIONS = tuple(sorted(CONDITION_PROBABILITIES))

# Gains of red, green and blue.
_CASTS = np.array(
    [
        (1.15, 0.88, 0.62),  # orange
        (1.10, 0.84, 0.88),  # pink
        (0.82, 0.92, 1.24),  # blue
        (0.98, 0.90, 1.10),  # violet
        (0.99, 1.00, 0.84),  # yellow-green
    ]
)
_STREAMS = (
    "conditions",
    "skin",
    "shape",
    "pigment",
    "bubbles",
    "hair",
    "ruler",
    "cast",
    "corners",
    "camera",
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
        shape, mask and skin are the same whatever the conditions.

    Returns:
      image: u8[size, size, 3], sRGB.
      mask: u8[size, size], 255 where the pigment is over half its presence and 0 elsewhere;
        occluders do not change it.
      conditions: sorted tuple of str, those drawn.

    Raises:
      ValueError: if a condition is unknown.
    """
    streams = _spawn(np.random.default_rng(seed))
    conditions = _choose_conditions(streams["conditions"], conditions)
    mask, depth = lesion.draw_shape(streams["shape"], size)
    absorbance = lesion.draw_pigment(streams["pigment"], depth, faint="faint" in conditions)
    image = skin.draw_skin(streams["skin"], size) * np.exp(-absorbance)
    if streams["bubbles"].random() < 0.15:
        image = occluders.add_bubbles(streams["bubbles"], image)
    if "hair" in conditions:
        image = occluders.add_hair(streams["hair"], image)
    if "ruler" in conditions:
        image = occluders.add_ruler(streams["ruler"], image)
    if "colour_cast" in conditions:
        image = image * _draw_cast(streams["cast"])
    camera = streams["camera"]
    blur = camera.uniform(0.0, 0.0035) * size
    image = ndimage.gaussian_filter(image, (blur, blur, 0))
    image = image + camera.uniform(0.8, 3.0) * camera.standard_normal(image.shape)
    if "dark_corners" in conditions:
        image = occluders.add_dark_corners(streams["corners"], image, mask)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, mask.astype(np.uint8) * np.uint8(255), conditions


def _spawn(rng):
    """One independent Generator for each part of the scene."""
    seeds = rng.integers(2**63, size=len(_STREAMS))
    return {name: np.random.default_rng(seed) for name, seed in zip(_STREAMS, seeds, strict=True)}


def _choose_conditions(rng, conditions):
    """The given conditions, checked and sorted; or, for None, those drawn."""
    drawn = rng.random(len(CONDITIONS))
    if conditions is None:
        return tuple(
            name
            for name, value in zip(CONDITIONS, drawn, strict=True)
            if value < CONDITION_PROBABILITIES[name]
        )
    unknown = sorted(set(conditions) - set(CONDITIONS))
    if unknown:
        raise ValueError(f"conditions: {unknown} not among {CONDITIONS}.")
    return tuple(sorted(set(conditions)))


def _draw_cast(rng):
    """Gains f64[3] of a strong white-balance shift."""
    return _CASTS[rng.integers(len(_CASTS))] * np.exp(0.03 * rng.standard_normal(3))
