"""The comparison trains what it says, and its tables hold what the runs left."""

import csv
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import compare as configs_compare
from configs import default, isic2016_64
from segdiff_jax.methods import make_method
from segdiff_jax.runtime.errors import UserError
from tools import compare, runs
from tools import comparison as comparison_module
from tools.comparison import MAIN, MORE, SPLITS, Comparison, Row
from tools.flop import gflop_of_passes
from tools.runs import Run

RECIPE = "isic2016_64"
IDS = [f"ISIC_{i}" for i in range(4)]


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def comparison(tmp_path):
    """Two seeds; a row's IoU is 0.5 + its number / 100, + 0.01 of the second seed."""
    comparison = Comparison(tmp_path, 2)
    comparison.trained = lambda row, seed: SimpleNamespace(settings={"model": row.label})
    for (model, seed), run in comparison.runs.items():
        (run.workdir / "checkpoints" / "last" / f"{100 + seed}").mkdir(parents=True)
        config = configs_compare.get_config(model)
        (run.workdir / "config.json").write_text(config.to_json())
        # The first speed includes compiling.
        speeds = [0.5, 20 + len(model), 20 + len(model), 90]
        write_csv(run.workdir / "metrics.csv", [{"images_per_second": s} for s in speeds])
    for number, row in enumerate(MAIN + MORE):
        for seed in comparison.seeds(row):
            ious = 0.5 + number / 100 + seed / 100 + np.array([-0.1, 0.1, 0.1, -0.1])
            for split in SPLITS:
                folder = comparison.folder(row, split, seed)
                folder.mkdir()
                lines = [{"id": i, "iou": f"{x:.6f}"} for i, x in zip(IDS, ious, strict=True)]
                write_csv(folder / "metrics.csv", lines)
                mean = dict.fromkeys(compare.SCORES, 0.25) | {"iou": ious.mean()}
                uncertainty = {"ece": 0.01 * (1 + seed)}
                if "mirrored" in row.label:
                    uncertainty["correlation"] = 0.5
                conditions = {"hair": {"yes": {"num_images": 4, "iou": ious.mean()}}}
                metrics = {"mean": mean, "uncertainty": uncertainty, "conditions": conditions}
                metrics |= {"settings": {"model": row.label}, "num_images": len(IDS)}
                (folder / "metrics.json").write_text(json.dumps(metrics))
    return comparison


@pytest.mark.slow
def test_tables_hold_what_the_runs_left(comparison, tmp_path):
    seconds = {row: 0.01 * (1 + i) for i, row in enumerate(MAIN + MORE)}
    lines = compare.report(comparison, seconds).splitlines()
    for line in (
        # Steps 100 and 101; the median speed without the first.
        "| segdiff | 1,077,097 | 27.0 ± 0.0 | 100 ± 1 |",
        "| medt | 1,522,505 | 24.0 | 100 |",
        "| U-Net | 0.35 | 10.0 | 0.505 ± 0.007 | 0.250 ± 0.000 | 0.250 ± 0.000 | 0.250 ± 0.000 |",
        "| U-Net, mirrored | 1.39 | 20.0 | 0.515 ± 0.007 " + 3 * "| 0.250 ± 0.000 " + "|",
        "| MedT | 0.52 | 30.0 | 0.520 | 0.250 | 0.250 | 0.250 |",
        "| U-Net, mirrored | 0.0150 ± 0.0071 | 0.50 ± 0.00 | 0.0150 ± 0.0071 | 0.50 ± 0.00 |",
        "| MedT | 0.0100 |  | 0.0100 |  |",
    ):
        assert line in lines, line
    condition = next(line for line in lines if line.startswith("| hair: yes | 4 |"))
    assert condition.split(" | ")[2:5] == ["0.505 ± 0.007", "0.515 ± 0.007", "0.520"]
    # Of the same seed and image: SegDiff is the fifth after U-Net, mirrored, in every pair.
    pair = "+0.0400 | +0.0400 to +0.0400 | +0.0400, +0.0400"
    assert f"| SegDiff minus U-Net, mirrored | {pair} | {pair} |" in lines
    pair = "+0.0300 | +0.0300 to +0.0300 | +0.0300, +0.0300"
    assert f"| SegDiff + U-Net minus SegDiff | {pair} | {pair} |" in lines
    assert not any(line.startswith("| U-Net, mirrored minus") for line in lines)
    compare.draw(comparison, seconds, tmp_path / "plot.svg")
    assert "SegDiff + U-Net" in (tmp_path / "plot.svg").read_text()


