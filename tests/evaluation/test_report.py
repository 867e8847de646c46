import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.evaluation.metrics import average_scores, segmentation_scores
from segdiff_jax.evaluation.outputs import PREDICTION_COLOUR, TRUTH_COLOUR
from segdiff_jax.evaluation.report import make_case, write_report

IMAGE = np.full((24, 36, 3), 120, np.uint8)
TRUTH = np.zeros((24, 36), bool)
TRUTH[4:20, 10:30] = True


def case(id, width=20, spread=0.25, with_truth=True):
    """The truth is 20 pixels wide and the prediction `width`, so that IoU = width / 20."""
    mask = np.zeros_like(TRUTH)
    mask[4:20, 10 : 10 + width] = True
    truth = TRUTH if with_truth else None
    scores = segmentation_scores(mask, TRUTH) if with_truth else None
    disagreement = None if spread is None else np.full(TRUTH.shape, spread, np.float32)
    return make_case(id, IMAGE, np.float32(mask), mask, disagreement, truth, scores)


def render(tmp_path, cases, settings=None, title="title"):
    scores, metrics = [case.scores for case in cases if case.scores], None
    if scores:
        mean = average_scores(scores)
        hair = {"no": {"num_images": 3, **mean}, "yes": {"num_images": 1, **mean, "iou": 0.125}}
        metrics = {"mean": mean, "iou_interval": [0.1239, 0.9], "strata": {"hair": hair}}
        metrics["uncertainty"] = {"ece": 0.0321, "disagreement": 0.05, "correlation": 0.614}
    path = tmp_path / "report.html"
    write_report(path, cases, metrics, settings or {}, title)
    return re.sub('base64,[^"]*', "base64,", path.read_text())  # chance words in the pictures


def shown(html):
    return re.findall(r"<h3>(.*?)</h3>", html)


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.int32(Image.open(io.BytesIO(data)))


def is_colour(pixels, colour):
    return np.abs(np.int32(pixels) - colour).max(axis=-1) < 60


def test_pictures_of_a_case():
    made = case("a", width=10, spread=0.5)
    assert made.mean_disagreement == 0.5
    np.testing.assert_allclose(pixels(made.image), IMAGE, atol=2)
    assert is_colour(pixels(made.truth)[4:20, 10], TRUTH_COLOUR).all()
    assert is_colour(pixels(made.prediction)[4:20, 10], PREDICTION_COLOUR).all()
    tinted = 0.65 * 120 + 0.35 * np.array(PREDICTION_COLOUR)
    np.testing.assert_allclose(pixels(made.prediction)[12, 14], tinted, atol=25)
    np.testing.assert_allclose(pixels(made.prediction)[12, 25], 120, atol=10)
    np.testing.assert_allclose(pixels(made.disagreement)[12, 12], (252, 246, 180), atol=4)
    np.testing.assert_allclose(pixels(case("a", spread=0).disagreement)[0, 0], (8, 6, 24), atol=4)


def test_pictures_shrink_to_the_longest_side():
    image, mask = np.zeros((600, 900, 3), np.uint8), np.ones((600, 900), bool)
    made = make_case("a", image, np.float32(mask), mask, None, None, None, size=90)
    assert pixels(made.image).shape == pixels(made.prediction).shape == (60, 90, 3)


def test_worst_then_best_each_image_once(tmp_path):
    widths = np.random.default_rng(0).permutation(21)  # IoU 0, 0.05, ..., 1
    html = render(tmp_path, [case(f"id{width:02}", width) for width in widths])
    worst, best = html.split("<h2>Best cases</h2>")
    assert "<h2>Worst cases</h2>" in worst
    assert shown(worst) == [f"id{width:02}" for width in range(12)]
    assert shown(best) == [f"id{width:02}" for width in range(20, 14, -1)]
    assert all(html.count(f"id{width:02}") == (0 if 12 <= width < 15 else 1) for width in widths)
    assert html.count("<img") == 18 * 4
    assert "IoU 0.550" in worst and "IoU 1.000" in best


@pytest.mark.parametrize(("count", "best"), [(1, 0), (4, 1), (17, 5)])
def test_few_images_are_shared_between_worst_and_best(tmp_path, count, best):
    html = render(tmp_path, [case(f"id{width:02}", width) for width in range(count)])
    assert sorted(shown(html)) == [f"id{width:02}" for width in range(count)]
    assert len(shown(html.partition("Best cases")[2])) == best


def test_scores_and_histogram(tmp_path):
    html = render(tmp_path, [case("a", 20), case("b", 5), case("c", 5), case("d", 2)])
    assert "4 images" in html
    table, conditions = html.split("<h2>By condition</h2>")
    cells = re.findall(r"<td[^>]*>([\d.]+)(?:</td>|\s*<small>0\.124 to 0\.900</small>)", table)
    assert cells[:3] == ["0.4000", "0.2500", "0.1000"]  # mean, median and lowest IoU
    assert len(cells) == 7 * 3
    assert "expected calibration error 0.0321; the votes disagree by 0.0500" in table
    assert "whose rank correlation with 1 - IoU is 0.61." in table
    rows = re.findall(r'row">(\w+)</th>\s*<td>(\d+)</td>\s*<td.*?>([\d.]+)</td>', conditions)
    assert rows == [("no", "3", "0.400"), ("yes", "1", "0.125")]
    assert re.findall(r"width: ([\d.]+)%", conditions) == ["40.0", "12.5"]
    counts = re.findall(r"<title>IoU ([\d.]+) to [\d.]+: (\d+)</title>", html)
    assert len(counts) == 20
    assert {low: count for low, count in counts if count != "0"} == {
        "0.10": "1",
        "0.25": "2",
        "0.95": "1",
    }


def test_text_is_escaped_and_nothing_is_fetched(tmp_path):
    html = render(tmp_path, [case("a<b")], {"check<point": "x & y"}, "<script>")
    assert shown(html) == ["a&lt;b"]
    assert "<dt>check&lt;point</dt><dd>x &amp; y</dd>" in html
    assert "<title>&lt;script&gt;</title>" in html and "<script" not in html
    assert "http" not in html and "url(" not in html and "<link" not in html
    assert all(uri.startswith("data:") for uri in re.findall(r'src="(.*?)"', html))


def test_without_truth_the_cases_that_disagree_most(tmp_path):
    cases = [case(f"id{i:02}", spread=i / 50, with_truth=False) for i in range(20)]
    html = render(tmp_path, cases)
    assert shown(html) == [f"id{i:02}" for i in range(19, 1, -1)]
    assert "Where the votes disagree most" in html and "disagreement 0.380" in html
    assert html.count("<img") == 18 * 3
    assert not any(word in html for word in ("<table", "<svg", "IoU", "true contour", ">truth<"))


@pytest.mark.parametrize("with_truth", [True, False])
def test_one_vote(tmp_path, with_truth):
    html = render(tmp_path, [case("a", spread=None, with_truth=with_truth)])
    assert html.count("one vote") == 1 and "heat map" not in html
    assert "Where the votes disagree most" not in html
