"""The lesion: an irregular closed shape, and the pigment in it.

`rng` is a numpy Generator, and `size` is in pixels a side.
"""

import numpy as np
from scipy import ndimage

from segdiff_jax.data.builders.synthetic_lesions import fields

# Absorbance (red, green, blue) of one unit of pigment. Light that passes a layer of density d keeps
# exp(-d * absorbance) of itself (Beer-Lambert), so more pigment is darker and browner at once.
_BROWN = (0.32, 0.74, 0.94)
_GOLDEN = (0.16, 0.58, 1.24)
_BLACK = (0.62, 0.82, 0.92)
_RED = (0.15, 0.72, 0.68)
_BLUE_GREY = (0.88, 0.76, 0.60)


def draw_shape(rng, size, area=None, centre=None):
    """Draws one irregular closed shape without holes -> (mask, depth).

    A Fourier series gives the radius, and smooth noise frays the outline. A quantile of the field
    then sets the area, which is drawn: 2% to 70% of the frame, 27% on average. `area`, the share of
    the frame, and `centre`, (y, x) from 0 to 1, are drawn if they are None. `mask` bool and `depth`
    f32 are [size, size]; depth is the distance to the outline in frame sides, > 0 inside.
    """
    drawn_area = 0.022 + 0.678 * rng.beta(1.15, 2.0)
    drawn_centre = 0.5 + np.clip(0.05 * rng.standard_normal(2), -0.12, 0.12)
    area = drawn_area if area is None else area
    centre_y, centre_x = drawn_centre if centre is None else centre
    angle = rng.uniform(0, np.pi)
    stretch = np.exp(0.2 * rng.standard_normal())
    y, x = fields.frame(size)
    y, x = y - centre_y, x - centre_x
    along = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    across = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    theta = np.arctan2(across, along)

    irregular = rng.uniform(0.25, 1.0)
    log_radius = 0.0
    for order in range(1, 9):
        amplitude = (0.08 if order == 1 else 0.2 / order**1.1) * irregular * rng.standard_normal()
        log_radius = log_radius + amplitude * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    diameter = 2 * np.sqrt(area / np.pi)
    frayed = rng.uniform(0.15, 1.0)
    for cells, amplitude in ((5, 0.11), (11, 0.075), (24, 0.045)):
        noise = fields.smooth_noise(rng, size, min(64, round(cells / diameter)))
        log_radius = log_radius + frayed * amplitude * noise
    level = np.log(np.hypot(along, across) + 1e-4) - log_radius
    return _one_piece(level < np.quantile(level, area))


def _one_piece(mask):
    """The largest connected part of a mask, its holes filled, and its signed distance."""
    labels, count = ndimage.label(mask)
    if count > 1:
        mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask = ndimage.binary_fill_holes(mask)
    distance = ndimage.distance_transform_edt
    depth = np.where(mask, distance(mask) - 0.5, 0.5 - distance(~mask)) / len(mask)
    return mask, depth.astype(np.float32)


def draw_presence(rng, depth):
    """Draws how pigment fades across the outline: sharply in some lesions, slowly in others.

    Returns f32[H, W] in [0, 1]: one half on the outline, more inside and less outside.
    """
    size = len(depth)
    width = 0.012 + 0.2 * depth.max() * rng.random() ** 2
    width = width * np.exp(0.5 * fields.smooth_noise(rng, size, 4))
    return fields.sigmoid(2 * depth / np.maximum(width, 0.5 / size))


