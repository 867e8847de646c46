"""What lies between the skin and the viewer: hair, rulers, bubbles, and the edge of the optics.

Hair, rulers and dark corners are artefacts that augmentation draws, too. `rng` is a numpy
Generator, and images are f32[H, W, 3], sRGB in about [0, 255].
"""

import jax
import numpy as np

from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.builders.synthetic_lesions import fields


def add_hair(rng, image):
    """Draws dark curved hairs over lesion and skin."""
    draws = rng.random(ARTEFACTS["hair"].draws, dtype=np.float32)
    draws[0] = np.sqrt(0.2 + 0.8 * draws[0])  # 4 to 16 hairs
    draws[4] *= 0.8  # never pale
    return _add("hair", draws, image)


def add_ruler(rng, image):
    """Draws a row of tick marks along one side."""
    draws = rng.random(ARTEFACTS["ruler"].draws, dtype=np.float32)
    draws[0] = (rng.integers(4) + 0.2 * (draws[0] - 0.5)) / 4  # within 9 degrees of one side
    draws[1] *= 0.7  # not so close to it that the ticks leave the picture
    return _add("ruler", draws, image)


def add_bubbles(rng, image):
    """Draws air bubbles of the immersion fluid: thin rings, bright on one side; and glints."""
    y, x = fields.frame(len(image))
    light = np.zeros_like(y)
    for _ in range(rng.integers(2, 9)):
        centre_y, centre_x = rng.uniform(0, 1, 2)
        radius = rng.uniform(0.008, 0.035)
        towards = rng.uniform(0, 2 * np.pi)
        dy, dx = y - centre_y, x - centre_x
        ring = np.exp(-(((np.hypot(dy, dx) - radius) / 0.005) ** 2))
        facing = np.cos(np.arctan2(dy, dx) - towards)
        light = light + ring * (8 + 30 * facing)
    return image + light[..., None]


def add_dark_corners(rng, image, mask):
    """Darkens what lies outside a round field of view.

    The field grows until three quarters of the lesion, `mask` bool[H, W], keep half their light.
    """
    draws = rng.random(ARTEFACTS["vignette"].draws, dtype=np.float32)
    draws[[2, 4, 5]] *= 0.6  # a small field with a sharp edge, and dark corners
    draws[3] = (1 + draws[3]) / 2  # a circle, or tall: a wide photograph, squeezed
    while True:
        light = _add("vignette", draws, np.full_like(image, 255)) / 255
        if np.quantile(light[mask], 0.25) > 0.5:
            return image * light
        draws[2] += 0.1  # the radius grows with it


def _add(name, draws, image):
    return 255 * np.asarray(jax.jit(ARTEFACTS[name].function)(draws, image / 255))
