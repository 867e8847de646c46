"""tools/augmentations.py as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.artefacts import ARTEFACTS
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_sheet_shows_every_artefact_and_the_moved_mask(tiny_isic, tmp_path):
    out = tmp_path / "sheet.png"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tools.augmentations", "--config=configs/isic2016_64.py"),
            *("--config.data.image_size=48", f"--config.data.manual_dir={tiny_isic}"),
            *(f"--config.data.dir={tmp_path}", f"--out={out}", "--images=2"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla-tests")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(out)
    sheet = np.asarray(Image.open(out).convert("RGB")).astype(int)
    columns = 1 + len(ARTEFACTS) + 4
    assert sheet.shape == (20 + 2 * 132, columns * 132, 3)
    cells = sheet[20:].reshape(2, 132, columns, 132, 3).swapaxes(1, 2)[:, :, :128, :128]
    changes = np.abs(cells[:, 1:] - cells[:, :1]).max(axis=(2, 3, 4))
    assert (changes.max(axis=0) > 2).all(), changes
    green = (cells == (0, 255, 0)).all(axis=-1).sum(axis=(2, 3))
    assert (green[:, -4:] > 50).all()
    assert (green[:, :-4] == 0).all()
