"""One HTML file that shows how good the masks are: figures, curves and a gallery of the images."""

import base64
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from segdiff_jax.data.classes import TWO, Classes
from segdiff_jax.data.pipeline import size_within
from segdiff_jax.evaluation.metrics import SCORES
from segdiff_jax.evaluation.outputs import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    class_colour,
    draw_contours,
    draw_truth,
    mix_classes,
)
from segdiff_jax.evaluation.tables import describe_uncertainty
from segdiff_jax.inference.combine import Segmentation, entropy
from segdiff_jax.runtime.files import write_file

GALLERY = 400  # the most images that the report shows
MOST_BYTES = 13_000  # of a picture: 4 of each of 400 images, in base64, are 28 MB
FRAME = 128  # pixels a side of the frames of a strip, at most
MOST_FRAMES = 20  # of a strip
POINTS = 300  # of a curve, at most
HEADLINES = "iou", "dice", "thresholded_jaccard", "surface_dice", "hd95"
# Uncertainty from none to most: black, violet, red, orange, pale yellow.
HEAT = np.array([(8, 6, 24), (84, 22, 112), (190, 50, 84), (245, 140, 40), (252, 246, 180)])


@dataclasses.dataclass(frozen=True)
class Case:
    """One image as the report shows it; pictures are small JPEG files as data URIs.

    Attributes:
        id: the image's name.
        image: the picture alone.
        truth: the picture with the true contours, if the truth is known.
        prediction: the picture with the predicted contours, tinted by probability.
        uncertainty: heat map of the standard deviation or, with a single sample, of the entropy.
        disagreement: see `combine.disagreement`.
        scores: see `segmentation_scores`, if the truth is known.
        conditions: {condition: value}, see `measure_conditions`, if the truth is known.
    """

    id: str
    image: str
    truth: str | None
    prediction: str
    uncertainty: str | None
    disagreement: float | None
    scores: dict[str, float] | None
    conditions: dict[str, str] | None


@dataclasses.dataclass(frozen=True)
class Strip:
    """How one mask came out of noise.

    Attributes:
        id: the image's name.
        frames: (timestep from T to 0, x_t, the estimate of x_start), both as data URIs.
    """

    id: str
    frames: list[tuple[int, str, str]]


def make_case(
    example: Mapping[str, Any],
    found: Segmentation,
    scores: dict[str, float] | None,
    classes: Classes = TWO,
    size: int = 192,
) -> Case:
    """Shrinks one image's arrays to a few kilobytes, so that thousands of cases fit in memory.

    The heat map shows the standard deviation of the samples or, with a single one, the entropy of
    the probability.

    Args:
        example: see `NativeExamples`; of it, "id", "image", "truth" and "conditions" are read.
        found: the prediction; its probability tints the picture.
        scores: as in `Case`.
        classes: of the masks.
        size: the longest side of the pictures in pixels; smaller images are not enlarged.
    """
    height, width = size_within(found.labels.shape, size)

    def shrink(array: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def shrink_labels(labels: np.ndarray) -> np.ndarray:
        small = np.zeros((height, width), np.uint8)
        for k in range(1, classes.count):
            small[shrink(np.float32(labels == k)) > 0.5] = k
        return small

    image, truth = shrink(example["image"]), example["truth"]
    shares = {k: found.probabilities[..., c] for c, k in enumerate(classes.of_channels) if k}
    tints = {k: 0.35 * shrink(np.float32(share))[..., None] for k, share in shares.items()}
    paint = sum(tint * np.float32(class_colour(k)) for k, tint in tints.items())
    prediction = np.uint8((1 - sum(tints.values())) * image + paint)
    prediction = draw_contours(prediction, shrink_labels(found.labels))
    outline = None if truth is None else draw_truth(image, shrink_labels(truth), classes)
    deviation = found.deviation
    level = entropy(found.probabilities) if deviation is None else 2 * np.float32(deviation)
    return Case(
        id=example["id"],
        image=_data_uri(image),
        truth=None if outline is None else _data_uri(outline),
        prediction=_data_uri(prediction),
        uncertainty=_data_uri(_heat(shrink(level))),
        disagreement=found.uncertainty,
        scores=scores,
        conditions=example["conditions"],
    )


def make_strip(id: str, frames: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Strip:
    """Pictures of one mask's way out of noise.

    Args:
        id: the image's name.
        frames: (timestep, x_t, x_start) from T to 0; f32[S, S, C], where clean masks are -1 or +1
            and what is beyond is clipped. Of more than 20, 20 are shown.
    """
    pictures = []
    shown = np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))
    for timestep, *arrays in (frames[i] for i in shown):
        mixed = [mix_classes((np.clip(array, -1, 1) + 1) / 2) for array in arrays]
        size = size_within(mixed[0].shape[:2], FRAME)[::-1]
        small = [Image.fromarray(x).resize(size, Image.Resampling.BILINEAR) for x in mixed]
        pictures.append((int(timestep), *(_data_uri(np.asarray(x)) for x in small)))
    return Strip(id, pictures)


@dataclasses.dataclass(frozen=True)
class Page:
    """What a report says beside the images and their scores.

    Attributes:
        title: heading of the page.
        settings: name -> value, shown in this order.
        failures: images that have no mask -> why.
        history: rows of the training run's metrics.csv, of which "step", "loss" and
            "validation_iou" are shown.
        classes: of the masks.
    """

    title: str
    settings: Mapping[str, Any]
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: Sequence[dict[str, float | None]] = ()
    classes: Classes = TWO


