"""Draws dermoscopy-like pictures with exact masks.

Everything comes from one numpy Generator. Each part of the scene (skin, shape, pigment, hair, ...)
has its own stream, so that adding hair moves no pixel of the lesion.
"""

import functools

import numpy as np
from scipy import ndimage

from segdiff_jax.data.builders.synthetic_lesions import fields, occluders
from segdiff_jax.data.builders.synthetic_lesions.lesion import draw_pigment, draw_shape

# How often each condition is drawn, independently of the others.
CONDITION_PROBABILITIES = {
    "colour_cast": 0.20,  # strong white-balance shift of the whole picture
    "dark_corners": 0.20,  # nearly black outside a round field of view
    "faint": 0.15,  # a lesion of nearly the skin's colour
    "hair": 0.35,  # dark curved hairs over lesion and skin
    "ruler": 0.15,  # tick marks of a scale along one side
}
CONDITIONS = tuple(sorted(CONDITION_PROBABILITIES))

# Fitzpatrick types I to VI as a dermatoscope shows them, in sRGB, and how often each is drawn:
# public dermoscopy archives show mostly types I to III.
_TONES = (
    (238, 219, 212),
    (220, 196, 186),
    (204, 176, 160),
    (184, 146, 118),
    (142, 102, 78),
    (98, 70, 56),
)
_TONE_PROBABILITIES = (0.30, 0.33, 0.23, 0.08, 0.04, 0.02)

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

    `seed` is anything that `numpy.random.default_rng` takes; a Generator is advanced. `size` is in
    pixels a side. The same two give the same bytes, whatever was drawn before. (A numpy release may
    change its random streams, and another processor or JAX release may round a pixel differently.)
    `conditions` are some of CONDITIONS; None draws them from CONDITION_PROBABILITIES. They change
    neither lesion shape nor mask nor skin. ValueError if one is unknown.

    Returns the image u8[size, size, 3], sRGB; the mask u8[size, size], 255 where the pigment is
    over half its presence and 0 elsewhere, which occluders do not change; the sorted conditions.
    """
    # One stream for each part. A new part comes last, so that the others keep their streams.
    seeds = np.random.default_rng(seed).integers(2**63, size=10)
    streams = map(np.random.default_rng, seeds)
    choice, skin, shape, pigment, bubbles, hair, ruler, cast, corners, camera = streams
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


def draw_skin(rng, size):
    """Draws bare skin -> f32[size, size, 3], sRGB in about [0, 255]."""
    colour = rng.choice(_TONES, p=_TONE_PROBABILITIES) * np.exp(0.07 * rng.standard_normal())
    colour = colour * np.exp(rng.uniform(-0.04, 0.04, 3))
    noise = functools.partial(fields.smooth_noise, rng, size)
    # Superficial vessels are unevenly red.
    blood = rng.uniform(0.2, 1.0) * (0.025 * noise(5) + 0.015 * noise(20))
    pigment = 0.015 * noise(8) + 0.02 * noise(44)
    # The polygonal furrows of the skin's surface, with pores where they meet.
    strength = 0.06 * rng.random() ** 2
    f1, f2 = fields.cell_distances(rng, size, rng.integers(18, 34), jitter=0.9, warp=0.5)
    furrows = np.exp(-(((f2 - f1) / 0.25) ** 2)) + 1.5 * np.exp(-((f1 / 0.12) ** 2))
    pigment = pigment + strength * furrows
    # A few small brown spots, in some images.
    f1, _ = fields.cell_distances(rng, size, 9, jitter=1.0, warp=0.2)
    sparse = fields.sigmoid(8 * (noise(9) - rng.uniform(0.9, 1.6)))
    strength = rng.uniform(0.0, 0.3) * (rng.random() < 0.4)
    pigment = pigment + strength * sparse * fields.sigmoid(16 * (0.22 - f1))
    absorbance = pigment[..., None] * (0.5, 0.9, 1.1) + blood[..., None] * (0.15, 1.0, 0.8)
    # The light leans to one side and falls off towards the corners.
    y, x = (axis - 0.5 for axis in fields.frame(size))
    slope_y, slope_x = 0.09 * rng.standard_normal(2)
    light = np.exp(slope_y * y + slope_x * x - rng.uniform(0.0, 0.45) * (y**2 + x**2))
    return (colour * np.exp(-absorbance) * light[..., None]).astype(np.float32)
