"""The predictor is a threshold on the image, so that every score can be worked out by hand."""

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.colour import shades_of_gray
from segdiff_jax.data.pipeline import ResizedSource, resize_image
from segdiff_jax.evaluation.evaluate import evaluate, native_examples, validate
from segdiff_jax.evaluation.outputs import OutputFolder
from segdiff_jax.evaluation.predict import Predictor

SIZE = 8
# id, (height, width), eighths of the width that are bright and that are lesion: native sizes
# larger, smaller and not square, in an order that is not that of the ids.
CASES = [
    ("e", (16, 24), 4, 4),
    ("a", (40, 16), 4, 2),
    ("g", (8, 8), 2, 4),
    ("c", (4, 32), 4, 1),
    ("b", (24, 16), 6, 6),
    ("f", (16, 16), 0, 2),
    ("d", (16, 48), 0, 0),
]
IOU = {"a": 1 / 2, "b": 1, "c": 1 / 4, "d": 1, "e": 1, "f": 0, "g": 1 / 2}


def encode(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def columns(size, eighths):
    """bool[H, W], True in the first so many eighths of the width."""
    return np.broadcast_to(np.arange(size[1]) * 8 < eighths * size[1], size)


def make_record(id, size, bright, lesion):
    image = np.where(columns(size, bright)[..., None], (250, 200, 150), (50, 40, 30))
    mask = np.where(columns(size, lesion), 255, 0)
    return {
        "id": id.encode(),
        "image": encode(image.astype(np.uint8)),
        "mask": encode(mask.astype(np.uint8)),
    }


RECORDS = [make_record(*case) for case in CASES]


class Threshold(Predictor):
    """Two votes call bright pixels lesion, the third all others."""

    def __init__(self, batch_size, ensemble="mean", threshold=0.5):
        self.batch_size, self.calls = batch_size, []
        self._ensemble, self._threshold = ensemble, threshold

    def __call__(self, params, images, ids, progress=None):
        assert params == "params"
        assert images.dtype == np.uint8
        assert images.shape == (len(ids), SIZE, SIZE, 3)
        assert len(ids) == min(self.batch_size, 8)  # 7 images on 4 devices
        self.calls.append(list(ids))
        bright = np.where(images[..., 0] > 150, 1, -1)
        return np.stack([bright, bright, -bright]).astype(np.float32)


@pytest.fixture
def written(monkeypatch):
    """Every id that was written, in order."""
    ids, write = [], OutputFolder.write

    def count(self, id, *arguments):
        ids.append(id)
        write(self, id, *arguments)

    monkeypatch.setattr(OutputFolder, "write", count)
    return ids


def run(out, records, batch_size=3, settings=None, title="t", predictor=None):
    predictor, examples = predictor or Threshold(batch_size), native_examples(records, SIZE)
    return evaluate(predictor, "params", examples, len(records), out, settings or {}, title)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pixels(path):
    with Image.open(path) as file:
        assert file.mode == "L"
        return np.asarray(file)


def test_every_image_is_written_once_at_its_native_size(tmp_path, written):
    run(tmp_path, RECORDS)
    assert written == [id for id, *_ in CASES]
    expected = {"report.html", "metrics.csv", "metrics.json", "settings.json"}
    for id in IOU:
        expected |= {f"masks/{id}_Segmentation.png", f"probabilities/{id}.png"}
        expected.add(f"overlays/{id}.jpg")
    assert set(files(tmp_path)) == expected
    for id, size, bright, _ in CASES:
        mask = pixels(tmp_path / f"masks/{id}_Segmentation.png")
        np.testing.assert_array_equal(mask, np.where(columns(size, bright), 255, 0))
        probability = pixels(tmp_path / f"probabilities/{id}.png")
        assert probability.shape == size
        # Two votes of three, away from the edge where the samples blur as they are enlarged.
        assert (probability[:, 0] == (170 if bright else 85)).all()
        assert (probability[:, -1] == 85).all()
        with Image.open(tmp_path / f"overlays/{id}.jpg") as overlay:
            assert overlay.size == size[::-1]


def test_scores_are_those_worked_out_by_hand(tmp_path):
    metrics = run(tmp_path, RECORDS, settings={"votes": 3})
    assert metrics["num_images"] == 7
    assert metrics["settings"] == {"votes": 3}
    assert metrics["mean"]["iou"] == pytest.approx(sum(IOU.values()) / 7)
    # e.g. of g: 2 of 8 columns are found, 4 are lesion and none is wrong.
    dice = {"a": 2 / 3, "b": 1, "c": 2 / 5, "d": 1, "e": 1, "f": 0, "g": 2 / 3}
    assert metrics["mean"]["dice"] == pytest.approx(sum(dice.values()) / 7)
    accuracy = [6 / 8, 1, 5 / 8, 1, 1, 6 / 8, 6 / 8]
    assert metrics["mean"]["accuracy"] == pytest.approx(sum(accuracy) / 7)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == sorted(IOU)
    for row in rows:
        assert float(row["iou"]) == pytest.approx(IOU[row["id"]], abs=1e-6)
        assert float(row["dice"]) == pytest.approx(dice[row["id"]], abs=1e-6)


def test_scores_by_condition(tmp_path):
    metrics = run(tmp_path, RECORDS)
    sizes = metrics["strata"]["lesion_size"]  # 6 eighths; 4, 4 are large; 2, 2, 1; 0.
    assert {value: row["num_images"] for value, row in sizes.items()} == {
        "medium": 3,
        "large": 3,
        "none": 1,
    }
    assert sizes["medium"]["iou"] == pytest.approx((IOU["a"] + IOU["c"] + IOU["f"]) / 3)
    assert sizes["large"]["iou"] == pytest.approx((IOU["b"] + IOU["e"] + IOU["g"]) / 3)
    low, high = metrics["iou_interval"]
    assert low < metrics["mean"]["iou"] < high
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    by_id = "medium large medium none large medium large".split()  # noqa: SIM905
    assert [row["lesion_size"] for row in rows] == by_id
    assert "By condition" in (tmp_path / "report.html").read_text()


def test_colour_constancy_changes_what_the_network_sees_only():
    corrected = native_examples(RECORDS[:2], SIZE, "shades_of_gray")
    for example, plain in zip(corrected, native_examples(RECORDS[:2], SIZE), strict=True):
        np.testing.assert_array_equal(example["image"], plain["image"])
        expected = shades_of_gray(resize_image(plain["image"], SIZE))
        np.testing.assert_array_equal(example["input"], expected)
        assert (example["input"] != plain["input"]).any()
    with pytest.raises(ValueError, match=r"data\.colour_constancy='grey' is unknown"):
        native_examples(RECORDS, SIZE, "grey")


def test_an_artefact_follows_from_the_id_and_the_network_sees_it():
    names = ("a", "b")
    grey = [{"id": id, "image": encode(np.full((64, 64, 3), 200, np.uint8))} for id in names]
    first, second = native_examples(grey, SIZE, artefact="vignette")
    assert (first["image"][[0, 0, -1, -1], [0, -1, 0, -1]] < 120).all()
    assert (first["image"][28:36, 28:36] == 200).all()
    np.testing.assert_array_equal(first["input"], resize_image(first["image"], SIZE))
    assert (first["image"] != second["image"]).any()
    again = list(native_examples(grey[::-1], SIZE, artefact="vignette"))[1]
    np.testing.assert_array_equal(again["image"], first["image"])
    with pytest.raises(ValueError, match="artefact 'fog' is unknown; there are skin_tone, hair"):
        next(native_examples(grey, SIZE, artefact="fog"))


def test_the_report_shows_title_settings_and_every_case(tmp_path):
    run(tmp_path, RECORDS, settings={"checkpoint": "step 1234"}, title="Lesions of 2016")
    text = (tmp_path / "report.html").read_text()
    assert "Lesions of 2016" in text
    assert "step 1234" in text
    for id in IOU:
        assert len(re.findall(rf">\s*{id}\s*<", text)) == 1


def test_vote_and_mean_differ_in_their_probability(tmp_path):
    class Weak(Threshold):
        """One vote is certain of a lesion and two are a little against it."""

        def __call__(self, params, images, ids, progress=None):
            one = np.ones((1, *images.shape[:3]), np.float32)
            return np.concatenate([one, -0.2 * one, -0.2 * one])

    for ensemble, grey, mask in (("mean", 153, 255), ("vote", 85, 0)):
        out = tmp_path / ensemble
        run(out, RECORDS[:1], predictor=Weak(1, ensemble))
        assert (pixels(out / "probabilities/e.png") == grey).all()
        assert (pixels(out / "masks/e_Segmentation.png") == mask).all()
        run(out, RECORDS[:1], predictor=Weak(1, ensemble, 0.3))  # Below both probabilities.
        assert (pixels(out / "masks/e_Segmentation.png") == 255).all()


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8])
def test_results_do_not_depend_on_the_size_of_a_batch(tmp_path, batch_size):
    assert run(tmp_path / "3", RECORDS) == run(tmp_path / "other", RECORDS, batch_size)
    assert files(tmp_path / "3") == files(tmp_path / "other")