def write_report(
    path: str | os.PathLike,
    cases: Sequence[Case],
    metrics: dict | None,
    page: Page,
    strips: Sequence[Strip] = (),
) -> None:
    """Writes a self-contained HTML file: pictures, styles and scripts are inside.

    The gallery holds the 400 images with the lowest IoU or, without truth, whose samples disagree
    most.

    Args:
        path: the HTML file.
        cases: every image of the evaluation; the scores of all make the histogram.
        metrics: what `write_metrics` returns; None without truth.
        page: the rest.
        strips: the denoising of some images.
    Raises:
        OSError: if the file cannot be written.
    """
    scored = [case for case in cases if case.scores] if metrics else []
    chosen = sorted(cases, key=_rank)[:GALLERY]
    layers = "image", "truth", "prediction", "uncertainty"
    stops = [layer for layer in layers if any(getattr(case, layer) for case in chosen)]
    disagreements = [case.disagreement for case in cases if case.disagreement is not None]
    curves = {
        "coverage": sorted(metrics["uncertainty"].get("risk_coverage", ())) if metrics else [],
        "loss": _column(page.history, "loss"),
        "validation": _column(page.history, "validation_iou"),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segdiff_jax", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    html = environment.get_template("report.html").render(
        number=_number,
        title=page.title,
        num_images=len(cases),
        settings=page.settings,
        scores=_score_table(scored, metrics) if metrics else [],
        headlines=HEADLINES,
        uncertainty=describe_uncertainty(metrics["uncertainty"]) if metrics else "",
        bars=_histogram([case.scores["iou"] for case in scored]),
        metrics=metrics,
        disagreement=float(np.mean(disagreements)) if disagreements else None,
        failures=sorted(page.failures.items()),
        prediction_colour=_hex(PREDICTION_COLOUR),
        truth_colour=_hex(TRUTH_COLOUR),
        classes=[
            (name, _hex(class_colour(k)))
            for k, name in enumerate(page.classes.names[1:], 1)
            if page.classes.several
        ],
        heat=", ".join(_hex(colour) for colour in HEAT),
        data={
            "cases": [dataclasses.asdict(case) | {"scores": _finite(case)} for case in chosen],
            "strips": [dataclasses.asdict(strip) for strip in strips],
            "stops": stops,
            "curves": curves,
            "labels": {name: [score.label, score.unit] for name, score in SCORES.items()},
        },
    )
    write_file(Path(path), html.encode(errors="replace"))


def _rank(case: Case) -> tuple:
    """By IoU, then, of those without, by falling disagreement."""
    return (case.scores["iou"] if case.scores else 2, -(case.disagreement or 0), case.id)


def _finite(case: Case) -> dict[str, float | None] | None:
    """The scores; JSON knows no NaN and no infinity."""
    if case.scores is None:
        return None
    return {k: v if v is not None and np.isfinite(v) else None for k, v in case.scores.items()}


def _score_table(cases: Sequence[Case], metrics: dict) -> list[dict]:
    rows = []
    for name, (_, label, meaning, unit) in SCORES.items():
        if name in metrics["mean"]:
            values = np.array([case.scores[name] for case in cases], np.float64)
            worst = np.nanmax(values) if unit else np.nanmin(values)
            row = {"name": name, "label": label, "meaning": meaning, "mean": metrics["mean"][name]}
            row |= {"unit": unit, "interval": metrics["intervals"].get(name)}
            rows.append(row | {"median": float(np.nanmedian(values)), "worst": float(worst)})
    return rows


def _number(value: float | None, unit: str = "", digits: int = 4) -> str:
    """A score for reading."""
    if value is None or not np.isfinite(value):
        return "n/a"
    return f"{value:.1f}" if unit else f"{value:.{digits}f}"


def _histogram(values: Sequence[float]) -> list[dict]:
    """Twenty bins from 0 to 1; 1 itself is in the last."""
    counts, edges = np.histogram(values, bins=np.arange(21) / 20)
    return [
        {"low": low, "count": int(count), "share": count / max(counts.max(), 1)}
        for low, count in zip(edges, counts, strict=False)
    ]


def _column(history: Sequence[dict[str, float | None]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have one; over 300 are averaged in groups."""
    pairs = [(row["step"], row.get(name)) for row in history if row.get("step") is not None]
    pairs = [pair for pair in pairs if pair[1] is not None and np.isfinite(pair[1])]
    if len(pairs) <= POINTS:
        return pairs
    return [tuple(group.mean(axis=0)) for group in np.array_split(np.array(pairs), POINTS)]


def _heat(level: np.ndarray) -> np.ndarray:
    """u8[H, W, 3] of f32[H, W] from 0 to 1."""
    place = level * (len(HEAT) - 1)
    channels = [np.interp(place, np.arange(len(HEAT)), channel) for channel in HEAT.T]
    return np.uint8(np.stack(channels, axis=-1))


def _data_uri(array: np.ndarray) -> str:
    """A JPEG file (4:4:4, so that lines stay) of the best quality that is small enough."""
    for quality in (88, 80, 70, 55, 40, 25):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(map(int, colour)).hex()
