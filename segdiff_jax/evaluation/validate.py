"""Scores during training, at the network's size."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.data.classes import classes_of, most_likely
from segdiff_jax.data.pipeline import ResizedSource, padded_batches
from segdiff_jax.evaluation.metrics import class_scores, macro_scores
from segdiff_jax.evaluation.outputs import label_colours
from segdiff_jax.inference.combine import segment
from segdiff_jax.inference.driver import Driver
from segdiff_jax.runtime import parallel


def validate(
    driver: Driver, variables: Any, source: ResizedSource, config: ConfigDict
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Means of the scores that the config names, and pictures.

    With several classes, an image's score is the mean over them, see `macro_scores`. Several
    processes share the images; all of them get the mean of all.

    Args:
        driver: samples masks.
        variables: of the network.
        source: the validation images.
        config: of the run; `config.validation.scores` are computed.
    Returns:
        {score: mean over the images}, and [image, truth, prediction], each u8[B, S, S, 3] of the
        first batch.
    """
    classes, sampler = classes_of(config.data), config.sampler
    names = config.validation.scores
    share, rows, pictures = parallel.share(len(source)), np.zeros((len(source), len(names))), []
    examples = ({"number": i, **source[i]} for i in share)
    batch_size = parallel.batch_size(driver.batch_size, len(share))
    for group, valid in padded_batches(examples, batch_size):
        images = np.stack([example["image"] for example in group])
        truth = most_likely(np.stack([example["mask"] for example in group]), 127)
        ids = [str(example["number"]) for example in group]
        samples = driver(variables, images, ids, config.seed)
        options = sampler.ensemble, sampler.temperature, sampler.threshold
        labels = [segment(samples[:, i], *options).labels for i in range(len(group))]
        for i in np.flatnonzero(valid):
            of_classes = class_scores(labels[i], truth[i], classes.count, names)
            scores = macro_scores(of_classes, truth[i].shape, names)
            rows[group[i]["number"]] = [scores[name] for name in names]
        if not pictures:
            of_labels = (label_colours(x[valid], classes.count) for x in (truth, np.stack(labels)))
            pictures = [images[valid], *of_labels]
    means = parallel.merge(rows).mean(axis=0)
    return dict(zip(names, means.tolist(), strict=True)), pictures
