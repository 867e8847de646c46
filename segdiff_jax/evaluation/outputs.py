"""The files of an evaluation: what is written of each image, at its own size."""

import colorsys
import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.evaluation.metrics import SCORES
from segdiff_jax.inference.combine import Segmentation, entropy
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, naming, write_file

MEMORY = "max_batch", "max_memory"
NAMES = errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
MOST_BYTES = 230  # of a name; file systems take it with our endings
VERSION = 5  # of a result; others are made again, also if there are other scores now
FOLDERS = "masks", "probabilities", "deviations", "entropies", "overlays", "samples", "results"

PREDICTION_COLOUR = (0, 229, 255)
TRUTH_COLOUR = (255, 214, 10)
# The colours of the classes after the background; `class_colour` makes further ones.
CLASS_COLOURS = PREDICTION_COLOUR, (255, 92, 170), TRUTH_COLOUR, (90, 220, 100), (255, 150, 60)


class BadName(UserError):
    """An image whose files cannot be named after it."""


class OutputFolder:
    """Writes, for every image, at its native size:

    masks/<id>_Segmentation.png: 8-bit, one channel, 0 or 255, as the ISIC challenge wants it; with
      several classes, their values in mask files;
    probabilities/<id>.png: 8-bit, one channel, round(255 p); with several classes, p of the
      predicted one;
    deviations/<id>.png: the same for 510 times the standard deviation of two or more single masks;
    samples/<id>/00.png, 01.png, ...: two or more single masks, with the values of masks/;
    entropies/<id>.png: the same for 255 times `entropy` of the probability;
    overlays/<id>.jpg: the image with the predicted contour in cyan and the true one in yellow; with
      several classes, each has its colour, and the truth is darker;
    results/<hash of id>.json: what the scores and the report are made of, written last.

    Every file is written whole or not at all. An id with slashes is a path in these folders.
    """

    def __init__(self, path: str | os.PathLike, classes: Classes = TWO):
        self.path, self._classes = absolute(path), classes
        for name in FOLDERS:
            with naming(self.path / name):
                (self.path / name).mkdir(parents=True, exist_ok=True)

    def begin(self, settings: dict, resume: bool = True) -> None:
        """Writes settings.json; removes what other settings made, and all summaries.

        Fields of memory do not count, because they change no result. `resume=False` removes what
        the same settings made too. Files of other data or of unknown origin stay: a UserError.
        """
        patterns = *(f"{name}/**/*" for name in FOLDERS), "metrics.*", "failures.csv", "report.html"
        files = [file for name in patterns for file in self.path.glob(name) if file.is_file()]
        path, former = self.path / "settings.json", None
        with contextlib.suppress(FileNotFoundError, ValueError):
            former = json.loads(path.read_bytes())
        if files and (former is None or former.get("data") != settings.get("data")):
            of = f"of {former['data']}" if former and "data" in former else "of another origin"
            found = f"{self.path} holds files {of}, such as {files[0].name}"
            raise UserError(f"{found}: choose another output folder")
        former = former or {}
        others = sorted(
            name
            for name in former.keys() | settings.keys()
            if name.split(". ")[-1] not in MEMORY and former.get(name) != settings.get(name)
        )
        summaries = [file for file in files if file.parent == self.path]
        if not others and resume:  # Only files that a killed run did not finish go.
            files = summaries + [file for file in files if file.name.startswith(".")]
        elif others and len(files) > len(summaries):
            changed = f"because these settings changed: {', '.join(others)}"
            print(f"{self.path} is made anew, {changed}", flush=True)
        for file in files:
            file.unlink()
        write_file(path, json.dumps(settings, indent=2))

    def has(self, id: str, content: int) -> bool:
        """Whether the image's files are there, made from files with this checksum."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            result = self.result(id)
            sizes = ((self.path / file).stat().st_size for file in result["files"])
            made = result["version"], result["known_scores"], result["content"]
            return made == (VERSION, [*SCORES], content) and all(sizes)
        return False

    def result(self, id: str) -> dict:
        """What `write` was given as `result`; OSError if it is not there."""
        return json.loads(self._result(id).read_bytes())

    def keep_only(self, ids: Collection[str]) -> None:
        """Removes the files of all other images that have a result."""
        wanted = {self._result(id) for id in ids}
        for path in set((self.path / "results").glob("*.json")) - wanted:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                id = json.loads(path.read_bytes())["id"]
                if self._result(id) == path:  # Else it is not ours.
                    files = [self._file(name, id) for name in FOLDERS if name != "results"]
                    folder = self.path / "samples" / id
                    for file in (*files, *folder.glob("*.png")):
                        file.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # Another image's folder is in it.
                        folder.rmdir()
                    path.unlink()

    def _file(self, folder: str, id: str) -> Path:
        endings = {"masks": "_Segmentation.png", "overlays": ".jpg"}
        return self.path / folder / (id + endings.get(folder, ".png"))

    def _result(self, id: str) -> Path:
        return self.path / "results" / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.json"

    def write(self, example: dict[str, Any], found: Segmentation, result: dict) -> None:
        """Writes the files of an example of `NativeExamples`, whose id is a path without extension.

        The "content" of `result` is the checksum of the image's files. A BadName if files cannot
        have this id: it is no relative path, it is the path of a folder of another image, or a name
        in it is too long. A ValueError if sizes differ; an OSError if a file cannot be written.
        """
        id, image, truth = (example[name] for name in ("id", "image", "truth"))
        names = id.split("/")
        if any(len(os.fsencode(name)) > MOST_BYTES for name in names):
            raise BadName(f"the name is longer than {MOST_BYTES} bytes: shorten it")
        if {"", ".", ".."} & set(names) or set(id) & set("\\\0"):
            raise BadName(f"id {id!r} cannot be a file name: a part of it is empty or no name")
        size = image.shape[:2]
        for name, array in (("mask", found.labels), ("truth", truth)):
            if array is not None and array.shape != size:
                raise ValueError(f"{name} of {id!r} is {array.shape}, its image is {size}")
        grey = lambda array: np.round(255 * array).astype(np.uint8)
        overlay = image if truth is None else draw_truth(image, truth, self._classes)
        pictures = {
            "masks": self._classes.file_values(found.labels),
            "probabilities": grey(found.probabilities.max(axis=-1)),
            "entropies": grey(entropy(found.probabilities)),
            "overlays": draw_contours(overlay, found.labels),
        }
        if found.deviation is not None:
            pictures["deviations"] = grey(2 * found.deviation)
        files = {self._file(name, id): picture for name, picture in pictures.items()}
        samples = () if found.samples is None or len(found.samples) < 2 else found.samples
        for number, labels in enumerate(samples):
            files[self._file("samples", f"{id}/{number:02d}")] = self._classes.file_values(labels)
        # While the files change, the result has no content.
        write_file(self._result(id), json.dumps({"id": id}))
        for path, picture in files.items():
            content = encode_image(picture, "JPEG" if path.suffix == ".jpg" else "PNG")
            try:
                write_file(path, content)
            except OSError as error:
                if getattr(error.__cause__, "errno", None) not in NAMES:
                    raise
                raise BadName(f"no file can have this name ({error.__cause__.strerror})") from error
        names = [path.relative_to(self.path).as_posix() for path in files]
        result |= {"version": VERSION, "known_scores": [*SCORES], "id": id, "files": names}
        write_file(self._result(id), json.dumps(result, default=lambda array: array.tolist()))


def class_colour(k: int) -> tuple[int, ...]:
    """The colour of a class by its label, from 1."""
    if k <= len(CLASS_COLOURS):
        return CLASS_COLOURS[k - 1]
    hue = k * 0.618034 % 1  # By the golden ratio, neighbours are far apart.
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.7, 0.95))


def draw_contours(
    image: np.ndarray, labels: np.ndarray, colour: Callable[[int], tuple[int, ...]] = class_colour
) -> np.ndarray:
    """`draw_contour` of each class in u8[H, W] except the background, 0."""
    for k in np.unique(labels[labels > 0]):
        image = draw_contour(image, labels == k, colour(k))
    return image


def draw_truth(image: np.ndarray, truth: np.ndarray, classes: Classes) -> np.ndarray:
    """`draw_contours` in yellow or, with several classes, in darker class colours."""
    darker = lambda k: tuple(round(0.6 * channel) for channel in class_colour(k))
    return draw_contours(image, truth, darker if classes.several else lambda k: TRUTH_COLOUR)


def draw_contour(image: np.ndarray, mask: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """A copy of u8[H, W, 3] with the inner edge of bool[H, W]: 2 px + 1 per 400 of the side."""
    thickness = 2 + max(mask.shape) // 400
    edge = mask & ~ndimage.binary_erosion(mask, iterations=thickness)
    return np.where(edge[..., None], np.uint8(colour), image)


def mix_classes(shares: np.ndarray) -> np.ndarray:
    """Each class's share [..., C], 0 to 1 -> u8[..., 3]: grey or, for several classes, a mix."""
    if shares.shape[-1] == 1:
        return np.repeat(np.uint8(np.round(255 * shares)), 3, axis=-1)
    colours = np.float32([class_colour(k) for k in range(1, shares.shape[-1])])
    return np.uint8(np.minimum(shares[..., 1:] @ colours, 255))


def encode_image(array: np.ndarray, format: str, quality: int = 90, **options: Any) -> bytes:
    """u8[H, W] or u8[H, W, 3] as the bytes of a PNG or JPEG file (4:4:4, so that lines stay)."""
    if format == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()
