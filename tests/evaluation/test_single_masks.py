"""Single masks on their way through a model and an evaluation."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.outputs import OutputFolder
from segdiff_jax.inference.combine import Segmentation
from segdiff_jax.inference.load import make_ensemble
from segdiff_jax.runtime.errors import UserError
from tests.evaluation.models import Threshold, model_of
from tests.evaluation.test_evaluate import RECORDS, examples_of


def run(out, model, **options):
    return evaluate([examples_of(RECORDS, model)], out, {}, "t", **options).metrics["samples"]


def test_the_source_of_single_masks_changes_them_and_not_the_mask():
    samples = Threshold().samples(np.full((1, 8, 8, 3), 200, np.uint8))[..., None]
    found = {}
    for source in ("levels", "pixels", "network"):
        model = model_of(Threshold(), samples=6, samples_from=source)
        found[source] = model.segment(samples[:, 0], (16, 24), "a")
        same = model.segment(samples[:, 0], (16, 24), "a")
        np.testing.assert_array_equal(found[source].samples, same.samples)
        np.testing.assert_array_equal(found[source].probability, np.float32(2 / 3))
    assert [len(of.samples) for of in found.values()] == [6, 6, 3]
    levels, pixels, network = (of.samples for of in found.values())
    assert set(levels.mean(axis=(1, 2))) <= {0, 1}
    assert ((pixels.mean(axis=(1, 2)) - 2 / 3) ** 2 < 0.1).all()
    np.testing.assert_array_equal(network.mean(axis=(1, 2)), [1, 1, 0])
    # The standard deviation of a pixel that is lesion in 2/3 of the masks.
    for of in found.values():
        np.testing.assert_allclose(of.deviation, np.sqrt(2) / 3, atol=1e-6)


def test_a_single_level_set_has_no_deviation():
    model = model_of(Threshold(), samples=1)
    found = model.segment(np.zeros((2, 8, 8, 1), np.float32))
    assert found.deviation is None and found.uncertainty is None and len(found.samples) == 1


def test_views_are_all_the_masks_that_a_supervised_network_has():
    class Views(Threshold):
        method = SimpleNamespace(draws=False)

    assert not model_of(Views(), samples_from="network").draws
    assert model_of(Views(), samples_from="levels").draws


def test_the_samples_of_several_models_are_not_independent():
    """Each model gives equally many, so two of them are more often of different models."""
    member = model_of(SimpleNamespace(method=SimpleNamespace(draws=True)), samples_from="network")
    assert member.draws
    assert not dataclasses.replace(member, members=(member, member)).draws
    with pytest.raises(UserError, match="differ in sampler.samples_from: .*; give one for all"):
        make_ensemble([member, model_of(Threshold())])


def test_the_agreement_of_annotators_is_compared_with_the_diversity(tmp_path):
    table = tmp_path / "agreement.csv"
    table.write_text(
        "id,agreement\n" + "".join(f"{id},0.{i + 1}\n" for i, id in enumerate("abcdex"))
    )
    model = model_of(Threshold(), samples=20)
    found = run(tmp_path / "out", model, agreement=table)["agreement"]
    assert found["num_images"] == 5 and -1 <= found["correlation"] <= 1
    # All single masks alike: there is no correlation, and the file is JSON.
    certain = model_of(Threshold(), samples_from="network", samples=1)
    certain.driver.samples = lambda images: np.ones((1, *images.shape[:3]), np.float32)
    found = run(tmp_path / "certain", certain, agreement=table)["agreement"]
    assert found == {"num_images": 5, "correlation": None, "interval": None}
    text = (tmp_path / "certain" / "metrics.json").read_text()
    json.loads(text, parse_constant=pytest.fail)


def test_files_of_images_that_are_gone_are_removed(tmp_path):
    folder = OutputFolder(tmp_path)
    image, labels = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    found = Segmentation(
        labels, np.zeros((8, 8, 1), np.float32), None, None, np.stack([labels] * 2)
    )
    for id in ("a", "a/b"):
        folder.write({"id": id, "image": image, "truth": None}, found, {"content": 1})
    assert folder.has("a", 1) and (tmp_path / "samples/a/b/01.png").exists()
    folder.keep_only(["a/b"])
    assert [p.name for p in (tmp_path / "samples/a").iterdir()] == ["b"]
    folder.keep_only([])
    assert not (tmp_path / "samples/a/b").exists()


def test_a_seed_below_zero_is_refused():
    with pytest.raises(UserError, match="key=-1 is no seed of samples: give an int from 0"):
        model_of(Threshold()).predict([np.zeros((8, 8, 3), np.uint8)], key=-1)
