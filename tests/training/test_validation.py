"""Scores during training: the named ones, and no others."""

import types

import numpy as np
import pytest

from configs import default
from segdiff_jax.evaluation import metrics
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.evaluation.validate import validate, validation_config
from segdiff_jax.runtime import parallel


class Thirds:
    """Stands for a driver: the left third of each image is lesion."""

    batch_size = 4

    def __call__(self, variables, images, ids, seed):
        assert images.shape == (4, 6, 6, 3) and len(ids) == 4 and seed == 5
        self.ids = [*getattr(self, "ids", []), *ids]
        samples = np.full((2, 4, 6, 6, 1), -1.0, np.float32)
        samples[..., :2, :] = 1.0
        return samples


class ThirdAndAll(Thirds):
    """Its second sample is lesion everywhere."""

    def __call__(self, *args):
        samples = super().__call__(*args)
        samples[1] = 1.0
        return samples


@pytest.fixture
def source():
    """Five images whose lesions are 1 to 5 columns wide."""
    masks = np.zeros((5, 6, 6, 1), np.uint8)
    for i in range(5):
        masks[i, :, : i + 1] = 255
    return [{"image": np.full((6, 6, 3), 10 * i, np.uint8), "mask": m} for i, m in enumerate(masks)]


@pytest.mark.parametrize("names", [("iou",), ("hd95", "dice"), ("dice", "iou", "fbound")])
def test_the_named_scores_are_the_means_over_images(source, names):
    config, driver = default.get_config(), Thirds()
    config.seed, config.validation.scores = 5, names
    scores, (images, truth, prediction) = validate(driver, None, source, config)
    assert tuple(scores) == names and set(driver.ids) == set("01234")
    ours = np.zeros((6, 6), bool)
    ours[:, :2] = True
    each = [segmentation_scores(ours, example["mask"][..., 0] > 127) for example in source]
    for name in names:
        assert scores[name] == pytest.approx(np.mean([of[name] for of in each]), abs=1e-9)
    assert images.shape == truth.shape == prediction.shape == (4, 6, 6, 3)
    assert prediction[:, :, :2].all() and not prediction[:, :, 2:].any()
    assert truth[3, :, :4].all() and not truth[3, :, 4:].any()


@pytest.mark.parametrize("draws", [True, False])
def test_the_energy_of_single_masks_counts_all_annotators(source, draws):
    """The samples are the left third and all; image i has i + 1 columns, and half of them nothing.

    Then the distances are 1 - IoU of two masks that lie side by side.
    """
    config, driver = default.get_config(), ThirdAndAll()
    driver.method = types.SimpleNamespace(draws=draws)
    config.seed, config.validation.scores = 5, ("energy", "iou")
    config.sampler.samples_from = "network"
    nothing = np.zeros((6, 6, 1), np.uint8)
    several = [
        example
        | {
            "mask": np.concatenate([example["mask"], nothing, nothing + 255], -1),
            "annotators": np.int32([0, 1, -1] if i % 2 else [0, -1, -1]),
        }
        for i, example in enumerate(source)
    ]
    scores, (_, truth, _) = validate(driver, None, several, config)
    iou = lambda a, b: min(a, b) / max(a, b) if max(a, b) else 1.0
    expected = []
    for i in range(5):
        truths = [i + 1, 0] if i % 2 else [i + 1]
        distance = np.mean([1 - iou(a, b) for a in (2, 6) for b in truths])
        between = 1 - iou(2, 6)
        expected.append(distance - (between if draws else between / 2) / 2)
    assert scores["energy"] == pytest.approx(np.mean(expected), abs=1e-6)
    # The majority of two masks is where both are; a mean of 1/2 is not lesion either.
    columns = [0 if i % 2 else i + 1 for i in range(5)]
    assert [int(picture[0, :, 0].astype(bool).sum()) for picture in truth] == columns[:4]
    assert scores["iou"] == pytest.approx(np.mean([iou(2, n) for n in columns]))


def test_the_energy_is_of_as_many_level_sets_as_validation_says(source, monkeypatch):
    config = default.get_config()
    config.seed, config.validation.scores = 5, ("energy",)
    config.validation.samples, config.sampler.samples = 3, 50
    config, counts = validation_config(config), []

    def score(to_truth, between, draws):
        counts.append(between.shape)
        return 0.0

    monkeypatch.setattr("segdiff_jax.evaluation.validate.energy_score", score)
    validate(ThirdAndAll(), None, source, config)
    assert counts == [(3, 3)] * 5


def test_scores_that_are_not_named_are_not_computed(source, monkeypatch):
    """Those of boundaries take much longer than IoU."""

    def computed(*args):
        raise AssertionError("computed")

    config = default.get_config()
    config.seed = 5
    monkeypatch.setattr(metrics, "cKDTree", computed)
    scores, _ = validate(Thirds(), None, source, config)
    assert scores == {"iou": pytest.approx((1 / 2 + 1 + 2 / 3 + 2 / 4 + 2 / 5) / 5)}
    config.validation.scores = ("iou", "hd95")
    with pytest.raises(AssertionError, match="computed"):
        validate(Thirds(), None, source, config)


def test_a_batch_is_no_larger_than_what_there_is():
    """A multiple of the four devices."""
    assert [parallel.batch_size(32, total) for total in (1, 4, 5, 40)] == [4, 4, 8, 32]
