"""The rows of the ablation are configs, and its tables hold what the runs left."""

import json

import pytest

from configs import isic2016_64
from segdiff_jax.data.augment import Augmentation
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.training.check import check_config
from tools import ablation


@pytest.mark.parametrize("row", ablation.ROWS)
def test_a_row_is_a_config(row):
    config = isic2016_64.get_config()
    config.train.batch_size = 8
    changes = ablation.overrides(row)
    config.update_from_flattened_dict(changes)
    config.train.batch_size = 4 * config.train.batch_size  # The tests' four devices.
    check_config(config)
    make_process(config.diffusion).loss_weights(config.diffusion.weight)
    Augmentation(**config.augment)
    parent = ablation.ROWS[row][0]
    assert parent is None or changes != ablation.overrides(parent)


def write_metrics(folder, iou, low):
    folder.mkdir(parents=True)
    strata = {"contrast": {"low": {"iou": low}}}
    (folder / "metrics.json").write_text(json.dumps({"mean": {"iou": iou}, "strata": strata}))


def test_tables_show_what_is_there(tmp_path, monkeypatch, capsys):
    for seed, iou in ((0, 0.5), (1, 0.6)):
        run = tmp_path / f"paper-seed{seed}"
        (run / "checkpoints" / "last" / "123").mkdir(parents=True)
        write_metrics(run / "validation-steps=10-votes=1", iou, 0.1)
        write_metrics(run / "test-steps=10-votes=1", 0.25, 0.125)
    monkeypatch.setattr(
        "sys.argv", ["ablation", "--only_print", f"--out={tmp_path}", "--rows", "paper", "x0"]
    )
    ablation.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| paper | 123 ± 0 | 0.550 ± 0.071 | 0.250 ± 0.000 |  |  | 0.125 ± 0.000 |" in lines
    assert "| x0 |  |  |  |  |  |  |" in lines
