"""The files of an evaluation: masks, probabilities, overlays and the table of scores."""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from segdiff_jax.evaluation.metrics import average_scores, bootstrap_interval
from segdiff_jax.evaluation.strata import scores_by_stratum
from segdiff_jax.evaluation.uncertainty import summarise

MEMORY = "max_batch", "max_memory"
MOST_BYTES = 230  # of a name, so that with what is added file systems take it

PREDICTION_COLOUR = (0, 229, 255)
TRUTH_COLOUR = (255, 214, 10)


class OutputFolder:
    """Writes, for every image, at its native size:

    masks/<id>_Segmentation.png: 8-bit, one channel, 0 or 255, the ISIC challenge's submission;
    probabilities/<id>.png: 8-bit, one channel, round(255 p);
    overlays/<id>.jpg: the image with the predicted contour in cyan and the true one in yellow;
    records/<hash of id>.json: at last, what the scores and the report are made of.

    Every file is written whole or not at all.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        for name in ("masks", "probabilities", "overlays", "records"):
            _make_folder(self.path / name)

    def begin(self, settings: dict) -> None:
        """Notes the settings in settings.json; removes what others made, and all summaries.

        Fields of memory, which change no result, are no other settings.

        Raises:
          ValueError: if there are files of another data set or of unknown origin: they are not
            overwritten.
        """
        images = self._all("masks/*", "probabilities/*", "overlays/*", "records/*")
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
        if not others:  # Those that were killed while they were written go.
            images = [file for file in images if file.name.startswith(".")]
        elif images:
            print(f"{self.path} is made anew: other {', '.join(others)} than before", flush=True)
        for file in images + summaries:
            file.unlink()
        write_file(path, json.dumps(settings, indent=2).encode())

    def _all(self, *patterns: str) -> list[Path]:
        """The files of these names."""
        return [file for name in patterns for file in self.path.glob(name) if file.is_file()]

    def has(self, id: str, content: int) -> bool:
        """Whether the image's files are there, made of files of this checksum."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = self.record(id)["content"] == content
            return known and all(path.stat().st_size for path in self._files(id))
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
                    for path in (*self._files(id), record):
                        path.unlink(missing_ok=True)

    def _files(self, id: str) -> tuple[Path, Path, Path]:
        return (
            self.path / "masks" / f"{id}_Segmentation.png",
            self.path / "probabilities" / f"{id}.png",
            self.path / "overlays" / f"{id}.jpg",
        )

    def _record(self, id: str) -> Path:
        return self.path / "records" / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.json"

    def write(
        self,
        id: str,
        image: np.ndarray,
        probability: np.ndarray,
        mask: np.ndarray,
        truth: np.ndarray | None = None,
        record: dict | None = None,
    ) -> None:
        """Writes the files of one image.

        Args:
          id: the image's name, without folder or extension.
          image: u8[H, W, 3].
          probability: f32[H, W], from 0 to 1.
          mask: bool[H, W], the prediction.
          truth: bool[H, W], if known.
          record: for `record`, which adds the id; as "content" the checksum of the image's files.
        Raises:
          ValueError: if id is empty, too long or holds a path separator, or if sizes differ.
          OSError: if a file cannot be written.
        """
        if len(os.fsencode(id)) > MOST_BYTES:
            raise ValueError(f"the name is longer than {MOST_BYTES} bytes: shorten it")
        if not id or set(id) & set("/\\\0"):
            raise ValueError(f"id {id!r} cannot be a file name: it is empty or holds a separator")
        for name, array in (("probability", probability), ("mask", mask), ("truth", truth)):
            if array is not None and array.shape != image.shape[:2]:
                raise ValueError(
                    f"{name} of {id!r} is {array.shape}, its image is {image.shape[:2]}"
                )
        overlay = image if truth is None else draw_contour(image, truth, TRUTH_COLOUR)
        overlay = draw_contour(overlay, mask, PREDICTION_COLOUR)
        grey = np.round(255 * probability).astype(np.uint8)
        binary = np.where(mask, np.uint8(255), np.uint8(0))
        contents = (
            encode_image(binary, "PNG"),
            encode_image(grey, "PNG"),
            encode_image(overlay, "JPEG"),
        )
        text = json.dumps({**(record or {}), "id": id}, default=lambda array: array.tolist())
        # While the files change, there is a record that is of no content.
        write_file(self._record(id), json.dumps({"id": id}).encode())
        for path, content in zip(self._files(id), contents, strict=True):
            write_file(path, content)
        write_file(self._record(id), text.encode())