def test_differences_are_paired(comparison):
    """One image 0.4 better of the others: the mean is 0.1, and 0 and more are in the interval."""
    row = MAIN[0]
    for split in SPLITS:
        for seed in comparison.seeds(row):
            ious = comparison.ious(MAIN[1], split)[seed] + np.array([0.4, 0, 0, 0])
            lines = [{"id": i, "iou": x} for i, x in zip(IDS, ious, strict=True)]
            write_csv(comparison.folder(row, split, seed) / "metrics.csv", lines)
    line = compare.difference_table(comparison).splitlines()[2]
    assert line.startswith(
        "| U-Net minus U-Net, mirrored | +0.1000 | +0.0000 to +0.3000 | +0.1000, +0.1000 |"
    )


def test_an_encoder_is_compared_in_the_models_that_can_have_it(tmp_path):
    comparison = Comparison(tmp_path, 3, "isic2016_128")
    assert {model for model, _ in comparison.runs} == {"segdiff", "unet"}
    assert [row.label for row in comparison.rows] == [
        "U-Net",
        "U-Net, mirrored",
        "SegDiff, 1 sample",
        "SegDiff",
        "SegDiff + U-Net",
        "SegDiff, 5 steps",
        "SegDiff, 9 samples, not mirrored",
        "U-Net + U-Net",
    ]
    segdiff, unet = (
        configs_compare.get_config(f"{name},isic2016_128") for name in ("segdiff", "unet")
    )
    for field in configs_compare.ENCODER:
        assert unet.model[field] == segdiff.model[field]
    assert unet.model.image_encoder == "efficientnet_lite2" and unet.method == "supervised"
    for section in ("data", "augment", "train"):
        assert unet[section].to_dict() == segdiff[section].to_dict()


def test_recipes_and_models_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="recipe 'foo' is unknown; there are isic2016_64, isic"):
        configs_compare.get_config("unet,foo")
    with pytest.raises(UserError, match="model 'medt' has no such config: choose segdiff or unet"):
        configs_compare.get_config("medt,isic2016_128")


def test_flop_of_the_unet_are_those_of_its_convolutions():
    configs = configs_compare.get_config
    gflop = compare.gflop_an_image(Row("", ("unet",), {"flips": False}), configs)
    widths = configs("unet").model.channels
    taps = lambda size: (3 * size - 2) ** 2  # Of a 3x3 convolution, but for the padding.
    macs, before = 0, 3
    for level, width in enumerate(widths):
        size = 64 // 2**level
        macs += (before + width) * width * taps(size)
        if level:  # Up to the level above, and its two convolutions.
            above = widths[level - 1]
            macs += 4 * width * above * size**2 + (2 + 1) * above**2 * taps(2 * size)
        before = width
    assert gflop == pytest.approx(2 * macs / 1e9, rel=0.01)
    mirrored, both = Row("", ("unet",)), Row("", ("unet", "segdiff"), {"steps": 5})
    assert compare.gflop_an_image(mirrored, configs) == pytest.approx(4 * gflop)
    # The image and its mirror images are encoded once, and denoised at each step of each sample.
    segdiff = gflop_of_passes(make_method(configs("segdiff")))
    expected = 4 * gflop + 4 * segdiff["encode_image"] + 4 * 5 * segdiff["denoise"]
    assert compare.gflop_an_image(both, configs) == pytest.approx(expected)


def test_an_ensemble_of_one_model_is_of_two_seeds(comparison, tmp_path):
    members = lambda *args: [run.workdir.name for run in comparison.members(*args)]
    twice = Row("", ("unet", "segdiff", "unet"))
    assert comparison.seeds(twice) == [0, 1]
    assert members(twice, 0) == ["unet-seed0", "segdiff-seed0", "unet-seed1"]
    assert members(twice, 1) == ["unet-seed1", "segdiff-seed1", "unet-seed0"]
    assert comparison.seeds(Row("", ("unet", "medt"))) == [0]
    assert comparison.seeds(Row("", ("medt", "medt"))) == []
    assert {row.label for row in MORE} - {row.label for row in Comparison(tmp_path, 1).rows} == {
        "U-Net + U-Net"
    }


def test_scores_of_other_settings_are_made_anew(comparison, monkeypatch):
    row = MAIN[0]
    assert comparison.metrics(row, "test", 0)["num_images"] == 4
    asked = []
    monkeypatch.setattr(comparison_module, "load_source", lambda *args: asked.append(args) or [])
    monkeypatch.setattr(comparison_module, "NativeExamples", lambda *args: [])
    monkeypatch.setattr(comparison_module, "evaluate", lambda *args: None)
    data = default.get_config().data
    changed = SimpleNamespace(
        settings={"model": "other"},
        config=SimpleNamespace(data=data),
    )
    comparison.trained = lambda row, seed: changed
    comparison.metrics(row, "test", 0)
    assert not asked  # Known in this process.
    comparison.metrics(row, "test", 1)
    assert [args[:2] for args in asked] == [(data.dataset, "test")]


