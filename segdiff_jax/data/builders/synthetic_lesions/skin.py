"""The skin around the lesion, and the light on it.

`rng` is a numpy Generator, and `size` is in pixels a side.
"""

import functools

import numpy as np

from segdiff_jax.data.builders.synthetic_lesions import fields

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


def draw_skin(rng, size):
    """Draws bare skin -> f32[size, size, 3], sRGB in about [0, 255]."""
    colour = rng.choice(_TONES, p=_TONE_PROBABILITIES) * np.exp(0.07 * rng.standard_normal())
    colour = colour * np.exp(rng.uniform(-0.04, 0.04, 3))
    noise = functools.partial(fields.smooth_noise, rng, size)
    # Superficial vessels are unevenly red.
    blood = rng.uniform(0.2, 1.0) * (0.025 * noise(5) + 0.015 * noise(20))
    pigment = 0.015 * noise(8) + 0.02 * noise(44)
    pigment = pigment + 0.06 * rng.random() ** 2 * _furrows(rng, size)
    # A few small brown spots, in some images.
    f1, _ = fields.cell_distances(rng, size, 9, jitter=1.0, warp=0.2)
    sparse = fields.sigmoid(8 * (noise(9) - rng.uniform(0.9, 1.6)))
    freckles = (
        rng.uniform(0.0, 0.3) * (rng.random() < 0.4) * sparse * fields.sigmoid(16 * (0.22 - f1))
    )
    absorbance = (pigment + freckles)[..., None] * (0.5, 0.9, 1.1) + blood[..., None] * (
        0.15,
        1.0,
        0.8,
    )
    # The light leans to one side and falls off towards the corners.
    y, x = (axis - 0.5 for axis in fields.frame(size))
    slope_y, slope_x = 0.09 * rng.standard_normal(2)
    light = np.exp(slope_y * y + slope_x * x - rng.uniform(0.0, 0.45) * (y**2 + x**2))
    return (colour * np.exp(-absorbance) * light[..., None]).astype(np.float32)


def _furrows(rng, size):
    """The polygonal lines of the skin's surface, with pores where they meet."""
    f1, f2 = fields.cell_distances(rng, size, rng.integers(18, 34), jitter=0.9, warp=0.5)
    return np.exp(-(((f2 - f1) / 0.25) ** 2)) + 1.5 * np.exp(-((f1 / 0.12) ** 2))
