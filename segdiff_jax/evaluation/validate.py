"""Scores during training, at the network's size."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.classes import classes_of, most_likely
from segdiff_jax.data.pipeline import ResizedSource, padded_batches
from segdiff_jax.evaluation.metrics import class_scores
from segdiff_jax.evaluation.outputs import mix_classes
from segdiff_jax.inference.combine import options_of, segment
from segdiff_jax.inference.driver import Driver
from segdiff_jax.runtime import parallel


def validate(
    driver: Driver, variables: Any, source: ResizedSource, config: ConfigDict
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The scores `config.validation.scores` of the network with these variables, and pictures.

    {score: mean over the images}, see `class_scores`, and [image, truth, prediction] of the first
    batch, u8[B, S, S, 3] each. Several processes share the images; all of them get the same.
    """
    classes, names = classes_of(config.data), config.validation.scores
    options = options_of(config.sampler)
    share, rows, pictures = parallel.share(len(source)), np.zeros((len(source), len(names))), []
    examples = ({"number": i, **source[i]} for i in share)
    batch_size = parallel.batch_size(driver.batch_size, len(share))
    for group, valid in padded_batches(examples, batch_size):
        images = np.stack([example["image"] for example in group])
        truth = most_likely(np.stack([example["mask"] for example in group]), 127)
        ids = [str(example["number"]) for example in group]
        samples = driver(variables, images, ids, config.seed)
        labels = np.stack([segment(samples[:, i], **options).labels for i in range(len(group))])
        for i in np.flatnonzero(valid):
            scores, _ = class_scores(labels[i], truth[i], len(classes.names), names)
            rows[group[i]["number"]] = [scores[name] for name in names]
        if not pictures:
            shares = (x[valid, ..., None] == classes.of_channels for x in (truth, labels))
            pictures = [images[valid], *map(mix_classes, shares)]
    means = parallel.merge(rows).mean(axis=0)
    return dict(zip(names, means.tolist(), strict=True)), pictures
