"""The masks that several annotators drew of one image: in a record, and in a user's folder.

Such a record has `annotations`, a PNG of 0 and 255 with its M masks one below the other, and
`annotators`, M texts such as "A06 S1 T1": names, separated by spaces, of who drew the mask (first)
and, where they are known, of the skill and the tool. A text is empty if nothing is known. `mask` is
the majority of the masks.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segdiff_jax.runtime.errors import UserError


def encode_png(array: np.ndarray) -> bytes:
    """u8[H, W] or u8[H, W, 3] -> PNG. TFDS needs no TensorFlow for bytes, but for arrays."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def encode_annotations(labels: np.ndarray, annotators: Sequence[str]) -> dict[str, Any]:
    """The fields of a record that hold masks: labels u8[M, H, W], 0 or 1, and M texts."""
    stacked = 255 * labels.reshape(-1, labels.shape[2])
    return {
        "mask": encode_png(255 * majority(labels)),
        "annotations": encode_png(stacked),
        "annotators": list(annotators),
    }


def decode_annotations(record: Mapping[str, Any]) -> np.ndarray:
    """The labels u8[M, H, W], 0 or 1, of a record with `annotations`."""
    # Together, the masks may have more pixels than `decode.MOST_PIXELS`.
    stacked = np.asarray(PngImageFile(io.BytesIO(record["annotations"])))
    return np.uint8(stacked > 0).reshape(len(record["annotators"]), -1, stacked.shape[1])


def annotators_of(record: Mapping[str, Any]) -> list[str]:
    """The texts of a record, one for each mask (TFDS gives bytes); [""] if it has one `mask`."""
    texts = record.get("annotators", [""])
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


def majority(labels: np.ndarray) -> np.ndarray:
    """Labels u8[M, H, W], 0 or 1 -> u8[H, W], 1 where over half of them are."""
    return np.uint8(2 * labels.sum(axis=0, dtype=np.uint16) > len(labels))


def numbers_of(annotators: Sequence[str], listed: Sequence[str]) -> list[int]:
    """For each text, 1 + the place in `listed` of its first name that is there; 0 if none is."""
    places = {name: 1 + place for place, name in enumerate(listed)}
    return [
        next((places[name] for name in text.split() if name in places), 0) for text in annotators
    ]


def check_annotators(listed: Sequence[str], known: Collection[str]) -> None:
    """A UserError names those of data.annotators that no mask which is trained on has."""
    if unknown := [name for name in listed if name not in known]:
        raise UserError(
            f"data.annotators={tuple(listed)}: no mask of the training split has the name "
            f"{', '.join(unknown)}; there are {', '.join(sorted(known)) or 'no names'}"
        )


def masks_of_annotators(
    images: Collection[str], masks: Mapping[str, Sequence[Path]], endings: Sequence[str]
) -> dict[str, dict[Path, str]]:
    """{name of an image: {mask: its annotator}} of a folder; `masks` are files by name.

    Names are paths without ending, as of `folder.files_by_name`. The mask of image "x/a" by Ann is
    "Ann/x/a" or "x/a_Ann", with one of `endings` or without; case does not matter. Without an
    annotator in its name, the mask's annotator is "". Spaces in a name become "_".
    """
    known = {name.lower(): name for name in images}

    def read(name: str) -> tuple[str, str] | None:
        """The image and the annotator of a mask that lies in no folder of its annotator."""
        for ending in sorted(endings, key=len, reverse=True):
            if not name.lower().endswith(ending.lower()):
                continue
            stem = name[: len(name) - len(ending)]
            cuts = (i for i, letter in enumerate(stem) if letter in "_-")
            for cut in (len(stem), *sorted(cuts, reverse=True)):  # The longest name wins.
                if (image := known.get(stem[:cut].lower())) and "/" not in stem[cut:]:
                    return image, stem[cut + 1 :]
        return None

    found: dict[str, dict[Path, str]] = {name: {} for name in images}
    for name, paths in masks.items():
        folder, _, rest = name.partition("/")
        if own := read(name):
            image, words = own[0], own[1:]
        elif own := read(rest):
            image, words = own[0], (folder, own[1])
        else:
            continue
        annotator = " ".join("_".join(word.split()) for word in words if word)
        found[image] |= dict.fromkeys(paths, annotator)
    return found
