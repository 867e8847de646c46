"""One HTML file that shows how good the masks are: figures, curves and a gallery of the images."""

import base64
import dataclasses
import glob
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
from segdiff_jax.evaluation import outputs
from segdiff_jax.evaluation.metrics import SCORES
from segdiff_jax.evaluation.outputs import class_colour
from segdiff_jax.evaluation.tables import describe_uncertainty
from segdiff_jax.inference.combine import Segmentation, entropy
from segdiff_jax.runtime.files import write_file

GALLERY = 400  # the most images that the report shows
MOST_BYTES = 13_000  # of a picture: 4 of each of 400 images, in base64, are 28 MB
SIDE, FRAME = 192, 128  # pixels a side of the pictures of an image and of a strip, at most
MASK_SIDE, MOST_MASKS = 96, 16  # of single masks
MOST_FRAMES = 20  # of a strip
POINTS = 300  # of a curve, at most
LAYERS = "image", "truth", "prediction", "uncertainty"
# Uncertainty from none to most: black, violet, red, orange, pale yellow.
HEAT = np.array([(8, 6, 24), (84, 22, 112), (190, 50, 84), (245, 140, 40), (252, 246, 180)])

# Scores of single masks -> label, meaning, digits; see `distributions.score_samples`.
DISTRIBUTION = {
    "energy": ("Energy score", "distance to the truth less half of the diversity; low is good", 4),
    "boundary_energy": (
        "Energy score of outlines",
        "the same by outlines, in % of the diagonal",
        2,
    ),
    "ged": ("Energy distance", "of single masks and annotators; 0 is best", 4),
    "distance": ("Distance", "1 - IoU of a single mask and the truth", 4),
    "diversity": ("Diversity", "1 - IoU of two single masks", 4),
    "truth_diversity": ("Annotators' diversity", "1 - IoU of two annotators", 4),
    "best": ("Best single mask", "IoU of the one that fits best", 4),
    "hungarian": ("Matched IoU", "of single masks and annotators, paired as well as possible", 4),
    "ged_biased": ("Energy distance with self-pairs", "as most papers report it", 4),
    "consensus_dice": ("Consensus Dice", "of what at least 10, 20, ... 90% include", 4),
}


@dataclasses.dataclass(frozen=True)
class Page:
    """What a report says beside the images and their scores.

    `settings` are shown in their order. `failures` is image -> why it has no mask. `history` has
    the rows of the training's metrics.csv; "step", "loss" and "validation_iou" are shown.
    """

    title: str
    settings: Mapping[str, Any]
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: Sequence[dict[str, float | None]] = ()
    classes: Classes = TWO


def make_case(
    example: dict[str, Any], found: Segmentation, scores: dict | None, classes: Classes = TWO
) -> dict[str, Any]:
    """One of `NativeExamples` as the report shows it, so small that thousands fit in memory.

    {"id", "image": the picture alone, "truth": with the true contours, "prediction": with the
    predicted contours, tinted by probability, "uncertainty": a heat map of the standard deviation
    or, with a single sample, of the entropy, "samples": up to 16 single masks, "disagreement",
    "scores", "conditions"}. Pictures are data URIs of JPEG files of at most 192 pixels a side, or
    of PNG files of at most 96 of masks. What needs a truth is None without one.
    """
    size = size_within(found.labels.shape, SIDE)[::-1]
    shrink = lambda x: np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR))

    def shrink_labels(labels: np.ndarray) -> np.ndarray:
        small = np.zeros(size[::-1], np.uint8)
        for k in range(1, len(classes.names)):
            small[shrink(np.float32(labels == k)) > 0.5] = k
        return small

    image, truth = shrink(example["image"]), example["truth"]
    shares = {k: found.probabilities[..., c] for c, k in enumerate(classes.of_channels) if k}
    tints = {k: 0.35 * shrink(np.float32(share))[..., None] for k, share in shares.items()}
    paint = sum(tint * np.float32(class_colour(k)) for k, tint in tints.items())
    tinted = np.uint8((1 - sum(tints.values())) * image + paint)
    if truth is not None:
        truth = _data_uri(outputs.draw_truth(image, shrink_labels(truth), classes))
    several_samples = found.deviation is not None
    level = 2 * np.float32(found.deviation) if several_samples else entropy(found.probabilities)
    return {
        "id": example["id"],
        "image": _data_uri(image),
        "truth": truth,
        "prediction": _data_uri(outputs.draw_contours(tinted, shrink_labels(found.labels))),
        "uncertainty": _data_uri(_heat(shrink(level))),
        "samples": _mask_pictures(found.samples, classes),
        "disagreement": found.uncertainty,
        "scores": scores,
        "conditions": example["conditions"],
    }


def make_strip(id: str, frames: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """How one mask came out of noise: {"id", "frames"}, at most 20 frames, pictures as data URIs.

    A frame is (timestep, x_t, x_start), from T to 0, each f32[S, S, C]. Clean masks are -1 or +1;
    values beyond are clipped.
    """
    pictures = []
    shown = np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))
    for timestep, *arrays in (frames[i] for i in shown):
        size = size_within(arrays[0].shape[:2], FRAME)[::-1]
        mixed = [outputs.mix_classes((np.clip(array, -1, 1) + 1) / 2) for array in arrays]
        small = [Image.fromarray(x).resize(size, Image.Resampling.BILINEAR) for x in mixed]
        pictures.append((int(timestep), *(_data_uri(np.asarray(x)) for x in small)))
    return {"id": id, "frames": pictures}


