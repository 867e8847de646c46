"""Segments a whole data set or folder at native size, every image once."""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdiff_jax import parallel
from segdiff_jax.data.classes import Classes
from segdiff_jax.data.pipeline import ResizedSource, padded_batches
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import class_scores, macro_scores, segmentation_scores
from segdiff_jax.evaluation.outputs import BadName, OutputFolder, mix_classes
from segdiff_jax.evaluation.predictor import Predictor
from segdiff_jax.evaluation.report import Case, Strip, make_case, make_strip, write_report
from segdiff_jax.evaluation.tables import format_metrics, write_failures, write_metrics
from segdiff_jax.evaluation.uncertainty import calibration_levels, top_label
from segdiff_jax.lock import locked

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


def evaluate(
    predictor: Predictor,
    variables: Any,
    examples: NativeExamples,
    out: str | Path,
    settings: dict[str, Any],
    title: str,
    history: Sequence[dict[str, float | None]] = (),
    resume: bool = True,
    workers: int = 2,
) -> Evaluation:
    """Writes masks, probabilities, overlays, scores and the report of every example.

    An image that cannot be read is noted in failures.csv, and the others are segmented. What `out`
    holds already, of the same settings and files, is not made again. Several processes share the
    images, and the folder.

    Args:
        predictor: samples the masks and combines them.
        variables: of the network.
        examples: what is segmented.
        out: the folder to write to; see `OutputFolder` for its layout.
        settings: what the report and metrics.json say about the run.
        title: of the report.
        history: of the training, for the report: the rows of its metrics.csv.
        resume: False makes again what `out` holds.
        workers: threads that combine, score and write; each holds an image with all its votes.
    Raises:
        ValueError: if `out` is a workdir of train.py or holds foreign masks, or not all processes
            see it.
        OSError: naming a file that cannot be written.
    """
    if (Path(out) / "checkpoints").is_dir():
        raise ValueError(f"--out={out} is a workdir of train.py, whose metrics.csv would be lost")
    settings = json.loads(json.dumps(settings, default=str))
    parallel.check_same({"what is segmented": examples.fingerprint(), "how": settings})
    folder = OutputFolder(out, examples.classes)
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            stack.enter_context(locked(folder.path / ".lock", str(out)))
            folder.begin(settings, resume)
        parallel.wait_for_all("output folder is tidy")
        found = parallel.gather(_segment_share(predictor, variables, examples, folder, workers))
        done = sorted(id for one in found for id in one["done"])
        before = sum(one["before"] for one in found)
        failures = examples.failures | {k: v for one in found for k, v in one["failures"].items()}
        metrics = None
        if parallel.is_main():
            names = examples.classes.names if examples.classes else ()
            metrics = _summarise(folder, done, failures, settings, title, history, names)
    return Evaluation(len(done), before, failures, metrics)


