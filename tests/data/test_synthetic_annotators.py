"""Drawn lesions with annotators: the true distribution is the one that is stated."""

import numpy as np
import pytest

from segdiff_jax.data.annotations import annotators_of, decode_annotations, majority
from segdiff_jax.data.builders.synthetic_lesions import annotators
from segdiff_jax.data.builders.synthetic_lesions.annotators import ANNOTATORS, draw_annotated
from segdiff_jax.data.builders.synthetic_lesions.synthetic_lesions_dataset_builder import (
    Builder,
    SyntheticLesionsConfig,
)
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.pipeline import ResizedSource
from segdiff_jax.data.prepare import load_source
from segdiff_jax.evaluation.distributions import score_samples
from segdiff_jax.inference.combine import iou_distances

SIZE = 64
NAMES = [*ANNOTATORS]


@pytest.fixture(scope="module")
def drawn():
    """60 pictures with 8 masks of each annotator: (masks bool[8, 3, H, W], scene)."""
    found = []
    for index in range(60):
        image, masks, scene, patches = draw_annotated((7, index), SIZE, NAMES * 8)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert set(np.unique(masks)) <= {0, 255} and len(patches) == 1 + (scene != "one")
        found.append((masks.reshape(8, 3, SIZE, SIZE) > 0, scene))
    return found


def test_fewer_masks_are_the_first_ones_and_another_hand_draws_others():
    image, masks, scene, patches = draw_annotated((7, 0), SIZE, NAMES)
    again = draw_annotated((7, 0), SIZE, NAMES * 3)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1][:3], masks)
    other = draw_annotated((7, 0), SIZE, NAMES, hand=1)
    np.testing.assert_array_equal(other[0], image)
    assert (other[1] != masks).any() and other[2] == scene and (other[3] == patches).all()
    assert (draw_annotated((7, 1), SIZE, NAMES)[0] != image).any()


def test_scenes_are_equally_frequent(drawn):
    scenes = [scene for _, scene in drawn]
    assert all(10 <= scenes.count(scene) <= 30 for scene in annotators.SCENES)


def test_each_annotator_draws_further_out_than_the_one_before(drawn):
    for masks, scene in drawn:
        if scene == "one":
            areas = masks.mean(axis=(0, 2, 3))
            assert (np.diff(areas) > 0.01).all()


def test_parts_are_taken_as_often_as_stated():
    rng = np.random.default_rng(0)
    left = np.where(np.arange(8) < 4, 9.0, -9.0) * np.ones((8, 1))
    draw = lambda scene, *style: annotators._draw_mask(rng, scene, [left, -left], *style)
    for style in ANNOTATORS.values():
        masks = [draw("second", *style) for _ in range(500)]
        assert all(mask[:, :4].all() for mask in masks)
        assert np.mean([mask[:, 4:].all() for mask in masks]) == pytest.approx(style[1], abs=0.06)
    masks = [draw("either", 0.4, 0.3) for _ in range(500)]
    assert all(mask.mean() == 0.5 for mask in masks)
    assert np.mean([mask[0, 0] for mask in masks]) == pytest.approx(0.5, abs=0.06)


def test_of_two_patches_each_is_taken_by_half_of_the_masks(drawn):
    firsts = []
    for masks, scene in drawn:
        if scene == "either":
            wide = masks[:, 1:].reshape(-1, SIZE, SIZE)
            apart = iou_distances(wide, wide[:1])[:, 0] > 0.9
            firsts.append(apart.mean())
            assert iou_distances(wide[apart], wide[~apart]).min() > 0.7
    assert len(firsts) > 10 and np.mean(firsts) == pytest.approx(0.5, abs=0.08)


def test_the_truth_has_no_energy_distance_to_itself(drawn):
    """And level sets of the share of annotators are far from it, where one of two is drawn."""
    rng, found = np.random.default_rng(0), {"truth": [], "levels": []}
    for masks, scene in drawn:
        if scene == "either":
            one, other = masks[:4].reshape(-1, SIZE, SIZE), masks[4:].reshape(-1, SIZE, SIZE)
            levels = masks.mean(axis=(0, 1)) > rng.random((64, 1, 1))
            found["truth"].append(score_samples(one, other)["ged"])
            found["levels"].append(score_samples(levels, other)["ged"])
    assert np.mean(found["truth"]) == pytest.approx(0, abs=0.05)
    assert np.mean(found["levels"]) > 0.2


def test_the_builder_keeps_all_masks(tmp_path, monkeypatch):
    tiny = SyntheticLesionsConfig(
        name="annotators",
        size=32,
        num_train=2,
        num_validation=1,
        num_test=1,
        test_masks=8,
    )
    monkeypatch.setitem(Builder.builder_configs, "annotators", tiny)
    train, validation, test = (
        load_source("synthetic_lesions/annotators", split, str(tmp_path))
        for split in ("train", "validation", "test")
    )
    assert len(train) == 2 and train.annotators == {*ANNOTATORS} and train.most_masks == 3
    # The energy score of validation reads all masks, and has room for `most_masks`.
    (example,) = ResizedSource(validation, 32, annotators=())
    assert example["mask"].shape == (32, 32, 3) and (example["annotators"] == 0).all()
    (record,) = test
    names = annotators_of(record)
    assert len(names) == 8 and {*names} == {*NAMES}
    _, masks, scene, _ = draw_annotated((0, 2, 0), 32, names)
    assert record["conditions"][0].decode() == scene
    labels = decode_annotations(record)
    np.testing.assert_array_equal(255 * labels, masks)
    np.testing.assert_array_equal(decode_labels(record["mask"], "mask"), majority(labels))
    assert annotators_of(train[0]) == NAMES