def write_report(
    path: Path, cases: list[dict], metrics: dict | None, page: Page, strips: Sequence[dict] = ()
) -> None:
    """Writes a self-contained HTML file: pictures, styles and scripts are inside.

    `cases` are all images, see `make_case`. The gallery holds the 400 with the lowest IoU; images
    without truth come last, first those whose samples disagree most. `metrics` is what
    `write_metrics` returns, None if no image has a truth; all figures are of the images that have
    one. `strips` are of some images, see `make_strip`.
    """
    counted = [case for case in cases if case["scores"]] if metrics else cases
    scored = [case["scores"] for case in counted] if metrics else []
    chosen = sorted(cases, key=_rank)[:GALLERY]
    disagreements = [case["disagreement"] for case in counted if case["disagreement"] is not None]
    folders = _folders(page.settings)

    def shown(value: Any) -> Any:
        for folder in folders if isinstance(value, str) else ():
            value = value.replace(folder, "")
        return value

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
    colours = [(name, _hex(class_colour(k))) for k, name in enumerate(page.classes.names) if k]
    html = environment.get_template("report.html").render(
        number=_number,
        title=shown(page.title),
        num_images=len(cases),
        num_unscored=len(cases) - len(counted),
        settings={name: shown(value) for name, value in page.settings.items()},
        scores=_score_table(scored, metrics) if metrics else [],
        uncertainty=describe_uncertainty(metrics["uncertainty"]) if metrics else "",
        distribution=_distribution_table(metrics["samples"])
        if "samples" in (metrics or {})
        else [],
        bars=_histogram([scores["iou"] for scores in scored]),
        metrics=metrics,
        disagreement=float(np.mean(disagreements)) if disagreements else None,
        failures=[(file, shown(why)) for file, why in sorted(page.failures.items())],
        prediction_colour=_hex(outputs.PREDICTION_COLOUR),
        truth_colour=_hex(outputs.TRUTH_COLOUR),
        classes=colours if page.classes.several else [],
        heat=", ".join(_hex(colour) for colour in HEAT),
        data={
            "cases": [case | {"scores": _finite(case["scores"])} for case in chosen],
            "strips": strips,
            "stops": [layer for layer in LAYERS if any(case[layer] for case in chosen)],
            "curves": curves,
            "labels": {name: [score.label, score.unit] for name, score in SCORES.items()},
        },
    )
    write_file(path, html.encode(errors="replace"))


def _folders(settings: Mapping[str, Any]) -> list[str]:
    """Where the data and the checkpoints of the settings lie, the longest path first.

    A report does not show them: RUN/checkpoints/best/1000 is left, and photos/*.jpg of a pattern.
    """
    found = set()
    for text in settings.values():
        if isinstance(text, str) and os.path.isabs(text):
            *above, name = Path(text).parts
            above = above[:-1] if glob.has_magic(name) else above
            above = above[:-3] if above[-2:-1] == ["checkpoints"] else above
            found.add(os.path.join(*above, ""))
    return sorted(found - {"/"}, key=len, reverse=True)


def _rank(case: dict[str, Any]) -> tuple:
    """By IoU; images without one by falling disagreement."""
    iou = case["scores"]["iou"] if case["scores"] else 2
    return iou, -(case["disagreement"] or 0), case["id"]


def _finite(scores: dict[str, float] | None) -> dict[str, float | None] | None:
    """JSON knows no NaN and no infinity."""
    return scores and {k: v if np.isfinite(v) else None for k, v in scores.items()}


def _score_table(scored: Sequence[dict[str, float]], metrics: dict) -> list[dict]:
    rows = []
    for name, (_, label, meaning, unit) in SCORES.items():
        if name in metrics["mean"]:
            values = np.array([scores[name] for scores in scored], np.float64)
            worst = np.nanmax(values) if unit else np.nanmin(values)
            row = {"name": name, "label": label, "meaning": meaning, "mean": metrics["mean"][name]}
            row |= {"unit": unit, "interval": metrics["intervals"].get(name)}
            rows.append(row | {"median": np.nanmedian(values), "worst": worst})
    return rows


def _distribution_table(samples: dict[str, Any]) -> list[dict]:
    """The rows of the scores of single masks, of which there are some."""
    rows = []
    for name, (label, meaning, digits) in DISTRIBUTION.items():
        if name in samples["mean"]:
            low, high = samples["intervals"][name]
            interval = f"{low:.{digits}f} to {high:.{digits}f}"
            mean = f"{samples['mean'][name]:.{digits}f}"
            rows.append({"label": label, "meaning": meaning, "mean": mean, "interval": interval})
    return rows


def _number(value: float | None, unit: str = "", digits: int = 4) -> str:
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
    places = np.linspace(0, 1, len(HEAT))
    return np.uint8(np.stack([np.interp(level, places, channel) for channel in HEAT.T], axis=-1))


def _mask_pictures(samples: np.ndarray | None, classes: Classes) -> list[str]:
    """PNG files of u8[V, H, W], if there are two masks or more."""
    if samples is None or len(samples) < 2:
        return []
    palette = [(0, 0, 0), (255, 255, 255)]
    if classes.several:
        palette[1:] = [class_colour(k) for k in range(1, len(classes.names))]
    pictures = []
    for labels in samples[:MOST_MASKS]:
        image = Image.fromarray(labels)
        image = image.resize(size_within(labels.shape, MASK_SIDE)[::-1], Image.Resampling.NEAREST)
        image.putpalette(bytes(np.uint8(palette)))
        content = io.BytesIO()
        image.save(content, "PNG", optimize=True)
        pictures.append("data:image/png;base64," + base64.b64encode(content.getvalue()).decode())
    return pictures


def _data_uri(array: np.ndarray) -> str:
    """A JPEG file of the best quality that is small enough."""
    for quality in (88, 80, 70, 55, 40, 25):
        content = outputs.encode_image(array, "JPEG", quality, optimize=True)
        if len(content) <= MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(map(int, colour)).hex()
