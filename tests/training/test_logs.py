"""What is logged, and when NaN is an error."""

import csv
import math

import numpy as np
import pytest

from configs import default
from segdiff_jax.runtime import parallel
from segdiff_jax.training.logs import Logs, check_finite, has_validation


def metrics(loss, nonfinite=0):
    return {"bce": loss / 2, "dice": loss / 2, "grad_norm": 2 * loss, "loss": loss} | {
        "nonfinite": nonfinite
    }


def opened(workdir, step, num_steps, pending=(), **fields):
    """Logs without trackers, of batches of four."""
    config = default.get_config()
    config.train.update(num_steps=num_steps, batch_size=4, trackers=(), **fields)
    return Logs(workdir, config, step, pending)


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["loss", "bce", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_named_with_its_terms(name, value):
    window = [metrics(1.0), metrics(1.0) | {name: value, "nonfinite": 1}, metrics(math.nan, 2)]
    with pytest.raises(FloatingPointError, match=rf"^step 9: .*{name} {value}"):
        check_finite(window, 10)
    check_finite(window[:1], 8)


def test_so_many_skipped_steps_in_a_row_are_no_error():
    window = [metrics(math.nan, 1), metrics(math.nan, 2), metrics(1.0), metrics(math.nan, 1)]
    check_finite(window, 4, max_skipped=2)
    with pytest.raises(FloatingPointError, match="step 2: bce nan"):
        check_finite(window, 4, max_skipped=1)
    with pytest.raises(FloatingPointError, match="step 5: .*loss nan"):  # Its update was made.
        check_finite([*window, metrics(1.0) | {"loss": math.nan}], 5, max_skipped=2)


def test_skipped_steps_are_told_of_and_count_in_no_mean(tmp_path, capsys):
    with opened(tmp_path, 0, 6, max_skipped=3) as logs:
        for one in (metrics(1.0), metrics(math.nan, 1), metrics(3.0)):
            logs.collect(one, 0.0)
        logs.flush(3, 0.1, 1.0)
        for count in (1, 2, 3):
            logs.collect(metrics(math.nan, count), 0.0)
        logs.flush(6, 0.1, 1.0)
    assert "1 steps up to 3 had NaN or infinite gradients: skipped" in capsys.readouterr().out
    first, second = rows(tmp_path)
    assert (first["loss"], first["bce"], first["grad_norm"], first["mse"]) == ("2", "1", "4", "")
    assert (second["step"], second["loss"]) == ("6", "")


def test_what_is_pending_goes_into_the_row_after_a_restart(tmp_path):
    with opened(tmp_path, 0, 4) as logs:
        for loss in (1.0, 2.0):
            logs.collect(metrics(loss), 0.0)
        pending = logs.pending(2)
    with opened(tmp_path, 2, 4, pending) as logs:
        logs.collect(metrics(6.0), 0.0)
        logs.flush(3, 0.1, 1.0)
        assert logs.pending(3) == []
    assert [row["loss"] for row in rows(tmp_path)] == ["3"]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    with opened(tmp_path, 0, 4) as logs:
        logs.collect(metrics(1.0), 0.0)
        logs.flush(1, 0.1, 1.0)
        logs.validation(1, {"iou": 0.5}, [])
        logs.collect(metrics(math.nan), 0.0)
        with pytest.raises(FloatingPointError, match="step 2: "):
            logs.flush(2, 0.1, 1.0)
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_each_score_of_a_validation_has_a_column(tmp_path, capsys):
    """Which stays where it was; a resumed run that computes another gets another."""
    config = default.get_config()
    config.train.trackers, config.validation.scores = (), ("hd95", "iou")
    pictures = [np.zeros((2, 4, 4, 3), np.uint8)] * 3
    with Logs(tmp_path, config, 0) as logs:
        logs.collect(metrics(1.0), 0.0)
        logs.flush(1, 0.1, 1.0)
        logs.validation(1, {"hd95": 7.25, "iou": 0.5}, pictures)
        logs.collect(metrics(2.0), 0.0)
        logs.flush(2, 0.1, 1.0)
    assert ", hd95 7.250, " in capsys.readouterr().err
    first, validation, second = rows(tmp_path)
    assert list(first)[-2:] == ["validation_hd95", "validation_iou"]
    found = validation["step"], validation["validation_hd95"], validation["validation_iou"]
    assert found == ("1", "7.25", "0.5") and validation["loss"] == second["validation_iou"] == ""
    assert has_validation(tmp_path, 1) and not has_validation(tmp_path, 2)
    config.validation.scores = ("iou", "dice")
    with Logs(tmp_path, config, 1) as logs:
        logs.validation(1, {"iou": 0.25, "dice": 0.75}, pictures)
    kept = [
        (r["step"], r["loss"], r["validation_iou"], r["validation_dice"]) for r in rows(tmp_path)
    ]
    assert kept == [("1", "1", "", ""), ("1", "", "0.5", ""), ("1", "", "0.25", "0.75")]