def draw_pigment(rng, depth, faint, presence=None):
    """Draws the absorbance f32[H, W, 3] of a lesion: the image is skin * exp(-absorbance).

    What varies inside (network, globules, blotches, regression, blue-grey areas) multiplies the
    presence of pigment. `depth` is from `draw_shape`. A `faint` lesion has a colour close to the
    skin's; the draws from `rng` are the same for both. `presence` is from `draw_presence` if None.
    If it is given, the picture shows it: no pigment is lighter in the middle or in large areas.
    """
    size, shown = len(depth), presence is not None
    presence = presence if shown else draw_presence(rng, depth)
    density = np.clip(0.78 * np.exp(0.45 * rng.standard_normal()), 0.35, 2.0)
    faint_density = rng.uniform(0.13, 0.22)
    relative = np.clip(depth / depth.max(), 0, 1)
    large = rng.uniform(-0.2, 0.9) * (relative - 0.4)
    noises = [
        strength * rng.uniform(0.3, 1.1) * fields.smooth_noise(rng, size, cells)
        for cells, strength in ((rng.integers(3, 7), 0.3), (12, 0.2), (26, 0.18), (50, 0.15))
    ]
    variation = sum(noises[1:]) if shown else sum(noises, large)
    for pattern, probability in _PATTERNS.items():
        if rng.random() < probability:
            variation = variation + rng.uniform(0.4, 1.0) * pattern(rng, size, relative)
    regression = 0 if shown else _patch(rng, size, probability=0.25)
    amount = presence * np.exp(np.clip(variation, -1.0, 1.1)) * (1 - 0.7 * regression)
    amount = amount / amount[depth > 0].mean()

    colour = _mix(_BROWN, _GOLDEN, rng.uniform(0, 1))
    colour = _mix(colour, _BLACK, np.clip(rng.normal(0.4 * density - 0.15, 0.15), 0, 1))
    redness = rng.uniform(0.0, 0.12) if rng.random() < 0.9 else rng.uniform(0.4, 1.0)
    colour = _mix(colour, _RED, redness)
    blue = 0.8 * _patch(rng, size, probability=0.2) * fields.sigmoid(12 * (relative - 0.3))
    colour = _mix(colour, _BLUE_GREY, blue[..., None])
    return ((faint_density if faint else density) * amount)[..., None].astype(np.float32) * colour


def _network(rng, size, relative):
    """Pigment network: a dark honeycomb, strongest between centre and rim."""
    f1, f2 = fields.cell_distances(rng, size, rng.integers(20, 32), jitter=0.7, warp=0.4)
    lines = np.exp(-(((f2 - f1) / 0.3) ** 2)) - 0.4
    where = fields.sigmoid(3 * fields.smooth_noise(rng, size, 4) + 1)
    return 0.7 * lines * where * (1 - 0.6 * relative)


def _globules(rng, size, relative):
    """Dark round clods, denser where a slow noise is high."""
    f1, _ = fields.cell_distances(rng, size, rng.integers(14, 30), jitter=0.9)
    where = fields.sigmoid(3 * fields.smooth_noise(rng, size, 4) + 1)
    return 0.9 * fields.sigmoid(14 * (0.3 - f1)) * where


def _cobblestones(rng, size, relative):
    """Light furrows between large clods."""
    f1, f2 = fields.cell_distances(rng, size, rng.integers(9, 16), jitter=0.9, warp=0.3)
    return -0.4 * np.exp(-(((f2 - f1) / 0.2) ** 2)) + 0.15


def _blotches(rng, size, relative):
    """Large dark areas of no structure."""
    noise = fields.smooth_noise(rng, size, rng.integers(4, 8))
    noise = noise + 0.3 * fields.smooth_noise(rng, size, 20)
    return fields.sigmoid(6 * (noise - 0.6)) * fields.sigmoid(14 * (relative - 0.15))


def _patch(rng, size, probability):
    """One or a few soft patches in [0, 1], or none."""
    noise = fields.smooth_noise(rng, size, 4) + 0.35 * fields.smooth_noise(rng, size, 16)
    return fields.sigmoid(5 * (noise - 0.3)) * (rng.random() < probability)


def _mix(first, second, weight):
    """Linear blend of two colours; weight 0 gives the first."""
    return np.asarray(first) * (1 - weight) + np.asarray(second) * weight


_PATTERNS = {_network: 0.4, _globules: 0.4, _cobblestones: 0.12, _blotches: 0.5}
