"""What makes an image hard, measured from its pixels and true mask; scores by these strata."""

import numpy as np
from PIL import Image
from scipy import ndimage

from segdiff_jax.data.pipeline import size_within
from segdiff_jax.evaluation.metrics import average_scores

# What each tag may say, in the order of the tables.
TAGS = {
    "dark_corners": ("no", "yes"),
    "contrast": ("low", "medium", "high", "none"),
    "lesion_size": ("small", "medium", "large", "none"),
    "hair": ("no", "yes"),
}
LONG_SIDE = 256  # pixels; larger images are shrunk to it, so that lengths mean the same in all
DARK = 0.5  # of the skin's lightness: the darker pixels outside the lesion are not skin

_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)
_LINEAR = _LINEAR.astype(np.float32)
_TO_XYZ = np.float32([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_TO_XYZ /= _TO_XYZ.sum(axis=1, keepdims=True)  # White is (1, 1, 1).


def condition_tags(image: np.ndarray, truth: np.ndarray) -> dict[str, str]:
    """Tags of one image, measured at 256 px on its long side or at its own size if smaller.

    The thresholds were set by eye on the training images of ISIC 2016.

    Args:
        image: u8[H, W, 3], sRGB.
        truth: bool[H, W], the lesion; it may be empty.
    Returns:
        {tag: value}, see `TAGS`.
    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape[:2] != truth.shape:
        raise ValueError(f"truth {truth.shape} and image {image.shape[:2]} differ in size")
    image, truth = _shrink(image, truth)
    lab = to_lab(image)
    return {
        "dark_corners": dark_corners(lab[..., 0], truth),
        "contrast": contrast(lab, truth),
        "lesion_size": lesion_size(truth),
        "hair": hair(lab, truth),
    }


def scores_by_stratum(
    scores: list[dict[str, float]], tags: list[dict[str, str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean of every score over the images of each tag's each value.

    Args:
        scores: one {score: value} an image.
        tags: one {tag: value} an image, in the same order; the tags are those of `TAGS`.
    Returns:
        {tag: {value: {"num_images": n, score: mean}}}, without the values that no image has.
    """
    strata = {}
    for tag, values in TAGS.items():
        groups = {
            value: [row for row, own in zip(scores, tags, strict=True) if own[tag] == value]
            for value in values
        }
        strata[tag] = {
            value: {"num_images": len(rows), **average_scores(rows)}
            for value, rows in groups.items()
            if rows
        }
    return strata


def dark_corners(lightness: np.ndarray, truth: np.ndarray) -> str:
    """Whether two corners or more are dark: the edge of a round field of view, or a black frame.

    A corner is a rectangle of 1/16 of either side, without its lesion pixels. It is dark where the
    median of its lightness is under half of the skin's. One dark corner is often a shadow.

    Args:
        lightness: f32[H, W], L* from 0 to 100.
        truth: bool[H, W], the lesion.
    Returns:
        "yes" or "no".
    """
    height, width = (-(-side // 16) for side in truth.shape)
    limit, count = DARK * _skin_lightness(lightness, truth), 0
    for rows in (slice(height), slice(-height, None)):
        for columns in (slice(width), slice(-width, None)):
            values = lightness[rows, columns][~truth[rows, columns]]
            count += bool(values.size and np.median(values) < limit)
    return "yes" if count >= 2 else "no"


def contrast(lab: np.ndarray, truth: np.ndarray) -> str:
    """How far the lesion's colour is from that of the skin around it.

    The distance in CIELAB (CIE 1976 colour difference) of the medians over the lesion and over a
    ring around it, from 0.05 to 0.25 of the diameter of a disc of the lesion's area away from it,
    without pixels under half of the skin's lightness. Where less than 16 pixels are left, all
    skin of the image is the ring.

    Args:
        lab: f32[H, W, 3], L*, a* and b*.
        truth: bool[H, W], the lesion.
    Returns:
        "low" under 15, "high" from 35, else "medium"; "none" without lesion or without skin.
    """
    lightness = lab[..., 0]
    skin = ~truth & (lightness >= DARK * _skin_lightness(lightness, truth))
    if not truth.any() or not skin.any():
        return "none"
    diameter = 2 * np.sqrt(truth.sum() / np.pi)
    distance = ndimage.distance_transform_edt(~truth)
    ring = skin & (distance > 0.05 * diameter) & (distance <= 0.25 * diameter)
    if np.count_nonzero(ring) < 16:
        ring = skin
    difference = np.median(lab[truth], axis=0) - np.median(lab[ring], axis=0)
    return _level(np.linalg.norm(difference), (15, 35), ("low", "medium", "high"))


def lesion_size(truth: np.ndarray) -> str:
    """The lesion's share of the frame.

    Args:
        truth: bool[H, W], the lesion.
    Returns:
        "small" under 0.1, "large" from 0.35, else "medium"; "none" without lesion.
    """
    if not truth.any():
        return "none"
    return _level(truth.mean(), (0.1, 0.35), ("small", "medium", "large"))


def hair(lab: np.ndarray, truth: np.ndarray) -> str:
    """Whether long, thin, dark lines cover over 1% of the skin (cf. DullRazor, Lee et al. 1997).

    A line is a connected part, 1/6 of the long side or more from corner to corner of its box, of
    the pixels which a grey closing (9 pixels square) lightens by over 10 in L* and which are not
    of blue ink: 5 or more in b* below both grey and the median of the image. The lesion, where
    pigment makes lines too, and dark corners are left out with 4 pixels around them; where less
    than 5% of the frame is left, nothing is left out. A ruler with long ticks, black ink or the
    rim of a sticker may pass for hair.

    Args:
        lab: f32[H, W, 3], L*, a* and b*.
        truth: bool[H, W], the lesion.
    Returns:
        "yes" or "no".
    """
    side, gap, (lightness, _, blue) = 9, 4, np.moveaxis(lab, -1, 0)
    # The edge goes on outside, so that a dark corner is not a thin line.
    padded = np.pad(lightness, side, "edge")
    dark = padded < DARK * _skin_lightness(lightness, truth)
    wide = ndimage.grey_opening(dark, (side, side))
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
    """u8[..., 3], sRGB (IEC 61966-2-1) -> f32[..., 3], CIELAB (CIE 1976) under D65.

    L* is from 0 to 100.
    """
    xyz = _LINEAR[image] @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _skin_lightness(lightness: np.ndarray, truth: np.ndarray) -> float:
    """The 90th percentile of L* outside the lesion: a black frame may be most of it."""
    outside = lightness[~truth]
    return float(np.percentile(outside, 90)) if outside.size else 0.0


def _level(value: float, limits: tuple[float, ...], names: tuple[str, ...]) -> str:
    return names[np.searchsorted(limits, value, side="right")]


def _shrink(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = size_within(truth.shape, LONG_SIDE)
    image = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    share = Image.fromarray(255 * truth.view(np.uint8))
    share = share.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(image), np.asarray(share) > 127
