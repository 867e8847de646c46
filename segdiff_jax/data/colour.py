"""Colour constancy: what the colour of the light and the camera's white balance did, undone."""

from collections.abc import Callable

import numpy as np

from segdiff_jax.runtime.errors import UserError


def shades_of_gray(image: np.ndarray, p: float = 6) -> np.ndarray:
    """Divides by the colour of the light, the Minkowski mean of the image over its pixels.

    Shades of gray (Finlayson and Trezzi 2004), used for dermoscopy by Barata et al. 2015: the
    light of channel c is e_c = (mean of I_c^p)^(1/p), so p = 1 is gray world and large p white
    patch. At p = 6 bright skin decides: the colour noise of black borders, and a dark lesion, weigh
    little. The gains 1 / e_c are scaled so that the mean over pixels and channels stays, up to
    rounding and clipping. A channel that is 0 everywhere stays 0.

    Args:
        image: u8[H, W, 3], sRGB; the values are taken as they are, without linearising.
        p: the Minkowski norm, at least 1.
    Returns:
        u8[H, W, 3].
    """
    values = image.astype(np.float32) / 255
    light = np.mean(values**p, axis=(0, 1), dtype=np.float64) ** (1 / p)
    gains = np.where(light > 0, 1 / np.maximum(light, 1e-6), 0).astype(np.float32)
    mean = np.mean(values * gains)
    gains *= 255 * np.mean(values) / mean if mean else 0
    return np.rint(np.minimum(values * gains, 255)).astype(np.uint8)


COLOUR_CONSTANCY = {"none": lambda image: image, "shades_of_gray": shades_of_gray}


def find_colour_constancy(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function u8[H, W, 3] -> u8[H, W, 3] of this name.

    Raises:
        UserError: if there is none; it names the config field.
    """
    if name not in COLOUR_CONSTANCY:
        names = ", ".join(COLOUR_CONSTANCY)
        raise UserError(f"data.colour_constancy={name!r} is unknown; there are {names}")
    return COLOUR_CONSTANCY[name]
