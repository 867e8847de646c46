"""Segments a whole data set or folder at native size, every image once."""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import class_scores, macro_scores
from segdiff_jax.evaluation.outputs import BadName, OutputFolder
from segdiff_jax.evaluation.report import Case, Page, Strip, make_case, make_strip, write_report
from segdiff_jax.evaluation.tables import format_metrics, write_failures, write_metrics
from segdiff_jax.evaluation.uncertainty import calibration_levels, calibration_pair
from segdiff_jax.inference.load import Model
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import locked

STRIPS = 4  # images whose denoising the report shows


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What became of the images.

    Attributes:
        num_images: that have a mask now.
        num_before: of them, had it before.
        failures: id or file -> why it has none.
        metrics: the contents of metrics.json; None where no image has a true mask, and in other
            processes than the main one.
    """

    num_images: int
    num_before: int
    failures: dict[str, str]
    metrics: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Options:
    """How a folder is made.

    Attributes:
        settings: what the report and metrics.json say about the run; other settings make the
            folder anew.
        title: of the report.
        resume: False makes again what the folder holds.
        workers: threads that combine, score and write; each holds an image with all its samples.
    """

    settings: dict[str, Any]
    title: str
    resume: bool = True
    workers: int = 2


def evaluate(
    model: Model, examples: NativeExamples, out: str | Path, options: Options
) -> Evaluation:
    """Writes masks, probabilities, overlays, scores and the report of every example.

    An image that cannot be read is noted in failures.csv, and the others are segmented. What `out`
    already holds, made with the same settings from the same files, is not made again. Several
    processes share the images, and the folder.

    Args:
        model: samples the masks and combines them.
        examples: what is segmented.
        out: the folder to write to; see `OutputFolder` for its layout.
        options: how.
    Raises:
        UserError: if `out` is a workdir of train.py or holds foreign masks, or not all processes
            see it.
        OSError: naming a file that cannot be written.
    """
    if (Path(out) / "checkpoints").is_dir():
        raise UserError(f"--out={out} is a workdir of train.py, whose metrics.csv would be lost")
    settings = json.loads(json.dumps(options.settings, default=str))
    parallel.check_same({"what is segmented": examples.fingerprint(), "how": settings})
    folder = OutputFolder(out, model.classes)
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            stack.enter_context(locked(folder.path / ".lock", str(out)))
            folder.begin(settings, options.resume)
        parallel.wait_for_all("output folder is tidy")
        found = parallel.gather(_segment_share(model, examples, folder, options.workers))
        done = sorted(id for one in found for id in one["done"])
        before = sum(one["before"] for one in found)
        failures = examples.failures | {k: v for one in found for k, v in one["failures"].items()}
        metrics = None
        if parallel.is_main():
            page = Page(options.title, settings, failures, model.history, model.classes)
            metrics = _summarise(folder, done, page)
    return Evaluation(len(done), before, failures, metrics)


def _segment_share(
    model: Model, examples: NativeExamples, folder: OutputFolder, workers: int
) -> dict[str, Any]:
    """Segments this process's share of the images.

    Returns:
        "done": ids; "before": how many of them were done before; "failures": id -> why.
    """
    share = parallel.share(len(examples))
    done, failures, before, chain, noted = [], {}, 0, [], False
    pending: deque[tuple[str, Any]] = deque()

    def readable() -> Iterator[dict[str, Any]]:
        nonlocal before
        for example in examples.read(share, folder.has):
            if "failure" in example:
                failures[example["id"]] = example["failure"].removeprefix(f"{example['id']}: ")
            elif "done" in example:
                done.append(example["id"])
                before += 1
                progress.initial += 1  # It does not count for images/s.
            else:
                yield example
                continue
            progress.update()

    def finish() -> None:
        id, written = pending.popleft()
        try:
            written.result()
            done.append(id)
        except BadName as error:
            failures[id] = str(error)
        progress.update()

    with (
        tqdm(total=len(share), desc="sampling", unit="image", smoothing=0) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        batch_size = parallel.batch_size(model.batch_size, len(share))
        for group, valid in padded_batches(readable(), batch_size):
            images = np.stack([example["input"] for example in group])
            show = lambda part: progress.set_postfix_str(f"batch {part:.0%}")
            ids = [example["id"] for example in group]
            note = lambda t, *arrays: chain.append((t, *(x[:STRIPS].copy() for x in arrays)))
            samples = model.sample(images, ids, show, None if noted else note)
            noted = True
            for i in np.flatnonzero(valid):
                strip = None
                if chain and i < len(chain[0][1]):
                    strip = make_strip(ids[i], [(t, x_t[i], x_0[i]) for t, x_t, x_0 in chain])
                if len(pending) > workers:
                    finish()
                job = pool.submit(_finish, model, folder, group[i], samples[:, i], strip)
                pending.append((ids[i], job))
            chain.clear()
        while pending:
            finish()
    return {"done": done, "before": before, "failures": failures}


def _finish(
    model: Model,
    folder: OutputFolder,
    example: dict[str, Any],
    samples: np.ndarray,
    strip: Strip | None,
) -> None:
    """Combines the samples of one image at native size, scores it and writes its files.

    Its result holds the row of `write_metrics` and what the report shows of it.
    """
    id, image, truth, classes = example["id"], example["image"], example["truth"], model.classes
    found, scores = model.segment(samples, image.shape[:2]), None
    row = {"id": id, "area": (found.labels > 0).mean(), "disagreement": found.uncertainty}
    if truth is not None:
        of_classes = class_scores(found.labels, truth, classes.count)
        scores = macro_scores(of_classes, truth.shape)
        pair = calibration_pair(found.probabilities, found.labels, truth)
        row |= {"scores": scores, "conditions": example["conditions"]}
        row |= {"levels": calibration_levels(*pair)}
        if classes.several:
            row["classes"] = dict(zip(classes.names[1:], of_classes, strict=True))
    case = make_case(example, found, scores, classes)
    result = {"row": row, "case": dataclasses.asdict(case), "content": example["content"]}
    result["strip"] = strip and dataclasses.asdict(strip)
    folder.write(id, image, found, truth, result)


def _summarise(folder: OutputFolder, done: list[str], page: Page) -> dict[str, Any] | None:
    """Writes metrics, failures and report of all images; returns the metrics, if there are any."""
    try:
        results = [folder.result(id) for id in done]
    except FileNotFoundError as error:
        raise UserError(f"{error}: do all processes see one folder {folder.path}?") from error
    folder.keep_only(done)
    rows = [result["row"] for result in results]
    metrics = write_metrics(folder.path, rows, page.settings) if rows else None
    write_failures(folder.path, page.failures)
    cases = [Case(**result["case"]) for result in results]
    strips = [Strip(**result["strip"]) for result in results if result["strip"]][:STRIPS]
    write_report(folder.path / "report.html", cases, metrics, page, strips)
    return metrics


def format_result(result: Evaluation, out: str | Path) -> str:
    """What became of the images, for a terminal; the last line is the score and the report."""
    lines, report = [], f"report {Path(out) / 'report.html'}"
    if result.metrics:
        lines += [format_metrics(result.metrics)]
    if result.num_before:
        lines += [f"{result.num_before} images had been segmented before"]
    if result.failures:
        path = Path(out) / "failures.csv"
        lines += [f"{len(result.failures)} images could not be segmented: {path} says why"]
    score = f"mean IoU {result.metrics['mean']['iou']:.4f}" if result.metrics else None
    return "\n".join([*lines, f"{score or f'{result.num_images} images'}, {report}"])
