"""tools/bound.py of a run, as a user starts it."""

import numpy as np
import pytest

from segdiff_jax.runtime import command
from tests.conftest import save_untrained
from tools import bound


@pytest.fixture
def run(tiny_config, tmp_path, monkeypatch):
    """The workdir of a checkpoint with a learned variance, never trained."""
    monkeypatch.setattr(command, "keep_compiled_programs", lambda: None)
    config = tiny_config()
    config.model.out_channels = 2
    config.diffusion.variance = "learned_range"
    config.diffusion.update(loss="mse", schedule="cosine", num_timesteps=4)
    return save_untrained(config, tmp_path)


@pytest.mark.slow
def test_the_parts_add_up_and_do_not_depend_on_batches(run, monkeypatch, capsys):
    total, prior, vb = bound.measure(str(run), "test", 0, 2)
    assert vb.shape == (5, 4) and (vb > 0).all() and (total > prior).all()
    np.testing.assert_allclose(total, prior + vb.sum(1), rtol=1e-5)
    assert capsys.readouterr().out.splitlines()[-1] == "5 of 5 images"
    arguments = [f"--workdir={run}", "--num_images=3", "--batch_size=3"]
    monkeypatch.setattr("sys.argv", ["bound", *arguments])
    bound.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 3 images" and len(lines) == 5
    numbers = [float(line[16:]) for line in lines[1:]]
    expected = total[:3].mean(), prior[:3].mean(), vb[:3, 1:].sum(1).mean(), vb[:3, 0].mean()
    np.testing.assert_allclose(numbers, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, message",
    [("--split=tset", "tset"), ("--batch_size=0", "--batch_size at least 1")],
)
def test_mistakes_are_told_in_sentences(run, monkeypatch, argument, message):
    monkeypatch.setattr("sys.argv", ["bound", f"--workdir={run}", argument])
    with pytest.raises(SystemExit) as end:  # The interpreter writes a text and has status 1.
        bound.main()
    assert end.value.code.startswith("error: ") and message in end.value.code
