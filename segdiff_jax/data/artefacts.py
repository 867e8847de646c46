"""Artefacts of dermoscopy images, drawn on device. None moves a pixel, so masks do not change.

Each is a pure function `artefact(draws, image)` with draws f32[K] in [0, 1) and image f32[H, W, 3],
sRGB in [0, 1], that returns an image of the same shape and range. Sizes are shares of the side, the
geometric mean of H and W. So any picture gets the same artefact (but a JPEG block has 8 pixels).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import Array

HAIRS = 16  # at most, in one image
# Optical densities of melanin, haemoglobin and shade in R, G and B. The drawn
# skin has the same first two, see synthetic_lesions/drawing.py.
_DENSITIES = np.array([[0.5, 0.9, 1.1], [0.15, 1.0, 0.8], [1.0, 1.0, 1.0]], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Quantisation of luma (ITU-T T.81, table K.1).
_QUANTISATION = np.fromstring(
    """
    16 11 10 16  24  40  51  61  12 12 14 19  26  58  60  55
    14 13 16 24  40  57  69  56  14 17 22 29  51  87  80  62
    18 22 37 56  68 109 103  77  24 35 55 64  81 104 113  92
    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103  99
    """,
    np.float32,
    sep=" ",
)
# f32[64, 64], the orthonormal DCT of a block of 8 x 8 pixels (ITU-T T.81, A.3.3).
_DCT_OF_ROW = scipy.fft.dct(np.eye(8), axis=0, norm="ortho")
_DCT = np.kron(_DCT_OF_ROW, _DCT_OF_ROW).astype(np.float32)


def skin_tone(draws: Array, image: Array) -> Array:
    """Other amounts of melanin and blood, in the skin and in the lesion.

    Density, the negative logarithm of colour, is a sum over chromophores and shade (Tsumura et al.
    2003, "Image-based skin color and texture analysis/synthesis"). The amount c of each chromophore
    becomes a c + b, as Tellez et al. 2018 (arXiv 1808.05896) do with the stains of histology.
    """
    density = -jnp.log(jnp.clip(image, 0.04, 1))
    amounts = density @ np.linalg.inv(_DENSITIES)
    factor = _between(draws[:2], 0.85, 1.15)
    added = jnp.stack([_between(draws[2], -0.1, 0.6), _between(draws[3], -0.15, 0.25)])
    change = (factor - 1).reshape(1, 1, 2) * amounts[..., :2] + added.reshape(1, 1, 2)
    return jnp.clip(image * jnp.exp(-(change @ _DENSITIES[:2])), 0, 1)


def hair(draws: Array, image: Array) -> Array:
    """Up to `HAIRS` thin curved hairs of one colour, dark in four images of five, else pale."""
    count, towards, disorder, width, pale, tint = draws[:6]
    dark = jnp.array([0.15, 0.11, 0.10]) + 0.2 * tint * jnp.array([1.0, 0.7, 0.5])
    colour = jnp.where(pale < 0.8, dark, jnp.array([0.95, 0.90, 0.82]) - 0.2 * tint)
    strokes = draws[6:].reshape(HAIRS, 7)
    angle = 2 * jnp.pi * towards + (0.3 + 2 * disorder) * _between(strokes[:, 0], -1, 1)
    width = _between(width, 0.005, 0.012) * _between(strokes[:, 1], 0.6, 1.2)
    width = jnp.where(jnp.arange(HAIRS) < 1 + (HAIRS - 1) * count**2, width, 0)

    def add(k: int, cover: Array) -> Array:  # In a loop: all at once, they fill the memory.
        return jnp.maximum(cover, _hair(image.shape, strokes[k, 2:], angle[k], width[k]))

    cover = jax.lax.fori_loop(0, HAIRS, add, jnp.zeros(image.shape[:2]))
    return _paint(image, 0.9 * cover, colour)


def _hair(shape: tuple[int, ...], draws: Array, angle: Array, width: Array) -> Array:
    """Covered share f32[H, W] of each pixel, for the curve v = a u^2 + b u^3 in turned axes u, v.

    The distance to it is |v - f(u)| / sqrt(1 + f'(u)^2), to first order (Taubin 1991).
    """
    y, x, side = _coordinates(shape)
    y, x = y - _between(draws[0], -0.5, 0.5), x - _between(draws[1], -0.5, 0.5)
    u, v = _turn(y, x, angle)
    length, bend = _between(draws[2], 0.4, 1.5), _between(draws[3], -0.9, 0.9)
    twist = _between(draws[4], -1.5, 1.5)
    distance = jnp.abs(v - (bend + twist * u) * u**2)
    distance = distance * jax.lax.rsqrt(1 + ((2 * bend + 3 * twist * u) * u) ** 2)
    taper = jnp.clip(1 - (2 * u / length) ** 4, 0, 1)
    return _line_cover(side * distance, side * width * taper)


def ruler(draws: Array, image: Array) -> Array:
    """A row of dark ticks near a border, some with a base line; every fifth tick is longer."""
    y, x, side = _coordinates(image.shape)
    angle = 2 * jnp.pi * draws[0]
    # Along the normal of the line, the border lies where the first of two sides is met.
    border = jnp.minimum(
        -y[0, 0] / jnp.maximum(jnp.abs(jnp.sin(angle)), 1e-6),
        -x[0, 0] / jnp.maximum(jnp.abs(jnp.cos(angle)), 1e-6),
    )
    away, along = _turn(y, x, angle)
    away = (away - border * _between(draws[1], 0.7, 0.95)) * jnp.where(draws[2] < 0.5, 1, -1)
    along = along - 0.5 * _between(draws[3], -1, 1)
    spacing, tick = _between(draws[4], 0.035, 0.08), _between(draws[5], 0.03, 0.06)
    width = side * _between(draws[6], 0.006, 0.012)
    number = jnp.round(along / spacing)
    tick = tick * jnp.where(number % 5 == 0, 1.7, 1)
    ticks = _line_cover(side * jnp.abs(along - spacing * number), width)
    ticks = ticks * jnp.clip(side * jnp.minimum(away, tick - away) + 0.5, 0, 1)
    base = jnp.where(draws[7] < 0.4, _line_cover(side * jnp.abs(away), width), 0)
    reach = spacing * jnp.round(_between(draws[8], 0.25, 0.8) / spacing)
    inside = jnp.clip(side * (reach + width / side - jnp.abs(along)), 0, 1)
    cover = _between(draws[9], 0.6, 0.95) * inside * jnp.maximum(ticks, base)
    return _paint(image, cover, jnp.array([0.10, 0.10, 0.11]))


def gamma(draws: Array, image: Array) -> Array:
    """Colours to the power of exp(-0.5) to exp(0.5)."""
    return image ** jnp.exp(_between(draws[0], -0.5, 0.5))


def colour_cast(draws: Array, image: Array) -> Array:
    """One gain for each channel, exp(-0.15) to exp(0.15): von Kries's diagonal model."""
    gains = jnp.exp(_between(draws, -0.15, 0.15))
    return jnp.clip(image * gains.reshape(1, 1, 3), 0, 1)


def vignette(draws: Array, image: Array) -> Array:
    """Dark corners: only an elliptical field near the centre is lit, with a soft or hard edge."""
    centre_y, centre_x = 0.04 * _between(draws[:2], -1, 1)
    radius, squeeze = _between(draws[2], 0.47, 0.66), jnp.exp(_between(draws[3], -0.15, 0.15))
    softness = jnp.exp(_between(draws[4], np.log(0.02), np.log(0.4)))
    rest = 0.4 * draws[5] ** 3
    y, x = _frame(image.shape)
    distance = jnp.hypot((y - centre_y) / squeeze, (x - centre_x) * squeeze) / radius
    edge = jnp.clip((1 - distance) / softness, 0, 1)
    lit = edge**2 * (3 - 2 * edge)
    return image * (rest + (1 - rest) * lit)[..., None]


def frame(draws: Array, image: Array) -> Array:
    """A black frame as around film, with its own width on each side, up to 0.12 of it."""
    height, width = image.shape[:2]
    top, bottom, left, right = 0.12 * draws[:4] ** 2
    rows, columns = jnp.arange(height), jnp.arange(width)
    open_y = jnp.clip(1 + jnp.minimum(rows - top * height, rows[::-1] - bottom * height), 0, 1)
    open_x = jnp.clip(1 + jnp.minimum(columns - left * width, columns[::-1] - right * width), 0, 1)
    black = jnp.full(3, 0.08) * draws[4] ** 2
    return _paint(image, 1 - open_y[:, None] * open_x[None], black)


def blur(draws: Array, image: Array) -> Array:
    """Gaussian blur, sigma 0.006 to 0.022 of the side; weights are rescaled at the borders."""
    height, width = image.shape[:2]
    sigma = _between(draws[0], 0.006, 0.022) * float(np.sqrt(height * width))

    def kernel(size: int) -> Array:
        offset = jnp.arange(size)[:, None] - jnp.arange(size)[None]
        weights = jnp.exp(-0.5 * (offset / sigma) ** 2)
        return weights / weights.sum(axis=1, keepdims=True)

    image = jnp.einsum("yi,ixc->yxc", kernel(height), image)
    return jnp.clip(jnp.einsum("xj,yjc->yxc", kernel(width), image), 0, 1)


def jpeg(draws: Array, image: Array) -> Array:
    """Rounds the DCT of 8 x 8 blocks of luma, as JPEG of quality 10 to 60 does (ITU-T T.81)."""
    height, width = image.shape[:2]
    luma = 255 * (image @ _LUMA) - 128
    luma = jnp.pad(luma, ((0, -height % 8), (0, -width % 8)), mode="edge")
    rows, columns = luma.shape
    blocks = luma.reshape(rows // 8, 8, columns // 8, 8).swapaxes(1, 2).reshape(-1, 64)
    quality = jnp.exp(_between(draws[0], np.log(10), np.log(60)))
    scale = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)  # As in libjpeg.
    table = jnp.clip(jnp.floor(scale * _QUANTISATION + 0.5), 1, 255)[None]
    rounded = jnp.round(blocks @ _DCT.T / table) * table
    change = (rounded @ _DCT - blocks).reshape(rows // 8, columns // 8, 8, 8).swapaxes(1, 2)
    change = change.reshape(rows, columns)[:height, :width, None]
    return jnp.clip(image + change / 255, 0, 1)


def cutout(draws: Array, image: Array) -> Array:
    """A rectangle of one colour, whose sides are 0.1 to 0.35 of the picture's.

    Random Erasing (Zhong et al. 2017, arXiv 1708.04896) draws a colour for each pixel instead.
    """
    height, width = _between(draws[:2], 0.1, 0.35)
    top, left = draws[2] * (1 - height) - 0.5, draws[3] * (1 - width) - 0.5
    y, x = _frame(image.shape)
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    return jnp.where(inside[..., None], draws[4:].reshape(1, 1, 3), image)


class Artefact(NamedTuple):
    """One way to spoil an image: `function` takes `draws` numbers in [0, 1), see above.

    Augmentation applies artefacts by `order`, from low to high. Those below 0 lie on the skin and
    come before the colours change; the others arise in the camera and come after that.
    """

    function: Callable[[Array, Array], Array]
    draws: int
    order: int
    meaning: str


# Augmentation draws for these in turn. Append new ones, so that the others keep their draws.
ARTEFACTS = {
    "skin_tone": Artefact(skin_tone, 4, -30, "other amounts of melanin and blood"),
    "hair": Artefact(hair, 6 + 7 * HAIRS, -20, "dark or pale hairs"),
    "ruler": Artefact(ruler, 10, -10, "a row of ticks"),
    "gamma": Artefact(gamma, 1, 10, "a power of the colours"),
    "colour_cast": Artefact(colour_cast, 3, 20, "a gain for each channel"),
    "vignette": Artefact(vignette, 6, 30, "dark corners"),
    "frame": Artefact(frame, 5, 40, "a black border"),
    "blur": Artefact(blur, 1, 50, "Gaussian blur"),
    "jpeg": Artefact(jpeg, 1, 60, "noise of JPEG compression"),
    "cutout": Artefact(cutout, 7, 70, "a rectangle of one colour"),
}


@functools.partial(jax.jit, static_argnames="name")
def add_artefact(name: str, key: Array, image: Array) -> Array:
    """Adds an artefact, drawn with key[], to an image f32[H, W, 3] in [0, 1]."""
    artefact = ARTEFACTS[name]
    return artefact.function(jax.random.uniform(key, (artefact.draws,)), image)


def _between(draws: Array, low, high) -> Array:
    return low + (high - low) * draws


def _frame(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Places of pixels in the frame: y f32[H, 1] and x f32[1, W], from -0.5 to 0.5."""
    height, width = shape[:2]
    y, x = (jnp.arange(size) + 0.5 for size in (height, width))
    return (y / height - 0.5)[:, None], (x / width - 0.5)[None]


def _coordinates(shape: tuple[int, ...]) -> tuple[Array, Array, float]:
    """`_frame` in units of the side, which keeps angles; and the side in pixels."""
    (y, x), side = _frame(shape), float(np.sqrt(shape[0] * shape[1]))
    return y * shape[0] / side, x * shape[1] / side, side


def _turn(y: Array, x: Array, angle: Array) -> tuple[Array, Array]:
    """Coordinates along the direction `angle`, and square to it."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _line_cover(distance: Array, width: Array) -> Array:
    """Share of a pixel that a line covers, by its distance and width in pixels."""
    return jnp.clip((1 + width) / 2 - distance, 0, jnp.minimum(width, 1))


def _paint(image: Array, cover: Array, colour: Array) -> Array:
    """Paints a colour f32[3] over the image; cover f32[H, W] is its opacity in [0, 1]."""
    return image + cover[..., None] * (colour.reshape(1, 1, 3) - image)
