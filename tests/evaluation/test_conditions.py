"""Conditions of scenes made by hand and of drawn lesions whose conditions are known."""

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.evaluation import conditions
from segdiff_jax.evaluation.conditions import CONDITIONS, measure_conditions

SKIN, LESION = (210, 170, 150), (120, 75, 60)


def disc(size=(120, 160), radius=24):
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 <= radius**2


def scene(truth, lesion=LESION, skin=SKIN):
    return np.where(truth[..., None], np.uint8(lesion), np.uint8(skin))


def test_a_plain_scene():
    truth = disc()
    expected = {
        "dark_corners": "no",
        "contrast": "high",
        "lesion_size": "small",  # 24^2 pi of 120 x 160 pixels: 9.4%
        "hair": "no",
    }
    assert measure_conditions(scene(truth), truth) == expected
    assert list(expected) == list(CONDITIONS)
    assert all(value in CONDITIONS[name] for name, value in expected.items())


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # From the formulas of CIE 1976 for sRGB under D65, rounded as usually printed.
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0, 0)),
        ((5, 5, 5), (1.37, 0, 0)),  # the linear parts of both curves
    ],
)
def test_lab(rgb, lab):
    np.testing.assert_allclose(conditions.to_lab(np.uint8(rgb)), lab, rtol=0, atol=0.05)


@pytest.mark.parametrize(("corners", "value"), [(0, "no"), (1, "no"), (2, "yes"), (4, "yes")])
def test_two_corners_are_dark_corners(corners, value):
    truth = disc()
    image = scene(truth)
    places = (np.s_[:12, :16], np.s_[-12:, -16:], np.s_[:12, -16:], np.s_[-12:, :16])
    for place in places[:corners]:
        image[place] = 40  # L* 16, the skin's is 72
    assert measure_conditions(image, truth) == measure_conditions(scene(truth), truth) | {
        "dark_corners": value
    }


def test_how_dark_a_corner_is():
    truth = disc()
    for grey, value in ((80, "yes"), (90, "no")):  # L* 34 and 38; half of the skin's is 36
        image = scene(truth)
        image[:12] = grey
        assert measure_conditions(image, truth)["dark_corners"] == value


def test_a_black_frame_larger_than_the_skin():
    truth = disc()
    image = np.where(disc(radius=50)[..., None], scene(truth), np.uint8(2))
    assert measure_conditions(image, truth) == measure_conditions(scene(truth), truth) | {
        "dark_corners": "yes"
    }


def test_a_dark_lesion_in_the_corners_is_no_dark_corner():
    truth = np.ones((120, 160), bool)
    truth[:, 60:100] = False
    assert measure_conditions(scene(truth, (30, 20, 20)), truth)["dark_corners"] == "no"
    assert measure_conditions(scene(truth, (30, 20, 20)), truth & False)["dark_corners"] == "yes"


@pytest.mark.parametrize(
    ("grey", "value"),
    [  # L* of the skin is 80.6, of these 65.9, 64.4, 96.5, 46.4 and 44.8.
        (160, "low"),
        (156, "medium"),
        (245, "medium"),
        (110, "medium"),
        (106, "high"),
    ],
)
def test_contrast_is_the_distance_in_lab(grey, value):
    truth = disc()
    assert measure_conditions(scene(truth, (grey,) * 3, (200,) * 3), truth)["contrast"] == value


def test_contrast_is_with_the_skin_around_not_that_far_away():
    truth = disc(radius=20)
    image = scene(disc(radius=40), (120, 75, 60))
    assert measure_conditions(image, truth)["contrast"] == "low"
    assert measure_conditions(image, disc(radius=40))["contrast"] == "high"


def test_contrast_leaves_dark_corners_out():
    truth = disc(radius=40)
    image = scene(truth, (150, 110, 95))
    plain = measure_conditions(image, truth)["contrast"]
    image[~disc(radius=48)] = 3  # 4 of the ring's 16 pixels are skin.
    assert measure_conditions(image, truth)["contrast"] == plain == "medium"


@pytest.mark.parametrize(
    ("share", "value"),
    [(0, "none"), (1, "small"), (9, "small"), (10, "medium"), (34, "medium"), (35, "large")],
)
def test_lesion_size(share, value):
    truth = np.zeros((100, 100), bool)
    truth[:share] = True
    assert measure_conditions(scene(truth), truth)["lesion_size"] == value


