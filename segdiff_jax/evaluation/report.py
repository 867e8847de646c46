"""One HTML file that shows how good the masks are: scores, histogram, worst and best cases."""

import base64
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jinja2
import numpy as np
from PIL import Image

from segdiff_jax.data.pipeline import size_within
from segdiff_jax.evaluation.outputs import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    describe_uncertainty,
    draw_contour,
    encode_image,
    write_file,
)

WORST, BEST = 12, 6  # how many cases the report shows
SCORES = {
    "iou": ("IoU", "overlap / union of prediction and truth"),
    "dice": ("Dice", "overlap / mean area of prediction and truth"),
    "accuracy": ("Accuracy", "pixels labelled rightly"),
    "sensitivity": ("Sensitivity", "lesion pixels found"),
    "specificity": ("Specificity", "skin pixels left alone"),
    "thresholded_jaccard": ("Thresholded Jaccard", "IoU, but 0 where it is below 0.65"),
    "fbound": ("FBound", "boundary found within 1 to 5 pixels"),
}
# Disagreement from 0 to 0.5: black, violet, red, orange, pale yellow.
HEAT = np.array([(8, 6, 24), (84, 22, 112), (190, 50, 84), (245, 140, 40), (252, 246, 180)])


@dataclasses.dataclass(frozen=True)
class Case:
    """One image as the report shows it; pictures are small JPEG files as data URIs."""

    id: str
    image: str
    truth: str | None
    prediction: str
    disagreement: str | None
    mean_disagreement: float
    scores: dict[str, float] | None


def make_case(
    id: str,
    image: np.ndarray,
    probability: np.ndarray,
    mask: np.ndarray,
    disagreement: np.ndarray | None,
    truth: np.ndarray | None,
    scores: dict[str, float] | None,
    size: int = 192,
) -> Case:
    """Shrinks one image's arrays to a few kilobytes, so that thousands of cases fit in memory.

    Args:
      id: the image's name.
      image: u8[H, W, 3].
      probability: f32[H, W], from 0 to 1; it tints the prediction.
      mask: bool[H, W], the prediction.
      disagreement: f32[H, W], from 0 to 0.5; None where there is one vote only.
      truth: bool[H, W], if known.
      scores: those of `segmentation_scores`, if the truth is known.
      size: the longest side of the pictures in pixels; smaller images are not enlarged.
    """
    height, width = size_within(mask.shape, size)

    def shrink(array: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def shrink_mask(array: np.ndarray) -> np.ndarray:
        return shrink(np.float32(array)) > 0.5

    image = shrink(image)
    tint = 0.35 * shrink(np.float32(probability))[..., None]
    prediction = np.uint8((1 - tint) * image + tint * np.float32(PREDICTION_COLOUR))
    prediction = draw_contour(prediction, shrink_mask(mask), PREDICTION_COLOUR)
    heat = None
    if disagreement is not None:
        level = shrink(np.float32(disagreement)) * 2 * (len(HEAT) - 1)
        channels = [np.interp(level, np.arange(len(HEAT)), channel) for channel in HEAT.T]
        heat = np.uint8(np.stack(channels, axis=-1))
    outline = None if truth is None else draw_contour(image, shrink_mask(truth), TRUTH_COLOUR)
    return Case(
        id=id,
        image=_data_uri(image),
        truth=_data_uri(outline),
        prediction=_data_uri(prediction),
        disagreement=_data_uri(heat),
        mean_disagreement=0.0 if disagreement is None else float(np.mean(disagreement)),
        scores=scores,
    )


def write_report(
    path: str | os.PathLike,
    cases: list[Case],
    metrics: dict | None,
    settings: dict,
    title: str,
    failures: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a self-contained HTML file: pictures and styles are inside, nothing is fetched.

    With scores it shows the 12 worst and 6 best images by IoU (fewer, and no image twice, where
    there are not 18); without, the 18 whose votes disagree the most.

    Args:
      path: the HTML file.
      cases: every image of the evaluation; the scores of all make the histogram.
      metrics: what `write_metrics` returns: means, interval, strata; None without truth.
      settings: name -> value, shown in this order.
      title: heading of the page.
      failures: images that have no mask -> why.
    Raises:
      OSError: if the file cannot be written.
    """
    if metrics is None:
        ranked = sorted(cases, key=lambda case: (-case.mean_disagreement, case.id))
        split = any(case.disagreement for case in cases)
        heading = "Where the votes disagree most" if split else "Predictions"
        sections = [(heading, ranked[: WORST + BEST])]
    else:
        ranked = sorted(cases, key=lambda case: (case.scores["iou"], case.id))
        best = min(BEST, len(cases) // 3)
        worst = min(WORST, len(cases) - best)
        sections = [("Worst cases", ranked[:worst]), ("Best cases", ranked[::-1][:best])]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segdiff_jax", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(
        title=title,
        num_images=len(cases),
        settings=settings,
        scores=_score_table(cases, metrics["mean"]) if metrics else [],
        uncertainty=describe_uncertainty(metrics["uncertainty"]) if metrics else "",
        bars=_histogram([case.scores["iou"] for case in cases]) if metrics else [],
        metrics=metrics,
        failures=sorted(failures.items()),
        sections=[section for section in sections if section[1]],
        prediction_colour=_hex(PREDICTION_COLOUR),
        truth_colour=_hex(TRUTH_COLOUR),
        heat=", ".join(_hex(colour) for colour in HEAT),
    )
    write_file(Path(path), html.encode())


def _score_table(cases: list[Case], summary: dict[str, float]) -> list[dict]:
    rows = []
    for name, (label, meaning) in SCORES.items():
        values = [case.scores[name] for case in cases]
        row = {"label": label, "meaning": meaning, "mean": summary[name]}
        rows.append(row | {"median": float(np.median(values)), "lowest": min(values)})
    return rows


def _histogram(values: list[float]) -> list[dict]:
    """Twenty bins from 0 to 1; 1 itself is in the last."""
    counts, edges = np.histogram(values, bins=20, range=(0, 1))
    return [
        {"low": low, "count": int(count), "share": count / counts.max()}
        for low, count in zip(edges, counts, strict=False)
    ]


def _data_uri(array: np.ndarray | None) -> str | None:
    if array is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(array, "JPEG")).decode()


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(map(int, colour)).hex()
