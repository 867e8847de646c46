"""The report in headless Chromium, opened from file://."""

import os
import shutil
import time

import numpy as np
import pytest

from segdiff_jax.evaluation.report import Page, make_strip, write_report
from tests.evaluation.models import case_of

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSERS = "chromium", "chromium-browser", "google-chrome"
IOUS = [0.55, 0.95, 0.15, 0.75, 0.35]  # of id0, id1, ...
DISAGREEMENTS = [0.1, 0.5, 0.2, 0.4, 0.3]
HAIR = ["no", "yes", "yes", "no", "no"]


def write(path):
    """Five images of different colours; id2 has a strip of four frames."""
    cases = []
    for i, (iou, disagreement, hair) in enumerate(zip(IOUS, DISAGREEMENTS, HAIR, strict=True)):
        image = np.full((48, 64, 3), 60 + 30 * i, np.uint8)
        truth = np.zeros((48, 64), bool)
        truth[10:30, 10:40] = True
        probability = np.float32(np.roll(truth, i, axis=1))
        known = {"conditions": {"hair": hair}, "uncertainty": disagreement}
        known["scores"] = scores = {"iou": iou, "dice": iou, "hd95": 10 * iou}
        maps = probability, None, 0.4 * probability, truth
        cases.append(case_of(f"id{i}", image, *maps, **known))
    mean = {name: float(np.mean([case["scores"][name] for case in cases])) for name in scores}
    bins = [{"probability": p, "lesion": p, "share": 0.5} for p in (0.1, 0.9)]
    metrics = {
        "num_images": 5,
        "mean": mean,
        "intervals": {name: [0.1, 0.9] for name in mean},
        "uncertainty": {
            "ece": 0.1,
            "reliability": bins,
            "disagreement": 0.3,
            "correlation": -0.5,
            "temperature": 1.0,
            "ece_tempered": 0.1,
            "risk_coverage": [[1.0, 0.55], [0.8, 0.6], [0.6, 0.7]],
        },
        "conditions": {
            "hair": {"no": {"num_images": 3, **mean}, "yes": {"num_images": 2, **mean}},
        },
        "settings": {},
    }
    frames = [(t, np.full((16, 16, 1), t / 3), np.full((16, 16, 1), -t / 3)) for t in (3, 2, 1, 0)]
    history = [{"step": s, "loss": 10.0 / s, "validation_iou": s / 100} for s in (1, 10, 50)]
    strips = [make_strip("id2", frames)]
    write_report(path, cases, metrics, Page("title", {"steps": 5}, {}, history), strips)
    plain = [case | dict.fromkeys(("truth", "scores", "conditions")) for case in cases]
    write_report(path.with_name("unscored.html"), plain, None, Page("title", {}))
    # The means do not matter here.
    mixed = [*plain[:2], *cases[2:]]
    write_report(
        path.with_name("mixed.html"), mixed, metrics | {"num_images": 3}, Page("title", {})
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write(folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def browser():
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip(f"{'chromedriver' if binary else 'Chromium'} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver, log_output=os.devnull))
    yield chrome
    chrome.quit()


@pytest.fixture
def report(browser, pages):
    """report() opens the report, or report("unscored.html", width); there must be no error."""

    def load(name="report.html", width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        prefer(browser, reduced_motion="reduce")  # Else clicks miss while the page scrolls.
        browser.get((pages / name).as_uri())
        return browser

    yield load
    assert browser.get_log("browser") == []


def prefer(browser, **values):
    features = [{"name": f"prefers-{k.replace('_', '-')}", "value": v} for k, v in values.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def press(browser, *keys):
    ActionChains(browser, duration=0).send_keys(*keys).perform()


def one(browser, selector):
    return browser.find_element("css selector", selector)


def js(browser, code, *arguments):
    return browser.execute_script(f"return {code}", *arguments)


def shown(browser):
    return js(browser, "[...document.querySelectorAll('.tile')].map(tile => tile.title)")


def focused(browser):
    return js(browser, "document.activeElement.title || document.activeElement.id")


def choose(browser, selector, value):
    """Chooses in a select, or moves a slider, as a user does."""
    code = "((box, value) => { box.value = value; for (const kind of ['input', 'change'])"
    code += " box.dispatchEvent(new Event(kind, {bubbles: true})); })(...arguments)"
    js(browser, code, one(browser, selector), value)


def opacities(browser, root="#cards .tile"):
    code = "[...document.querySelector(arguments[0]).querySelectorAll('img')]"
    code += ".filter(img => img.className).map(img => Number(getComputedStyle(img).opacity))"
    return js(browser, code, root)


def wait(browser, code):
    for _ in range(100):
        if js(browser, code):
            return
        time.sleep(0.03)
    pytest.fail(f"never came true: {code}")


def test_sort(report):
    browser = report()
    assert shown(browser) == ["id2", "id4", "id0", "id3", "id1"]
    choose(browser, "#sort", "best")
    assert shown(browser) == ["id1", "id3", "id0", "id4", "id2"]
    choose(browser, "#sort", "uncertain")
    assert shown(browser) == ["id1", "id3", "id4", "id2", "id0"]
    choose(browser, "#sort", "name")
    assert shown(browser) == ["id0", "id1", "id2", "id3", "id4"]


def test_filter_group_and_search(report):
    browser = report()
    choose(browser, "select.filter", "yes")
    assert shown(browser) == ["id2", "id1"]
    assert one(browser, "#count").text == "2 of 5 images, mean IoU 0.550"
    choose(browser, "#search", "ID1")
    assert shown(browser) == ["id1"]
    one(browser, "#reset").click()
    assert len(shown(browser)) == 5
    choose(browser, "#group", "hair")
    assert shown(browser) == ["id4", "id0", "id3", "id2", "id1"]
    headings = [heading.text for heading in browser.find_elements("css selector", ".heading")]
    assert headings == [
        "hair: no (3 images, mean IoU 0.550)",
        "hair: yes (2 images, mean IoU 0.550)",
    ]
    choose(browser, "#group", "")
    one(browser, "button[data-value=yes]").click()  # in the table of conditions
    assert shown(browser) == ["id2", "id1"] and focused(browser) == "id2"


def test_the_slider_fades_all_cards(report):
    browser = report()
    js(browser, "document.getElementById('gallery').scrollIntoView()")
    wait(browser, "document.querySelectorAll('#cards img').length === 20")
    assert opacities(browser) == [1, 1, 1, 0]  # It starts at the prediction.
    choose(browser, "#fade", 0.5)
    np.testing.assert_allclose(opacities(browser), [1, 0.5, 0, 0])
    choose(browser, "#fade", 2.25)
    np.testing.assert_allclose(opacities(browser), [1, 1, 1, 0.25])
    text = one(browser, "#fade").get_attribute("aria-valuetext")
    assert text == "25% from prediction to uncertainty"
    for stop in range(4):
        press(browser, str(stop + 1))
        assert opacities(browser) == [float(layer <= stop) for layer in range(4)]
    one(browser, "#search").send_keys("1")  # There, a number is a letter.
    assert shown(browser) == ["id1"] and opacities(browser)[3] == 1
    one(browser, ".stops [data-stop='1']").click()
    assert opacities(browser) == [1, 1, 0, 0]


def test_images_without_truth_are_shown_beside_others(report):
    browser = report("mixed.html")
    assert one(browser, ".lead").text == "5 images, 2 without a true mask"
    assert shown(browser) == ["id2", "id4", "id3", "id0", "id1"]
    assert one(browser, "#count").text == "5 of 5 images, mean IoU 0.417"
    choose(browser, "#sort", "best")
    assert shown(browser) == ["id3", "id4", "id2", "id0", "id1"]
    choose(browser, "#sort", "uncertain")
    assert shown(browser) == ["id1", "id3", "id4", "id2", "id0"]
    choose(browser, "#group", "hair")
    headings = [heading.text for heading in browser.find_elements("css selector", ".heading")]
    assert headings[-1] == "not known (2 images, no IoU)" and len(headings) == 3
    choose(browser, "#group", "")
    choose(browser, "select.filter", "yes")
    assert shown(browser) == ["id2"]
    one(browser, "#reset").click()
    js(browser, "document.querySelector('.tile[title=id1]').click()")
    press(browser, "3")
    assert opacities(browser, "#viewer-layers") == [1, 1, 0]  # It has no layer of the truth.
    rows = [row.text for row in browser.find_elements("css selector", "#viewer-facts tr")]
    assert rows == ["Disagreement 0.5000"] and not one(browser, ".chips").text
    press(browser, Keys.ARROW_RIGHT)
    assert opacities(browser, "#viewer-layers") == [1, 1, 1, 0]


def test_keyboard(report):
    browser = report()
    js(browser, "document.getElementById('search').focus()")
    press(browser, Keys.TAB)
    assert focused(browser) == "id2"
    assert js(browser, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert focused(browser) == "id4"
    press(browser, Keys.ENTER)
    viewer = one(browser, "#viewer")
    assert viewer.is_displayed() and one(browser, "#viewer-id").text == "id4"
    assert one(browser, "#viewer-place").text == "2 of 5"
    rows = [row.text for row in browser.find_elements("css selector", "#viewer-facts tr")]
    assert rows == ["IoU 0.3500", "Dice 0.3500", "HD95 3.5 px", "Disagreement 0.3000"]
    assert one(browser, ".chips").text == "hair: no"
    press(browser, Keys.ARROW_RIGHT)
    assert one(browser, "#viewer-id").text == "id0"
    press(browser, "4")
    assert opacities(browser, "#viewer-layers") == [1, 1, 1, 1]
    js(browser, "document.getElementById('viewer-fade').focus()")
    press(browser, Keys.ARROW_LEFT)  # moves the slider, not the image
    assert one(browser, "#viewer-id").text == "id0"
    np.testing.assert_allclose(opacities(browser, "#viewer-layers"), [1, 1, 1, 0.95])
    press(browser, Keys.ESCAPE)
    wait(browser, "document.activeElement.title === 'id0'")
    assert not viewer.is_displayed()
    press(browser, Keys.ENTER)
    one(browser, "#previous").click()
    one(browser, "#previous").click()
    assert one(browser, "#viewer-id").text == "id2"
    assert len(browser.find_elements("css selector", "#viewer-strip .film button")) == 4
    one(browser, "#close").click()
    wait(browser, "document.activeElement.title === 'id2'")


def test_curves_and_tooltips(report):
    browser = report()
    found = browser.find_elements("css selector", "[data-curve] polyline")
    lines = [line.get_attribute("points") for line in found]
    assert lines[0] == "52.0,18.0 248.0,172.7 444.0,250.0"  # 0.7, 0.6, 0.55 of 0.7 to 0.55
    y = [float(point.split(",")[1]) for point in lines[1].split()]  # 10, 1, 0.2: logarithmic
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(np.log(10) / np.log(5), abs=0.01)
    js(browser, "document.querySelector('svg.chart').focus()")
    press(browser, Keys.ARROW_RIGHT)
    assert one(browser, "#tip").text == "IoU 0.15 to 0.20: 1"
    press(browser, Keys.ARROW_RIGHT)
    assert one(browser, "#tip").text == "IoU 0.35 to 0.40: 1"
    press(browser, Keys.ESCAPE)
    assert not one(browser, "#tip").is_displayed()


def test_a_strip_plays(report):
    browser = report()
    strip = one(browser, "#strips .strip")
    time_shown = lambda: strip.find_element("css selector", "output").text
    frame = lambda: js(browser, "document.querySelector('#strips figure:nth-child(2) img').src")
    wait(browser, "document.querySelector('#strips output').value === 't = 0'")
    last = frame()
    strip.find_element("css selector", ".play").click()
    assert time_shown() == "t = 3" and frame() != last
    wait(browser, "document.querySelector('#strips output').value === 't = 0'")
    assert frame() == last
    assert strip.find_element("css selector", ".play").text == "Play"
    strip.find_elements("css selector", ".film button")[1].click()
    assert time_shown() == "t = 2"


@pytest.mark.parametrize("name", ["report.html", "unscored.html"])
@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_does_not_scroll_sideways(report, name, width):
    browser = report(name, width)
    assert js(browser, "document.documentElement.scrollWidth") == width
    js(browser, "document.querySelector('.tile').click()")
    assert js(browser, "document.getElementById('viewer').scrollWidth") <= width


def test_filters_unfold_where_a_phone_is_turned(report):
    browser = report("report.html", 390)
    assert not browser.find_element("id", "sort").is_displayed()
    size = {"width": 1000, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    WebDriverWait(browser, 5).until(lambda _: browser.find_element("id", "sort").is_displayed())


def test_dark_and_light(report):
    browser = report()
    grounds = {}
    for name in ("dark", "light"):
        prefer(browser, color_scheme=name)
        colour = js(browser, "getComputedStyle(document.body).backgroundColor")
        grounds[name] = [int(n) for n in colour[4:-1].split(", ")]
    assert max(grounds["dark"]) < 50 and min(grounds["light"]) > 200


def test_without_truth_there_are_three_stops(report):
    browser = report("unscored.html")
    assert shown(browser) == ["id1", "id3", "id4", "id2", "id0"]
    js(browser, "document.querySelector('.tile').click()")
    assert opacities(browser, "#viewer-layers") == [1, 1, 0]
    press(browser, "3")
    assert opacities(browser, "#viewer-layers") == [1, 1, 1]
    press(browser, "4")
    assert opacities(browser, "#viewer-layers") == [1, 1, 1]
