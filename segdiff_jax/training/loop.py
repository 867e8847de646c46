"""Training from a config: data, steps, validation, logs, checkpoints, resuming."""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.checkpoint import Checkpoints
from segdiff_jax.data.augment import Augmentation
from segdiff_jax.data.pipeline import ResizedSource, train_iterator
from segdiff_jax.data.prepare import load_source
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.evaluate import validate
from segdiff_jax.evaluation.predict import Predictor
from segdiff_jax.models import init_params, make_model
from segdiff_jax.training.logs import Logs
from segdiff_jax.training.state import create_state, learning_rate, make_optimizer
from segdiff_jax.training.steps import train_step

# A run with another value of these would not be the same run.
FIXED = ("data.dataset", "data.image_size", "diffusion.", "model.", "seed", "train.batch_size")


def train(config: ConfigDict, workdir: str) -> None:
    """Trains until `train.num_steps` or `train.max_minutes`; goes on from the last checkpoint.

    Args:
        config: see configs/default.py.
        workdir: holds config.json, checkpoints/, metrics.csv and tensorboard/.
    Raises:
        ValueError: naming the config field or the data that does not fit.
        FloatingPointError: naming the step where the loss became NaN or infinite.
        OSError: naming what cannot be written.
    """
    Run(config, Path(workdir)).run()


