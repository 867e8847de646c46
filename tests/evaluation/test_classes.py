"""Several classes: samples become probabilities, labels and scores; closed forms and hand-made."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from scipy import special
from sklearn.metrics import jaccard_score

from segdiff_jax.check import check
from segdiff_jax.data import pipeline
from segdiff_jax.data.classes import most_likely
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import class_scores, segmentation_scores
from segdiff_jax.evaluation.outputs import CLASS_COLOURS, OutputFolder, mix_classes
from segdiff_jax.evaluation.report import make_case, make_strip
from segdiff_jax.evaluation.tables import format_metrics, write_metrics
from segdiff_jax.evaluation.uncertainty import calibration_levels, calibration_pair, reliability
from segdiff_jax.evaluation.validate import validate
from segdiff_jax.inference import combine
from segdiff_jax.inference.load import Model, make_ensemble
from segdiff_jax.runtime.errors import UserError
from tests.data.test_classes import CLASSES, Records, png
from tests.drivers import driver_of
from tests.evaluation.models import config_of

RNG = np.random.default_rng(0)
K = 3


def one_hot(labels, count=K):
    """Clean masks f32[..., K] of -1 and +1."""
    return np.float32(2 * np.eye(count, dtype=np.float32)[labels] - 1)


# Two samples of one row: certain, evenly torn, beyond the range, nothing at all.
SAMPLES = np.float32(
    [
        [[[1, -1, -1], [1, 1, -1], [-3, 5, -1], [-1, -1, -1]]],
        [[[-1, 1, -1], [0, 0, 1], [-1, 0, 0], [-1, -2, -3]]],
    ]
)
SHARES = np.array(
    [
        [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [1 / 3] * 3],
        [[0, 1, 0], [0.25, 0.25, 0.5], [0, 0.5, 0.5], [1 / 3] * 3],
    ]
)


def labels_by(probability):
    return most_likely(probability, 0.5)


def test_mean_vote_and_labels():
    mean = combine.mean(SAMPLES)
    assert mean.dtype == np.float32 and mean.shape == (1, 4, K)
    np.testing.assert_allclose(mean[0], SHARES.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(labels_by(mean), [[0, 0, 1, 0]])
    # By vote: 0 and 1, 0 and 2, 1 and 1, 0 and 0.
    expected = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 1, 0], [1, 0, 0]]
    vote = combine.vote(SAMPLES)
    np.testing.assert_array_equal(vote[0], expected)
    assert vote.dtype == np.float32 and labels_by(vote).dtype == np.uint8
    # Beyond +-1, the largest sample counts.
    beyond = np.float32([[[[1.02, 1.3, -1], [-1.3, -1.01, -1.2]]]])
    np.testing.assert_array_equal(combine.vote(beyond)[0].argmax(axis=-1), [1, 1])
    with pytest.raises(ValueError, match="staple takes at most 64 samples of two classes"):
        combine.staple(SAMPLES)


def test_deviation_and_entropy():
    deviation = combine.standard_deviation(SAMPLES)
    np.testing.assert_allclose(deviation[0], SHARES.std(axis=0).max(axis=-1), atol=1e-6)
    np.testing.assert_allclose(deviation[0, [0, 3]], [0.5, 0], atol=1e-6)
    probability = np.float32([[[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0], [0.5, 0.25, 0.25]]])
    bits = np.array([[0, np.log2(3), 1, 1.5]]) / np.log2(3)
    entropy = combine.entropy(probability)
    assert entropy.dtype == np.float32
    np.testing.assert_allclose(entropy, bits, atol=1e-6)


def test_temperature():
    probability = np.float32(RNG.dirichlet([1, 1, 1], (4, 5)))
    warm = combine.temper(probability, 2.5)
    logs = np.log(np.clip(probability, 1 / 1020, 509 / 510))
    np.testing.assert_allclose(warm, special.softmax(logs / 2.5, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(warm.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(labels_by(warm), labels_by(probability))
    assert combine.temper(probability, 1) is probability
    certain = np.float32(np.eye(100)[None])
    assert combine.temper(certain, 1.001).max(axis=-1).min() > 0.99
    # Of two classes, as if there were one probability.
    p = probability[..., :1] / probability[..., :2].sum(axis=-1, keepdims=True)
    both = combine.temper(np.concatenate([p, 1 - p], axis=-1), 2.5)
    np.testing.assert_allclose(both[..., 0], combine.temper(p, 2.5)[..., 0], rtol=1e-4)


def test_samples_are_resized_class_by_class():
    samples = RNG.standard_normal((2, 4, 6, K)).astype(np.float32)
    resized = combine.resize_samples(samples, (9, 5))
    assert resized.shape == (2, 9, 5, K)
    for k in range(K):
        alone = combine.resize_samples(samples[..., k : k + 1], (9, 5))
        np.testing.assert_array_equal(resized[..., k : k + 1], alone)


def sklearn_macro(truth, prediction, count):
    """Over the classes but 0 that are in either."""
    there = [k for k in range(1, count) if (truth == k).any() or (prediction == k).any()]
    flat = truth.ravel(), prediction.ravel()
    if not there:
        return 1.0
    return jaccard_score(*flat, labels=there, average=None, zero_division=0).mean()


def test_samples_disagree_by_the_mean_over_their_classes():
    labels = RNG.integers(0, 4, (5, 6, 7))
    labels[3], labels[4] = 0, np.where(labels[4] == 2, 1, labels[4])
    pairs = [(i, j) for i in range(5) for j in range(i)]
    ious = [sklearn_macro(labels[i], labels[j], 4) for i, j in pairs]
    assert combine.disagreement(labels, 4) == pytest.approx(1 - np.mean(ious), abs=1e-7)
    assert combine.disagreement(labels[[3, 3]], 4) == 0
    assert combine.disagreement(labels[:1], 4) is None
    # A class that one sample has and the other has not: IoU 1 and 0.
    pair = np.array([[[1, 1, 0, 0]], [[1, 1, 2, 0]]])
    assert combine.disagreement(pair, 3) == pytest.approx(0.5)


def test_scores_of_each_class_and_their_mean():
    prediction, truth = RNG.integers(0, 4, (2, 20, 30)).astype(np.uint8)
    prediction[prediction == 3] = 0
    macro, scores = class_scores(prediction, truth, 5)
    ious = jaccard_score(truth.ravel(), prediction.ravel(), labels=[1, 2, 3], average=None)
    assert [row["iou"] for row in scores[:3]] == pytest.approx(ious) and scores[3] is None
    assert scores[1] == segmentation_scores(prediction == 2, truth == 2)
    assert macro["iou"] == pytest.approx(ious.mean()) and ious[2] == 0
    assert macro["dice"] == pytest.approx(np.mean([row["dice"] for row in scores[:3]]))
    assert macro["hd95"] == pytest.approx(np.mean([row["hd95"] for row in scores[:3]]))
    macro, nothing = class_scores(0 * truth, 0 * truth, 5)
    assert nothing == [None] * 4
    empty = np.zeros(truth.shape, bool)
    assert macro == segmentation_scores(empty, empty)
    assert macro["iou"] == 1


def test_calibration_is_that_of_the_predicted_class():
    probability = np.float32([[[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.0, 0.0, 1.0]]])
    mask = labels_by(probability)
    confidence, right = calibration_pair(probability, mask, np.uint8([[0, 2, 2]]))
    np.testing.assert_array_equal(confidence, np.float32([[0.8, 0.6, 1.0]]))
    np.testing.assert_array_equal(right, [[True, False, True]])
    rows = reliability(calibration_levels(confidence, right))
    assert [row["lesion"] for row in rows] == [0, 1, 1]
    assert [row["probability"] for row in rows] == pytest.approx([0.6, 0.8, 1])


def mask_of(image):
    """Which class a pixel is, by how bright it is: f32[..., K] of -1 and +1."""
    return 2 * jax.nn.one_hot(jnp.digitize(image[..., 0], jnp.float32([-0.3, 0.3])), K) - 1


class Exact(nn.Module):
    """Knows the mask of an image; predicts it or its logits, whatever x_t is."""

    scale: float = 1.0

    def encode_image(self, image):
        return mask_of(image)

    def denoise(self, x_t, features, t):
        assert x_t.shape[-1] in (K, 2 * K)
        repeated = jnp.repeat(features, len(x_t) // len(features), axis=0)
        return self.scale * repeated + 0 * x_t[..., :K]


class Supervised(nn.Module):
    """Likewise, of the image alone."""

    out_channels: int = K

    def __call__(self, image, train=False):
        return 2 * mask_of(image)


SCHEDULE = make_schedule("linear", 100)


def model_of(network, process, window=0, variance="fixed_large", **sampler):
    """A model of this closed-form network."""
    config = config_of(dataset="paired_folder", classes=CLASSES.names, mask_values=CLASSES.values)
    config.model.out_channels = K
    config.sampler.update({"steps": 3, "samples": 3, "max_batch": 8} | sampler)
    config.diffusion.variance = variance
    check(config)
    driver = driver_of(network, process, config, window)
    return Model(config, {"model": type(network).__name__}, driver, {})


def images_of(count, *size):
    return np.random.default_rng(1).integers(0, 256, (count, *size, 3), np.uint8)


def labels_of(images):
    return np.digitize(np.float32(images[..., 0]) / 127.5 - 1, [-0.3, 0.3])


@pytest.mark.parametrize(
    ("name", "process", "flips"),
    [
        ("ddim", Process(SCHEDULE, "x0", mask_channels=K), False),
        ("ddpm", Process(SCHEDULE, "x0", logits=True, input_scale=0.3, mask_channels=K), True),
        (
            "dpm_solver_pp_2m",
            Process(SCHEDULE, "x0", self_conditioning=True, mask_channels=K),
            True,
        ),
    ],
)
def test_an_exact_denoiser_samples_its_mask(name, process, flips):
    sampler = {"name": name, "flips": flips, "rotations": flips, "variance": "fixed_small"}
    sampler["samples_from"] = "network"
    model = model_of(Exact(50.0 if process.logits else 1.0), process, **sampler)
    images, shown = images_of(4, 8, 8), []
    note = lambda t, x_t, x_0: shown.append((t, x_t, x_0))
    samples = model.sample(images, list("abcd"), trace=note)
    assert samples.shape == (3, 4, 8, 8, K) and samples.dtype == np.float32
    expected = np.broadcast_to(one_hot(labels_of(images)), samples.shape)
    np.testing.assert_allclose(samples, expected, atol=1e-4)
    found = model.segment(samples[:, 0], (16, 16))
    assert found.mask.shape == (16, 16) and found.uncertainty == 0
    same = model.segment(samples[:, 0])
    np.testing.assert_array_equal(same.mask, labels_of(images)[0])
    np.testing.assert_allclose(same.probability.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(same.deviation, 0, atol=1e-4)
    # The noise of each channel is its own.
    x_T = shown[0][1][0]
    assert x_T.shape == (8, 8, K) and abs(np.corrcoef(x_T.reshape(-1, K).T)[0, 1]) < 0.5
    assert len(make_strip("a", [(t, x[0], x_0[0]) for t, x, x_0 in shown])["frames"]) == len(shown)


def test_samples_that_are_not_finite_are_refused():
    model = model_of(Exact(float("nan")), Process(SCHEDULE, "x0", mask_channels=K), clip=False)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        model.sample(images_of(4, 8, 8), list("abcd"))


def test_a_supervised_network_and_an_ensemble():
    single = model_of(Supervised(), None, flips=True)
    images = images_of(4, 8, 8)
    samples = single.sample(images, list("abcd"))
    assert samples.shape == (4, 4, 8, 8, K)
    expected = np.tanh(one_hot(labels_of(images)))
    np.testing.assert_allclose(samples, np.broadcast_to(expected, samples.shape), atol=1e-5)
    # (1 + tanh 1) / 2 = 0.8808 and 0.1192, of a sum of 1.1192.
    found = single.segment(samples[:, 0])
    np.testing.assert_allclose(np.sort(found.probability[0, 0]), [0.1065, 0.1065, 0.787], 1e-3)
    process = Process(SCHEDULE, "x0", mask_channels=K)
    both = make_ensemble([single, model_of(Exact(), process, flips=True)])
    means = both.sample(images, list("abcd"))
    assert means.shape == (2, 4, 8, 8, K)
    np.testing.assert_allclose((means[0, 0] + 1) / 2, found.probability, atol=1e-5)
    p = both.segment(means[:, 0])
    np.testing.assert_array_equal(p.mask, labels_of(images)[0])
    np.testing.assert_allclose(p.probability.max(axis=-1), (0.787 + 1) / 2, atol=1e-3)
    with pytest.raises(UserError, match="sampler.ensemble='staple' combines masks of two classes"):
        model_of(Supervised(), None, ensemble="staple")


def test_windows_of_several_classes():
    process = Process(SCHEDULE, "x0", mask_channels=K)
    model = model_of(Exact(), process, window=8, overlap=0.5)
    images = images_of(2, 16, 12)
    samples = model.sample(images, ["a", "b"])
    assert samples.shape == (3, 2, 16, 12, K)
    expected = np.broadcast_to(one_hot(labels_of(images)), samples.shape)
    np.testing.assert_allclose(samples, expected, atol=1e-4)


def records_of(images):
    """Records whose masks are right in all but the last image, which has no lesion."""
    masks = CLASSES.file_values(labels_of(images).astype(np.uint8))
    masks[-1] = 0
    pairs = zip(images, masks, strict=True)
    return [{"id": f"{i}", "image": png(a), "mask": png(b)} for i, (a, b) in enumerate(pairs)]


def test_an_evaluation(tmp_path):
    model = model_of(Exact(), Process(SCHEDULE, "x0", mask_channels=K))
    images = images_of(4, 8, 8)
    images[..., 1:] = images[..., :1]
    images[0][labels_of(images)[0] == 2] = 128  # No core.
    examples = NativeExamples(records_of(images), model)
    assert examples[0]["truth"].dtype == np.uint8
    assert examples[3]["conditions"]["lesion_size"] == "none"
    result = evaluate([examples], tmp_path / "out", {"data": "test"}, "title")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics == result.metrics | {"settings": {"data": "test"}}
    lesion, core = metrics["classes"]["lesion"], metrics["classes"]["core"]
    assert (lesion["images"], core["images"]) == (4, 3)
    assert lesion["iou"] == pytest.approx(3 / 4) and core["iou"] == pytest.approx(2 / 3)
    assert metrics["mean"]["iou"] == pytest.approx(3 / 4)
    right = [0] * 3 + [np.mean(labels_of(images)[3] > 0)]
    assert metrics["uncertainty"]["ece"] == pytest.approx(np.mean(right), abs=0.01)
    assert (metrics["num_images"], metrics["num_with_foreground"]) == (4, 3)
    with (tmp_path / "out/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iou_lesion"] for row in rows] == ["1.000000"] * 3 + ["0.000000"]
    assert [row["iou_core"] for row in rows] == ["", "1.000000", "1.000000", "0.000000"]
    assert float(rows[1]["area"]) == pytest.approx((labels_of(images)[1] > 0).mean(), abs=1e-6)
    # An output folder can be an input.
    for i in range(4):
        data = (tmp_path / f"out/masks/{i}_Segmentation.png").read_bytes()
        labels = decode_labels(data, "mask", CLASSES)
        np.testing.assert_array_equal(labels, labels_of(images)[i])
    grey = np.asarray(Image.open(tmp_path / "out/probabilities/1.png"))
    assert (grey == 255).all()
    assert not np.asarray(Image.open(tmp_path / "out/entropies/1.png")).any()
    html = (tmp_path / "out/report.html").read_text()
    assert "By class" in html and "share that is right" in html and "true contour" not in html
    text = format_metrics(metrics)
    assert any(line.split() == ["core", "3", "0.6667", "0.6667"] for line in text.splitlines())


def test_validation_is_of_the_mean_over_classes():
    model = model_of(Exact(), Process(SCHEDULE, "x0", mask_channels=K))
    images = images_of(4, 8, 8)
    source = pipeline.ResizedSource(Records(records_of(images)), 8, classes=CLASSES)
    scores, (_, truth, prediction) = validate(model.driver, {}, source, model.config)
    assert scores == {"iou": pytest.approx(3 / 4)}
    np.testing.assert_array_equal(truth[:3], prediction[:3])
    assert not truth[3].any() and prediction[3].any()
    np.testing.assert_array_equal(prediction[0][labels_of(images)[0] == 2][0], CLASS_COLOURS[1])


def test_the_files_of_an_image(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    labels[5:35, 5:30], labels[5:35, 35:55] = 1, 2
    probability = np.float32((one_hot(labels) + 1) / 2 * 0.4 + 0.2)
    found = combine.Segmentation(labels, probability, np.full(labels.shape, 0.25))
    image, truth = np.full((40, 60, 3), 90, np.uint8), np.where(labels == 2, 0, labels)
    example = {"id": "a", "image": image, "truth": truth, "conditions": None}
    OutputFolder(tmp_path, CLASSES).write(example, found, {})
    read = lambda name: np.asarray(Image.open(tmp_path / name))
    np.testing.assert_array_equal(read("masks/a_Segmentation.png"), np.uint8([0, 7, 200])[labels])
    assert (read("probabilities/a.png") == round(255 * 0.6)).all()
    assert (read("deviations/a.png") == 128).all()
    bits = -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.2)) / np.log2(3)
    assert (read("entropies/a.png") == round(255 * bits)).all()
    overlay = np.int32(read("overlays/a.jpg"))
    assert abs(overlay[5, 15] - CLASS_COLOURS[0]).max() < 40
    assert abs(overlay[5, 45] - CLASS_COLOURS[1]).max() < 40
    assert abs(overlay[20, 15] - 90).max() < 10
    case = make_case(example, dataclasses.replace(found, deviation=None), None, CLASSES)
    assert case["truth"] != case["prediction"] != case["image"]
    shares = np.eye(3, dtype=np.float32)[labels]
    np.testing.assert_array_equal(
        mix_classes(shares)[20, [0, 10, 40]], [(0, 0, 0), *CLASS_COLOURS[:2]]
    )


def test_a_class_of_no_image(tmp_path):
    empty = np.zeros((4, 4), bool)
    scores = segmentation_scores(empty, empty)
    row = {"id": "a", "area": 0.0, "disagreement": None, "scores": scores}
    conditions = {"dark_corners": "no", "contrast": "none", "lesion_size": "none", "hair": "no"}
    levels = calibration_levels(np.ones((4, 4), np.float32), ~empty)
    row |= {"conditions": conditions, "levels": levels, "foreground": False}
    row["classes"] = {"lesion": scores, "core": None}
    metrics = write_metrics(tmp_path, [row], {})
    assert metrics["classes"] == {"lesion": {"images": 1, **scores}, "core": {"images": 0}}
    assert any(line.split() == ["core", "0"] for line in format_metrics(metrics).splitlines())
