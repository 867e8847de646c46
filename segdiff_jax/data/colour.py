"""Colour constancy: it undoes the colour of the light and the camera's white balance."""

import numpy as np


def shades_of_gray(image: np.ndarray, p: float = 6) -> np.ndarray:
    """Divides by the colour of the light, the Minkowski mean of the image over its pixels.

    Shades of gray (Finlayson and Trezzi 2004), used for dermoscopy by Barata et al. 2015: the
    light of channel c is e_c = (mean of I_c^p)^(1/p), so p = 1 is gray world and large p white
    patch. At p = 6 bright skin decides: the colour noise of black borders, and a dark lesion, weigh
    little. The gains 1 / e_c are scaled so that the mean over pixels and channels stays, up to
    rounding and clipping. A channel that is 0 everywhere stays 0.

    The image, u8[H, W, 3] before and after, is taken as sRGB, without linearising. p is at least 1.
    """
    values = image.astype(np.float32) / 255
    light = np.mean(values**p, axis=(0, 1), dtype=np.float64) ** (1 / p)
    gains = np.where(light > 0, 1 / np.maximum(light, 1e-6), 0).astype(np.float32)
    mean = np.mean(values * gains)
    gains *= 255 * np.mean(values) / mean if mean else 0
    return np.rint(np.minimum(values * gains, 255)).astype(np.uint8)


# Each is a function u8[H, W, 3] -> u8[H, W, 3].
COLOUR_CONSTANCY = {"none": lambda image: image, "shades_of_gray": shades_of_gray}