def test_without_truth_there_are_no_scores(tmp_path, written):
    records = [{"id": r["id"].decode(), "image": r["image"]} for r in RECORDS]
    assert run(tmp_path / "none", records) is None
    assert written == [id for id, *_ in CASES]
    names = set(files(tmp_path / "none"))
    run(tmp_path / "all", RECORDS)
    assert set(files(tmp_path / "all")) - names == {"metrics.csv", "metrics.json"}
    for name in names:
        if name.startswith(("masks", "probabilities")):
            assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert "report.html" in names


def test_the_predictor_sees_each_image_once_and_the_last_one_again_as_padding(tmp_path):
    predictor = Threshold(3)
    run(tmp_path, RECORDS, predictor=predictor)
    assert predictor.calls == [["e", "a", "g"], ["c", "b", "f"], ["d", "d", "d"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"not an image"}, "c: cannot be decoded as an image"),
        ({"image": RECORDS[3]["image"][:60]}, "c: cannot be decoded as an image"),
        ({"mask": b""}, "mask of c: cannot be decoded as an image"),
        ({"mask": RECORDS[0]["mask"]}, r"c: the image is \(4, 32\) but its mask \(16, 24\)"),
    ],
    ids=["image", "truncated image", "mask", "size"],
)
def test_a_bad_record_is_named(tmp_path, change, message):
    records = [*RECORDS[:3], RECORDS[3] | change, *RECORDS[4:]]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, records)


