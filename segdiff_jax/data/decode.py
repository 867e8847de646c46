"""Decodes images and masks, or says in a sentence why it cannot."""

import contextlib
import io
import re
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.runtime.errors import UserError, some

# The name of a file does not matter. EPS is left out because it is a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
ORIENTATION, PHOTOMETRIC = 0x0112, 262  # tags of EXIF and TIFF
UPRIGHT = dict(enumerate((0, 3, 1, 5, 4, 6, 2), 2))  # Pillow's `Transpose` of an orientation.
MOST_PIXELS = 89_478_485  # of an image that is decoded; above it, Pillow warns
PNG = b"\x89PNG\r\n\x1a\n"  # How a PNG starts.
# Chunks that are read, beside those that every PNG has: transparency and, as EXIF or in texts with
# these names, which side is up.
PNG_CHUNKS = b"tRNS", b"eXIf"
PNG_TEXTS = b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"


class OutOfMemory(MemoryError):
    """Lack of memory; the message names the image and says what to lower."""


@contextlib.contextmanager
def naming_memory(name: str) -> Iterator[None]:
    """A MemoryError within becomes an `OutOfMemory` of the image `name`, if it names none yet."""
    try:
        yield
    except OutOfMemory:
        raise
    except MemoryError as error:
        raise OutOfMemory(
            f"{name}: not enough memory ({str(error) or 'none is left'}): close other programs, or "
            "lower --workers or sampler.samples in sampling, data.num_threads in training"
        ) from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Encoded image -> u8[H, W, 3], 0 to 255, upright; an alpha channel is dropped.

    A UserError, which starts with `name`, says why it cannot be decoded, or that it has more than 8
    bits a channel or `MOST_PIXELS`. `OutOfMemory` if there is too little memory for it.
    """
    return np.asarray(_decode(data, name, "RGB"))


def decode_mask(data: bytes, name: str, colour: bool = True) -> np.ndarray:
    """Encoded mask -> its values u8[H, W], upright; 0 is the background.

    The values of a picture with a palette are its indices. One in colours has equal channels or,
    with `colour`, is black and one other colour, whose largest channel is then its value. A
    UserError as in `decode_image`, for other colours, and for transparency that is not the same
    everywhere, because the mask may lie in it.
    """
    return _values(data, name, colour)[0]


def _values(data: bytes, name: str, colour: bool) -> tuple[np.ndarray, str]:
    """`decode_mask`, and the mode of `_opaque`."""
    array, mode = _opaque(data, name)
    if mode != "RGB":
        return array, mode
    if not np.ptp(array, axis=-1).any():
        return array[..., 0], mode
    colours = array[array.any(axis=-1)]
    if not colour or (colours != colours[0]).any():
        raise UserError(
            f"{name}: the mask has {'several ' * colour}colours: make it grey or a palette"
            f"{', or black and one other colour' * colour}; JPEG blurs masks, save them as PNG"
        )
    return array.max(axis=-1), mode


def decode_blurred_mask(data: bytes, name: str) -> np.ndarray:
    """Encoded mask of black and one colour, with blurred edges -> u8[H, W], 0 or 255, upright.

    The foreground is over half of the largest value of any channel. A UserError as in
    `decode_mask`, and if much of the picture is in between, its bright parts differ in colour,
    nothing is black though not all is bright, or all of a JPEG is nearly black.
    """
    array, mode = _opaque(data, name)
    if mode == "P":
        return np.where(array > 0, 255, 0).astype(np.uint8)
    array = array.reshape(*array.shape[:2], -1)
    values = array.max(axis=-1)
    top, least = int(values.max()), int(values.min())
    bright = array[values >= 3 * top / 4].astype(int)
    between = np.count_nonzero((values > top / 4) & (values < 3 * top / 4))
    far = np.abs(bright - np.median(bright, axis=0)).max(axis=-1) > top / 2
    reasons = {
        f"{between} of {values.size} pixels are in between": 2 * between > len(bright),
        "it has several colours": 100 * np.count_nonzero(far) > len(far),
        f"its values go from {least} to {top}": least > top / 4 and top - least > 16,
        f"its values go to {top}": data.startswith(b"\xff\xd8") and 0 < top < 64,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{name}: the mask is not black and one other colour: {reason}")
    return np.where(values > top / 2, 255, 0).astype(np.uint8)


def _opaque(data: bytes, name: str) -> tuple[np.ndarray, str]:
    """The pixels of a mask without transparency, and their mode: L, P (indices) or RGB.

    A UserError as of `decode_mask`.
    """
    image = _decode(data, name)
    array, mode = np.asarray(image), image.mode.removesuffix("A").removesuffix("a")
    varies = False
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        varies, array = np.ptp(array[..., -1]), array[..., :-1]
    elif "transparency" in image.info:  # Of a PNG: of a colour, or of indices.
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        seen = array.reshape(*array.shape[:2], -1).any(axis=-1)
        varies = np.ptp(alpha) and (alpha[seen] < 255).any()  # Black may be transparent.
    if varies:
        raise UserError(
            f"{name}: parts of the mask are transparent: flatten it, with a black background"
        )
    if mode == "1":
        return np.uint8(255 * array), "L"
    if mode not in ("L", "P", "RGB"):
        raise UserError(f"{name}: the mask is {image.mode}: save it in grey, as PNG")
    return (array if mode == "RGB" else array.reshape(array.shape[:2])), mode


def decode_labels(
    data: bytes, name: str, classes: Classes = TWO, any_value: bool = False
) -> np.ndarray:
    """Encoded mask, see `decode_mask` -> labels u8[H, W], 0 to K - 1 of K classes, upright.

    A mask of two classes may hold 0 and 255, in a palette 0 and 1 or, with `any_value`, 0 and any
    one other value. A UserError names values of no class, and several classes in a colour or in a
    single bit.
    """
    values, mode = _values(data, name, colour=not classes.several)
    if not classes.several:
        any_value |= mode == "P" and values.max() == 1
        return np.uint8(of_two_values(values, name, any_value) > 0)
    return classes.labels(values, name)


def of_two_values(mask: np.ndarray, name: str, any_value: bool) -> np.ndarray:
    """The same mask; UserError if it has other values than `decode_labels` takes."""
    values = np.unique(mask)
    if any_value and np.count_nonzero(values) > 1:
        raise UserError(
            f"{name}: the mask has {len(values)} values ({some(values, 8)}): make it 0 and one "
            "other value, or, if it has several classes, name them in data.classes; JPEG blurs "
            "masks, save them as PNG"
        )
    if not any_value and len(others := np.setdiff1d(values, [0, 255])):
        raise UserError(
            f"{name}: the mask has values other than 0 and 255 ({', '.join(map(str, others[:3]))})"
            ": make it 0 on the background and 255 on the foreground"
        )
    return mask


def _decode(data: bytes, name: str, mode: str | None = None) -> Image.Image:
    """The upright image, in a mode of Pillow or, if that is None, in its own."""
    if not data:
        raise UserError(f"{name}: the file is empty")
    with naming_memory(name):
        return _open(_png_without_notes(data), name, mode)


def _png_without_notes(data: bytes) -> bytes:
    """A PNG without texts, colour profile and so on; Pillow refuses large and broken ones."""
    if not data.startswith(PNG):
        return data
    kept, start, kind = [PNG], len(PNG), b""
    while start < len(data) and kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4])  # Length, kind, contents, CRC.
        kind, text = data[start + 4 : start + 8], data[start + 8 : start + 30]
        if kind[:1].isupper() or kind in PNG_CHUNKS or text.startswith(PNG_TEXTS):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _open(data: bytes, name: str, mode: str | None) -> Image.Image:
    """The upright image; `mode` as of `_decode`."""
    try:
        image = _identify(data)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
        if image.format in ("TIFF", "WEBP") and image.n_frames > 1:
            raise ValueError(f"it holds {image.n_frames} images")
        # Pillow silently drops half of the 16 bits of a colour. A BMP's BGR;16 has 16 bits for all
        # three colours.
        raw = [str(tile.args).replace("BGR;16", "") for tile in image.tile]
        deep = image.mode[0] in "IF" or any(";16" in args for args in raw)
        image.load()
        if (turn := _orientation(image)) > 1:
            image = image.transpose(UPRIGHT[turn])
        image = image.convert(mode) if mode and not deep else image
    except Image.DecompressionBombError as error:  # Ours, or Pillow's for a WebP.
        raise UserError(
            f"{name}: {re.search('[0-9]+', str(error))[0]} pixels may be a decompression bomb: "
            f"make it smaller than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Exception as error:  # Broken files make Pillow raise all kinds, such as SyntaxError.
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # The latter: a codec.
            raise MemoryError(str(error)) from error
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{name}: cannot be decoded as an image ({reason}): replace the file or remove it"
        ) from error
    if deep:
        raise UserError(f"{name}: more than 8 bits a channel: convert it to 8 bits")
    return image


def _identify(data: bytes) -> Image.Image:
    """`Image.open` without its warning of large images, which no thread can silence for itself."""
    Image.init()
    for factory, accept in map(Image.OPEN.get, FORMATS):
        if accept(data[:16]) is True:
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError


def doubt(image: bytes, mask: bytes) -> str | None:
    """What a good image and mask leave open, if anything: a warning for a user."""
    file = _identify(_png_without_notes(mask))
    if file.format == "TIFF" and file.tag_v2.get(PHOTOMETRIC) == 0:
        return (
            "mask of a TIFF that has 0 for white, as ImageJ's inverting table does, so its values "
            "are inverted: see in data.png whether the object is outlined"
        )
    turn, mask_turn = _turn(image), _turn(mask)
    sides_tell = file.width != file.height and (turn > 4) != (mask_turn > 4)
    if turn != mask_turn and not sides_tell:
        return (
            "image that EXIF turns and its mask not, or the other way: see in data.png whether the "
            "outlines fit"
        )
    return None


def _turn(data: bytes) -> int:
    """EXIF's orientation, from 1, upright, to 8; above 4, height and width change places."""
    # Pillow decodes a whole PNG to look for it.
    if data.startswith(PNG) and not any(sign in data for sign in (b"eXIf", *PNG_TEXTS)):
        return 1
    return _orientation(_identify(_png_without_notes(data)))


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # EXIF that is broken tells nothing.
        if (turn := image.getexif().get(ORIENTATION)) in range(1, 9):
            return turn
    return 1
