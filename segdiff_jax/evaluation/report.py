"""One HTML file that shows how good the masks are: figures, curves and a gallery of the images."""

import base64
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jinja2
import numpy as np
from PIL import Image

from segdiff_jax.data.pipeline import size_within
from segdiff_jax.evaluation.ensemble import entropy
from segdiff_jax.evaluation.outputs import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    class_colour,
    draw_contour,
    mix_classes,
    write_file,
)
from segdiff_jax.evaluation.tables import describe_uncertainty

GALLERY = 400  # the most images that the report shows
MOST_BYTES = 13_000  # of a picture: 4 of each of 400 images, in base64, are 28 MB
FRAME = 128  # pixels a side of the frames of a strip, at most
MOST_FRAMES = 20  # of a strip
POINTS = 300  # of a curve, at most
# Label, meaning and unit ("" from 0 to 1, the higher the better; "px" the lower the better).
SCORES = {
    "iou": ("IoU", "overlap / union of prediction and truth", ""),
    "dice": ("Dice", "overlap / mean area of prediction and truth", ""),
    "thresholded_jaccard": ("Thresholded Jaccard", "IoU, but 0 where it is below 0.65", ""),
    "accuracy": ("Accuracy", "pixels labelled rightly", ""),
    "sensitivity": ("Sensitivity", "lesion pixels found", ""),
    "specificity": ("Specificity", "skin pixels left alone", ""),
    "wcov": ("WCov", "ratio of the areas of prediction and truth", ""),
    "fbound": ("FBound", "boundary found within 1 to 5 pixels", ""),
    "surface_dice": ("Surface Dice", "boundary found within 1% of the image's diagonal", ""),
    "hd95": ("HD95", "distance of the boundaries, 95th percentile; low is good", "px"),
}
HEADLINES = "iou", "dice", "thresholded_jaccard", "surface_dice", "hd95"
# Uncertainty from none to most: black, violet, red, orange, pale yellow.
HEAT = np.array([(8, 6, 24), (84, 22, 112), (190, 50, 84), (245, 140, 40), (252, 246, 180)])


@dataclasses.dataclass(frozen=True)
class Case:
    """One image as the report shows it; pictures are small JPEG files as data URIs.

    Attributes:
        id: the image's name.
        image: the picture alone.
        truth: the picture with the true contour, if the truth is known.
        prediction: the picture with the predicted contour, tinted by probability. Of several
            classes, each has a contour and tint of its own colour, and so has the truth.
        uncertainty: heat map of the disagreement or, of a single vote, of the entropy.
        disagreement: 1 - mean IoU of every two votes; None for a single vote.
        scores: of `segmentation_scores`, if the truth is known.
        tags: value by condition, of `condition_tags`, if the truth is known.
    """

    id: str
    image: str
    truth: str | None
    prediction: str
    uncertainty: str | None
    disagreement: float | None
    scores: dict[str, float] | None
    tags: dict[str, str] | None


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
    id: str,
    image: np.ndarray,
    probability: np.ndarray,
    mask: np.ndarray,
    spread: np.ndarray | None,
    truth: np.ndarray | None,
    scores: dict[str, float] | None,
    tags: dict[str, str] | None,
    disagreement: float | None,
    size: int = 192,
) -> Case:
    """Shrinks one image's arrays to a few kilobytes, so that thousands of cases fit in memory.

    Args:
        id: the image's name.
        image: u8[H, W, 3].
        probability: f32[H, W], from 0 to 1, or of several classes f32[H, W, K]; it tints the
            prediction.
        mask: bool[H, W], the prediction, or u8[H, W].
        spread: f32[H, W], standard deviation of the votes, from 0 to 0.5; None where there is one
            vote only: then the heat map shows the entropy of `probability`.
        truth: bool[H, W] or u8[H, W], if known.
        scores, tags, disagreement: as in `Case`.
        size: the longest side of the pictures in pixels; smaller images are not enlarged.
    """
    height, width = size_within(mask.shape, size)

    def shrink(array: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def shrink_mask(array: np.ndarray) -> np.ndarray:
        return shrink(np.float32(array)) > 0.5

    layers = [(probability, mask, truth, PREDICTION_COLOUR, TRUTH_COLOUR)]
    if probability.ndim == 3:
        of_class = lambda array, k: None if array is None else array == k
        layers = [
            (probability[..., k], mask == k, of_class(truth, k), class_colour(k), class_colour(k))
            for k in range(1, probability.shape[-1])
        ]
    image = shrink(image)
    tints = [0.35 * shrink(np.float32(layer))[..., None] for layer, *_ in layers]
    paint = sum(t * np.float32(colour) for t, (*_, colour, _) in zip(tints, layers, strict=True))
    prediction = np.uint8((1 - sum(tints)) * image + paint)
    outline = None if truth is None else image
    for _, area, true_area, colour, true_colour in layers:
        prediction = draw_contour(prediction, shrink_mask(area), colour)
        if truth is not None:
            outline = draw_contour(outline, shrink_mask(true_area), true_colour)
    level = entropy(probability) if spread is None else 2 * np.float32(spread)
    return Case(
        id=id,
        image=_data_uri(image),
        truth=None if outline is None else _data_uri(outline),
        prediction=_data_uri(prediction),
        uncertainty=_data_uri(_heat(shrink(level))),
        disagreement=disagreement,
        scores=scores,
        tags=tags,
    )


def make_strip(id: str, frames: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Strip:
    """Grey pictures of one mask's way out of noise.

    Args:
        id: the image's name.
        frames: (timestep, x_t, x_start) from T to 0; f32[S, S], where clean masks are -1 or +1 and
            what is beyond is clipped; of several classes, f32[S, S, K], whose colours are mixed.
            Of more than 20, 20 are shown.
    """
    pictures = []
    shown = np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))
    for timestep, *arrays in (frames[i] for i in shown):
        grey = [np.uint8(np.round(127.5 * (np.clip(array, -1, 1) + 1))) for array in arrays]
        grey = [mix_classes(array) if array.ndim == 3 else array for array in grey]
        size = size_within(grey[0].shape[:2], FRAME)[::-1]
        small = [Image.fromarray(g).resize(size, Image.Resampling.BILINEAR) for g in grey]
        pictures.append((int(timestep), *(_data_uri(np.asarray(g)) for g in small)))
    return Strip(id, pictures)


