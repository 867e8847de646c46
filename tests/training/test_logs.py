"""What is logged, and when NaN is an error."""

import csv
import math

import pytest

from segdiff_jax.training.logs import Logs, check_finite


def metrics(loss, nonfinite=0):
    return {"bce": loss / 2, "dice": loss / 2, "grad_norm": 2 * loss, "loss": loss} | {
        "nonfinite": nonfinite
    }


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
    with Logs(tmp_path, 0, 6, 0, max_skipped=3) as logs:
        for one in (metrics(1.0), metrics(math.nan, 1), metrics(3.0)):
            logs.collect(one, 0.0)
        logs.flush(3, 0.1, 1.0, 4)
        for count in (1, 2, 3):
            logs.collect(metrics(math.nan, count), 0.0)
        logs.flush(6, 0.1, 1.0, 4)
    assert "1 steps up to 3 had NaN or infinite gradients: skipped" in capsys.readouterr().out
    first, second = rows(tmp_path)
    assert (first["loss"], first["bce"], first["grad_norm"], first["mse"]) == ("2", "1", "4", "")
    assert (second["step"], second["loss"]) == ("6", "")


def test_what_is_pending_goes_into_the_row_after_a_restart(tmp_path):
    with Logs(tmp_path, 0, 4, 0) as logs:
        for loss in (1.0, 2.0):
            logs.collect(metrics(loss), 0.0)
        pending = logs.pending(2)
    with Logs(tmp_path, 2, 4, 0, pending=pending) as logs:
        logs.collect(metrics(6.0), 0.0)
        logs.flush(3, 0.1, 1.0, 4)
        assert logs.pending(3) == []
    assert [row["loss"] for row in rows(tmp_path)] == ["3"]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path, capsys):
    with Logs(tmp_path, 0, 4, 0, writes=False) as logs:
        logs.collect(metrics(1.0), 0.0)
        logs.flush(1, 0.1, 1.0, 4)
        logs.validation(1, 0.5, [])
        logs.collect(metrics(math.nan), 0.0)
        with pytest.raises(FloatingPointError, match="step 2: "):
            logs.flush(2, 0.1, 1.0, 4)
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")
