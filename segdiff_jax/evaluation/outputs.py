"""The files of an evaluation: what is written of each image, at its own size."""

import colorsys
import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from segdiff_jax.data.classes import Classes
from segdiff_jax.evaluation.ensemble import Combined, entropy

MEMORY = "max_batch", "max_memory"
NAMES = errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
MOST_BYTES = 230  # of a name, so that with what is added file systems take it
VERSION = 2  # of a record; those of another are made again
FOLDERS = "masks", "probabilities", "deviations", "entropies", "overlays", "records"

PREDICTION_COLOUR = (0, 229, 255)
TRUTH_COLOUR = (255, 214, 10)
# Of several classes, from the first after the background; further ones are made.
CLASS_COLOURS = PREDICTION_COLOUR, (255, 92, 170), TRUTH_COLOUR, (90, 220, 100), (255, 150, 60)


class BadName(ValueError):
    """An image whose files cannot be named after it."""


class OutputFolder:
    """Writes, for every image, at its native size:

    masks/<id>_Segmentation.png: 8-bit, one channel, 0 or 255, the ISIC challenge's submission; of
      several classes, their values in mask files;
    probabilities/<id>.png: 8-bit, one channel, round(255 p); of several classes, of the predicted
      one;
    deviations/<id>.png: likewise 510 times the standard deviation of the votes, if there are some;
    entropies/<id>.png: likewise 255 times `entropy` of the probability;
    overlays/<id>.jpg: the image with the predicted contour in cyan and the true one in yellow; of
      several classes, in a colour of each, the true ones in a darker one;
    records/<hash of id>.json: at last, what the scores and the report are made of.

    Every file is written whole or not at all. An id with slashes is a path in these folders.
    """

    def __init__(self, path: str | os.PathLike, classes: Classes | None = None):
        self.path, self._classes = Path(path), classes
        for name in FOLDERS:
            make_folder(self.path / name)

    def begin(self, settings: dict, resume: bool = True) -> None:
        """Notes the settings in settings.json; removes what others made, and all summaries.

        Args:
          settings: fields of memory, which change no result, are no other settings.
          resume: False removes what the same settings made, too.
        Raises:
          ValueError: if there are files of another data set or of unknown origin: they are not
            overwritten.
        """
        images = self._all(*(f"{name}/**/*" for name in FOLDERS))
        summaries = self._all("metrics.*", "failures.csv", "report.html")
        path, former = self.path / "settings.json", None
        with contextlib.suppress(FileNotFoundError, ValueError):
            former = json.loads(path.read_bytes())
        if images + summaries and (former is None or former.get("data") != settings.get("data")):
            of = f"of {former['data']}" if former and "data" in former else "of another origin"
            raise ValueError(
                f"{self.path} holds files {of}, such as {(images + summaries)[0].name}: choose "
                "another output folder"
            )
        others = sorted(
            name
            for name in {**(former or {}), **settings}
            if name.split(". ")[-1] not in MEMORY and (former or {}).get(name) != settings.get(name)
        )
        if not others and resume:  # Those that were killed while they were written go.
            images = [file for file in images if file.name.startswith(".")]
        elif images and others:
            print(f"{self.path} is made anew: other {', '.join(others)} than before", flush=True)
        for file in images + summaries:
            file.unlink()
        write_file(path, json.dumps(settings, indent=2).encode())

    def _all(self, *patterns: str) -> list[Path]:
        """The files of these names."""
        return [file for name in patterns for file in self.path.glob(name) if file.is_file()]

    def has(self, id: str, content: int) -> bool:
        """Whether the image's files are there, made of files of this checksum."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = self.record(id)
            sizes = ((self.path / file).stat().st_size for file in record["files"])
            return (record["version"], record["content"]) == (VERSION, content) and all(sizes)
        return False

    def record(self, id: str) -> dict:
        """What `write` was given as `record`.

        Raises:
          OSError: if it is not there, as where the processes do not share the folder.
        """
        return json.loads(self._record(id).read_bytes())

    def keep_only(self, ids: Collection[str]) -> None:
        """Removes the files of all other images that have a record."""
        wanted = {self._record(id) for id in ids}
        for record in set((self.path / "records").glob("*.json")) - wanted:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                id = json.loads(record.read_bytes())["id"]
                if self._record(id) == record:  # Else it is not ours.
                    for name in FOLDERS[:-1]:
                        self._file(name, id).unlink(missing_ok=True)
                    record.unlink()

    def _file(self, folder: str, id: str) -> Path:
        endings = {"masks": "_Segmentation.png", "overlays": ".jpg"}
        return self.path / folder / (id + endings.get(folder, ".png"))

    def _record(self, id: str) -> Path:
        return self.path / "records" / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.json"

    def write(
        self,
        id: str,
        image: np.ndarray,
        combined: Combined,
        truth: np.ndarray | None = None,
        record: dict | None = None,
    ) -> None:
        """Writes the files of one image.

        Args:
          id: the image's name without extension, below the folder of all images.
          image: u8[H, W, 3].
          combined: the prediction.
          truth: bool[H, W], or of several classes u8[H, W], if known.
          record: for `record`, which adds the id; as "content" the checksum of the image's files.
        Raises:
          BadName: if files cannot have this id: it is no relative path, it is that of a folder of
            another image, or a name in it is too long.
          ValueError: if sizes differ.
          OSError: if a file cannot be written.
        """
        names = id.split("/")
        if any(len(os.fsencode(name)) > MOST_BYTES for name in names):
            raise BadName(f"the name is longer than {MOST_BYTES} bytes: shorten it")
        if {"", ".", ".."} & set(names) or set(id) & set("\\\0"):
            raise BadName(f"id {id!r} cannot be a file name: a part of it is empty or no name")
        for name, array in (("mask", combined.mask), ("truth", truth)):
            if array is not None and array.shape != image.shape[:2]:
                raise ValueError(
                    f"{name} of {id!r} is {array.shape}, its image is {image.shape[:2]}"
                )
        grey = lambda array: np.round(255 * array).astype(np.uint8)
        probability = combined.probability
        if self._classes:
            mask, overlay = self._classes.file_values(combined.mask), image
            if truth is not None:
                overlay = draw_contours(image, truth, 0.6)
            overlay = draw_contours(overlay, combined.mask)
            probability = probability.max(axis=-1)
        else:
            mask = grey(combined.mask)
            overlay = image if truth is None else draw_contour(image, truth, TRUTH_COLOUR)
            overlay = draw_contour(overlay, combined.mask, PREDICTION_COLOUR)
        pictures = {
            "masks": mask,
            "probabilities": grey(probability),
            "entropies": grey(entropy(combined.probability)),
            "overlays": overlay,
        }
        if combined.deviation is not None:
            pictures["deviations"] = grey(2 * combined.deviation)
        files = {self._file(name, id): picture for name, picture in pictures.items()}
        # While the files change, there is a record that is of no content.
        write_file(self._record(id), json.dumps({"id": id}).encode())
        for path, picture in files.items():
            content = encode_image(picture, "JPEG" if path.suffix == ".jpg" else "PNG")
            try:
                make_folder(path.parent)
                write_file(path, content)
            except OSError as error:
                if getattr(error.__cause__, "errno", None) not in NAMES:
                    raise
                raise BadName(f"no file can have this name ({error.__cause__.strerror})") from error
        known = {
            "version": VERSION,
            "id": id,
            "files": [path.relative_to(self.path).as_posix() for path in files],
        }
        text = json.dumps({**(record or {}), **known}, default=lambda array: array.tolist())
        write_file(self._record(id), text.encode())


def class_colour(k: int) -> tuple[int, int, int]:
    """Of the class of this label, from 1."""
    if k <= len(CLASS_COLOURS):
        return CLASS_COLOURS[k - 1]
    hue = k * 0.618034 % 1  # By the golden ratio, neighbours are far apart.
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.7, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_contours(image: np.ndarray, labels: np.ndarray, shade: float = 1.0) -> np.ndarray:
    """`draw_contour` of each class in u8[H, W] but the background, 0, in `shade` of its colour."""
    for k in np.unique(labels[labels > 0]):
        colour = tuple(round(shade * channel) for channel in class_colour(k))
        image = draw_contour(image, labels == k, colour)
    return image


def mix_classes(shares: np.ndarray) -> np.ndarray:
    """u8[H, W, K], 255 times each class's share -> u8[H, W, 3], their colours; black is none."""
    colours = np.float32([class_colour(k) for k in range(1, shares.shape[-1])])
    return np.uint8(np.minimum(shares[..., 1:] / 255 @ colours, 255))


def draw_contour(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A copy of u8[H, W, 3] with the inner edge of bool[H, W] drawn: 2 px, and 1 more per 400."""
    thickness = 2 + max(mask.shape) // 400
    edge = mask & ~ndimage.binary_erosion(mask, iterations=thickness)
    return np.where(edge[..., None], np.uint8(colour), image)


def encode_image(array: np.ndarray, format: str) -> bytes:
    """u8[H, W] or u8[H, W, 3] as the bytes of a PNG or JPEG file (4:4:4, so that lines stay)."""
    options = {"quality": 90, "subsampling": 0} if format == "JPEG" else {}
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a temporary file beside it is moved into place.

    Raises:
      OSError: if that fails; the message names the file and what to do.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _advice(path, error) from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; OSError as of `write_file`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _advice(path, error) from error


def _advice(path: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write {path} ({error.strerror or error}): free some space on the disk, or name "
        "an output folder that can be written to"
    )
