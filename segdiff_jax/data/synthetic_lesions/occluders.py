"""What lies between the skin and the viewer: hair, rulers, bubbles, and the edge of the optics."""

import numpy as np
from PIL import Image, ImageDraw

from segdiff_jax.data.synthetic_lesions import fields

_SUPERSAMPLING = 4
_VISIBLE_LESION = 0.75


def add_hair(rng, image):
    """Draws dark curved hairs over lesion and skin alike.

    Args:
      rng: numpy Generator.
      image: f32[H, W, 3], sRGB.

    Returns:
      f32[H, W, 3].
    """
    size = len(image)
    count = round(np.exp(rng.uniform(np.log(4), np.log(45))))
    thickness = rng.uniform(0.003, 0.010)
    direction, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.2)
    colour = np.array((38, 28, 26)) + rng.uniform(0, 45) * np.array((1.0, 0.75, 0.6))
    canvas = _Canvas(size)
    for _ in range(count):
        length = rng.uniform(0.3, 1.4)
        angle = direction + spread * rng.standard_normal()
        turn = rng.normal(0, 1.0)
        steps = np.linspace(-0.5, 0.5, 18)
        heading = angle + turn * steps + rng.normal(0, 0.5) * steps**2
        path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], 1), axis=0) * length / 18
        path = path - path.mean(0) + rng.uniform(-0.05, 1.05, 2)
        canvas.line(path, thickness * rng.uniform(0.6, 1.3), opacity=rng.uniform(0.6, 1.0))
    return _cover(image, canvas.opacity() * rng.uniform(0.75, 0.98), colour)


def add_ruler(rng, image):
    """Draws the tick marks of a scale along or across one edge.

    Args:
      rng: numpy Generator.
      image: f32[H, W, 3], sRGB.

    Returns:
      f32[H, W, 3].
    """
    size = len(image)
    spacing = rng.uniform(0.022, 0.05)
    tick = rng.uniform(0.02, 0.045)
    thickness = rng.uniform(0.004, 0.007)
    offset = rng.uniform(0.02, 0.12)
    tilt = rng.normal(0, 0.12)
    side = rng.integers(4)
    start, stop = np.sort(rng.uniform(-0.1, 1.1, 2)) if rng.random() < 0.4 else (-0.1, 1.1)
    stop = max(stop, start + 0.4)
    every = rng.choice((5, 10))
    baseline, printed = rng.random() < 0.5, rng.random() < 0.25
    opacity = rng.uniform(0.65, 0.95)
    strip_colour = rng.uniform(200, 245) * np.array((1.0, 0.99, 0.97))

    canvas, strip = _Canvas(size), _Canvas(size)

    def place(along, across):
        """From (along the edge, away from it) to (y, x) in the frame."""
        y = offset + across + np.tan(tilt) * (along - 0.5)
        corners = ((y, along), (1 - y, along), (along, y), (along, 1 - y))
        return corners[side]

    if printed:
        strip.line([place(start, -0.5), place(stop, -0.5)], 1.0 + 2.6 * tick, opacity=1.0)
        image = _cover(image, strip.opacity() * 0.85, strip_colour)
    if baseline:
        canvas.line([place(start, 0.0), place(stop, 0.0)], thickness, opacity=1.0)
    for number, along in enumerate(np.arange(start, stop, spacing)):
        height = tick * (1.7 if number % every == 0 else 1.0)
        canvas.line([place(along, 0.0), place(along, height)], thickness, opacity=1.0)
    return _cover(image, canvas.opacity() * opacity, np.array((30, 28, 30)))


def add_bubbles(rng, image):
    """Draws air bubbles of the immersion fluid: thin rings, bright on one side; and glints.

    Args:
      rng: numpy Generator.
      image: f32[H, W, 3], sRGB.

    Returns:
      f32[H, W, 3].
    """
    y, x = fields.frame(len(image))
    light = np.zeros_like(y)
    for _ in range(rng.integers(2, 9)):
        centre_y, centre_x = rng.uniform(0, 1, 2)
        radius = rng.uniform(0.008, 0.035)
        towards = rng.uniform(0, 2 * np.pi)
        dy, dx = y - centre_y, x - centre_x
        distance = np.hypot(dy, dx)
        ring = np.exp(-(((distance - radius) / 0.005) ** 2))
        facing = np.cos(np.arctan2(dy, dx) - towards)
        light = light + ring * (8 + 30 * facing)
    return image + light[..., None]


def add_dark_corners(rng, image, mask):
    """Blackens what lies outside a round field of view.

    The field is an ellipse when a wide photograph was squeezed to a square. It is widened, where
    need be, until it shows at least three quarters of the lesion.

    Args:
      rng: numpy Generator.
      image: f32[H, W, 3], sRGB.
      mask: bool[H, W], the lesion.

    Returns:
      f32[H, W, 3].
    """
    y, x = fields.frame(len(image))
    centre_y, centre_x = 0.5 + np.clip(0.025 * rng.standard_normal(2), -0.06, 0.06)
    radius = rng.uniform(0.42, 0.58)
    squeeze = rng.choice((1.0, 1.33)) * rng.uniform(0.97, 1.03)
    softness = np.exp(rng.uniform(np.log(0.006), np.log(0.09)))
    floor = rng.uniform(0.01, 0.12)
    distance = np.hypot((y - centre_y) / squeeze, x - centre_x)
    radius = min(max(radius, np.quantile(distance[mask], _VISIBLE_LESION)), 0.66)
    inside = fields.sigmoid(4 * (radius - distance) / softness)
    return image * (floor + (1 - floor) * inside)[..., None]


def _cover(image, opacity, colour):
    """Paints one colour over the image where opacity, f32[H, W] in [0, 1], says so."""
    return image + opacity[..., None] * (colour - image)


class _Canvas:
    """Anti-aliased lines given in frame coordinates (y, x)."""

    def __init__(self, size):
        self._size = size * _SUPERSAMPLING
        self._image = Image.new("L", (self._size, self._size), 0)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, path, thickness, opacity):
        points = [(float(x) * self._size, float(y) * self._size) for y, x in path]
        width = max(1, round(thickness * self._size))
        self._draw.line(points, fill=round(255 * opacity), width=width, joint="curve")

    def opacity(self):
        """f32[size, size] in [0, 1]."""
        return np.asarray(self._image.reduce(_SUPERSAMPLING), np.float32) / 255
