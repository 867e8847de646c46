"""The challenge's own scorer must say what we say of the same folder."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.evaluation.outputs import OutputFolder
from segdiff_jax.evaluation.tables import write_metrics
from segdiff_jax.inference.combine import Segmentation
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("isic_challenge_scoring")
CONDITIONS = {"dark_corners": "no", "contrast": "low", "lesion_size": "small", "hair": "no"}


@pytest.fixture
def folders(tmp_path):
    """An output folder and an archive of true masks: smooth blobs, an empty and two full masks."""
    rng, rows, out = np.random.default_rng(0), [], OutputFolder(tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "truth.zip", "w") as archive:
        for i in range(8):
            shape = tuple(rng.integers(20, 90, 2))
            noise = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, 4, 4))
            truth, mask = noise[0] > 0.01, noise[0] + 0.2 * noise[1] > 0.01
            if i >= 5:
                truth, mask = truth & (i == 5), (mask & False) | (i == 7)
            id, levels = f"ISIC_{i:07d}", np.zeros((2, 256))
            found = Segmentation(np.uint8(mask), np.float32(mask)[..., None], None)
            image = np.zeros((*shape, 3), np.uint8)
            out.write({"id": id, "image": image, "truth": None}, found, {})
            path = tmp_path / f"{id}_Segmentation.png"
            Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(path)
            archive.write(path, f"Part1_GroundTruth/{path.name}")
            row = {"id": id, "area": mask.mean(), "disagreement": None, "levels": levels}
            rows.append(
                row
                | {"scores": segmentation_scores(mask, truth), "conditions": CONDITIONS}
                | {"foreground": bool(truth.any())}
            )
    write_metrics(out.path, rows, {})
    return out.path, tmp_path / "truth.zip"


def score(out, truth):
    command = [sys.executable, "-m", "tools.official_score", f"--out={out}", f"--truth={truth}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_official_scorer_says_the_same(folders):
    done = score(*folders)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[2:-1]}
    mean = json.loads((folders[0] / "metrics.json").read_text())["mean"]
    assert 0.2 < mean["iou"] < 0.9
    assert float(lines["jaccard"][0]) == pytest.approx(mean["iou"], abs=1e-6)
    assert len(lines) == 6 and all(official == own for official, own in lines.values())


def test_another_score_is_an_error(folders):
    path = folders[0] / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["mean"]["dice"] += 1e-5
    path.write_text(json.dumps(metrics))
    done = score(*folders)
    assert done.returncode == 1 and "largest difference 1.0e-05" in done.stdout


def test_what_is_missing_is_said(folders, tmp_path):
    (folders[0] / "masks" / "ISIC_0000003_Segmentation.png").unlink()
    done = score(*folders)
    assert done.returncode == 1 and "ISIC_0000003_Segmentation.png" in done.stderr
    assert "Traceback" not in done.stderr
    done = score(tmp_path / "none", folders[1])
    assert done.returncode == 1 and "none/metrics.json" in done.stderr
