"""The tool that trains and scores all folds."""

import os

import pytest

from tools import cross_validate, runs


def scores_of(folder, **ious):
    folder.mkdir(parents=True)
    lines = "\n".join(f"{id},{iou}" for id, iou in ious.items())
    (folder / "metrics.csv").write_text(f"id,iou\n{lines}\n")
    return folder


def test_two_cross_validations_are_compared_image_by_image(tmp_path):
    ours = scores_of(tmp_path / "ours", a=0.9, b=0.8, c=0.7)
    theirs = scores_of(tmp_path / "theirs", c=0.6, b=0.7, a=0.8)
    said = cross_validate.compare(ours, theirs)
    expected = "theirs: +0.1000 (95% interval +0.1000 to +0.1000, 3 images)"
    assert said == f"IoU minus that of {tmp_path}/{expected}"
    with pytest.raises(ValueError, match="hold the scores of different images"):
        cross_validate.compare(ours, scores_of(tmp_path / "less", a=0.9))


def test_every_fold_is_trained_and_all_are_scored_once(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command[command.index(cross_validate.sys.executable) + 1 :])
        if commands[-1][0] == "sample.py":
            scores_of(tmp_path / "samples_out_of_fold", a=0.75)

    monkeypatch.setattr(runs.subprocess, "run", run)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    scores_of(tmp_path / "other" / "samples_out_of_fold", a=0.5)
    options = ["--folds=2", "--minutes=3", "--side_by_side=2", "--config.data.dir=somewhere"]
    options += ["--config=configs/isic2016_64.py", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["", *options, f"--against={tmp_path / 'other'}"])
    cross_validate.main()
    *trained, sampled = commands
    assert sorted(command[1] for command in trained) == [
        f"--workdir={tmp_path / f'fold{fold}'}" for fold in (0, 1)
    ]
    for command in trained:
        fold = command[1][-1]
        assert [flag.removeprefix("--config.") for flag in command[3:]] == [
            "data.folds=2",
            "validation.every=0",
            "train.max_minutes=3.0",
            f"data.fold={fold}",
            "data.dir=somewhere",
        ]
    workdirs = [f"--workdir={tmp_path / name}" for name in ("fold0", "fold1")]
    out = f"--out={tmp_path / 'samples_out_of_fold'}"
    place = "--config.data.dir=somewhere"
    assert sampled == ["sample.py", *workdirs, "--split=out_of_fold", out, place]
    assert "+0.2500 (95% interval +0.2500 to +0.2500, 1 images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, message",
    [
        ("--folds=1", "--folds=1: at least 2"),
        ("--minutes=0", "--minutes=0.0: above 0"),
        ("--against=/nowhere", "--against=/nowhere holds no samples_out_of_fold/metrics.csv"),
        ("--side_by_side=999", "--side_by_side=999: at least 1, at most a core each"),
        (
            "--config.validation.every=5",
            "--config.validation.every=5: leave it out, because each fold sets this field",
        ),
        ("--config.data.fold=1", "--config.data.fold=1: leave it out"),
    ],
)
def test_options_that_do_not_fit_are_told_before_training(option, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "--config=configs/isic2016_64.py", option])
    monkeypatch.setattr(runs.subprocess, "run", None)
    with pytest.raises(SystemExit):
        cross_validate.main()
    assert message in capsys.readouterr().err


def test_a_failed_fold_names_its_log(tmp_path, monkeypatch):
    options = [f"--out={tmp_path}", "--config=configs/isic2016_64.py", "--config.nosuch=1"]
    monkeypatch.setattr("sys.argv", ["", *options])
    with pytest.raises(SystemExit, match=r"error: training fold 0 failed; .*fold0/train.log says"):
        cross_validate.main()
    assert "nosuch" in (tmp_path / "fold0" / "train.log").read_text()
