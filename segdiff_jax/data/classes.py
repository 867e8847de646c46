"""Masks of several classes: what they are called, and which values stand for them in files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST = 255  # classes; a label is a byte, and one more byte says that a value has none


@dataclasses.dataclass(frozen=True)
class Classes:
    """At least three classes; where there are two, lesion or not, there is None instead.

    A mask's labels u8[H, W] are the classes' places here, from 0, the background.

    Attributes:
        names: of each class, the background first.
        values: of each class in mask files.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]

    @property
    def count(self) -> int:
        """K."""
        return len(self.names)

    def labels(self, mask: np.ndarray, name: str) -> np.ndarray:
        """The values of a file u8[H, W] -> labels u8[H, W].

        Raises:
            ValueError: naming the mask and its values if one of them is no class's.
        """
        table = np.full(256, MOST, np.uint8)
        table[list(self.values)] = np.arange(self.count)
        labels = table[mask]
        if (labels == MOST).any():
            found = np.unique(mask)
            some = ", ".join(map(str, found[:8])) + ", ..." * (len(found) > 8)
            raise ValueError(
                f"{name}: the mask has {len(found)} values ({some}), not only those of "
                f"data.mask_values={self.values}, one for each of data.classes={self.names}; of a "
                "picture with a palette, its indices count; JPEG blurs masks, save them as PNG"
            )
        return labels

    def file_values(self, labels: np.ndarray) -> np.ndarray:
        """The inverse of `labels`."""
        return np.uint8(self.values)[labels]


def classes_of(data: Mapping[str, Any]) -> Classes | None:
    """The classes of a config's section; None: lesion or not.

    Raises:
        ValueError: naming the field if there are one, two or too many classes, or if names or
            values are not one for each and all different.
    """
    names, values = tuple(data["classes"]), tuple(data["mask_values"])
    if not names and values:
        raise ValueError(f"data.mask_values={values} are of data.classes, which are not given")
    if not names:
        return None
    if not 3 <= len(names) <= MOST:
        raise ValueError(
            f"data.classes={names} must be 3 to {MOST} names, the background first; () is for "
            "masks of two classes, lesion or not"
        )
    if len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"data.classes={names} must be different names")
    values = values or tuple(range(len(names)))
    right = all(isinstance(value, int) and 0 <= value <= 255 for value in values)
    if not right or len(set(values)) < len(values) or len(values) != len(names):
        raise ValueError(
            f"data.mask_values={values} must be {len(names)} different numbers from 0 to 255, one "
            f"for each of data.classes={names}"
        )
    return Classes(names, values)


def mask_channels(classes: Classes | None) -> int:
    """Of a mask, as the networks see it: one, or one for each of several classes."""
    return classes.count if classes else 1
