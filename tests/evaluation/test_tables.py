import csv
import json

import numpy as np
import pytest

from segdiff_jax.evaluation import tables

CONDITIONS = {"dark_corners": "no", "contrast": "low", "lesion_size": "small", "hair": "no"}
LEVELS = np.zeros((2, 256))
LEVELS[:, 51] = 1, 0.5  # All pixels have a probability of 0.2, and half of them are lesion:
# logits of -1.386, which the highest temperature, 20, makes -0.069, a probability of 0.4827.
SURE, UNSURE = (
    {"area": area, "disagreement": disagreement, "levels": LEVELS, "foreground": True}
    for disagreement, area in ((0.125, 0.25), (0.375, 0.75))
)
ROWS = [
    {"id": "b", "scores": {"iou": 0.5, "dice": 2 / 3}, "conditions": CONDITIONS, **UNSURE},
    {
        "id": "a,1",
        "scores": {"iou": 1.0, "dice": 1.0},
        "conditions": CONDITIONS | {"hair": "yes"},
        **SURE,
    },
]


def test_metrics_files(tmp_path):
    summary = tables.write_metrics(tmp_path / "new", ROWS, {"samples": 9})
    assert summary["num_images"] == summary["num_with_foreground"] == 2
    assert summary["unscored"] == []
    assert summary["mean"] == pytest.approx({"iou": 0.75, "dice": 5 / 6})
    assert summary["settings"] == {"samples": 9}
    assert summary["intervals"] == {"iou": [0.5, 1.0], "dice": [pytest.approx(2 / 3), 1.0]}
    assert summary["uncertainty"]["ece"] == pytest.approx(0.3)
    assert summary["uncertainty"]["correlation"] == pytest.approx(1)
    assert summary["uncertainty"]["disagreement"] == 0.25
    assert summary["conditions"]["hair"] == {
        "no": {"num_images": 1, "iou": 0.5, "dice": pytest.approx(2 / 3)},
        "yes": {"num_images": 1, "iou": 1.0, "dice": 1.0},
    }
    assert summary["conditions"]["contrast"]["low"]["iou"] == 0.75
    assert json.loads((tmp_path / "new/metrics.json").read_text()) == summary
    with open(tmp_path / "new/metrics.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            [
                "id",
                "iou",
                "dice",
                "area",
                "disagreement",
                "dark_corners",
                "contrast",
                "lesion_size",
                "hair",
            ],
            ["a,1", "1.000000", "1.000000", "0.250000", "0.125000", "no", "low", "small", "yes"],
            ["b", "0.500000", "0.666667", "0.750000", "0.375000", "no", "low", "small", "no"],
        ]


def test_of_a_single_sample_there_is_no_disagreement(tmp_path):
    rows = [row | {"disagreement": None} for row in ROWS]
    summary = tables.write_metrics(tmp_path, rows, {})
    assert "disagreement" not in summary["uncertainty"]
    header, _ = (tmp_path / "metrics.csv").read_text().split("\n", 1)
    assert header == "id,iou,dice,area,dark_corners,contrast,lesion_size,hair"
    line = tables.format_metrics(summary).splitlines()[2]
    assert line.startswith("expected calibration error 0.3000") and "disagree" not in line


def test_without_truth_there_are_areas_and_disagreements_alone(tmp_path):
    rows = [{name: row[name] for name in ("id", "area", "disagreement")} for row in ROWS]
    assert tables.write_metrics(tmp_path, rows, {}) is None
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["id,area,disagreement", '"a,1",0.250000,0.125000', "b,0.750000,0.375000"]
    assert not (tmp_path / "metrics.json").exists()
    with pytest.raises(ValueError, match="rows is empty"):
        tables.write_metrics(tmp_path, [], {})


def test_an_image_without_truth_has_a_line_and_counts_in_no_mean(tmp_path):
    expected = tables.write_metrics(tmp_path / "scored", ROWS, {})
    rows = [{"id": id, "area": 0.5, "disagreement": 0.75} for id in ("z", "a")]
    summary = tables.write_metrics(tmp_path / "mixed", [rows[0], *ROWS, rows[1]], {})
    assert summary == expected | {"unscored": ["a", "z"]}
    header, *scored = (tmp_path / "scored/metrics.csv").read_text().splitlines()
    empty = ",,,0.500000,0.750000,,,,"
    lines = (tmp_path / "mixed/metrics.csv").read_text().splitlines()
    assert lines == [header, "a" + empty, *scored, "z" + empty]


def test_metrics_as_text(tmp_path):
    assert tables.format_metrics(tables.write_metrics(tmp_path, ROWS, {})).splitlines() == [
        "iou 0.7500, dice 0.8333 (2 images)",
        "95% interval of the mean IoU: 0.5000 to 1.0000",
        "expected calibration error 0.3000, 0.0173 with a temperature of 20.00; single masks "
        "disagree by 0.2500 (1 - IoU of every two), whose rank correlation with 1 - IoU is 1.00",
        "condition             images      iou     dice",
        "dark corners  no           2   0.7500   0.8333",
        "contrast      low          2   0.7500   0.8333",
        "lesion size   small        2   0.7500   0.8333",
        "hair          no           1   0.5000   0.6667",
        "              yes          1   1.0000   1.0000",
    ]


def test_the_scores_of_folds(tmp_path):
    rows = [{**ROWS[0], "fold": 1}, {**ROWS[1], "fold": 0}]
    third = ROWS[0] | {"id": "c", "fold": 1, "scores": {"iou": 0.7, "dice": 0.8}}
    summary = tables.write_metrics(tmp_path, [*rows, third], {})
    assert summary["folds"] == {
        "0": {"num_images": 1, "iou": 1.0, "dice": 1.0},
        "1": {"num_images": 2, "iou": pytest.approx(0.6), "dice": pytest.approx((2 / 3 + 0.8) / 2)},
    }
    said = tables.format_metrics(summary).splitlines()
    assert "IoU by fold: 1.0000, 0.6000; mean 0.8000, standard deviation 0.2828" in said
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [(row["id"], row["fold"]) for row in csv.DictReader(file)] == [
            ("a,1", "0"),
            ("b", "1"),
            ("c", "1"),
        ]
