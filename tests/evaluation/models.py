"""Models whose samples can be worked out by hand, and cases of a report."""

from types import SimpleNamespace

import numpy as np

from segdiff_jax.config import default_config
from segdiff_jax.evaluation.report import make_case
from segdiff_jax.inference.combine import Segmentation
from segdiff_jax.inference.load import Model

SIZE = 8


class Threshold:
    """A driver: two samples call bright pixels lesion, the third one all others."""

    method = SimpleNamespace(draws=True)

    def __init__(self, batch_size=3):
        self.batch_size, self.calls = batch_size, []

    def __call__(self, variables, images, ids, seed=0, progress=None, trace=None):
        assert variables == "variables"
        assert images.dtype == np.uint8
        assert images.shape == (len(ids), SIZE, SIZE, 3)
        assert len(ids) == min(self.batch_size, 8)  # 7 images on 4 devices
        self.calls.append(list(ids))
        return self.samples(images)[..., None]

    def samples(self, images):
        bright = np.where(images[..., 0] > 150, 1, -1)
        return np.stack([bright, bright, -bright]).astype(np.float32)


def config_of(**data):
    """A config of images of 8 x 8 pixels, with these fields of the data."""
    config = default_config()
    config.data.update({"image_size": SIZE} | data)
    return config


def model_of(driver=None, config=None, **sampler):
    """A model that samples by a driver such as `Threshold`, with these fields of the sampler."""
    config = config or config_of()
    config.sampler.update(sampler)
    return Model(config, {}, driver or Threshold(), "variables")


def case_of(id, image, probability, mask=None, deviation=None, truth=None, **more):
    """`make_case` of f32[H, W] and bool[H, W]; `more`: scores, conditions, uncertainty."""
    labels = np.uint8(probability > 0 if mask is None else mask)
    truth = None if truth is None else np.uint8(truth)
    found = Segmentation(labels, probability[..., None], deviation, more.get("uncertainty"))
    example = {"id": id, "image": image, "truth": truth, "conditions": more.get("conditions")}
    return make_case(example, found, more.get("scores"))
