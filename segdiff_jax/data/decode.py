"""Encoded images and masks as arrays, or a sentence that says why not."""

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segdiff_jax.data.classes import Classes

# Whatever a file is called; not EPS, which is a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # of an image that is decoded: Pillow's own limit, where it only warns
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # Else it is printed.


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Encoded image -> u8[H, W, 3], upright; an alpha channel is left out.

    Raises:
        ValueError: naming the image if it cannot be decoded, has more than 8 bits a channel or more
            than `MOST_PIXELS`.
    """
    return np.asarray(_open(data, name, "RGB"))


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Encoded mask -> u8[H, W], 0 or 255, upright.

    Raises:
        ValueError: as above, or if it holds other values (labels 0 and 1, or several classes).
    """
    mask = decode_grey(data, name)
    others = np.setdiff1d(mask, [0, 255])
    if len(others):
        some = ", ".join(map(str, others[:3]))
        raise ValueError(
            f"{name}: the mask has values other than 0 and 255 ({some}): make it 0 on the "
            "background and 255 on the foreground"
        )
    return mask


def decode_two_values(data: bytes, name: str) -> np.ndarray:
    """Encoded mask of 0 and any one other value -> u8[H, W], 0 or 255, upright.

    Raises:
        ValueError: as of `decode_image`, or if it holds more values.
    """
    return of_two_values(decode_grey(data, name), name)


def of_two_values(mask: np.ndarray, name: str) -> np.ndarray:
    """u8[H, W] of 0 and one other value -> u8[H, W], 0 or 255; ValueError as above."""
    values = np.unique(mask)
    if len(values[values > 0]) > 1:
        some = ", ".join(map(str, values[:8])) + ", ..." * (len(values) > 8)
        raise ValueError(
            f"{name}: the mask has {len(values)} values ({some}): make it 0 and one other value, "
            "or, if it has several classes, name them in data.classes; JPEG blurs masks, save them "
            "as PNG"
        )
    return np.where(mask, 255, 0).astype(np.uint8)


def decode_grey(data: bytes, name: str) -> np.ndarray:
    """Encoded image of any values -> u8[H, W], upright; ValueError as of `decode_image`."""
    return np.asarray(_open(data, name, "L"))


def decode_labels(data: bytes, name: str, classes: Classes) -> np.ndarray:
    """Encoded mask of several classes -> labels u8[H, W], upright; of a palette, the indices.

    Raises:
        ValueError: as of `decode_image`, or if it is in colours, has a single bit or holds values
            of no class.
    """
    image = _open(data, name)
    if image.mode in ("RGB", "RGBA") and np.ptp(np.asarray(image)[..., :3], axis=-1).any():
        raise ValueError(
            f"{name}: the mask is in colours: make it grey or a palette, of data.mask_values"
        )
    if image.mode == "1":
        raise ValueError(f"{name}: the mask has 1 bit, which tells two classes: save it with 8")
    # Of a palette with transparency, too.
    image = image.getchannel(0) if image.mode in ("P", "PA") else image.convert("L")
    return classes.labels(np.asarray(image), name)


def _open(data: bytes, name: str, mode: str | None = None) -> Image.Image:
    """Encoded image -> upright image of a Pillow mode or its own; ValueError as above."""
    if not data:
        raise ValueError(f"{name}: the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format in ("TIFF", "WEBP") and image.n_frames > 1:
            raise ValueError(f"it holds {image.n_frames} images")
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
        # Pillow drops the lower half of a colour's 16 bits without a word; a BMP's BGR;16 is of
        # 16 bits for all three.
        raw = [str(tile.args).replace("BGR;16", "") for tile in image.tile]
        deep = image.mode[0] in "IF" or any(";16" in args for args in raw)
        image = ImageOps.exif_transpose(image)
        image = image.convert(mode) if mode and not deep else image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name}: {re.search('[0-9]+', str(error))[0]} pixels may be a decompression bomb: "
            f"make it smaller than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Exception as error:  # Of broken files, Pillow raises all kinds, such as SyntaxError.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{name}: cannot be decoded as an image ({reason}): replace the file or remove it"
        ) from error
    if deep:
        raise ValueError(f"{name}: more than 8 bits a channel: convert it to 8 bits")
    return image