def write_report(
    path: str | os.PathLike,
    cases: Sequence[Case],
    metrics: dict | None,
    settings: dict,
    title: str,
    failures: Mapping[str, str] = MappingProxyType({}),
    history: Sequence[dict[str, float | None]] = (),
    strips: Sequence[Strip] = (),
    classes: Sequence[str] = (),
) -> None:
    """Writes a self-contained HTML file: pictures, styles and scripts are inside.

    The gallery holds the 400 images of lowest IoU or, without truth, whose votes disagree most.

    Args:
        path: the HTML file.
        cases: every image of the evaluation; the scores of all make the histogram.
        metrics: what `write_metrics` returns; None without truth.
        settings: name -> value, shown in this order.
        title: heading of the page.
        failures: images that have no mask -> why.
        history: rows of the training run's metrics.csv, of which "step", "loss" and
            "validation_iou" are shown.
        strips: the denoising of some images.
        classes: names of several classes, the background first.
    Raises:
        OSError: if the file cannot be written.
    """
    scored = [case for case in cases if case.scores] if metrics else []
    chosen = sorted(cases, key=_rank)[:GALLERY]
    layers = "image", "truth", "prediction", "uncertainty"
    stops = [layer for layer in layers if any(getattr(case, layer) for case in chosen)]
    votes = [case.disagreement for case in cases if case.disagreement is not None]
    curves = {
        "coverage": sorted(metrics["uncertainty"].get("risk_coverage", ())) if metrics else [],
        "loss": _column(history, "loss"),
        "validation": _column(history, "validation_iou"),
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
        title=title,
        num_images=len(cases),
        settings=settings,
        scores=_score_table(scored, metrics) if metrics else [],
        headlines=HEADLINES,
        uncertainty=describe_uncertainty(metrics["uncertainty"]) if metrics else "",
        bars=_histogram([case.scores["iou"] for case in scored]),
        metrics=metrics,
        disagreement=float(np.mean(votes)) if votes else None,
        failures=sorted(failures.items()),
        prediction_colour=_hex(PREDICTION_COLOUR),
        truth_colour=_hex(TRUTH_COLOUR),
        classes=[(name, _hex(class_colour(k))) for k, name in enumerate(classes[1:], 1)],
        heat=", ".join(_hex(colour) for colour in HEAT),
        data={
            "cases": [dataclasses.asdict(case) | {"scores": _finite(case)} for case in chosen],
            "strips": [dataclasses.asdict(strip) for strip in strips],
            "stops": stops,
            "curves": curves,
            "labels": {name: [label, unit] for name, (label, _, unit) in SCORES.items()},
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
    for name, (label, meaning, unit) in SCORES.items():
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