def _segment_share(
    predictor: Predictor,
    variables: Any,
    examples: NativeExamples,
    folder: OutputFolder,
    workers: int,
) -> dict[str, Any]:
    """Segments this process's share of the images.

    Returns:
        "done": ids, of which so many "before", and "failures": id -> why.
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
        for group, valid in padded_batches(readable(), batch_size(predictor, len(share))):
            images = np.stack([example["input"] for example in group])
            show = lambda part: progress.set_postfix_str(f"batch {part:.0%}")
            ids = [example["id"] for example in group]
            note = lambda t, *arrays: chain.append((t, *(x[:STRIPS].copy() for x in arrays)))
            samples = predictor(variables, images, ids, show, None if noted else note)
            noted = True
            for i in np.flatnonzero(valid):
                strip = None
                if chain and i < len(chain[0][1]):
                    strip = make_strip(ids[i], [(t, x_t[i], x_0[i]) for t, x_t, x_0 in chain])
                if len(pending) > workers:
                    finish()
                made = samples[:, i], strip, examples.classes
                job = pool.submit(_finish, predictor, folder, group[i], *made)
                pending.append((ids[i], job))
            chain.clear()
        while pending:
            finish()
    return {"done": done, "before": before, "failures": failures}


def _finish(
    predictor: Predictor,
    folder: OutputFolder,
    example: dict[str, Any],
    samples: np.ndarray,
    strip: Strip | None,
    classes: Classes | None,
) -> None:
    """Combines the votes of one image at native size, scores it and writes its files.

    Its record holds the row of `write_metrics` and what the report shows of it.
    """
    id, image, truth, tags = (example[name] for name in ("id", "image", "truth", "tags"))
    combined = predictor.at_size(samples, image.shape[:2])
    disagreement = combined.uncertainty
    mask, probability = combined.mask, combined.probability
    row, scores = {"id": id, "area": (mask > 0).mean(), "disagreement": disagreement}, None
    if truth is not None and classes:
        of_classes = class_scores(mask, truth, classes.count)
        row["classes"] = dict(zip(classes.names[1:], of_classes, strict=True))
        scores = macro_scores(of_classes, truth.shape)
        levels = calibration_levels(*top_label(probability, mask, truth))
    elif truth is not None:
        scores, levels = segmentation_scores(mask, truth), calibration_levels(probability, truth)
    if scores:
        row |= {"scores": scores, "tags": tags, "levels": levels}
    arrays = probability, mask, combined.deviation, truth
    case = make_case(id, image, *arrays, scores, tags, disagreement)
    record = {"row": row, "case": dataclasses.asdict(case), "content": example["content"]}
    record["strip"] = strip and dataclasses.asdict(strip)
    folder.write(id, image, combined, truth, record)


def _summarise(
    folder: OutputFolder,
    done: list[str],
    failures: dict[str, str],
    settings: dict[str, Any],
    title: str,
    history: Sequence[dict[str, float | None]],
    classes: Sequence[str],
) -> dict[str, Any] | None:
    """Writes metrics, failures and report of all images; returns the metrics, if there are any."""
    try:
        records = [folder.record(id) for id in done]
    except FileNotFoundError as error:
        raise ValueError(f"{error}: do all processes see one folder {folder.path}?") from error
    folder.keep_only(done)
    rows = [record["row"] for record in records]
    metrics = write_metrics(folder.path, rows, settings) if rows else None
    write_failures(folder.path, failures)
    cases = [Case(**record["case"]) for record in records]
    strips = [Strip(**record["strip"]) for record in records if record["strip"]][:STRIPS]
    path = folder.path / "report.html"
    write_report(path, cases, metrics, settings, title, failures, history, strips, classes)
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


def batch_size(predictor: Predictor, total: int) -> int:
    """Images of one call, fewer where there are not as many in all."""
    return min(predictor.batch_size, parallel.round_up(total))


def validate(
    predictor: Predictor, variables: Any, source: ResizedSource
) -> tuple[float, list[np.ndarray]]:
    """Mean IoU at the network's size, and pictures, for use while training.

    Of several classes, an image's IoU is that of `macro_scores`. Several processes share the
    images; all of them get the mean of all.

    Returns:
        (mean per-image IoU, [image, truth, prediction], each u8[B, S, S, 3] of the first batch).
    """
    share, ious, pictures = parallel.share(len(source)), np.zeros(len(source)), []
    examples = ({"number": i, **source[i]} for i in share)
    for group, valid in padded_batches(examples, batch_size(predictor, len(share))):
        images = np.stack([example["image"] for example in group])
        truth = np.stack([example["mask"] for example in group])
        count = truth.shape[-1]
        truth = truth.argmax(axis=-1).astype(np.uint8) if count > 1 else truth[..., 0] > 127
        samples = predictor(variables, images, [str(example["number"]) for example in group])
        masks = np.stack([predictor.combine(samples[:, i]).mask for i in range(len(group))])
        for i in np.flatnonzero(valid):
            pair = masks[i], truth[i]
            if count > 1:
                scores = macro_scores(class_scores(*pair, count), truth[i].shape)
            else:
                scores = segmentation_scores(*pair)
            ious[group[i]["number"]] = scores["iou"]
        if not pictures:
            grey = [np.repeat(255 * np.uint8(m)[..., None], 3, axis=-1) for m in (truth, masks)]
            if count > 1:
                grey = [mix_classes(np.uint8(255 * np.eye(count))[m]) for m in (truth, masks)]
            pictures = [images[valid], grey[0][valid], grey[1][valid]]
    return float(parallel.merge(ious).mean()), pictures
