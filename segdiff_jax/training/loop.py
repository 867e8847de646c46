"""Training from a config: data, steps, validation, logs, checkpoints, resuming."""

import contextlib
import functools
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.checkpoint import Checkpoints, find_checkpoint, load_meta, load_variables
from segdiff_jax.data.classes import classes_of, mask_channels
from segdiff_jax.data.pipeline import ResizedSource, train_iterator
from segdiff_jax.data.prepare import load_source, load_training_source, where
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.evaluate import validate
from segdiff_jax.evaluation.overview import show_overview
from segdiff_jax.evaluation.predict import make_predictor
from segdiff_jax.evaluation.windows import window_size
from segdiff_jax.lock import locked
from segdiff_jax.models import init_variables, is_diffusion, make_model, variables_like
from segdiff_jax.training.changes import (
    check_same_network,
    how_validated,
    report_changes,
    with_absolute_paths,
)
from segdiff_jax.training.check import check_config, check_objective
from segdiff_jax.training.logs import Logs, has_validation, naming
from segdiff_jax.training.state import (
    TrainState,
    create_state,
    learning_rate,
    make_optimizer,
    progress,
)
from segdiff_jax.training.steps import make_train_step
from segdiff_jax.training.stop import Stopped, told_to_stop
from segdiff_jax.training.timesteps import make_history


def train(config: ConfigDict, workdir: str, accept_changes: bool = False) -> None:
    """Trains until `train.num_steps` or `train.max_minutes`; goes on from the last checkpoint.

    Args:
        config: see configs/default.py.
        workdir: holds config.json, checkpoints/, metrics.csv and what trackers write.
        accept_changes: go on with another model or other data than before, as far as the
            checkpoint fits.
    Raises:
        ValueError: naming the config field or the data that does not fit.
        FloatingPointError: naming the step where the loss became NaN or infinite.
        OSError: naming what cannot be written.
        Stopped: after SIGTERM or SIGINT; the state is saved.
    """
    run = Run(config, Path(workdir))
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            with naming(Path(workdir)):
                stack.enter_context(locked(Path(workdir) / ".lock", workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir))
        run.start(checkpoints, accept_changes)
        done = "already trained" if run.ended() else "trained"
        run.train()
        print(f"{done}: {run.summary()}", flush=True)


