"""Segments a whole data set or folder at native size, every image once."""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdiff_jax.data.decode import naming_memory
from segdiff_jax.data.pipeline import padded_batches, shrink_labels
from segdiff_jax.evaluation.agreement import read_agreement
from segdiff_jax.evaluation.distributions import describe_samples
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import class_scores
from segdiff_jax.evaluation.outputs import BadName, OutputFolder
from segdiff_jax.evaluation.report import Page, make_case, make_strip, write_report
from segdiff_jax.evaluation.tables import format_metrics, write_failures, write_metrics
from segdiff_jax.evaluation.uncertainty import calibration_levels, calibration_pair
from segdiff_jax.inference.load import Model
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError, some
from segdiff_jax.runtime.files import absolute, locked

STRIPS = 4  # images whose denoising the report shows


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What became of the images: `num_images` have a mask now, `num_before` of them had it before.

    `failures` is id or file -> why it has none; `metrics` is the contents of metrics.json, None if
    no image has a true mask, and in other processes than the main one.
    """

    num_images: int
    num_before: int
    failures: dict[str, str]
    metrics: dict[str, Any] | None


def evaluate(
    parts: Sequence[NativeExamples],
    out: str | Path,
    settings: dict[str, Any],
    title: str,
    resume: bool = True,
    workers: int = 2,
    agreement: str | Path | None = None,
) -> Evaluation:
    """Writes masks, probabilities, overlays, scores and the report of every example.

    An image without a true mask is segmented, but not scored. One that cannot be read goes to
    failures.csv; if memory is short, `OutOfMemory` names the image. What `out` holds, made with the
    same settings from the same files, is not made again. Several processes share the images and the
    folder.

    Args:
        parts: the images, each part with the model that segments it. Several parts are folds, and
            metrics.csv says each image's fold.
        out: the folder to write to, see `OutputFolder`. A UserError if it is a workdir of train.py
            or holds foreign masks, or not all processes see it.
        settings, title: what the report says about the run; metrics.json has the settings too.
        resume: False makes again what the folder holds.
        workers: threads that combine, score and write; each holds an image with all its samples.
        agreement: a table of how far annotators agree, see `read_agreement`, to compare with.
    """
    out, agreed = absolute(out), read_agreement(agreement) if agreement else {}
    if (out / "checkpoints").is_dir():
        raise UserError(f"--out={out} is a workdir of train.py, whose metrics.csv would be lost")
    settings = json.loads(json.dumps(settings, default=str))
    what = [examples.fingerprint() for examples in parts]
    parallel.check_same({"what is segmented": what, "how": settings})
    model = parts[0].model
    folder = OutputFolder(out, model.classes)
    main = parallel.is_main()
    with locked(folder.path / ".lock", str(out)) if main else contextlib.nullcontext():
        if main:
            folder.begin(settings, resume)
        parallel.wait_for_all("output folder is tidy")
        before, done, failures = 0, [], {}
        for examples in parts:
            failures |= examples.failures
            fold = examples.model.config.data.fold if len(parts) > 1 else None
            shares = parallel.gather(_segment_share(examples, fold, folder, workers))
            for had, made, failed in shares:
                before, done, failures = before + len(had), done + had + made, failures | failed
        history = model.history if len(parts) == 1 else ()
        page = Page(title, settings, failures, history, model.classes)
        metrics = _summarise(folder, sorted(done), page, agreed) if main else None
    return Evaluation(len(done), before, failures, metrics)


def _segment_share(
    examples: NativeExamples, fold: int | None, folder: OutputFolder, workers: int
) -> tuple[list[str], list[str], dict[str, str]]:
    """Ids of this process's images that had a mask before, have one now, and id -> why not."""
    model, share = examples.model, parallel.share(len(examples))
    before, done, failures, chain = [], [], {}, []
    pending: deque[tuple[str, Any]] = deque()

    def readable() -> Iterator[dict[str, Any]]:
        for example in examples.read(share, folder.has):
            if "failure" in example:
                failures[example["id"]] = example["failure"].removeprefix(f"{example['id']}: ")
            elif "done" in example:
                before.append(example["id"])
                progress.initial += 1  # It does not count for images/s.
            else:
                yield example
                continue
            progress.update()

    def finish() -> None:
        id, written = pending.popleft()
        try:
            with naming_memory(id):
                written.result()
            done.append(id)
        except BadName as error:
            failures[id] = str(error)
        progress.update()

    show = lambda part: progress.set_postfix_str(f"batch {part:.0%}")
    note = lambda t, *arrays: chain.append((t, *(x[:STRIPS].copy() for x in arrays)))
    with (
        tqdm(total=len(share), desc="sampling", unit="image", smoothing=0) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        batch_size = parallel.batch_size(model.batch_size, len(share))
        for number, (group, valid) in enumerate(padded_batches(readable(), batch_size)):
            ids = [example["id"] for example in group]
            with naming_memory(", ".join(dict.fromkeys(ids))):
                images = np.stack([example["input"] for example in group])
                samples = model.sample(images, ids, show, None if number else note)
            for i in np.flatnonzero(valid):
                frames = [(t, x_t[i], x_0[i]) for t, x_t, x_0 in chain if i < len(x_t)]
                if len(pending) > workers:
                    finish()
                job = pool.submit(_finish, model, folder, group[i], samples[:, i], frames, fold)
                pending.append((ids[i], job))
            chain.clear()
        while pending:
            finish()
    return before, done, failures


def _finish(
    model: Model,
    folder: OutputFolder,
    example: dict,
    samples: np.ndarray,
    frames: list,
    fold: int | None,
) -> None:
    """Combines the samples of one image at native size, scores it and writes its files."""
    truth, classes, scores = example["truth"], model.classes, None
    found = model.segment(samples, example["image"].shape[:2], example["id"])
    area = (found.labels > 0).mean()
    row = {"id": example["id"], "area": area, "disagreement": found.uncertainty}
    if fold is not None:
        row["fold"] = fold
    if truth is not None:
        row["foreground"] = bool(truth.any())
        scores, of_classes = class_scores(found.labels, truth, len(classes.names))
        levels = calibration_levels(*calibration_pair(found.probabilities, found.labels, truth))
        row |= {"scores": scores, "conditions": example["conditions"], "levels": levels}
        if classes.several:
            row["classes"] = dict(zip(classes.names[1:], of_classes, strict=True))
        else:
            truths = truth[None] if example["truths"] is None else example["truths"]
            ours, theirs = found.small_samples > 0, shrink_labels(truths) > 0
            row["samples"] = describe_samples(ours, theirs, model.draws)
    case = make_case(example, found, scores, classes)
    strip = make_strip(example["id"], frames) if frames else None
    result = {"row": row, "case": case, "content": example["content"], "strip": strip}
    folder.write(example, found, result)


def _summarise(
    folder: OutputFolder, done: list[str], page: Page, agreement: Mapping[str, float]
) -> dict[str, Any] | None:
    """Writes metrics, failures and report of all images; returns the metrics, if there are any."""
    try:
        results = [folder.result(id) for id in done]
    except FileNotFoundError as error:
        raise UserError(f"{error}: do all processes see one folder {folder.path}?") from error
    folder.keep_only(done)
    rows, cases, strips = ([one[name] for one in results] for name in ("row", "case", "strip"))
    metrics = write_metrics(folder.path, rows, page.settings, agreement) if rows else None
    write_failures(folder.path, page.failures)
    strips = [strip for strip in strips if strip][:STRIPS]
    write_report(folder.path / "report.html", cases, metrics, page, strips)
    return metrics


def format_result(result: Evaluation, out: str | Path) -> str:
    """What became of the images, for a terminal; the last line is the score and the report."""
    lines, end, metrics = [], f"{result.num_images} images", result.metrics
    if metrics:
        lines += [format_metrics(metrics)]
        end = f"mean IoU {metrics['mean']['iou']:.4f}"
        if not metrics["num_with_foreground"]:
            count = metrics["num_images"]
            lines += [f"none of the {count} true masks has any foreground: IoU says little"]
        if unscored := metrics["unscored"]:
            text = "images have no mask: they are segmented, but not scored"
            lines += [f"{len(unscored)} {text} ({some(unscored)})"]
    if result.num_before:
        lines += [f"{result.num_before} images had been segmented before"]
    if result.failures:
        path = Path(out) / "failures.csv"
        lines += [f"{len(result.failures)} images could not be segmented: {path} says why"]
    return "\n".join([*lines, f"{end}, report {Path(out) / 'report.html'}"])
