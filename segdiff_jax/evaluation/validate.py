"""Scores during training, at the network's size."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.annotations import majority
from segdiff_jax.data.classes import Classes, classes_of, most_likely
from segdiff_jax.data.pipeline import ResizedSource, padded_batches
from segdiff_jax.evaluation.distributions import energy_score
from segdiff_jax.evaluation.metrics import ENERGY, class_scores
from segdiff_jax.evaluation.outputs import mix_classes
from segdiff_jax.inference.combine import iou_distances, options_of, segment
from segdiff_jax.inference.drawn import single_masks
from segdiff_jax.inference.driver import Driver
from segdiff_jax.runtime import parallel


def validate(
    driver: Driver, variables: Any, source: ResizedSource, config: ConfigDict
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The scores `config.validation.scores` of the network with these variables, and pictures.

    {score: mean over the images}, see `class_scores` and `energy_score`, and [image, truth,
    prediction] of the first batch, u8[B, S, S, 3] each. Of several masks of an image, all count for
    the energy score, and their majority for the others. Several processes share the images; all of
    them get the same.
    """
    classes, names, seed = classes_of(config.data), config.validation.scores, config.seed
    options, of_mask = options_of(config.sampler), [name for name in names if name != ENERGY]
    share, rows, pictures = parallel.share(len(source)), np.zeros((len(source), len(names))), []
    examples = ({"number": i, **source[i]} for i in share)
    batch_size = parallel.batch_size(driver.batch_size, len(share))
    for group, valid in padded_batches(examples, batch_size):
        images = np.stack([example["image"] for example in group])
        truths = [truths_of(example, classes) for example in group]
        truth = np.stack([of[0] if len(of) == 1 else majority(of) for of in truths])
        ids = [str(example["number"]) for example in group]
        samples = driver(variables, images, ids, seed)
        found = [segment(samples[:, i], **options) for i in range(len(group))]
        labels = np.stack([one.labels for one in found])
        for i in np.flatnonzero(valid):
            scores, _ = class_scores(labels[i], truth[i], len(classes.names), of_mask)
            if ENERGY in names:
                drawing = images.shape[1:3], found[i], config.sampler, ids[i], seed
                masks = single_masks(samples[:, i], *drawing)[0] > 0
                draws = config.sampler.samples_from != "network" or driver.method.draws
                between = iou_distances(masks, masks)
                scores[ENERGY] = energy_score(iou_distances(masks, truths[i] > 0), between, draws)
            rows[group[i]["number"]] = [scores[name] for name in names]
        if not pictures:
            shares = (x[valid, ..., None] == classes.of_channels for x in (truth, labels))
            pictures = [images[valid], *map(mix_classes, shares)]
    means = parallel.merge(rows).mean(axis=0)
    return dict(zip(names, means.tolist(), strict=True)), pictures


def validation_config(config: ConfigDict) -> ConfigDict:
    """Samples as `validation` says, and without views for methods that need no samples."""
    config = config.copy_and_resolve_references()
    sampler, validation = config.sampler, config.validation
    sampler.update(native=False, steps=validation.steps, samples=validation.samples)
    if config.method == "supervised":
        sampler.flips = sampler.rotations = False
    return config


def truths_of(example: dict[str, np.ndarray], classes: Classes) -> np.ndarray:
    """The labels u8[M, S, S] of an example of `ResizedSource`, one for each of its masks."""
    mask, count = example["mask"], classes.channels
    if "annotators" in example:
        mask = mask[..., example["annotators"] >= 0]
    masks = mask.reshape(*mask.shape[:2], -1, count)
    return np.moveaxis(most_likely(masks, 127), 2, 0)