class Run:
    """One run: built from its config, started anew or from a checkpoint, trained to its end."""

    def __init__(self, config: ConfigDict, workdir: Path):
        """Checks the whole config; reads and writes nothing."""
        check_config(config)
        self._config, self._workdir = config, workdir
        self._settings = with_absolute_paths(json.loads(config.to_json()))
        self._classes = classes_of(config.data)
        model = make_model(config.model, parallel.AXIS)
        process = make_process(config.diffusion, mask_channels(self._classes))
        check_objective(config, is_diffusion(model))
        tx = make_optimizer(config)
        sampler = config.sampler.copy_and_resolve_references()
        sampler.native = False
        window = window_size(config.data, sampler)
        predictor = lambda: make_predictor(model, process, sampler, config.seed, window)
        predictor()  # Its mistakes show now, not at the end.
        sampler.steps, sampler.votes = config.validation.steps, config.validation.votes
        if not is_diffusion(model):
            sampler.flips = sampler.rotations = False
        try:
            self._predictor = predictor()
        except ValueError as error:
            raise ValueError(f"validation.steps, validation.votes: {error}") from error
        self._step_fn = make_train_step(config, model, process, tx, parallel.AXIS)
        size, channels = config.data.image_size, process.input_channels
        self._init = lambda: init_variables(model, config.seed, size, channels)
        self._create_state = functools.partial(
            create_state, tx=tx, timestep_history=make_history(config)
        )
        # Says what the network cannot be.
        self._like = jax.eval_shape(lambda: self._create_state(self._init()))
        if config.train.half_size_share:
            try:
                half = variables_like(model, size // 2, channels)
            except ValueError as error:
                raise ValueError(f"train.half_size_share: {error}") from error
            if half["params"] != self._like.params:
                raise ValueError(
                    f"train.half_size_share={config.train.half_size_share}: the parameters of "
                    f"{config.model.name} have the size of the image; set 0"
                )
        self._noise_key = jax.random.key(config.seed)

    def start(self, checkpoints: Checkpoints, accept_changes: bool = False) -> None:
        """Opens the data; draws the initial state or restores the last one; see `train`."""
        config, workdir = self._config, self._workdir
        self._checkpoints = checkpoints
        parallel.check_same(
            {"the config": self._settings, "the last checkpoint": checkpoints.last_step()}
        )
        meta = checkpoints.last_meta()
        if meta is None and "args" in (checkpoints.best_meta() or {}):
            raise ValueError(
                f"{workdir} holds an imported checkpoint: train from it with another --workdir and "
                f"--config=configs/saved.py:{workdir}"
            )
        if meta is not None:
            before = with_absolute_paths(meta["config"])
            report_changes(before, self._settings, workdir, accept_changes)
        self._open_data(shows=meta is None)
        self._make_step_fns()
        if meta is None:
            state, self._elapsed = self._first_state(), 0.0
        else:
            if meta["training_images"] != len(self._train) and not accept_changes:
                raise ValueError(
                    f"{workdir} was trained on {meta['training_images']} images, and "
                    f"{config.data.dataset} now has {len(self._train)}: give another --workdir, or "
                    "--accept_changes"
                )
            state = checkpoints.restore_last(self._like)
            self._batches.set_state(meta["iterator"])
            self._elapsed = meta["elapsed"]
        self._state = parallel.replicate(state)
        self._step = int(state.step)
        self._best = None if meta is None else self._best_so_far()
        self._pending = [] if meta is None else meta["pending"]
        if parallel.is_main():
            with naming(workdir / "config.json"):
                part = workdir / ".config.json.part"
                part.write_text(json.dumps(self._settings, indent=2))
                part.replace(workdir / "config.json")
        params = sum(x.size for x in jax.tree.leaves(state.params))
        print(
            f"{config.model.name}, {params:,} parameters; {len(self._train)} training and "
            f"{len(self._validation)} validation images of "
            f"{', '.join([config.data.dataset, *config.data.extra_datasets])}; "
            f"{parallel.describe_devices()}",
            flush=True,
        )
        if meta is not None:
            print(f"resuming {workdir} at step {self._step}", flush=True)

    def _first_state(self) -> TrainState:
        """Of new parameters or of those in `train.init_from`."""
        path = self._config.train.init_from
        if not path:
            return jax.jit(lambda: self._create_state(self._init()))()
        checkpoint = find_checkpoint(path)
        check_same_network(load_meta(checkpoint)["config"], self._settings, path)
        variables = load_variables(checkpoint, self._like.averaged())
        print(f"starting from the parameters of {checkpoint}", flush=True)
        return jax.jit(self._create_state)(variables)

    def _open_data(self, shows: bool) -> None:
        data, train = self._config.data, self._config.train
        size = data.full_size or data.image_size
        prepare = lambda records, limit=None: ResizedSource(
            records, size, data.cache, limit, data.colour_constancy, data.dir, self._classes
        )
        training = load_training_source(data.dataset, data.extra_datasets, *where(data))
        if shows and training.statistics and parallel.is_main():
            show_overview(training, self._workdir / "data.png", self._classes)
        self._train = prepare(training)
        validation = load_source(data.dataset, "validation", *where(data))
        self._validation = prepare(validation, self._config.validation.num_images)
        lengths = [len(self._train), len(self._validation)]
        parallel.check_same({"the number of training and validation images": lengths})
        self._batches = train_iterator(
            self._train,
            train.batch_size,
            self._config.seed,
            parallel.process_index(),
            parallel.process_count(),
            data.num_threads,
        )

    def _make_step_fns(self) -> None:
        """By whether they train at half the size."""
        epochs, batch_size = self._config.train.frozen_gate_epochs, self._config.train.batch_size
        frozen = math.ceil(epochs * len(self._train) / batch_size)
        self._step_fns = {
            half_size: parallel.pmap_train_step(
                functools.partial(self._step_fn, half_size=half_size, frozen_gate_steps=frozen)
            )
            for half_size in (False, True)
        }

    def _best_so_far(self) -> float | None:
        """The best validation IoU, if it was found by the same validation as now."""
        meta = self._checkpoints.best_meta()
        if meta is None or how_validated(meta["config"]) != how_validated(self._settings):
            return None
        return meta["validation_iou"]

    def ended(self) -> bool:
        """Whether `train.num_steps` or `train.max_minutes` are reached."""
        minutes = self._config.train.max_minutes
        out_of_time = bool(minutes) and self._elapsed >= 60 * minutes
        return self._step >= self._config.train.num_steps or out_of_time

    def summary(self) -> str:
        """Steps, minutes, best IoU and where they are."""
        best = "" if self._best is None else f", best validation IoU {self._best:.4f}"
        return f"{self._step} steps, {self._elapsed / 60:.1f} minutes{best}; {self._workdir}"

    def train(self) -> None:
        """Steps, logs, saves and validates until the end, where it does so once more."""
        # Of a run that was stopped or killed before its validation was done, or begins elsewhere.
        is_owed = self._is_validation_due() and (
            not self._step or not has_validation(self._workdir, self._step)
        )
        (is_owed, *_) = parallel.gather(is_owed)
        if self.ended() and not is_owed:
            return
        train = self._config.train
        limits = train.num_steps, train.max_minutes, train.max_skipped
        shown = parallel.is_main(), train.trackers, self._settings
        with Logs(self._workdir, self._step, *limits, self._pending, *shown) as logs:
            try:
                if is_owed:
                    self._validate(logs)
                    logs.restart_clock()
                self._go(logs)
            except FloatingPointError as error:
                kept = self._checkpoints.last_step()
                folder = self._workdir / "checkpoints" / "last" / str(kept)
                good = f"last good checkpoint: {folder}" if kept else "there is no checkpoint yet"
                raise FloatingPointError(
                    f"{error}; {good}. Lower train.learning_rate or train.clip_norm, or leave such "
                    "steps out with train.max_skipped"
                ) from error

    def _go(self, logs: Logs) -> None:
        train = self._config.train
        begin, metrics = time.monotonic() - self._elapsed, None
        with told_to_stop() as stop_signal:
            while not self.ended():
                start = time.monotonic()
                batch = parallel.shard(next(self._batches))
                data_seconds = time.monotonic() - start
                former, rate = metrics, self._learning_rate()
                step_fn = self._step_fns[self._is_half_size()]
                self._state, metrics = step_fn(self._state, batch, self._noise_key, rate)
                # One step ahead of the device keeps it busy; more would make the clock run ahead.
                jax.block_until_ready(former)
                self._step += 1
                self._elapsed = time.monotonic() - begin
                logs.collect(metrics, data_seconds)
                end, stop = self.ended(), stop_signal()
                validates = self._is_validation_due()
                saves = end or self._step % train.checkpoint_every == 0
                if validates or saves or self._step % train.log_every == 0 or self._step == 1:
                    logs.flush(self._step, float(rate), self._elapsed / 60, train.batch_size)
                if saves or stop:
                    # A state with NaN is never saved: both look for it. What no row holds yet is
                    # kept, so that the log does not show where a run was stopped.
                    self._save(logs.pending(self._step))
                if stop and not end:
                    raise Stopped(
                        f"stopped by {stop.name} after step {self._step}, which is saved; the same "
                        "command goes on",
                        stop,
                    )
                if validates:
                    self._validate(logs)
                if validates or saves:
                    logs.restart_clock()

    def _is_validation_due(self) -> bool:
        """After so many steps, and before the first one if the parameters are not new."""
        every, begun = self._config.validation.every, self._step or self._config.train.init_from
        return bool(every and begun and (self.ended() or self._step % every == 0))

    def _learning_rate(self) -> np.float32:
        """Of the next step; the type is always the same, so that the step is compiled once."""
        return np.float32(learning_rate(self._config, self._step, self._elapsed / 60))

    def _is_half_size(self) -> bool:
        """Whether the next step trains at half the size."""
        done = progress(self._config, self._step, self._elapsed / 60)
        return done < self._config.train.half_size_share

    def _validate(self, logs: Logs) -> None:
        """Scores the averaged variables; keeps them if they are the best so far."""
        variables = self._state.averaged()
        iou, pictures = validate(self._predictor, variables, self._validation)
        if self._best is None or iou > self._best:
            self._best = iou
            meta = {"config": self._settings, "step": self._step, "validation_iou": iou}
            self._checkpoints.save_best(self._step, variables, meta)
        logs.validation(self._step, iou, pictures)  # Last: it says that the validation is done.

    def _save(self, pending: list[dict[str, float]]) -> None:
        """Saves state, data iterator, config, clock and metrics that are not logged yet."""
        meta = {
            "config": self._settings,
            "step": self._step,
            "iterator": self._batches.get_state(),
            "elapsed": self._elapsed,
            "pending": pending,
            "training_images": len(self._train),
        }
        self._checkpoints.save_last(self._state, meta)