class Run:
    """One run: built from its config and workdir, then `run` to its end."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.settings = config, json.loads(config.to_json())
        model, process = make_model(config.model), make_process(config.diffusion)
        tx = make_optimizer(config)
        self._step_fn = parallel.pmap_train_step(
            functools.partial(
                train_step,
                model=model,
                process=process,
                tx=tx,
                augment=Augmentation(**config.augment),
                ema_decay=config.train.ema_decay,
                ema_warmup=config.train.ema_warmup,
                microbatches=config.train.microbatches,
                axis_name=parallel.AXIS,
            )
        )
        sampler = config.sampler.copy_and_resolve_references()
        sampler.steps, sampler.votes = config.validation.steps, config.validation.votes
        self._predictor = Predictor(model, process, sampler, config.seed)
        self._open_data()

        self._checkpoints = Checkpoints(workdir)
        meta = self._checkpoints.last_meta()
        init_key, self._noise_key = jax.random.split(jax.random.key(config.seed))
        create = lambda key: create_state(init_params(model, key, config.data.image_size), tx)
        if meta is None:
            self._state, self._elapsed, self._best = jax.jit(create)(init_key), 0.0, -1.0
            workdir.mkdir(parents=True, exist_ok=True)
        else:
            report_changes(meta["config"], self.settings, workdir)
            self._state = self._checkpoints.restore_last(jax.eval_shape(create, init_key))
            self._batches.set_state(meta["iterator"])
            self._elapsed, self._best = meta["elapsed"], meta["best_iou"]
            print(f"resuming {workdir} at step {int(self._state.step)}", flush=True)
        (workdir / "config.json").write_text(json.dumps(self.settings, indent=2))
        params = sum(x.size for x in jax.tree.leaves(self._state.params))
        print(
            f"{config.model.name}, {params:,} parameters; {len(self._train)} training and "
            f"{len(self._validation)} validation images of {config.data.dataset}; "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            flush=True,
        )
        self._workdir, self._start = workdir, time.monotonic() - self._elapsed

    def _open_data(self) -> None:
        data, train = self.config.data, self.config.train

        def open_split(split, limit=None):
            records = load_source(data.dataset, split, data.dir, data.manual_dir or None)
            return ResizedSource(records, data.image_size, data.cache, limit)

        self._train = open_split("train")
        self._validation = open_split("validation", self.config.validation.num_images)
        self._batches = train_iterator(
            self._train,
            train.batch_size,
            self.config.seed,
            parallel.process_index(),
            parallel.process_count(),
            data.num_threads,
        )

    def run(self) -> None:
        """Steps, validates, logs and saves until the end; saves once more there."""
        train, validation = self.config.train, self.config.validation
        step = first = int(self._state.step)
        rate = learning_rate(self.config)
        window: list[Any] = []
        data_seconds, window_start, saved = 0.0, time.monotonic(), step
        with Logs(self._workdir, step, train.num_steps, train.max_minutes) as logs:

            def flush():
                """Logs the steps since the last call; NaN stops the run before it is saved."""
                nonlocal window, data_seconds, window_start
                if not window:
                    return
                values = {k: np.array([float(m[k]) for m in window]) for k in window[0]}
                check_finite(values, step, self._workdir)
                seconds = time.monotonic() - window_start
                logs.steps(
                    step,
                    {k: v.mean() for k, v in values.items()}
                    | {
                        "learning_rate": float(rate(step - 1)),
                        "images_per_second": len(window) * train.batch_size / seconds,
                        "data_share": data_seconds / seconds,
                        "minutes": self._elapsed / 60,
                    },
                )
                window, data_seconds, window_start = [], 0.0, time.monotonic()

            while not self._ended(step):
                start = time.monotonic()
                batch = parallel.shard(next(self._batches), "train.batch_size")
                data_seconds += time.monotonic() - start
                self._state, metrics = self._step_fn(self._state, batch, self._noise_key)
                window.append(metrics)
                step += 1
                logs.tick()
                self._elapsed = time.monotonic() - self._start
                end = self._ended(step)
                if end or step % train.log_every == 0 or step == first + 1:
                    flush()
                if validation.every and (end or step % validation.every == 0):
                    flush()
                    self._validate(step, logs)
                    window_start = time.monotonic()
                if end or step % train.checkpoint_every == 0:
                    flush()
                    self._save(step)
                    saved, window_start = step, time.monotonic()
        self._checkpoints.close()
        how = "trained" if saved > first else "already trained"
        print(
            f"{how}: {step} steps, {self._elapsed / 60:.1f} minutes, best validation IoU "
            f"{self._best:.4f}; {self._workdir}",
            flush=True,
        )

    def _ended(self, step: int) -> bool:
        minutes = self.config.train.max_minutes
        return step >= self.config.train.num_steps or bool(
            minutes and self._elapsed >= 60 * minutes
        )

    def _validate(self, step: int, logs: Logs) -> None:
        """Scores the averaged parameters; keeps them if they are the best so far."""
        iou, pictures = validate(self._predictor, self._state.ema_params, self._validation)
        logs.validation(step, iou, pictures)
        if iou > self._best:
            self._best = iou
            meta = {"config": self.settings, "step": step, "validation_iou": iou}
            self._checkpoints.save_best(step, self._state.ema_params, meta)

    def _save(self, step: int) -> None:
        meta = {
            "config": self.settings,
            "step": step,
            "iterator": self._batches.get_state(),
            "elapsed": self._elapsed,
            "best_iou": self._best,
        }
        self._checkpoints.save_last(self._state, meta)


def check_finite(values: dict[str, np.ndarray], step: int, workdir: Path) -> None:
    """Raises FloatingPointError naming the step of the first NaN or infinity in the last steps."""
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
        bad = int(np.argmin(finite))
        what = ", ".join(f"{k} {v[bad]}" for k, v in values.items())
        raise FloatingPointError(
            f"step {step - len(finite) + bad + 1}: {what}; the last good checkpoint is in "
            f"{workdir}/checkpoints/last. Lower train.learning_rate, or train.clip_norm"
        )


def report_changes(before: dict[str, Any], now: dict[str, Any], workdir: Path) -> None:
    """Prints the config fields that changed since the checkpoint.

    Raises:
        ValueError: if one of `FIXED` did.
    """
    before, now = flatten(before), flatten(now)
    changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    lines = [f"config.{n}: {before.get(n)!r} before, {now.get(n)!r} now" for n in changed]
    if any(name.startswith(FIXED) for name in changed):
        raise ValueError(
            f"{workdir} holds a run with another config; give it another --workdir, or the same "
            "config:\n  " + "\n  ".join(lines)
        )
    for line in lines:
        print(line)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat
