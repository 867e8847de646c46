"""The classes of a mask: their names, and the values that stand for them in files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from segdiff_jax.runtime.errors import UserError, some

MOST = 255  # classes: a label is a byte, and one more byte marks values without a class


@dataclasses.dataclass(frozen=True)
class Classes:
    """Two classes, background and lesion, or several: their names, and their values in mask files.

    The background comes first. The labels u8[H, W] of a mask are places in `names`. Arrays of masks
    have a last axis of `channels`: one for lesion if there are two classes, else one for each.
    """

    names: tuple[str, ...] = ("background", "lesion")
    values: tuple[int, ...] = (0, 255)

    @property
    def several(self) -> bool:
        """Whether there are more than two."""
        return len(self.names) > 2

    @property
    def channels(self) -> int:
        """C, the length of the last axis of a mask."""
        return len(self.names) if self.several else 1

    @property
    def of_channels(self) -> range:
        """The label that each channel stands for."""
        return range(len(self.names))[-self.channels :]

    def labels(self, mask: np.ndarray, name: str) -> np.ndarray:
        """The values of a file u8[H, W] -> labels u8[H, W]; UserError if one is of no class."""
        table = np.full(256, MOST, np.uint8)
        table[list(self.values)] = np.arange(len(self.names))
        labels = table[mask]
        if (labels == MOST).any():
            found = np.unique(mask)
            raise UserError(
                f"{name}: the mask has {len(found)} values ({some(found, 8)}), but only "
                f"data.mask_values={self.values} stand for data.classes={self.names}. In a picture "
                "with a palette, the indices count. JPEG blurs masks: save them as PNG"
            )
        return labels

    def file_values(self, labels: np.ndarray) -> np.ndarray:
        """The inverse of `labels`."""
        return np.uint8(self.values)[labels]


TWO = Classes()


def classes_of(data: Mapping[str, Any]) -> Classes:
    """The classes of the section `data` of a config; a UserError names the field that is wrong."""
    names, values = tuple(data["classes"]), tuple(data["mask_values"])
    if not names:
        if values:
            raise UserError(f"data.mask_values={values} needs data.classes, which is empty")
        return TWO
    if not 3 <= len(names) <= MOST:
        raise UserError(
            f"data.classes={names} must be 3 to {MOST} names, the background first; leave it empty "
            "for masks of two classes, lesion or not"
        )
    if len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"data.classes={names} must be different names")
    values = values or tuple(range(len(names)))
    right = all(isinstance(value, int) and 0 <= value <= 255 for value in values)
    if not right or len(set(values)) < len(values) or len(values) != len(names):
        raise UserError(
            f"data.mask_values={values} must be {len(names)} different numbers from 0 to 255, one "
            f"for each of data.classes={names}"
        )
    return Classes(names, values)


def most_likely(values: np.ndarray, threshold: float) -> np.ndarray:
    """The label of each pixel: [..., C] -> u8[...].

    With one channel, 1 where the value is above `threshold`; a tie is background, like round(0.5)
    = 0 in the original. With several, the place of the largest value, the first one of a tie.
    """
    if values.shape[-1] == 1:
        return (values[..., 0] > threshold).astype(np.uint8)
    return values.argmax(axis=-1).astype(np.uint8)
