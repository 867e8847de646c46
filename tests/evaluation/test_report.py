import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.evaluation.metrics import average_scores, segmentation_scores
from segdiff_jax.evaluation.outputs import PREDICTION_COLOUR, TRUTH_COLOUR
from segdiff_jax.evaluation.report import Page, make_strip, write_report
from segdiff_jax.inference.combine import entropy
from tests.evaluation.models import case_of

IMAGE = np.full((24, 36, 3), 120, np.uint8)
TRUTH = np.zeros((24, 36), bool)
TRUTH[4:20, 10:30] = True


def case(id, width=20, deviation=0.25, with_truth=True, **more_scores):
    """The truth is 20 pixels wide and the prediction `width`, so that IoU = width / 20."""
    mask, known, map_ = np.zeros_like(TRUTH), {}, None
    mask[4:20, 10 : 10 + width] = True
    if with_truth:
        known = {"truth": TRUTH, "scores": segmentation_scores(mask, TRUTH) | more_scores}
        known["conditions"] = {"hair": "yes" if width < 5 else "no"}
    if deviation is not None:
        map_ = np.full(TRUTH.shape, deviation, np.float32)
    return case_of(id, IMAGE, np.float32(mask), mask, map_, uncertainty=deviation, **known)


def metrics_of(cases):
    """What `write_metrics` returns, with figures that can be recognised."""
    mean = average_scores([case["scores"] for case in cases])
    hair = {"no": {"num_images": 3, **mean}, "yes": {"num_images": 1, **mean, "iou": 0.125}}
    uncertainty = {"ece": 0.0321, "temperature": 1.375, "ece_tempered": 0.0123}
    uncertainty["reliability"] = [
        {"probability": 0.03, "lesion": 0.05, "share": 0.64},
        {"probability": 0.5, "lesion": 0.25, "share": 0.36},
    ]
    if cases[0]["disagreement"] is not None:
        uncertainty |= {"disagreement": 0.05, "correlation": 0.614}
        uncertainty |= {"risk_coverage": [[1.0, 0.7], [0.75, 0.8], [0.5, 0.9]]}
    return {
        "num_images": len(cases),
        "mean": mean,
        "intervals": {name: [0.1239, 0.9] for name in mean},
        "uncertainty": uncertainty,
        "conditions": {"hair": hair},
        "settings": {},
    }


def render(tmp_path, cases, settings=None, title="title", strips=(), **more):
    scored = [case for case in cases if case["scores"]]
    metrics = metrics_of(scored) if scored else None
    path = tmp_path / "report.html"
    write_report(path, cases, metrics, Page(title, settings or {}, **more), strips)
    return path.read_text()


