"""The tables of an evaluation, in files and for a terminal."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdiff_jax.evaluation.conditions import scores_by_condition
from segdiff_jax.evaluation.distributions import summarise_samples
from segdiff_jax.evaluation.metrics import average_scores, bootstrap_interval
from segdiff_jax.evaluation.uncertainty import summarise
from segdiff_jax.runtime.files import write_file


def write_metrics(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    agreement: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:
    """Writes metrics.csv (one line an image, sorted by id) and, with scores, metrics.json (means).

    Args:
        folder: of the files; OSError if one cannot be written.
        rows: one an image: {"id", "area": the share of the image that is lesion, "disagreement",
            see `combine.disagreement`}, and "fold" if it is of one. Images with a true mask also
            have "foreground": whether the mask has any, "scores", "conditions" and "levels", see
            `segmentation_scores`, `measure_conditions` and `calibration_levels`. With two classes
            also "samples", see `describe_samples`; with several "classes": {name: its scores or
            None}.
        settings: what the scores were made with.
        agreement: see `summarise_samples`.
    Returns:
        The contents of metrics.json, None if no image has scores. All is over the images that have:
        {"num_images", "num_with_foreground", "mean": {score: mean over images}, "intervals":
        {score: [low, high]}, see `bootstrap_interval`, "uncertainty", see `summarise`,
        "conditions", see `scores_by_condition`, "settings"}; but "unscored" is the ids of the
        others. With two classes also "samples", see `summarise_samples`. With several classes also
        "classes": {name: {"images": how many have it in truth or prediction, score: mean over
        these}}; with folds also "folds": {fold: {"num_images", score: mean over these}}.
    """
    if not rows:
        raise ValueError("rows is empty: there are no images")
    lines = [_line(row) for row in sorted(rows, key=lambda row: row["id"])]
    header = list(max(lines, key=len))  # Of a line with scores, if there is one.
    _write_csv(folder / "metrics.csv", [header, *([x.get(n, "") for n in header] for x in lines)])
    unscored = sorted(row["id"] for row in rows if "scores" not in row)
    rows = [row for row in rows if "scores" in row]
    if not rows:
        return None
    names = "scores", "conditions", "disagreement", "levels"
    scores, conditions, disagreements, levels = ([row[name] for row in rows] for name in names)
    by_name = {name: [row[name] for row in scores] for name in scores[0]}
    classes = rows[0].get("classes", ())
    summary = {
        "num_images": len(rows),
        "num_with_foreground": sum(row["foreground"] for row in rows),
        "unscored": unscored,
        "mean": average_scores(scores),
        "intervals": {name: list(bootstrap_interval(of)) for name, of in by_name.items()},
        "uncertainty": summarise(by_name["iou"], disagreements, levels, bool(classes)),
        "conditions": scores_by_condition(scores, conditions),
        "settings": settings,
    }
    if "samples" in rows[0]:
        described = {row["id"]: row["samples"] for row in rows}
        summary["samples"] = summarise_samples(described, agreement)
    for name in classes:
        there = [row["classes"][name] for row in rows if row["classes"][name]]
        means = {"images": len(there)} | (average_scores(there) if there else {})
        summary.setdefault("classes", {})[name] = means
    for fold in sorted({row["fold"] for row in rows if "fold" in row}):
        of_fold = [row["scores"] for row in rows if row.get("fold") == fold]
        means = {"num_images": len(of_fold)} | average_scores(of_fold)
        summary.setdefault("folds", {})[str(fold)] = means
    write_file(folder / "metrics.json", json.dumps(summary, indent=2, default=str))
    return summary


def _line(row: dict[str, Any]) -> dict[str, str]:
    """One line of metrics.csv, by its header."""
    numbers = dict(row.get("scores", {}))
    for name, scores in row.get("classes", {}).items():
        numbers[f"iou_{name}"] = scores and scores["iou"]
    numbers["area"] = row["area"]
    if row["disagreement"] is not None:
        numbers["disagreement"] = row["disagreement"]
    numbers |= row["samples"]["scores"] if "samples" in row else {}
    texts = {name: "" if x is None else f"{x:.6f}" for name, x in numbers.items()}
    fold = {"fold": str(row["fold"])} if "fold" in row else {}
    return {"id": row["id"]} | fold | texts | row.get("conditions", {})


def write_failures(folder: Path, failures: dict[str, str]) -> None:
    """Writes failures.csv, an image and the reason a line, if there are any."""
    if failures:
        _write_csv(folder / "failures.csv", [("image", "reason"), *sorted(failures.items())])


def _write_csv(path: Path, lines: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_file(path, text.getvalue())


def format_metrics(metrics: dict[str, Any]) -> str:
    """What `write_metrics` returns, for a terminal: means and tables by condition and class."""
    low, high = metrics["intervals"]["iou"]
    means = ", ".join(f"{name} {mean:.4f}" for name, mean in metrics["mean"].items())
    rows = [("condition", "", "images", "iou", "dice")]
    for condition, values in metrics["conditions"].items():
        first = condition.replace("_", " ")
        for value, row in values.items():
            rows.append((first, value, row["num_images"], *_iou_and_dice(row)))
            first = ""
    if "classes" in metrics:
        rows.append(("class", "", "images", "iou", "dice"))
        for name, row in metrics["classes"].items():
            rows.append((name, "", row["images"], *_iou_and_dice(row)))
    lines = [
        f"{means} ({metrics['num_images']} images)",
        f"95% interval of the mean IoU: {low:.4f} to {high:.4f}",
        describe_uncertainty(metrics["uncertainty"]),
        *([describe_distribution(metrics["samples"])] if "samples" in metrics else []),
    ]
    if "folds" in metrics:
        ious = [of_fold["iou"] for of_fold in metrics["folds"].values()]
        mean, deviation, by_fold = np.mean(ious), np.std(ious, ddof=1), map("{:.4f}".format, ious)
        summary = f"mean {mean:.4f}, standard deviation {deviation:.4f}"
        lines.append(f"IoU by fold: {', '.join(by_fold)}; {summary}")
    return "\n".join([*lines, *(f"{a:<14}{b:<8}{c:>6}{d:>9}{e:>9}" for a, b, c, d, e in rows)])


def _iou_and_dice(row: dict[str, float]) -> list[str]:
    return [f"{row[name]:.4f}" if name in row else "" for name in ("iou", "dice")]


def describe_uncertainty(uncertainty: dict[str, Any]) -> str:
    """What `summarise` returns, as a sentence."""
    text = f"expected calibration error {uncertainty['ece']:.4f}"
    if "temperature" in uncertainty:
        tempered, temperature = uncertainty["ece_tempered"], uncertainty["temperature"]
        text += f", {tempered:.4f} with a temperature of {temperature:.2f}"
    if "disagreement" in uncertainty:
        mean = uncertainty["disagreement"]
        text += f"; single masks disagree by {mean:.4f} (1 - IoU of every two)"
    if uncertainty.get("correlation") is not None:
        text += f", whose rank correlation with 1 - IoU is {uncertainty['correlation']:.2f}"
    return text


def describe_distribution(samples: dict[str, Any]) -> str:
    """What `summarise_samples` returns, as sentences."""
    mean, shapes = samples["mean"], samples["shapes"]
    low, high = samples["intervals"]["energy"]
    text = f"single masks: energy score {mean['energy']:.4f} (95%: {low:.4f} to {high:.4f})"
    text += f", of outlines {mean['boundary_energy']:.3f}% of the diagonal"
    text += f"; 1 - IoU with the truth {mean['distance']:.4f}, of every two {mean['diversity']:.4f}"
    text += f"; IoU of the best {mean['best']:.4f}"
    if "ged" in mean:
        text += f"\nsingle masks and annotators: energy distance {mean['ged']:.4f}"
        text += f", matched IoU {mean['hungarian']:.4f}"
        text += f", consensus Dice {mean['consensus_dice']:.4f}"
    text += (
        f"\nshare of single masks and of annotators: calibration error {samples['share_error']:.4f}"
    )
    there = (f"{row['samples']:.2f} {name} ({row['truths']:.2f})" for name, row in shapes.items())
    text += f"\nshapes of single masks (and of true ones): {', '.join(there)}"
    if "agreement" in samples:
        found = samples["agreement"]
        value, count = found["correlation"], found["num_images"]
        text += f"\nagreement of annotators is known of {count} images"
        text += "" if value is None else f"; rank correlation with their disagreement {value:.2f}"
    return text