def write_metrics(path: str | os.PathLike, rows: list[dict], extra: dict) -> dict:
    """Writes metrics.csv (one line an image, sorted by id) and metrics.json (the means).

    Args:
      path: the folder.
      rows: one {"id": ..., "scores": {score: value}, "tags": {tag: value}, "disagreement": float or
        None, "calibration": f64[3, 15]} an image, of `segmentation_scores`, `condition_tags`,
        `vote_disagreement` and `calibration_bins`.
      extra: what the scores were made with; it becomes "settings".
    Returns:
      What metrics.json holds: {"num_images", "mean": {score: mean over images}, "iou_interval":
      [low, high] of `bootstrap_interval`, "uncertainty" of `summarise`, "strata" of
      `scores_by_stratum`, "settings"}.
    Raises:
      ValueError: if there are no rows.
      OSError: if a file cannot be written.
    """
    scores = [row["scores"] for row in rows]
    ious = [row["iou"] for row in scores]
    disagreements = [row["disagreement"] for row in rows]
    summary = {
        "num_images": len(rows),
        "mean": average_scores(scores),
        "iou_interval": list(bootstrap_interval(ious)),
        "uncertainty": summarise(ious, disagreements, [row["calibration"] for row in rows]),
        "strata": scores_by_stratum(scores, [row["tags"] for row in rows]),
        "settings": extra,
    }
    names, tags = list(scores[0]), list(rows[0]["tags"])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", *names, *([] if None in disagreements else ["disagreement"]), *tags])
    for row in sorted(rows, key=lambda row: row["id"]):
        numbers = [row["scores"][name] for name in names]
        numbers += [] if None in disagreements else [row["disagreement"]]
        numbers = (f"{number:.6f}" for number in numbers)
        table.writerow([row["id"], *numbers, *(row["tags"][tag] for tag in tags)])
    _make_folder(Path(path))
    write_file(Path(path) / "metrics.csv", text.getvalue().encode())
    write_file(Path(path) / "metrics.json", json.dumps(summary, indent=2, default=str).encode())
    return summary


def write_failures(path: str | os.PathLike, failures: dict[str, str]) -> None:
    """Writes failures.csv, an image and the reason a line, if there are any; OSError as above."""
    if failures:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("image", "reason"), *sorted(failures.items())])
        write_file(Path(path) / "failures.csv", text.getvalue().encode())


def format_metrics(metrics: dict) -> str:
    """The means, the interval of the mean IoU and an aligned table of the strata, for a terminal.

    Args:
      metrics: what `write_metrics` returns.
    """
    low, high = metrics["iou_interval"]
    means = ", ".join(f"{name} {mean:.4f}" for name, mean in metrics["mean"].items())
    rows = [("condition", "", "images", "iou", "dice")]
    for tag, strata in metrics["strata"].items():
        for i, (value, row) in enumerate(strata.items()):
            numbers = (str(row["num_images"]), f"{row['iou']:.4f}", f"{row['dice']:.4f}")
            rows.append(("" if i else tag.replace("_", " "), value, *numbers))
    table = [f"{a:<14}{b:<8}{c:>6}{d:>9}{e:>9}" for a, b, c, d, e in rows]
    interval = f"95% interval of the mean IoU: {low:.4f} to {high:.4f}"
    images = f"({metrics['num_images']} images)"
    lines = [f"{means} {images}", interval, describe_uncertainty(metrics["uncertainty"]), *table]
    return "\n".join(lines)


def describe_uncertainty(uncertainty: dict) -> str:
    """What `summarise` returns, in a sentence."""
    text = f"expected calibration error {uncertainty['ece']:.4f}"
    if "disagreement" in uncertainty:
        text += f"; the votes disagree by {uncertainty['disagreement']:.4f} (1 - IoU of every two)"
    if uncertainty.get("correlation") is not None:
        text += f", whose rank correlation with 1 - IoU is {uncertainty['correlation']:.2f}"
    return text


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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _advice(path, error) from error


def _advice(path: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write {path} ({error.strerror or error}): free some space on the disk, or name "
        "an output folder that can be written to"
    )
