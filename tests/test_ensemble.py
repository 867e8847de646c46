"""The tool that trains several models or all folds."""

import json
import os

import pytest

from segdiff_jax.runtime.errors import UserError
from tools import ensemble, runs
from tools.difference import difference


def scores_of(folder, **ious):
    folder.mkdir(parents=True)
    lines = "\n".join(f"{id},{iou}" for id, iou in ious.items())
    (folder / "metrics.csv").write_text(f"id,iou\n{lines}\n")
    return folder


def test_two_cross_validations_are_compared_image_by_image(tmp_path):
    ours = scores_of(tmp_path / "ours", a=0.9, b=0.8, c=0.7)
    theirs = scores_of(tmp_path / "theirs", c=0.6, b=0.7, a=0.8)
    said = difference(ours, theirs)
    expected = "+0.1000 ± 0.0000 (standard error; 95% interval +0.1000 to +0.1000, 3 images)"
    assert said == f"IoU minus that of {tmp_path}/theirs: {expected}"
    wider = scores_of(tmp_path / "wider", a=0.9, b=0.7, c=0.5)  # 0, 0.1 and 0.2 less.
    assert "+0.1000 ± 0.0577 (standard error" in difference(ours, wider)
    with pytest.raises(UserError, match="hold the scores of different images"):
        difference(ours, scores_of(tmp_path / "less", a=0.9))
    with pytest.raises(UserError, match="has no column energy: sample again"):
        difference(ours, theirs, "energy")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """What the tool would run; scoring gives two images IoU 0.75."""
    found = []

    def run(command, **_):
        found.append(command[command.index(ensemble.sys.executable) + 1 :])
        if found[-1][0] == "sample.py":
            scores_of(tmp_path / "samples_out_of_fold", a=0.75, b=0.75)

    monkeypatch.setattr(runs.subprocess, "run", run)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return found


def test_several_models_are_trained_and_their_folder_is_scored(tmp_path, monkeypatch, commands):
    configs = [f"--config=configs/isic2016_{size}.py" for size in (64, 128, 64)]
    options = [*configs, "--minutes=3", f"--out={tmp_path}", "--config.data.dir=somewhere"]
    monkeypatch.setattr("sys.argv", ["", *options])
    ensemble.main()
    names = ["isic2016_64", "isic2016_128", "isic2016_64_seed1"]
    assert json.loads((tmp_path / "members.json").read_text()) == names
    *trained, sampled = commands
    common = ["--config.train.max_minutes=3.0", "--config.data.dir=somewhere"]
    for name, config, command in zip(names, configs, trained, strict=True):
        seed = ["--config.seed=1"] if name.endswith("seed1") else []
        flags = [common[0], *seed, common[1]]
        assert command == ["train.py", f"--workdir={tmp_path / name}", config, *flags]
    assert sampled == ["sample.py", f"--workdir={tmp_path}", "--config.data.dir=somewhere"]


def test_every_fold_has_all_models(tmp_path, monkeypatch, commands):
    configs = ["--config=configs/isic2016_64.py", "--config=configs/isic2016_128.py"]
    monkeypatch.setattr("sys.argv", ["", *configs, "--folds=2", f"--out={tmp_path}"])
    ensemble.main()
    names = ["isic2016_64", "isic2016_128"]
    for fold in range(2):
        folder = tmp_path / f"fold{fold}"
        assert json.loads((folder / "members.json").read_text()) == names
        for name, command in zip(names, commands[2 * fold :], strict=False):
            assert command[1] == f"--workdir={folder / name}"
            assert f"--config.data.fold={fold}" in command
    workdirs = [f"--workdir={tmp_path / f'fold{fold}'}" for fold in range(2)]
    out = f"--out={tmp_path / 'samples_out_of_fold'}"
    assert commands[4:] == [["sample.py", *workdirs, "--split=out_of_fold", out]]


