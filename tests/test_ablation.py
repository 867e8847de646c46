"""The rows of the ablation are configs, and its tables hold what the runs left."""

import json
from pathlib import Path

import pytest

from configs import default, isic2016_64, isic2016_64_paper
from segdiff_jax.config import flatten
from segdiff_jax.training.loop import check_run
from tools import ablation, runs


@pytest.mark.parametrize("row", ablation.ROWS)
def test_a_row_is_a_config(row):
    config = default.get_config()
    changes = ablation.overrides(row)
    config.update_from_flattened_dict(changes)
    config.train.batch_size = 4 * config.train.batch_size  # The tests' four devices.
    check_run(config)
    parent = ablation.ROWS[row][0]
    assert parent is None or changes != ablation.overrides(parent)


def test_the_rows_are_the_configs():
    """`paper` is isic2016_64_paper.py on another network, `batch_norm` isic2016_64.py."""

    def fields(config, *sections):
        flat = flatten(json.loads(config.to_json()))
        return {name: flat[name] for name in flat if name.startswith(sections)}

    def row(name):
        config = default.get_config()
        config.update_from_flattened_dict(ablation.overrides(name))
        return config

    recipe = "diffusion.", "data.soft", "train.batch"
    recipe = *recipe, "train.optimizer", "train.learning_rate", "train.schedule"
    assert fields(row("paper"), *recipe) == fields(isic2016_64_paper.get_config(), *recipe)
    recipe = *recipe, "model.", "augment."
    assert fields(row("batch_norm"), *recipe) == fields(isic2016_64.get_config(), *recipe)


def test_a_run_of_another_row_is_not_taken_for_this_one(tmp_path, monkeypatch):
    (tmp_path / "2-minutes" / "scale-seed0").mkdir(parents=True)
    before = runs.config_of("configs/default.py", ablation.overrides("scale"))
    before.diffusion.input_scale, before.train.max_minutes = 0.5, 2.0
    (tmp_path / "2-minutes" / "scale-seed0" / "config.json").write_text(before.to_json())
    monkeypatch.setattr("sys.argv", ["", "--minutes=2", f"--out={tmp_path}", "--rows=scale"])
    with pytest.raises(SystemExit, match=r"config.json has another diffusion.input_scale: move"):
        ablation.main()


def write_metrics(folder, iou, low):
    folder.mkdir(parents=True)
    metrics = {"mean": {"iou": iou}, "conditions": {"contrast": {"low": {"iou": low}}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_tables_show_what_is_there(tmp_path, monkeypatch, capsys):
    for seed, iou in ((0, 0.5), (1, 0.6)):
        run = tmp_path / "16-minutes" / f"noisy-seed{seed}"
        (run / "checkpoints" / "last" / "123").mkdir(parents=True)
        write_metrics(run / "validation-steps=5-samples=1-sampler=ddim", iou, 0.1)
        write_metrics(run / "test-steps=5-samples=1-sampler=ddim", 0.25, 0.125)
    write_metrics(run / "validation-steps=1-samples=1-sampler=ddim-flips=False", 0.6, 0.1)
    write_metrics(run / "validation-steps=20-samples=1-sampler=dpm_solver_pp_2m", 0.75, 0.1)
    write_metrics(run / "validation-steps=1-samples=9-sampler=ddim-flips=True", 0.7, 0.1)
    arguments = ["--only_print", f"--out={tmp_path}", f"--sampling_of={run}"]
    monkeypatch.setattr("sys.argv", ["ablation", *arguments, "--rows", "noisy", "x0"])
    ablation.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| noisy | 123 ± 0 | 0.550 ± 0.071 |  |  | 0.250 ± 0.000 | 0.125 ± 0.000 |" in lines
    assert "| x0 |  |  |  |  |  |  |" in lines
    assert "| 5 | 0.6000 |  |" in lines and "| 20 |  | 0.7500 |" in lines
    assert "| 1 | 0.6000 |  |" in lines and "| 9 |  | 0.7000 |" in lines


def test_commands_carry_the_row(tmp_path, monkeypatch, capsys):
    commands = []

    def record(command, **_):
        commands.append(command[1:])
        if command[1] == "sample.py":
            write_metrics(Path(next(f for f in command if f.startswith("--out="))[6:]), 0.5, 0.1)

    monkeypatch.setattr(runs.subprocess, "run", record)
    arguments = ["--minutes=2", f"--out={tmp_path}", "--rows=scale", "--config.data.dir=somewhere"]
    monkeypatch.setattr("sys.argv", ["ablation", *arguments])
    ablation.main()
    train, *samples = commands
    assert train[:2] == ["train.py", f"--workdir={tmp_path}/2-minutes/scale-seed0"]
    for flag in (
        "--config=configs/default.py",
        "--config.diffusion.input_scale=0.3",
        "--config.diffusion.prediction=x0",
        "--config.data.extra_datasets=()",
        "--config.train.max_minutes=2.0",
        "--config.seed=0",
        "--config.data.dir=somewhere",
    ):
        assert flag in train
    assert [command[3] for command in samples] == [
        f"--split={split}" for split in ("validation", "validation", "validation", "test")
    ]
    assert "--artefact=vignette" in samples[2] and "--steps=1" in samples[1]
    assert "| scale |  | 0.500 | 0.500 | 0.500 | 0.500 | 0.100 |" in capsys.readouterr().out
    commands.clear()
    ablation.main()
    assert [command[0] for command in commands] == ["train.py"]  # Which says it has ended.


def test_the_paper_is_sampled_its_own_way_first(tmp_path, monkeypatch, capsys):
    run = tmp_path / "16-minutes" / "paper-seed0"
    write_metrics(run / "validation-steps=100-samples=1-sampler=ddpm-clip=False", 0.25, 0.1)
    write_metrics(run / "validation-steps=10-samples=1-sampler=ddim", 0.375, 0.1)
    monkeypatch.setattr("sys.argv", ["", "--only_print", f"--out={tmp_path}", "--rows", "paper"])
    ablation.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "| paper, DDPM 100, seed 0 |  | 0.250 |  |  |  |  |"
    assert lines[-1] == "| paper |  | 0.375 |  |  |  |  |"
