"""Segments a whole data set or folder at native size, every image once."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from segdiff_jax import parallel
from segdiff_jax.data.artefacts import add_artefact
from segdiff_jax.data.colour import find_colour_constancy
from segdiff_jax.data.pipeline import (
    ResizedSource,
    decode_image,
    decode_mask,
    padded_batches,
    record_id,
    resize_image,
)
from segdiff_jax.evaluation.ensemble import resize_samples, standard_deviation
from segdiff_jax.evaluation.metrics import average_scores, segmentation_scores
from segdiff_jax.evaluation.outputs import OutputFolder, write_metrics
from segdiff_jax.evaluation.predict import Predictor
from segdiff_jax.evaluation.report import Case, make_case, write_report
from segdiff_jax.evaluation.strata import condition_tags
from segdiff_jax.evaluation.uncertainty import calibration_bins, vote_disagreement


def native_examples(
    records: Sequence[dict[str, Any]],
    image_size: int,
    colour_constancy: str = "none",
    artefact: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Decodes records ahead, in order.

    Args:
        records: dicts with "id", "image" and, where the truth is known, "mask" (encoded bytes).
        image_size: S.
        colour_constancy: of the input alone, see `colour.COLOUR_CONSTANCY`.
        artefact: one of `artefacts.ARTEFACTS`, added to every image; how, follows from its id.
    Yields:
        {"id" str, "image" u8[H, W, 3], "input" u8[S, S, 3], "truth" bool[H, W] or None,
        "tags" of `condition_tags`, from the image before the artefact, or None}.
    Raises:
        ValueError: naming an image that cannot be decoded, or a mask of another size; or if
            `colour_constancy` or `artefact` is unknown.
    """
    correct = find_colour_constancy(colour_constancy)

    def decode(record):
        name = record_id(record)
        image, truth = decode_image(record["image"], name), None
        if "mask" in record:
            truth = decode_mask(record["mask"], f"mask of {name}") > 127
            if truth.shape != image.shape[:2]:
                raise ValueError(
                    f"{name}: the image is {image.shape[:2]} but its mask {truth.shape} pixels"
                )
        tags = None if truth is None else condition_tags(image, truth)
        if artefact:
            key = jax.random.key(zlib.crc32(name.encode()))
            changed = add_artefact(artefact, key, np.float32(image) / 255)
            image = np.rint(255 * np.asarray(changed)).astype(np.uint8)
        resized = correct(resize_image(image, image_size))
        return {"id": name, "image": image, "input": resized, "truth": truth, "tags": tags}

    dataset = grain.MapDataset.source(records).map(decode)
    # Images may be 20 MB each: few are read ahead.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def evaluate(
    predictor: Predictor,
    variables: Any,
    examples: Iterator[dict[str, Any]],
    total: int,
    out: str | Path,
    settings: dict[str, Any],
    title: str,
) -> dict[str, Any] | None:
    """Writes masks, probabilities, overlays, scores and the report of every example.

    Args:
        predictor: samples the masks and combines them.
        variables: of the network.
        examples: from `native_examples`.
        total: how many there are, for the progress bar.
        out: the folder to write to; see `OutputFolder` for its layout.
        settings: what the report and metrics.json say about the run.
        title: of the report.
    Returns:
        The contents of metrics.json, or None where there are no masks.
    Raises:
        ValueError: if `out` is a workdir of train.py or holds foreign masks, or an example
            cannot be read.
        OSError: naming a file that cannot be written.
    """
    if (Path(out) / "checkpoints").is_dir():
        raise ValueError(f"--out={out} is a workdir of train.py, whose metrics.csv would be lost")
    folder, rows, cases = OutputFolder(out), [], []
    folder.begin(settings)
    with tqdm(total=total, desc="sampling", unit="image") as progress:
        for group, valid in padded_batches(examples, batch_size(predictor, total)):
            images = np.stack([example["input"] for example in group])
            show = lambda share: progress.set_postfix_str(f"batch {share:.0%}")
            samples = predictor(variables, images, [example["id"] for example in group], show)
            for i in np.flatnonzero(valid):
                case, row = _finish(predictor, folder, group[i], samples[:, i])
                cases.append(case)
                rows += [] if row is None else [row]
                progress.update()
    metrics = write_metrics(out, rows, settings) if rows else None
    write_report(Path(out) / "report.html", cases, metrics, settings, title)
    return metrics


def _finish(
    predictor: Predictor, folder: OutputFolder, example: dict[str, Any], samples: np.ndarray
) -> tuple[Case, dict[str, Any] | None]:
    """Combines the votes of one image at native size, writes its files and scores it.

    Returns:
        The image as the report shows it and its row of `write_metrics`; None without truth.
    """
    id, image, truth = example["id"], example["image"], example["truth"]
    disagreement = vote_disagreement(samples)
    samples = resize_samples(samples, image.shape[:2])
    probability, mask = predictor.combine(samples)
    spread = standard_deviation(samples) if len(samples) > 1 else None
    folder.write(id, image, probability, mask, truth)
    scores = None if truth is None else segmentation_scores(mask, truth)
    case = make_case(id, image, probability, mask, spread, truth, scores)
    if truth is None:
        return case, None
    row = {"id": id, "scores": scores, "tags": example["tags"], "disagreement": disagreement}
    return case, row | {"calibration": calibration_bins(probability, truth)}


def batch_size(predictor: Predictor, total: int) -> int:
    """Images of one call, fewer where there are not as many in all."""
    return min(predictor.batch_size, parallel.round_up(total))


def validate(
    predictor: Predictor, variables: Any, source: ResizedSource
) -> tuple[float, list[np.ndarray]]:
    """Mean IoU at the network's size, and pictures, for use while training.

    Returns:
        (mean per-image IoU, [image, truth, prediction], each u8[B, S, S, 3] of the first batch).
    """
    scores, pictures = [], []
    examples = ({"id": str(i), **source[i]} for i in range(len(source)))
    for group, valid in padded_batches(examples, batch_size(predictor, len(source))):
        images = np.stack([example["image"] for example in group])
        truth = np.stack([example["mask"][..., 0] for example in group]) > 127
        samples = predictor(variables, images, [example["id"] for example in group])
        masks = np.stack([predictor.combine(samples[:, i])[1] for i in range(len(group))])
        scores += [segmentation_scores(masks[i], truth[i]) for i in np.flatnonzero(valid)]
        if not pictures:
            grey = [np.repeat(255 * np.uint8(m)[..., None], 3, axis=-1) for m in (truth, masks)]
            pictures = [images[valid], grey[0][valid], grey[1][valid]]
    return average_scores(scores)["iou"], pictures
