"""The tables of an evaluation, in files and for a terminal."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdiff_jax.evaluation.conditions import scores_by_condition
from segdiff_jax.evaluation.metrics import average_scores, bootstrap_interval
from segdiff_jax.evaluation.uncertainty import summarise
from segdiff_jax.runtime.files import write_file


def write_metrics(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], extra: dict[str, Any]
) -> dict[str, Any] | None:
    """Writes metrics.csv (one line an image, sorted by id) and, with scores, metrics.json (means).

    Args:
        path: the folder.
        rows: one an image: {"id", "area": the share of the image that is lesion, "disagreement",
            see `combine.disagreement`}. Either all rows or none also have "scores", "conditions"
            and "levels", see `segmentation_scores`, `measure_conditions` and `calibration_levels`.
            With several classes, "classes": {name: its scores or None}; its IoU is a column of
            metrics.csv.
        extra: what the scores were made with; it becomes "settings".
    Returns:
        The contents of metrics.json, None without scores: {"num_images", "mean": {score: mean over
        images}, "intervals": {score: [low, high]}, see `bootstrap_interval`, "uncertainty", see
        `summarise`, "conditions", see `scores_by_condition`, "settings"}. With several classes also
        "classes": {name: {"images": how many have it in truth or prediction, score: mean over
        these}}.
    Raises:
        ValueError: if there are no rows.
        OSError: if a file cannot be written.
    """
    if not rows:
        raise ValueError("rows is empty: there are no images")
    scores, measured = (
        [row[name] for row in rows if name in row] for name in ("scores", "conditions")
    )
    more = ["area", *([] if rows[0]["disagreement"] is None else ["disagreement"])]
    names, conditions = (list(of[0]) if of else [] for of in (scores, measured))
    classes = list(rows[0].get("classes", ()))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", *names, *(f"iou_{name}" for name in classes), *more, *conditions])
    for row in sorted(rows, key=lambda row: row["id"]):
        numbers = [row["scores"][name] for name in names]
        of_classes = [row["classes"][name] for name in classes]
        numbers += [scores and scores["iou"] for scores in of_classes]
        numbers += [row[name] for name in more]
        texts = ["" if x is None else f"{x:.6f}" for x in numbers]
        table.writerow([row["id"], *texts, *(row["conditions"][c] for c in conditions)])
    write_file(Path(path) / "metrics.csv", text.getvalue())
    if not scores:
        return None
    disagreements, levels = ([row[name] for row in rows] for name in ("disagreement", "levels"))
    by_name = {name: [row[name] for row in scores] for name in names}
    summary = {
        "num_images": len(rows),
        "mean": average_scores(scores),
        "intervals": {name: list(bootstrap_interval(of)) for name, of in by_name.items()},
        "uncertainty": summarise(by_name["iou"], disagreements, levels, bool(classes)),
        "conditions": scores_by_condition(scores, measured),
        "settings": extra,
    }
    for name in classes:
        there = [row["classes"][name] for row in rows if row["classes"][name]]
        means = {"images": len(there)} | (average_scores(there) if there else {})
        summary.setdefault("classes", {})[name] = means
    write_file(Path(path) / "metrics.json", json.dumps(summary, indent=2, default=str))
    return summary


def write_failures(path: str | os.PathLike, failures: dict[str, str]) -> None:
    """Writes failures.csv, an image and the reason a line, if there are any; OSError as above."""
    if failures:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("image", "reason"), *sorted(failures.items())])
        write_file(Path(path) / "failures.csv", text.getvalue())


def format_metrics(metrics: dict) -> str:
    """The means, the interval of the mean IoU, and tables by condition and class, for a terminal.

    Args:
        metrics: what `write_metrics` returns.
    """
    low, high = metrics["intervals"]["iou"]
    means = ", ".join(f"{name} {mean:.4f}" for name, mean in metrics["mean"].items())
    rows = [("condition", "", "images", "iou", "dice")]
    for condition, values in metrics["conditions"].items():
        for i, (value, row) in enumerate(values.items()):
            numbers = (str(row["num_images"]), f"{row['iou']:.4f}", f"{row['dice']:.4f}")
            rows.append(("" if i else condition.replace("_", " "), value, *numbers))
    if "classes" in metrics:
        rows.append(("class", "", "images", "iou", "dice"))
    for name, row in metrics.get("classes", {}).items():
        means_of_class = [f"{row[s]:.4f}" if s in row else "" for s in ("iou", "dice")]
        rows.append((name, "", str(row["images"]), *means_of_class))
    table = [f"{a:<14}{b:<8}{c:>6}{d:>9}{e:>9}" for a, b, c, d, e in rows]
    interval = f"95% interval of the mean IoU: {low:.4f} to {high:.4f}"
    images = f"({metrics['num_images']} images)"
    lines = [f"{means} {images}", interval, describe_uncertainty(metrics["uncertainty"]), *table]
    return "\n".join(lines)


def describe_uncertainty(uncertainty: dict) -> str:
    """What `summarise` returns, as a sentence."""
    text = f"expected calibration error {uncertainty['ece']:.4f}"
    if "temperature" in uncertainty:
        tempered, temperature = uncertainty["ece_tempered"], uncertainty["temperature"]
        text += f", {tempered:.4f} with a temperature of {temperature:.2f}"
    if "disagreement" in uncertainty:
        text += (
            f"; the samples disagree by {uncertainty['disagreement']:.4f} (1 - IoU of every two)"
        )
    if uncertainty.get("correlation") is not None:
        text += f", whose rank correlation with 1 - IoU is {uncertainty['correlation']:.2f}"
    return text