def test_trainings_side_by_side_have_cores_of_their_own(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    monkeypatch.setattr(runs.subprocess, "run", lambda command, **_: commands.append(command))
    comparison = Comparison(tmp_path, 3)
    comparison.train(30, 2, ["--config.data.dir=somewhere"])
    assert len(commands) == 3 + 3 + 1 + 1 + 1
    assert {tuple(command[:3]) for command in commands} == {
        ("taskset", "-c", "4,5"),
        ("taskset", "-c", "6,7"),
    }
    first = next(c for c in commands if f"--workdir={tmp_path / 'unet-seed2'}" in c)
    for flag in (
        "--config=configs/compare.py:unet,isic2016_64",
        "--config.seed=2",
        "--config.train.max_minutes=30",
        "--config.data.dir=somewhere",
    ):
        assert flag in first
    assert "+ train.py" in (tmp_path / "unet-seed2" / "train.log").read_text()


def test_a_run_of_another_config_stops_the_comparison(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(runs.subprocess, "run", lambda command, **_: commands.append(command))
    comparison = Comparison(tmp_path, 1)
    folder = comparison.runs["segdiff", 0].workdir  # The first.
    folder.mkdir()
    config = isic2016_64.get_config()
    config.train.max_minutes = 16.0
    (folder / "config.json").write_text(config.to_json())
    with pytest.raises(ValueError, match=r"segdiff-seed0/config.json has another train.max_min"):
        comparison.train(30, 1, [])
    assert not commands


def test_a_failed_training_stops_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    results = tmp_path / "results.md"
    results.write_text(
        "<!-- begin: tools.compare isic2016_64 -->\nold\n<!-- end: tools.compare isic2016_64 -->\n"
    )
    command = ["compare", f"--out={tmp_path}", f"--results={results}", "--config.nosuch=1"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(
        SystemExit, match=r"error: training segdiff from seed 0 failed; .*train.log"
    ):
        compare.main()
    assert "nosuch" in (tmp_path / "segdiff-seed0" / "train.log").read_text()
    assert not (tmp_path / "unet-seed0" / "train.log").exists()
    marks = (
        "<!-- begin: tools.compare isic2016_64 -->\nold\n<!-- end: tools.compare isic2016_64 -->\n"
    )
    assert results.read_text() == marks  # Kept until there is something new.


@pytest.mark.parametrize(
    "config, seed, flag, other",
    [
        ("configs/isic2016_64.py", 0, "data.num_threads=5", ""),
        ("configs/isic2016_64.py", 1, "data.manual_dir=there", "seed"),
        ("configs/isic2016_64.py", 0, "augment.hue=0.5", "augment.hue"),
        ("configs/isic2016_64_hour.py", 0, "augment.hue=0.02", "augment.brightness, .*"),
    ],
)
def test_a_run_of_another_config_is_not_continued(tmp_path, monkeypatch, config, seed, flag, other):
    (tmp_path / "config.json").write_text(isic2016_64.get_config().to_json())
    started = []
    monkeypatch.setattr(runs.subprocess, "run", lambda *words, **_: started.append(words))
    train = lambda: Run(tmp_path, only_print=False).train(
        config, {"seed": seed}, [f"--config.{flag}"]
    )
    if other:
        with pytest.raises(ValueError, match=f"has another {other}: move its folder away"):
            train()
    else:
        train()
    assert len(started) == (not other)


def test_text_goes_between_the_marks(tmp_path):
    path = tmp_path / "results.md"
    begin, end = (f"<!-- {edge}: tools.compare isic2016_64 -->" for edge in ("begin", "end"))
    path.write_text(f"a\n{begin}\nold\n{end}\nb\n")
    for text in ("new", "newer"):
        compare.insert(path, RECIPE, text)
    assert path.read_text() == f"a\n{begin}\n\nnewer\n\n{end}\nb\n"
    with pytest.raises(ValueError, match=r"has no lines .* tools.compare isic2016_128"):
        compare.insert(path, "isic2016_128", "text")
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"results\.md has no lines"):
        compare.insert(path, RECIPE, "text")


@pytest.mark.parametrize("count", [0, 999])
def test_so_many_trainings_cannot_be_side_by_side(count, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.md"
    path.write_text(
        "<!-- begin: tools.compare isic2016_64 -->\n<!-- end: tools.compare isic2016_64 -->\n"
    )
    monkeypatch.setattr("sys.argv", ["compare", f"--results={path}", f"--side_by_side={count}"])
    with pytest.raises(SystemExit):
        compare.main()
    assert f"--side_by_side={count}: at least 1" in capsys.readouterr().err
