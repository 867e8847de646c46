"""Scores during training: the named ones, and no others."""

import numpy as np
import pytest

from configs import default
from segdiff_jax.evaluation import metrics
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.evaluation.validate import validate
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
