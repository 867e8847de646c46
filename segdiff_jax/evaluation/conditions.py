"""Conditions that make an image hard, measured from its pixels and true mask.

`lab` is f32[H, W, 3], CIELAB with L* from 0 to 100; `truth` is bool[H, W], the lesion. Pixels
outside the lesion are no skin if their L* is below `limit`, half of the skin's lightness.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from segdiff_jax.data.pipeline import LONG_SIDE, size_within
from segdiff_jax.evaluation.metrics import average_scores

# Condition -> its values, in the order of the tables.
CONDITIONS = {
    "dark_corners": ("no", "yes"),
    "contrast": ("low", "medium", "high", "none"),
    "lesion_size": ("small", "medium", "large", "none"),
    "hair": ("no", "yes"),
}

_SRGB = np.arange(256) / 255
_LINEAR = np.float32(np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4))
_TO_XYZ = np.float32([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_TO_XYZ /= _TO_XYZ.sum(axis=1, keepdims=True)  # White is (1, 1, 1).


def measure_conditions(image: np.ndarray, truth: np.ndarray) -> dict[str, str]:
    """{condition: value} of one image u8[H, W, 3], sRGB, see `CONDITIONS`; the truth may be empty.

    Measured at 256 px on the long side, or at its own size if smaller. The thresholds were set by
    eye on the training images of ISIC 2016. A ValueError if the sizes differ.
    """
    if image.shape[:2] != truth.shape:
        raise ValueError(f"truth {truth.shape} and image {image.shape[:2]} differ in size")
    size = size_within(truth.shape, LONG_SIDE)[::-1]
    image = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    share = Image.fromarray(255 * truth.view(np.uint8))
    truth = np.asarray(share.resize(size, Image.Resampling.BOX, reducing_gap=2.0)) > 127
    lab = to_lab(np.asarray(image))
    outside = lab[..., 0][~truth]
    # The 90th percentile, because a black frame may be most of the outside.
    limit = float(np.percentile(outside, 90)) / 2 if outside.size else 0.0
    return {
        "dark_corners": dark_corners(lab, truth, limit),
        "contrast": contrast(lab, truth, limit),
        "lesion_size": lesion_size(truth),
        "hair": hair(lab, truth, limit),
    }


def scores_by_condition(scores: list[dict[str, float]], conditions: list[dict[str, str]]) -> dict:
    """Mean of every score over the images with each value of each condition.

    {score: value} and {condition: value} of each image, in one order -> {condition: {value:
    {"num_images": n, score: mean}}}, without values that no image has.
    """
    table = {condition: {} for condition in CONDITIONS}
    pairs = list(zip(scores, conditions, strict=True))
    for condition, values in CONDITIONS.items():
        for value in values:
            rows = [row for row, own in pairs if own[condition] == value]
            if rows:
                table[condition][value] = {"num_images": len(rows), **average_scores(rows)}
    return table


def dark_corners(lab: np.ndarray, truth: np.ndarray, limit: float) -> str:
    """Says "yes" if two corners or more are dark, by a round field of view or a black frame.

    A corner is a rectangle of 1/16 of either side, without its lesion pixels. It is dark if the
    median of its lightness is below the limit. One dark corner is often a shadow.
    """
    (height, width), count = (-(-side // 16) for side in truth.shape), 0
    for rows in (slice(height), slice(-height, None)):
        for columns in (slice(width), slice(-width, None)):
            values = lab[rows, columns, 0][~truth[rows, columns]]
            count += bool(values.size and np.median(values) < limit)
    return "yes" if count >= 2 else "no"


def contrast(lab: np.ndarray, truth: np.ndarray, limit: float) -> str:
    """How far the lesion's colour is from the skin's: "low" under 15, "high" from 35.

    The CIE 1976 colour difference of the medians over the lesion and over a ring of skin around it,
    0.05 to 0.25 of a diameter away; a disc of this diameter has the lesion's area. If the ring has
    fewer than 16 pixels, all skin is the ring. "none" without lesion or without skin.
    """
    skin = ~truth & (lab[..., 0] >= limit)
    if not truth.any() or not skin.any():
        return "none"
    diameter = 2 * np.sqrt(truth.sum() / np.pi)
    distance = ndimage.distance_transform_edt(~truth)
    ring = skin & (distance > 0.05 * diameter) & (distance <= 0.25 * diameter)
    if np.count_nonzero(ring) < 16:
        ring = skin
    difference = np.median(lab[truth], axis=0) - np.median(lab[ring], axis=0)
    place = np.searchsorted((15, 35), np.linalg.norm(difference), side="right")
    return CONDITIONS["contrast"][place]


def lesion_size(truth: np.ndarray) -> str:
    """The lesion's share of the frame: "small" under 0.1, "large" from 0.35, "none" if it is 0."""
    if not truth.any():
        return "none"
    return CONDITIONS["lesion_size"][np.searchsorted((0.1, 0.35), truth.mean(), side="right")]


def hair(lab: np.ndarray, truth: np.ndarray, limit: float) -> str:
    """Says "yes" if long, thin, dark lines cover over 1% of the skin (cf. Lee et al. 1997).

    A line is connected pixels whose box has a diagonal of at least 1/6 of the long side. A grey
    closing (9 pixels square) lightens them by over 10 in L*, and they are not blue ink (5 or more
    in b* below both grey and the median of the image). The lesion, where pigment makes lines too,
    and dark corners are left out with 4 pixels around them, unless less than 5% of the frame would
    be left. A ruler with long ticks, black ink or the rim of a sticker may pass for hair.
    """
    side, gap, (lightness, _, blue) = 9, 4, np.moveaxis(lab, -1, 0)
    # The edge goes on outside, so that a dark corner is not a thin line.
    padded = np.pad(lightness, side, "edge")
    wide = ndimage.grey_opening(padded < limit, (side, side))
    blackhat = ndimage.grey_closing(padded, (side, side)) - padded
    inner = (slice(side, -side), slice(side, -side))
    skin = ~ndimage.binary_dilation(wide[inner] | truth, iterations=gap)
    if skin.mean() < 0.05:
        skin = np.ones_like(truth)
    lines = skin & (blackhat[inner] > 10) & (blue > min(0, np.median(blue)) - 5)
    parts, _ = ndimage.label(lines, np.ones((3, 3)))
    boxes = ndimage.find_objects(parts)
    extents = [np.hypot(*(axis.stop - axis.start for axis in box)) for box in boxes]
    long = np.array([False, *(extent >= max(truth.shape) / 6 for extent in extents)])
    return "yes" if np.count_nonzero(long[parts]) > 0.01 * np.count_nonzero(skin) else "no"


def to_lab(image: np.ndarray) -> np.ndarray:
    """u8[..., 3], sRGB (IEC 61966-2-1) -> f32[..., 3], CIELAB (CIE 1976) under D65."""
    xyz = _LINEAR[image] @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