def page(html):
    """The report without its data, styles and scripts."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def data(html):
    """What the scripts read."""
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def shown(html):
    return [case["id"] for case in data(html)["cases"]]


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.int32(Image.open(io.BytesIO(data)))


def is_colour(pixels, colour):
    return np.abs(np.int32(pixels) - colour).max(axis=-1) < 60


def test_pictures_of_a_case():
    made = case("a", width=10, deviation=0.5)
    assert (made["disagreement"], made["scores"]["iou"], made["conditions"]) == (
        0.5,
        0.5,
        {"hair": "no"},
    )
    np.testing.assert_allclose(pixels(made["image"]), IMAGE, atol=2)
    assert is_colour(pixels(made["truth"])[4:20, 10], TRUTH_COLOUR).all()
    assert is_colour(pixels(made["prediction"])[4:20, 10], PREDICTION_COLOUR).all()
    tinted = 0.65 * 120 + 0.35 * np.array(PREDICTION_COLOUR)
    np.testing.assert_allclose(pixels(made["prediction"])[12, 14], tinted, atol=25)
    np.testing.assert_allclose(pixels(made["prediction"])[12, 25], 120, atol=10)
    np.testing.assert_allclose(pixels(made["uncertainty"])[12, 12], (252, 246, 180), atol=4)
    np.testing.assert_allclose(
        pixels(case("a", deviation=0)["uncertainty"])[0, 0], (8, 6, 24), atol=4
    )


def test_a_single_sample_shows_its_entropy():
    p = np.float32([0, 0.11, 0.5, 0.75, 1])
    np.testing.assert_allclose(entropy(p[:, None]), [0, 0.499916, 1, 0.811278, 0], atol=1e-6)
    probability = np.zeros(TRUTH.shape, np.float32)
    probability[:, 18:] = 0.5
    made = case_of("a", IMAGE, probability, TRUTH)
    heat = pixels(made["uncertainty"])
    np.testing.assert_allclose(heat[12, 4], (8, 6, 24), atol=8)
    np.testing.assert_allclose(heat[12, 32], (252, 246, 180), atol=8)
    assert made["truth"] is made["scores"] is made["conditions"] is made["disagreement"] is None


def test_pictures_shrink_to_the_longest_side():
    image, mask = np.zeros((600, 900, 3), np.uint8), np.ones((600, 900), bool)
    made = case_of("a", image, np.float32(mask))
    assert pixels(made["image"]).shape == pixels(made["prediction"]).shape == (128, 192, 3)


def test_frames_of_a_strip_are_grey_and_clipped():
    x = np.full((16, 16, 1), -3.0, np.float32)
    x[:, 8:] = 5.0
    strip = make_strip("a", [(np.int64(100), x, 0 * x), (0, x, x / 5)])
    assert [timestep for timestep, _, _ in strip["frames"]] == [100, 0]
    noisy, clean = pixels(strip["frames"][0][1]), pixels(strip["frames"][0][2])
    assert noisy.shape == (16, 16, 3)
    assert (np.ptp(noisy, axis=-1) == 0).all() and (np.ptp(clean, axis=-1) == 0).all()
    np.testing.assert_allclose(noisy[:, [0, 15], 0], np.tile([0, 255], (16, 1)), atol=3)
    np.testing.assert_allclose(clean, 127.5, atol=2)
    np.testing.assert_allclose(pixels(strip["frames"][1][2])[:, 0], 0.2 * 255, atol=4)
    large = make_strip("a", [(0, *np.zeros((2, 256, 256, 1)))])
    assert pixels(large["frames"][0][1]).shape == (128, 128, 3)


def test_the_gallery_holds_every_image_the_worst_first(tmp_path):
    widths = np.random.default_rng(0).permutation(21)  # IoU 0, 0.05, ..., 1
    html = render(tmp_path, [case(f"id{width:02}", width) for width in widths])
    assert shown(html) == [f"id{width:02}" for width in range(21)]
    first = data(html)["cases"][3]
    assert (first["scores"]["iou"], first["conditions"], first["disagreement"]) == (
        0.15,
        {"hair": "yes"},
        0.25,
    )
    np.testing.assert_allclose(pixels(first["image"]), IMAGE, atol=2)
    assert data(html)["stops"] == ["image", "truth", "prediction", "uncertainty"]
    assert re.findall(r'data-stop="(\d)" title="key (\d)"', page(html))[:4] == [
        (str(i), str(i + 1)) for i in range(4)
    ]
    assert "0.5: standard deviation of single masks" in page(html)
    assert "with the lowest IoU" not in page(html)
    assert page(html).count('<option value="worst">') == 1
    assert re.findall(r'class="filter" data-condition="(\w+)"', page(html)) == ["hair"]


def test_more_than_400_images(tmp_path):
    made = case("a", 10)
    cases = [
        made | {"id": f"id{i:03}", "scores": made["scores"] | {"iou": i / 500}, "conditions": {}}
        for i in range(450)
    ]
    html = render(tmp_path, cases)
    assert shown(html) == [f"id{i:03}" for i in range(400)]
    assert "The 400 of 450 images with the lowest IoU." in page(html)
    assert "450 images" in page(html)
    counts = re.findall(r"<title>IoU [\d.]+ to [\d.]+: (\d+)</title>", page(html))
    assert sum(map(int, counts)) == 450


def test_400_noisy_photographs_are_under_30_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    shade = np.linspace(60, 200, 192)[None, :, None]
    image = np.uint8(np.clip(shade + rng.normal(0, 40, (192, 192, 3)), 0, 255))
    mask = rng.random((192, 192)) < 0.5
    mask[48:144, 48:144] = True
    noise = rng.random((192, 192), np.float32)
    known = {"scores": {"iou": 0.5}, "conditions": {}, "uncertainty": 0.1}
    made = case_of("a", image, noise, mask, noise / 2, mask, **known)
    html = render(tmp_path, [made | {"id": f"id{i}"} for i in range(400)])
    assert len(shown(html)) == 400
    assert 15e6 < len(html) < 30e6


def test_headlines_scores_and_histogram(tmp_path):
    cases = [
        case("a", 20, hd95=3.0, wcov=1.0),
        case("b", 5, hd95=30.26, wcov=0.25),
        case("c", 5, hd95=7.0, wcov=0.25),
        case("d", 2, hd95=np.nan, wcov=0.1),
    ]
    html = page(render(tmp_path, cases))
    assert "4 images" in html
    assert re.findall(
        r"<strong>([\d.]+|n/a)<small>(\w*)</small></strong>\s*<b>(.*?)</b>", html
    ) == [
        ("0.400", "", "Mean IoU"),
        ("0.495", "", "Dice"),
        ("0.250", "", "Thresholded Jaccard"),
        ("0.566", "", "Surface Dice"),
        ("n/a", "px", "HD95"),
    ]
    assert '<span class="label">95%: 0.124 to 0.900</span>' in html
    table = re.search(r'<table class="scores">(.*?)</table>', html, re.DOTALL)[1]
    rows = {
        row[0]: row[1:]
        for row in re.findall(
            r'row">([\w() ]+)<small>.*?class="mean">(\S+)\n?<small>(.*?)</small>'
            r"</td>\s*<td>(\S+)</td>\s*<td>(\S+)</td>",
            table,
            re.DOTALL,
        )
    }
    assert rows["IoU"] == ("0.4000", "0.124 to 0.900", "0.2500", "0.1000")
    assert rows["WCov"] == ("0.4000", "0.124 to 0.900", "0.2500", "0.1000")
    assert rows["HD95 (px)"] == ("n/a", "0.1 to 0.9", "7.0", "30.3")  # The worst is the largest.
    assert len(rows) == 10
    assert "expected calibration error 0.0321, " in html
    assert "; single masks disagree by 0.0500" in html
    assert "whose rank correlation with 1 - IoU is 0.61." in html
    counts = re.findall(r"<title>IoU ([\d.]+) to [\d.]+: (\d+)</title>", html)
    assert len(counts) == 20
    assert {low: count for low, count in counts if count != "0"} == {
        "0.10": "1",
        "0.25": "2",
        "0.95": "1",
    }


def test_scores_that_are_no_numbers_are_null_in_the_data(tmp_path):
    html = render(tmp_path, [case("a", 20, hd95=np.inf), case("b", 10, hd95=2.5)])
    assert [made["scores"]["hd95"] for made in data(html)["cases"]] == [2.5, None]
    assert data(html)["labels"]["hd95"] == ["HD95", "px"]
    assert list(data(html)["labels"])[:2] == ["iou", "dice"]


def test_conditions(tmp_path):
    html = page(render(tmp_path, [case("a", 8)])).split("<h2>By condition</h2>")[1]
    rows = re.findall(
        r'data-condition="(\w+)" data-value="(\w+)".*?<td>(\d+)</td>\s*<td.*?>([\d.]+)</td>',
        html,
        re.DOTALL,
    )
    assert rows == [("hair", "no", "3", "0.400"), ("hair", "yes", "1", "0.125")]
    assert re.findall(r"width: ([\d.]+)%", html) == ["40.0", "12.5"]


def test_reliability_diagram(tmp_path):
    html = page(render(tmp_path, [case("a")])).split("Reliability of the probabilities</h2>")[1]
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"\s+r="([\d.]+)">\s*<title>(.*?)</title>', html)
    assert dots == [
        ("63.8", "238.4", "10.3", "probability 0.030: 5.0% lesion, 64.00% of the pixels"),
        ("248.0", "192.0", "8.6", "probability 0.500: 25.0% lesion, 36.00% of the pixels"),
    ]
    caption = " ".join(html.split())
    assert "error 0.0321. With logits divided by 1.38" in caption and "it is 0.0123." in caption


def test_a_long_chain_is_shown_in_twenty_frames():
    frames = [(t, np.full((8, 8, 1), t / 100), np.zeros((8, 8, 1))) for t in range(100, -1, -1)]
    steps = [t for t, *_ in make_strip("a", frames)["frames"]]
    assert len(steps) == 20 and steps[0] == 100 and steps[-1] == 0
    assert np.diff(steps).min() * -1 <= 6
    assert [t for t, *_ in make_strip("a", frames[-2:])["frames"]] == [1, 0]


def test_curves(tmp_path):
    rows = "step,loss,validation_iou\n1,2.5,\n20,0.5,\n20,,0.75\n40,nan,\n60,0.25,\n60,,0.875\n"
    history = [
        {name: float(text) if text else None for name, text in row.items()}
        for row in csv.DictReader(io.StringIO(rows))
    ]
    html = render(tmp_path, [case("a")], history=history)
    assert data(html)["curves"] == {
        "coverage": [[0.5, 0.9], [0.75, 0.8], [1.0, 0.7]],
        "loss": [[1, 2.5], [20, 0.5], [60, 0.25]],
        "validation": [[20, 0.75], [60, 0.875]],
    }
    assert re.findall(r'data-curve="(\w+)"', page(html)) == ["coverage", "loss", "validation"]
    assert "data-curve" not in page(render(tmp_path, [case("a", deviation=None)]))


def test_long_curves_are_averaged(tmp_path):
    history = [{"step": float(i), "loss": float(i % 2)} for i in range(1200)]
    loss = data(render(tmp_path, [case("a")], history=history))["curves"]["loss"]
    assert len(loss) == 300
    np.testing.assert_allclose(loss, [[4 * i + 1.5, 0.5] for i in range(300)])


def test_text_is_escaped_and_nothing_is_fetched(tmp_path):
    evil = "a/</script><b>é\u2028😀"
    strip = make_strip(evil, [(1, *np.zeros((2, 8, 8, 1)))])
    html = render(
        tmp_path,
        [case(evil)],
        {"check<point": "</script> & y"},
        "<script>",
        failures={"<i>": "</script>"},
        strips=[strip],
    )
    assert shown(html) == [evil] and data(html)["strips"][0]["id"] == evil
    assert html.count("</script") == 2 and html.count("<script") == 2
    assert "<dt>check&lt;point</dt><dd>&lt;/script&gt; &amp; y</dd>" in html
    assert "<title>&lt;script&gt;</title>" in html
    assert '<th scope="row">&lt;i&gt;</th><td>&lt;/script&gt;</td>' in html
    text = re.sub('base64,[^"]*', "base64,", html)  # chance words in the pictures
    for word in ("http", "url(", "<link", "import", "fetch(", "XMLHttpRequest", "<iframe", "//cdn"):
        assert word not in text, word
    assert not re.findall(r'\b(?:src|href)="(?!#)', text)


def test_names_that_are_no_unicode(tmp_path):
    assert shown(render(tmp_path, [case("caf\udce9")], failures={"\udcff": "?"})) == ["caf\udce9"]


def test_without_truth_the_images_that_disagree_most_come_first(tmp_path):
    cases = [case(f"id{i:02}", deviation=i / 50, with_truth=False) for i in range(20)]
    html = render(tmp_path, cases)
    assert shown(html) == [f"id{i:02}" for i in range(19, -1, -1)]
    assert data(html)["stops"] == ["image", "prediction", "uncertainty"]
    assert re.search(r"<strong>0.190</strong>\s*<b>Disagreement</b>", html)
    assert "20 images, true masks not given" in html
    assert re.findall(r'<option value="(\w+)">', page(html)) == ["uncertain", "name"]
    words = ("<table", "<svg", "IoU first", "true contour", "By condition")
    assert not [word for word in words if word in page(html)]


def test_images_without_truth_come_last_and_count_in_no_figure(tmp_path):
    scored = [case("a", 20, deviation=0.125), case("b", 10, deviation=0.375)]
    others = [case(f"id{i}", deviation=i / 10, with_truth=False) for i in range(3)]
    html = render(tmp_path, [*others[:2], *scored, others[2]], failures={"broken": "why"})
    assert shown(html) == ["b", "a", "id2", "id1", "id0"]
    assert "5 images, 3 without a true mask, 1 not segmented</p>" in page(html)
    assert data(html)["cases"][2]["truth"] is None
    assert data(html)["stops"] == ["image", "truth", "prediction", "uncertainty"]
    figures = lambda html: html[html.index('<div class="headlines">') : html.index("<noscript>")]
    assert figures(render(tmp_path, [*scored, *others])) == figures(render(tmp_path, scored))
    many = [others[0] | {"id": f"id{i:03}"} for i in range(400)]
    html = page(render(tmp_path, [*scored, *many]))
    text = "The 400 of 402 images with the lowest IoU, then images without a true mask."
    assert text in html


@pytest.mark.parametrize("with_truth", [True, False])
def test_one_sample(tmp_path, with_truth):
    html = page(render(tmp_path, [case("a", deviation=None, with_truth=with_truth)]))
    assert "1 bit: entropy of the probability (one single mask)" in html
    assert "most uncertain first" not in html and "<b>Disagreement</b>" not in html
    assert "1 image" in html and "1 images" not in html


def test_failures(tmp_path):
    failures = {f"id{i:03}": "the file is empty" for i in range(103)}
    html = page(render(tmp_path, [case("a")], failures=failures))
    assert "1 image, 103 not segmented" in html
    assert html.count("<td>the file is empty</td>") == 100
    assert "3 more are in failures.csv." in html
    write_report(tmp_path / "none.html", [], None, Page("title", {}, {"a": "why"}))
    html = page((tmp_path / "none.html").read_text())
    assert "0 images" in html and "<td>why</td>" in html and 'id="gallery"' not in html
