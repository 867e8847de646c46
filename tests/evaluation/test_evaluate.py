"""The samples are a threshold on the image, so that every score can be worked out by hand."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.colour import shades_of_gray
from segdiff_jax.data.pipeline import ResizedSource, resize_image
from segdiff_jax.evaluation.evaluate import Evaluation, evaluate, format_result
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.outputs import OutputFolder
from segdiff_jax.evaluation.validate import validate
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.command import describe
from segdiff_jax.runtime.errors import UserError
from tests.evaluation.models import SIZE, Threshold, config_of, model_of

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


@pytest.fixture
def written(monkeypatch):
    """Every id that was written, in order."""
    ids, write = [], OutputFolder.write

    def count(self, example, *arguments):
        ids.append(example["id"])
        write(self, example, *arguments)

    monkeypatch.setattr(OutputFolder, "write", count)
    return ids


def run(out, records, model=None, settings=None, title="t", **options):
    model = model or model_of()
    return evaluate([examples_of(records, model)], out, settings or {}, title, **options)


def examples_of(records, model=None, **options):
    return NativeExamples(records, model or model_of(), **options)


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def pixels(path):
    with Image.open(path) as file:
        assert file.mode == "L"
        return np.asarray(file)


def test_every_image_is_written_once_at_its_native_size(tmp_path, written):
    run(tmp_path, RECORDS)
    assert sorted(written) == sorted(IOU)  # Two threads write.
    expected = {"report.html", "metrics.csv", "metrics.json", "settings.json"}
    for id in IOU:
        expected |= {f"masks/{id}_Segmentation.png", f"probabilities/{id}.png"}
        expected |= {f"overlays/{id}.jpg", f"deviations/{id}.png", f"entropies/{id}.png"}
        expected |= {f"samples/{id}/{number:02d}.png" for number in range(5)}
    written = set(files(tmp_path))
    results = {name for name in written if name.startswith("results/")}
    assert written - results == expected and len(results) == 7
    for id, size, bright, _ in CASES:
        mask = pixels(tmp_path / f"masks/{id}_Segmentation.png")
        np.testing.assert_array_equal(mask, np.where(columns(size, bright), 255, 0))
        probability = pixels(tmp_path / f"probabilities/{id}.png")
        assert probability.shape == size
        # Two samples of three, away from the edge where the samples blur as they are enlarged.
        assert (probability[:, 0] == (170 if bright else 85)).all()
        assert (probability[:, -1] == 85).all()
        with Image.open(tmp_path / f"overlays/{id}.jpg") as overlay:
            assert overlay.size == size[::-1]


def test_single_masks_are_level_sets_of_the_probability(tmp_path):
    model = model_of(Threshold(), samples=40)
    run(tmp_path, RECORDS, model)
    masks = np.stack([pixels(tmp_path / f"samples/a/{i:02d}.png") for i in range(40)])
    assert (
        set(np.unique(masks)) == {0, 255}
        and masks.shape[1:] == pixels(tmp_path / "masks/a_Segmentation.png").shape
    )
    left, right = masks[:, 0, 0] > 0, masks[:, 0, -1] > 0  # Their probabilities are 2/3 and 1/3.
    assert (left >= right).all()
    assert left.mean() == pytest.approx(2 / 3, abs=0.15)
    assert right.mean() == pytest.approx(1 / 3, abs=0.15)


def test_scores_are_those_worked_out_by_hand(tmp_path):
    metrics = run(tmp_path, RECORDS, settings={"samples": 3}).metrics
    assert metrics["num_images"] == 7
    assert metrics["settings"] == {"samples": 3}
    assert metrics["mean"]["iou"] == pytest.approx(sum(IOU.values()) / 7)
    # e.g. of g: 2 of 8 columns are found, 4 are lesion and none is wrong.
    dice = {"a": 2 / 3, "b": 1, "c": 2 / 5, "d": 1, "e": 1, "f": 0, "g": 2 / 3}
    assert metrics["mean"]["dice"] == pytest.approx(sum(dice.values()) / 7)
    accuracy = [6 / 8, 1, 5 / 8, 1, 1, 6 / 8, 6 / 8]
    assert metrics["mean"]["accuracy"] == pytest.approx(sum(accuracy) / 7)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == sorted(IOU)
    for row in rows:
        assert float(row["iou"]) == pytest.approx(IOU[row["id"]], abs=1e-6)
        assert float(row["dice"]) == pytest.approx(dice[row["id"]], abs=1e-6)


def test_scores_by_condition(tmp_path):
    metrics = run(tmp_path, RECORDS).metrics
    sizes = metrics["conditions"]["lesion_size"]  # 6 eighths; 4, 4 are large; 2, 2, 1; 0.
    assert {value: row["num_images"] for value, row in sizes.items()} == {
        "medium": 3,
        "large": 3,
        "none": 1,
    }
    assert sizes["medium"]["iou"] == pytest.approx((IOU["a"] + IOU["c"] + IOU["f"]) / 3)
    assert sizes["large"]["iou"] == pytest.approx((IOU["b"] + IOU["e"] + IOU["g"]) / 3)
    low, high = metrics["intervals"]["iou"]
    assert low < metrics["mean"]["iou"] < high
    rows = rows_of(tmp_path)
    by_id = "medium large medium none large medium large".split()  # noqa: SIM905
    assert [row["lesion_size"] for row in rows] == by_id
    assert "By condition" in (tmp_path / "report.html").read_text()


def test_colour_constancy_changes_what_the_network_sees_only():
    corrected = model_of(config=config_of(colour_constancy="shades_of_gray"))
    pairs = zip(examples_of(RECORDS[:2], corrected), examples_of(RECORDS[:2]), strict=True)
    for example, plain in pairs:
        np.testing.assert_array_equal(example["image"], plain["image"])
        expected = shades_of_gray(resize_image(plain["image"], SIZE))
        np.testing.assert_array_equal(example["input"], expected)
        assert (example["input"] != plain["input"]).any()


def test_an_artefact_follows_from_the_id_and_the_network_sees_it():
    names = ("a", "b")
    grey = [{"id": id, "image": encode(np.full((64, 64, 3), 200, np.uint8))} for id in names]
    first, second = examples_of(grey, artefact="vignette")
    assert (first["image"][[0, 0, -1, -1], [0, -1, 0, -1]] < 120).all()
    assert (first["image"][28:36, 28:36] == 200).all()
    np.testing.assert_array_equal(first["input"], resize_image(first["image"], SIZE))
    assert (first["image"] != second["image"]).any()
    again = list(examples_of(grey[::-1], artefact="vignette"))[1]
    np.testing.assert_array_equal(again["image"], first["image"])
    with pytest.raises(
        ValueError, match="artefact 'fog' is unknown; there are skin_tone, hair, ruler,"
    ):
        examples_of(grey, artefact="fog")


def test_the_report_shows_title_settings_and_every_case(tmp_path):
    run(tmp_path, RECORDS, settings={"checkpoint": "step 1234"}, title="Lesions of 2016")
    text = (tmp_path / "report.html").read_text()
    assert "Lesions of 2016" in text
    assert "step 1234" in text
    for id in IOU:
        assert text.count(f'"id": "{id}"') == 1


def test_vote_and_mean_differ_in_their_probability(tmp_path):
    class Weak(Threshold):
        """One sample is certain of a lesion and two are a little against it."""

        def samples(self, images):
            one = np.ones((1, *images.shape[:3]), np.float32)
            return np.concatenate([one, -0.2 * one, -0.2 * one])

    for ensemble, grey, mask in (("mean", 153, 255), ("vote", 85, 0)):
        out = tmp_path / ensemble
        run(out, RECORDS[:1], model_of(Weak(1), ensemble=ensemble))
        assert (pixels(out / "probabilities/e.png") == grey).all()
        assert (pixels(out / "masks/e_Segmentation.png") == mask).all()
        below_both = model_of(Weak(1), ensemble=ensemble, threshold=0.3)
        run(out, RECORDS[:1], below_both, settings={"threshold": 0.3})
        assert (pixels(out / "masks/e_Segmentation.png") == 255).all()


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (2, 5), (7, 2), (8, 1)])
def test_results_do_not_depend_on_batches_and_threads(tmp_path, batch_size, workers):
    expected = run(tmp_path / "3", RECORDS)
    model = model_of(Threshold(batch_size))
    assert run(tmp_path / "other", RECORDS, model, workers=workers) == expected
    assert files(tmp_path / "3") == files(tmp_path / "other")


def test_without_truth_there_are_no_scores(tmp_path, written):
    records = [{"id": r["id"].decode(), "image": r["image"]} for r in RECORDS]
    assert run(tmp_path / "none", records) == Evaluation(7, 0, {}, None)
    assert sorted(written) == sorted(IOU)
    names = set(files(tmp_path / "none"))
    shown = format_result(Evaluation(7, 0, {}, None), tmp_path)
    assert shown == f"7 images, report {tmp_path}/report.html"
    run(tmp_path / "all", RECORDS)
    assert set(files(tmp_path / "all")) - names == {"metrics.json"}
    for name in names:
        if name.startswith(("masks", "probabilities")):
            assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert "report.html" in names


def without_mask(record):
    return {"id": record["id"], "image": record["image"]}


def test_images_without_truth_are_segmented_but_not_scored(tmp_path, written):
    """Also when the folder is resumed, and they are scored when they get a mask."""
    some = [record if record["id"] in b"gcb" else without_mask(record) for record in RECORDS]
    result = run(tmp_path / "some", some)
    assert (result.num_images, result.failures) == (7, {})
    scored = run(tmp_path / "scored", [RECORDS[i] for i in (2, 3, 4)]).metrics
    assert result.metrics == scored | {"unscored": ["a", "d", "e", "f"]}
    assert scored["num_images"] == 3 and scored["mean"]["iou"] == pytest.approx(7 / 12)
    rows = {row["id"]: row for row in rows_of(tmp_path / "some")}
    assert sorted(rows) == sorted(IOU)
    assert rows["e"]["iou"] == rows["e"]["hair"] == "" and rows["e"]["area"] == "0.500000"
    assert rows["g"] == {row["id"]: row for row in rows_of(tmp_path / "scored")}["g"]
    assert (pixels(tmp_path / "some/masks/e_Segmentation.png") == 255).any()
    report = (tmp_path / "some/report.html").read_text()
    assert "7 images, 4 without a true mask</p>" in report and report.count('"id": "e"') == 1
    line = "4 images have no mask: they are segmented, but not scored (a, d, e, f)"
    assert line in format_result(result, tmp_path).splitlines()

    del written[:]
    again = run(tmp_path / "some", some)
    assert again == Evaluation(7, 7, {}, result.metrics) and not written
    assert line in format_result(again, tmp_path).splitlines()
    some[0], some[3] = RECORDS[0], without_mask(RECORDS[3])
    some[1] = RECORDS[1] | {"mask": b""}
    changed = run(tmp_path / "some", some)
    assert sorted(written) == ["c", "e"]
    assert changed.failures == {"a": "mask of a: the file is empty"}
    assert changed.metrics["unscored"] == ["c", "d", "f"]
    assert changed.metrics["mean"]["iou"] == pytest.approx((1 / 2 + 1 + 1) / 3)


def test_the_terminal_names_a_few_images_without_a_mask_and_masks_without_foreground(tmp_path):
    records = [make_record(str(i), (8, 8), 4, 0) for i in range(9)]
    result = run(tmp_path, records[:2] + [without_mask(record) for record in records[2:]])
    lines = format_result(result, tmp_path).splitlines()
    assert lines[-3] == "none of the 2 true masks has any foreground: IoU says little"
    text = "7 images have no mask: they are segmented, but not scored (2, 3, 4, 5, 6, ...)"
    assert lines[-2] == text


def lack(*arguments, **options):
    raise MemoryError("Unable to allocate 3. GiB")


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("segdiff_jax.data.decode.Image.Image.convert", "e"),
        ("segdiff_jax.evaluation.examples.measure_conditions", "e"),
        ("segdiff_jax.inference.load.Model.sample", "e, a, g"),
        ("segdiff_jax.inference.load.Model.segment", "e"),
        ("segdiff_jax.evaluation.evaluate.class_scores", "e"),
        ("segdiff_jax.evaluation.outputs.encode_image", "e"),
    ],
)
def test_lack_of_memory_names_the_image(tmp_path, monkeypatch, where, named):
    monkeypatch.setattr(where, lack)
    message = f"^{named}: not enough memory .Unable to allocate 3. GiB.: close .* --workers or sam"
    with pytest.raises(MemoryError, match=message) as found:
        run(tmp_path, RECORDS, workers=1)
    assert describe(found.value, "") == f"error: {found.value}"


def test_lack_of_memory_for_a_file_names_it(tmp_path):
    class Source(list):
        ids = ("e", "a", "g")

        def __getitem__(self, index):
            return super().__getitem__(index) if index != 1 else lack()

    with pytest.raises(MemoryError, match="^image a: not enough memory"):
        run(tmp_path, Source(RECORDS[:3]))


def test_the_model_sees_each_image_once_and_the_last_one_again_as_padding(tmp_path):
    driver = Threshold(3)
    run(tmp_path, RECORDS, model_of(driver))
    assert driver.calls == [["e", "a", "g"], ["c", "b", "f"], ["d", "d", "d"]]


BAD = [
    ({"image": b"not an image"}, "cannot be decoded as an image"),
    ({"image": RECORDS[3]["image"][:60]}, "cannot be decoded as an image"),
    ({"mask": b""}, "mask of c: the file is empty"),
    ({"mask": RECORDS[0]["mask"]}, "the image is (4, 32) but its mask (16, 24) pixels"),
]


@pytest.mark.parametrize(
    ("change", "reason"), BAD, ids=["image", "truncated image", "empty mask", "size of mask"]
)
def test_a_bad_image_is_listed_and_the_others_are_segmented(tmp_path, change, reason):
    records = [*RECORDS[:3], RECORDS[3] | change, *RECORDS[4:]]
    result = run(tmp_path, records)
    assert list(result.failures) == ["c"] and result.failures["c"].startswith(reason)
    assert result.num_images == result.metrics["num_images"] == 6
    assert result.metrics["mean"]["iou"] == pytest.approx((sum(IOU.values()) - IOU["c"]) / 6)
    with open(tmp_path / "failures.csv", newline="") as file:
        assert list(csv.reader(file)) == [["image", "reason"], ["c", result.failures["c"]]]
    assert not [name for name in files(tmp_path) if "/c" in name and "results" not in name]
    report = (tmp_path / "report.html").read_text()
    assert "Not segmented" in report and "6 images, 1 not segmented" in report
    shown = format_result(result, tmp_path).splitlines()
    assert shown[-2] == f"1 images could not be segmented: {tmp_path}/failures.csv says why"
    with pytest.raises(UserError, match="c: "):
        examples_of(records)[3]


def test_a_second_run_does_what_is_missing(tmp_path, written):
    """Of seven images, one was broken, another one changes, a third goes, and a fourth has lost its
    mask."""
    run(tmp_path, [RECORDS[0] | {"image": b"broken"}, *RECORDS[1:]])
    before = files(tmp_path)
    first, again = Threshold(3), Threshold(3)
    changed = make_record("a", (40, 16), 8, 2)
    (tmp_path / "masks" / "g_Segmentation.png").unlink()
    (tmp_path / "masks" / ".b_Segmentation.png.part").write_bytes(b"of a run that was killed")
    del written[:]
    result = run(tmp_path, [RECORDS[0], changed, *RECORDS[2:6]], model_of(first))
    assert sorted(written) == ["a", "e", "g"]
    assert first.calls == [["e", "a", "g"]]
    assert (result.num_images, result.num_before, result.failures) == (6, 3, {})
    assert "3 images had been segmented before" in format_result(result, tmp_path)
    ious = IOU | {"a": 2 / 8}
    assert result.metrics["mean"]["iou"] == pytest.approx(sum(ious[k] for k in "eagcbf") / 6)
    after = files(tmp_path)
    kept = [f"masks/{id}_Segmentation.png" for id in "cbf"]
    assert all(before[name] == after[name] for name in kept)
    ours = {name for name in after if name.startswith("masks/")}
    assert ours == {f"masks/{id}_Segmentation.png" for id in "eagcbf"}
    assert "failures.csv" not in after
    # What it makes is what a single run makes.
    run(tmp_path / "once", [RECORDS[0], changed, *RECORDS[2:6]])
    assert files(tmp_path / "once") == after
    # Other settings make everything anew.
    run(tmp_path, RECORDS, model_of(again), settings={"seed": 2})
    assert [id for call in again.calls for id in call][:7] == [id for id, *_ in CASES]


def test_where_no_image_can_be_read_there_is_a_report_of_that(tmp_path):
    result = run(tmp_path, [RECORDS[0] | {"image": b""}])
    assert result == Evaluation(0, 0, {"e": result.failures["e"]}, None)
    assert "Not segmented" in (tmp_path / "report.html").read_text()


def test_names_that_cannot_be_a_files_are_failures(tmp_path):
    names = ["a//b", "x" * 231, "ein Fleck \u00e4\u4e2d", "x" * 230]
    result = run(tmp_path, [RECORDS[0] | {"id": name} for name in names])
    assert sorted(result.failures) == ["a//b", "x" * 231]
    assert "a part of it is empty" in result.failures["a//b"]
    assert result.failures["x" * 231] == "the name is longer than 230 bytes: shorten it"
    assert (tmp_path / "masks" / "ein Fleck \u00e4\u4e2d_Segmentation.png").exists()


def test_files_that_cannot_be_opened_and_what_their_names_tell_are_failures(tmp_path):
    class Source(list):
        ids = ("e", "a", "g")
        failures = (("b.png", "has the same name as b.jpg: rename one"),)

        def __getitem__(self, index):
            if index == 1:
                raise PermissionError(13, "Permission denied", "photos/a.jpg")
            return super().__getitem__(index)

    result = run(tmp_path, Source(RECORDS[:3]))
    reason = "[Errno 13] Permission denied: 'photos/a.jpg'"
    assert result.failures == {"b.png": Source.failures[0][1], "a": reason}
    assert result.num_images == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("batch_size", [2, 3])
def test_processes_share_the_images_and_each_counts_once(tmp_path, monkeypatch, count, batch_size):
    """The processes one after the other, each with what the ones before have gathered."""
    alone = run(tmp_path / "one", RECORDS)
    source, merged, found = ResizedSource(RECORDS, SIZE), np.full((7, 1), np.nan), []
    monkeypatch.setattr(parallel, "gather", lambda value: found.append(value) or found)
    monkeypatch.setattr(parallel, "check_same", lambda facts: None)
    monkeypatch.setattr(OutputFolder, "begin", lambda self, settings, resume: None)
    for index in range(count):

        def merge(rows, own=slice(index, None, count)):
            merged[own] = rows[own]
            return merged

        monkeypatch.setattr(parallel, "share", lambda total, i=index: range(i, total, count))
        monkeypatch.setattr(parallel, "is_main", lambda i=index: i == count - 1)
        monkeypatch.setattr(parallel, "merge", merge)
        result = run(tmp_path / "many", RECORDS, model_of(Threshold(batch_size)))
        scores, _ = validate(Threshold(batch_size), "variables", source, config_of())
    assert result.num_images == 7 and result.num_before == 0
    assert result.metrics["mean"] == pytest.approx(alone.metrics["mean"], abs=1e-12)
    assert result.metrics["conditions"] == alone.metrics["conditions"]
    assert scores == {"iou": pytest.approx(sum(IOU.values()) / 7)}
    one, many = files(tmp_path / "one"), files(tmp_path / "many")
    del one["settings.json"]
    assert one == many


def test_native_examples_keep_order_and_native_pixels():
    examples = list(examples_of(RECORDS))
    assert [example["id"] for example in examples] == [id for id, *_ in CASES]
    for example, (_, size, bright, lesion) in zip(examples, CASES, strict=True):
        np.testing.assert_array_equal(example["truth"], columns(size, lesion))
        assert example["truth"].dtype == np.uint8
        assert example["image"].shape == (*size, 3)
        np.testing.assert_array_equal(example["image"][..., 0] == 250, columns(size, bright))
        assert example["input"].shape == (SIZE, SIZE, 3)
    assert examples_of([{"id": "x", "image": RECORDS[0]["image"]}])[0]["truth"] is None


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 16])
def test_validate_gives_the_mean_iou_of_every_image_once(batch_size):
    # At the size of the network the eighths are columns, so the scores are those above. The last
    # image, which fills the batch up, scores 1: counted twice, it would raise the mean.
    source, driver, config = ResizedSource(RECORDS, SIZE), Threshold(batch_size), config_of()
    config.validation.scores = "sensitivity", "iou"
    scores, (images, truth, masks) = validate(driver, "variables", source, config)
    found = dict(zip("abcdefg", (1, 1, 1, 1, 1, 0, 1 / 2), strict=True))
    expected = {"sensitivity": sum(found.values()) / 7, "iou": sum(IOU.values()) / 7}
    assert scores == pytest.approx(expected) and list(scores) == list(expected)
    assert driver.calls[0][0] == "0"
    assert len(driver.calls) == -(-7 // batch_size)
    shown = min(batch_size, 7)
    for i, (_, _, bright, lesion) in enumerate(CASES[:shown]):
        np.testing.assert_array_equal(images[i], source[i]["image"])
        for picture, eighths in ((truth[i], lesion), (masks[i], bright)):
            expected = np.where(columns((SIZE, SIZE), eighths), 255, 0)
            np.testing.assert_array_equal(picture, expected[..., None].repeat(3, axis=-1))
    for pictures in (images, truth, masks):
        assert pictures.dtype == np.uint8
        assert pictures.shape == (shown, SIZE, SIZE, 3)