def test_native_examples_keep_order_and_native_pixels():
    examples = list(native_examples(RECORDS, SIZE))
    assert [example["id"] for example in examples] == [id for id, *_ in CASES]
    for example, (_, size, bright, lesion) in zip(examples, CASES, strict=True):
        np.testing.assert_array_equal(example["truth"], columns(size, lesion))
        assert example["truth"].dtype == bool
        assert example["image"].shape == (*size, 3)
        np.testing.assert_array_equal(example["image"][..., 0] == 250, columns(size, bright))
        assert example["input"].shape == (SIZE, SIZE, 3)
    assert next(native_examples([{"id": "x", "image": RECORDS[0]["image"]}], SIZE))["truth"] is None


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 16])
def test_validate_gives_the_mean_iou_of_every_image_once(batch_size):
    # At the size of the network the eighths are columns, so the scores are those above. The last
    # image, which fills the batch up, scores 1: counted twice, it would raise the mean.
    source = ResizedSource(RECORDS, SIZE)
    predictor = Threshold(batch_size)
    iou, (images, truth, masks) = validate(predictor, "params", source)
    assert iou == pytest.approx(sum(IOU.values()) / 7)
    assert predictor.calls[0][0] == "0"
    assert len(predictor.calls) == -(-7 // batch_size)
    shown = min(batch_size, 7)
    for i, (_, _, bright, lesion) in enumerate(CASES[:shown]):
        np.testing.assert_array_equal(images[i], source[i]["image"])
        for picture, eighths in ((truth[i], lesion), (masks[i], bright)):
            expected = np.where(columns((SIZE, SIZE), eighths), 255, 0)
            np.testing.assert_array_equal(picture, expected[..., None].repeat(3, axis=-1))
    for pictures in (images, truth, masks):
        assert pictures.dtype == np.uint8
        assert pictures.shape == (shown, SIZE, SIZE, 3)
