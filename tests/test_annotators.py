"""tools/annotators.py and tools/experts.py, of a run that was never trained."""

import re

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.builders.synthetic_lesions.annotators import ANNOTATORS, draw_annotated
from segdiff_jax.data.builders.synthetic_lesions.synthetic_lesions_dataset_builder import (
    Builder,
    SyntheticLesionsConfig,
)
from segdiff_jax.runtime import command
from tests.conftest import save_untrained
from tools import annotators, experts


@pytest.fixture
def run(tiny_config, tmp_path, monkeypatch):
    small = {"num_train": 1, "num_validation": 1, "num_test": 5, "test_masks": 8}
    tiny = SyntheticLesionsConfig(name="annotators", size=32, **small)
    monkeypatch.setitem(Builder.builder_configs, "annotators", tiny)
    monkeypatch.setattr(command, "keep_compiled_programs", lambda: None)
    config = tiny_config()
    config.data.update(dataset=annotators.DATASET, dir=str(tmp_path), annotators=("wide",))
    config.diffusion.loss = "bce"
    return save_untrained(config, tmp_path)


@pytest.mark.slow
def test_what_is_printed_and_drawn(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["annotators", f"--workdir={run}"])
    annotators.main()
    lines = capsys.readouterr().out.splitlines()[-16:]
    assert lines[0] == f"{run}, 5 test images"
    distances = [re.fullmatch(r"(.*): energy distance (\S+) \(.*\)", x) for x in lines[1:5]]
    names = "truth, drawn again (the floor)", "samples of the network", "level sets", "pixels"
    assert tuple(found[1] for found in distances) == names
    assert float(distances[0][2]) < 0.1 < float(distances[1][2])
    assert re.fullmatch(r"samples above the floor, of level sets: \d+% \(\d+% to \d+%\)", lines[5])
    shares = [[int(x) for x in re.findall(r"(\d+)%", line)] for line in lines[6:14:2]]
    assert all(99 <= sum(of) <= 101 for of in shares) and shares[0][2] == 0
    assert all(re.search(r"are \d+% apart$", line) for line in lines[7:14:2])
    assert re.fullmatch(r"like k: nearest to masks of k for (\d+)% \(.*\) of images", lines[14])
    assert re.fullmatch(r"of each annotator: wide \d+%", lines[15])
    arguments = [f"--workdir={run}", "--rows=2", f"--out={run / 'a.png'}"]
    monkeypatch.setattr("sys.argv", ["experts", *arguments])
    experts.main()
    picture = np.asarray(Image.open(run / "a.png"))
    assert picture.shape[1] > 4 * picture.shape[0] and np.ptp(picture[..., :3]) == 255


def test_masks_of_an_annotator_are_like_that_annotator():
    of_each = annotators.masks_of_each([(number, 64) for number in range(4)])
    for name in ANNOTATORS:
        masks = [draw_annotated((0, 2, n), 64, [name] * 16, hand=2)[1] > 0 for n in range(4)]
        assert all(annotators.like(name, masks, of_each))
    assert not any(annotators.like("middle", masks, of_each))  # They are those of "wide".