@pytest.mark.parametrize(
    ("width", "length", "value"),
    [(3, 140, "yes"), (3, 20, "no"), (12, 140, "no")],
    ids=["hair", "short", "wide"],
)
def test_hair_is_long_thin_and_dark(width, length, value):
    truth = disc()
    image = scene(truth)
    image[90 : 90 + width, 10 : 10 + length] = 60
    assert measure_conditions(image, truth) == measure_conditions(scene(truth), truth) | {
        "hair": value
    }


def test_what_is_no_hair():
    truth = disc(radius=40)
    for colour, where in (
        ((240, 220, 210), np.s_[110:113, 5:155]),  # a pale line
        ((70, 60, 150), np.s_[110:113, 5:155]),  # blue ink
        ((40, 30, 30), np.s_[59:62, 50:110]),  # a line within the lesion
        ((5, 5, 5), np.s_[:4, :]),  # a thin black frame
    ):
        image = scene(truth)
        image[where] = colour
        assert measure_conditions(image, truth)["hair"] == "no", colour


def test_masks_without_lesion_or_without_skin():
    image = scene(disc())
    empty = measure_conditions(image, np.zeros((120, 160), bool))
    assert empty["contrast"] == empty["lesion_size"] == "none"
    full = measure_conditions(image, np.ones((120, 160), bool))
    assert full == {"dark_corners": "no", "contrast": "none", "lesion_size": "large", "hair": "no"}
    black = measure_conditions(image * 0, disc())
    assert black["dark_corners"] == "no" and black["hair"] == "no"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (4, 300)])
def test_tiny_images(size):
    truth = np.zeros(size, bool)
    truth[:, : size[1] // 2] = True
    assert measure_conditions(scene(truth), truth)["dark_corners"] == "no"


def test_drawn_conditions_are_found():
    # Measured over 200 other drawings at 256 px: corners in all, hair in 96%, faint in 92%.
    kinds = [(), ("dark_corners",), ("hair",), ("dark_corners", "faint", "hair")]
    found = {"dark_corners": 0, "hair": 0, "contrast": 0}
    for i in range(40):
        image, mask, drawn = draw((7, i), 128, kinds[i % 4])
        values = measure_conditions(image, mask > 0)
        found["dark_corners"] += (values["dark_corners"] == "yes") == ("dark_corners" in drawn)
        found["hair"] += (values["hair"] == "yes") == ("hair" in drawn)
        found["contrast"] += (values["contrast"] == "low") == ("faint" in drawn)
    assert found["dark_corners"] >= 39 and found["hair"] >= 36 and found["contrast"] >= 36, found


def test_conditions_do_not_depend_on_the_native_size():
    for seed in range(6):
        image, mask, _ = draw((9, seed), 256, ("dark_corners", "hair") if seed % 2 else ())
        large = (Image.fromarray(array).resize((1000, 1000)) for array in (image, mask))
        image_large, mask_large = (np.asarray(array) for array in large)
        assert measure_conditions(image_large, mask_large > 127) == measure_conditions(
            image, mask > 0
        )


def test_sizes_that_differ():
    with pytest.raises(ValueError, match=r"truth \(4, 5\) and image \(5, 4\)"):
        measure_conditions(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), bool))


def test_scores_by_condition():
    plain = {"dark_corners": "no", "contrast": "high", "lesion_size": "small", "hair": "no"}
    scores = [{"iou": 0.5, "dice": 0.6}, {"iou": 1.0, "dice": 1.0}, {"iou": 0.0, "dice": 0.2}]
    table = conditions.scores_by_condition(
        scores, [plain, plain | {"hair": "yes", "contrast": "low"}, plain | {"contrast": "none"}]
    )
    assert list(table) == list(CONDITIONS)
    assert table["hair"] == {
        "no": {"num_images": 2, "iou": 0.25, "dice": pytest.approx(0.4)},
        "yes": {"num_images": 1, "iou": 1.0, "dice": 1.0},
    }
    assert list(table["contrast"]) == ["low", "high", "none"]
    assert table["dark_corners"]["no"]["num_images"] == 3
    assert "yes" not in table["dark_corners"]
