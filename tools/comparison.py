"""The runs of the comparison of docs/results.md and what they say; see compare.py."""

import csv
import dataclasses
import functools
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from configs.compare import RECIPES
from segdiff_jax.config import complete
from segdiff_jax.data.pipeline import ResizedSource
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.inference.load import Model, load
from tools.runs import Run, Training, column_of, train_side_by_side

SEEDS = {"segdiff": 3, "unet": 3}  # of other models 1
SPLITS = {"validation": "validation", "test": "stand-in test"}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One way to predict.

    Attributes:
        models: whose probabilities are averaged; the same model twice, from two seeds.
        sampler: the fields of config.sampler that change.
    """

    label: str
    models: tuple[str, ...]
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of the folder with its scores, in the workdir of the first model."""
        return re.sub(r"\W+", "-", self.label.lower()).strip("-")


PLAIN = {"flips": False, "rotations": False}
FLIPPED = {"flips": True, "rotations": False}
ONCE = {**PLAIN, "steps": 1, "samples": 1}
MIRRORED = {**FLIPPED, "steps": 1, "samples": 4}
MAIN = (
    Row("U-Net", ("unet",), PLAIN),
    Row("U-Net, mirrored", ("unet",), FLIPPED),
    Row("MedT", ("medt",), PLAIN),
    Row("MedT, mirrored", ("medt",), FLIPPED),
    Row("SegDiff, 1 sample", ("segdiff",), ONCE),
    Row("SegDiff", ("segdiff",), MIRRORED),
    Row("MedSegDiff, 1 sample", ("medsegdiff",), ONCE),
    Row("MedSegDiff", ("medsegdiff",), MIRRORED),
    Row("SegDiff + U-Net", ("segdiff", "unet"), MIRRORED),
)
MORE = (
    Row("SegDiff, 5 steps", ("segdiff",), {**MIRRORED, "steps": 5}),
    Row("SegDiff, 9 samples, not mirrored", ("segdiff",), {**ONCE, "samples": 9}),
    Row("U-Net + U-Net", ("unet", "unet"), FLIPPED),
    Row("SSN, 16 samples", ("ssn",), {**PLAIN, "samples": 16}),
    Row("SSN, 16 samples, mirrored", ("ssn",), {**FLIPPED, "samples": 16}),
)
BASELINE, DIFFUSION, ENSEMBLE = MAIN[1], MAIN[5], MAIN[8]


class Comparison:
    """The runs and their scores; scores that are missing are made."""

    def __init__(self, out: Path, seeds: int, recipe: str = "isic2016_64"):
        (_, self.models), self._recipe = RECIPES[recipe], recipe
        self.runs = {
            (model, seed): Run(out / f"{model}-seed{seed}", only_print=False)
            for seed in range(seeds)
            for model in self.models
            if seed < SEEDS.get(model, 1)
        }
        self._counts = Counter(model for model, _ in self.runs)

    def train(self, minutes: float, side_by_side: int, flags: list[str]) -> None:
        """Trains what is not trained yet, see `train_side_by_side`."""
        trainings = [
            Training(
                run,
                f"{model} from seed {seed}",
                f"configs/compare.py:{model},{self._recipe}",
                {"seed": seed, "train.max_minutes": minutes},
            )
            for (model, seed), run in self.runs.items()
        ]
        train_side_by_side(trainings, side_by_side, flags)

    def config(self, model: str) -> ConfigDict:
        """The config of the model's first run, a new one each time."""
        return complete(json.loads((self.runs[model, 0].workdir / "config.json").read_text()))

    @property
    def rows(self) -> list[Row]:
        """The rows whose models are trained from enough seeds."""
        return [row for row in MAIN + MORE if self.seeds(row)]

    def seeds(self, row: Row) -> list[int]:
        """The seeds from which all models of the row are trained."""
        if any(self._counts[model] < times for model, times in Counter(row.models).items()):
            return []
        return list(range(min(self._counts[model] for model in row.models)))

    def members(self, row: Row, seed: int) -> list[Run]:
        """The runs of the row's models; of the same model again, from the next seed."""
        seeds = (seed + row.models[:i].count(model) for i, model in enumerate(row.models))
        return [self.runs[m, s % self._counts[m]] for m, s in zip(row.models, seeds, strict=True)]

    @functools.cache  # noqa: B019, which is for objects that come and go
    def trained(self, row: Row, seed: int) -> Model:
        """The row's models, as sample.py loads them."""
        folders = [run.workdir for run in self.members(row, seed)]
        return load(folders, **row.sampler)

    def folder(self, row: Row, split: str, seed: int) -> Path:
        """The folder that holds what sample.py would write."""
        return self.runs[row.models[0], seed].workdir / f"{split}-{row.folder}"

    @functools.cache  # noqa: B019
    def metrics(self, row: Row, split: str, seed: int) -> dict:
        """The contents of metrics.json, which is made anew if other settings made it."""
        out, trained = self.folder(row, split, seed), self.trained(row, seed)
        path, settings = out / "metrics.json", json.loads(json.dumps(trained.settings))
        if not path.exists() or json.loads(path.read_text())["settings"] != settings:
            data = trained.config.data
            records = load_source(data.dataset, split, *where(data))
            examples, title = NativeExamples(records, trained), f"{row.label} on {split}"
            evaluate([examples], out, trained.settings, title)
        return json.loads(path.read_text())

    def scores(self, row: Row, split: str, *path: str) -> list[float]:
        """One number of metrics.json, of every seed; NaN where it is not known."""
        values = []
        for seed in self.seeds(row):
            value = self.metrics(row, split, seed)
            for name in path:
                value = (value or {}).get(name)
            values.append(np.nan if value is None else value)
        return values

    def ious(self, row: Row, split: str) -> np.ndarray:
        """f64[seeds, images], sorted by id."""
        rows = []
        for seed in self.seeds(row):
            self.metrics(row, split, seed)
            rows.append(list(column_of(self.folder(row, split, seed), "iou").values()))
        return np.array(rows)

    def training(self, model: str) -> tuple[list[float], list[float]]:
        """Images a second (the median of what a run logged) and steps done, of every seed."""
        speeds, steps = [], []
        for (name, _), run in self.runs.items():
            if name == model:
                with open(run.workdir / "metrics.csv", newline="") as file:
                    logged = [row["images_per_second"] for row in csv.DictReader(file)]
                speeds.append(statistics.median(float(x) for x in logged[1:] or logged if x))
                steps.append(run.steps())
        return speeds, steps

    def seconds(self, rows: Sequence[Row], repeats: int = 3) -> dict[Row, float]:
        """Seconds an image: the median of several rounds. In each, all rows segment 8 images."""
        data = self.trained(rows[0], 0).config.data
        records = load_source(data.dataset, "validation", *where(data))
        source = ResizedSource(records, data.image_size, limit=8)
        images = np.stack([source[i]["image"] for i in range(len(source))])
        images = images[: len(images) // jax.local_device_count() * jax.local_device_count()]
        times = {row: [] for row in rows}
        for _ in tqdm(range(repeats + 1), "timing", unit="round"):  # The first compiles.
            for row in rows:
                trained, ids = self.trained(row, 0), [str(i) for i in range(len(images))]
                size = min(trained.batch_size, len(images))
                start = time.perf_counter()
                for i in range(0, len(images), size):
                    batch = slice(i, i + size)
                    trained.sample(images[batch], ids[batch])
                times[row].append((time.perf_counter() - start) / len(images))
        return {row: statistics.median(of[1:]) for row, of in times.items()}
