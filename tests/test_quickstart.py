"""The notebook runs; with a tiny network for a few steps."""

import nbformat
import pytest

from tests.conftest import ROOT

nbclient = pytest.importorskip("nbclient")

TINY = {
    "data.dataset": "synthetic_lesions/small",
    "data.image_size": 16,
    "model.channel_mult": (1, 1),
    "model.attention_resolutions": (),
    "model.rrdb_width": 8,
    "model.rrdb_growth": 4,
    "train.batch_size": 4,
    "train.num_steps": 2,
    "train.max_minutes": 0.0,
    "train.half_size_share": 0.0,
    "train.warmup_steps": 1,
    "validation.num_images": 4,
}


@pytest.mark.slow
def test_the_notebook_runs_and_shows_pictures(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith("workdir ="))
    settings = TINY | {"data.dir": str(tmp_path / "data")}
    cell.source = f"workdir, settings = {str(tmp_path / 'run')!r}, {settings!r}"
    kernel = nbclient.NotebookClient(notebook, resources={"metadata": {"path": ROOT / "docs"}})
    kernel.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "trained: 2 steps" in text and "mean IoU of 30 test images: 0." in text
    assert any("image/png" in output.get("data", ()) for output in outputs)