def test_every_fold_is_trained_and_all_are_scored_once(tmp_path, monkeypatch, capsys, commands):
    scores_of(tmp_path / "other" / "samples_out_of_fold", a=0.5, b=0.5)
    options = ["--folds=2", "--minutes=3", "--side_by_side=2", "--config.data.dir=somewhere"]
    options += ["--config=configs/isic2016_64.py", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["", *options, f"--against={tmp_path / 'other'}"])
    ensemble.main()
    *trained, sampled = commands
    assert sorted(command[1] for command in trained) == [
        f"--workdir={tmp_path / f'fold{fold}'}" for fold in (0, 1)
    ]
    for command in trained:
        fold = command[1][-1]
        assert [flag.removeprefix("--config.") for flag in command[3:]] == [
            "train.max_minutes=3.0",
            "data.folds=2",
            "validation.every=0",
            f"data.fold={fold}",
            "data.dir=somewhere",
        ]
    workdirs = [f"--workdir={tmp_path / name}" for name in ("fold0", "fold1")]
    out = f"--out={tmp_path / 'samples_out_of_fold'}"
    place = "--config.data.dir=somewhere"
    assert sampled == ["sample.py", *workdirs, "--split=out_of_fold", out, place]
    assert "+0.2500 ± 0.0000 (standard error; 95% interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, message",
    [
        ("--folds=1", "--folds=1: at least 2, or 0"),
        ("--against={scores}", "--against needs --folds"),
        ("--minutes=0", "--minutes=0.0: above 0"),
        ("--against=/nowhere", "--against=/nowhere holds no samples_out_of_fold/metrics.csv"),
        ("--side_by_side=999", "--side_by_side=999: at least 1, at most a core each"),
        (
            "--config.validation.every=5",
            "--config.validation.every=5: leave it out, because this command sets it",
        ),
        ("--config.data.fold=1", "--config.data.fold=1: leave it out"),
    ],
)
def test_options_that_do_not_fit_are_told_before_training(
    option, message, tmp_path, monkeypatch, capsys
):
    scores_of(tmp_path / "samples_out_of_fold", a=0.5)
    folds = [] if "--folds" in option or "{scores}" in option else ["--folds=5"]
    options = ["--config=configs/isic2016_64.py", *folds, option.format(scores=tmp_path)]
    monkeypatch.setattr("sys.argv", ["", *options])
    monkeypatch.setattr(runs.subprocess, "run", None)
    with pytest.raises(SystemExit):
        ensemble.main()
    assert message in capsys.readouterr().err


def test_the_seed_is_the_commands_where_a_config_is_repeated(monkeypatch, capsys):
    config = "--config=configs/isic2016_64.py"
    monkeypatch.setattr("sys.argv", ["", config, "--config.seed=7", "--config.data.fold=1"])
    _, flags = ensemble.options_of()
    assert flags == ["--config.seed=7", "--config.data.fold=1"]
    monkeypatch.setattr("sys.argv", ["", config, config, "--config.seed=7"])
    with pytest.raises(SystemExit):
        ensemble.options_of()
    assert "--config.seed=7: leave it out" in capsys.readouterr().err


def test_a_folder_keeps_its_models(tmp_path):
    ensemble.list_members(tmp_path / "new", ["a", "b"])
    ensemble.list_members(tmp_path / "new", ["a", "b", "c"])  # One more may come.
    for names in (["a", "c"], []):
        with pytest.raises(ValueError, match="new holds other models: give another --out"):
            ensemble.list_members(tmp_path / "new", names)
    assert json.loads((tmp_path / "new" / "members.json").read_text()) == ["a", "b", "c"]
    (tmp_path / "new" / "members.json").write_text("5")
    with pytest.raises(ValueError, match="members.json is no list of names of folders"):
        ensemble.list_members(tmp_path / "new", ["a"])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ensemble.list_members(tmp_path / "run", [])
    with pytest.raises(ValueError, match="run holds other models"):
        ensemble.list_members(tmp_path / "run", ["a", "b"])


def test_a_failed_fold_names_its_log(tmp_path, monkeypatch):
    options = [
        "--folds=5",
        f"--out={tmp_path}",
        "--config=configs/isic2016_64.py",
        "--config.nosuch=1",
    ]
    monkeypatch.setattr("sys.argv", ["", *options])
    with pytest.raises(SystemExit, match=r"error: training fold 0 failed; .*fold0/train.log says"):
        ensemble.main()
    assert "nosuch" in (tmp_path / "fold0" / "train.log").read_text()
