"""Training from a config: open the data, restore, step, log, save, validate."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.check import check
from segdiff_jax.config import VERSION, with_absolute_paths
from segdiff_jax.data.annotations import check_annotators
from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.pipeline import ResizedSource, train_iterator
from segdiff_jax.data.prepare import load_source, load_training_source, where
from segdiff_jax.evaluation.metrics import ENERGY, LOWER_IS_BETTER, SCORES
from segdiff_jax.evaluation.overview import show_overview
from segdiff_jax.evaluation.validate import validate, validation_config
from segdiff_jax.inference.driver import make_driver
from segdiff_jax.methods import Method, init_variables, make_method, variables_like
from segdiff_jax.models import published_encoder, with_encoder
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.checkpoint import Checkpoints, load_variables
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, locked, write_file
from segdiff_jax.runtime.stop import Stopped, told_to_stop
from segdiff_jax.training import resume
from segdiff_jax.training.clock import Clock, is_validation_due
from segdiff_jax.training.logs import Logs, has_validation, shown
from segdiff_jax.training.optimizer import Optimizer, learning_rate, make_optimizer, progress
from segdiff_jax.training.state import TrainState, create_state
from segdiff_jax.training.steps import make_train_step
from segdiff_jax.training.trackers import check_trackers


def train(config: ConfigDict, workdir: str, accept_changes: bool = False) -> None:
    """Trains until `train.num_steps` or `train.max_minutes`; resumes from the last checkpoint.

    `workdir` gets config.json, checkpoints/, metrics.csv and what trackers write. With
    `accept_changes`, a run resumes with another model or other data, as far as the checkpoint fits.

    Raises:
        UserError: naming the config field or the data that does not fit.
        FloatingPointError: naming the step in which the loss became NaN or infinite.
        OSError: naming what cannot be written.
        Stopped: after SIGTERM or SIGINT; the state is saved.
    """
    config, workdir = with_absolute_paths(config), absolute(workdir)
    shapes = check_run(config)
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            stack.enter_context(locked(workdir / ".lock", str(workdir)))
        checkpoints = stack.enter_context(Checkpoints(workdir))
        settings, last = json.loads(config.to_json()), checkpoints.last_step()
        parallel.check_same({"the config": settings, "the last checkpoint": last})

        meta = resume.check_resumable(checkpoints, config, workdir, accept_changes)
        new = meta is None and not config.train.init_from
        encoder = published_encoder(config.model) if new else None
        training, validation = open_data(config, None if meta else workdir / "data.png")
        batches = train_iterator(
            training,
            config.train.batch_size,
            config.seed,
            process_index=parallel.process_index(),
            process_count=parallel.process_count(),
            num_threads=config.data.num_threads,
            extra_share=config.data.extra_share,
        )
        elapsed, pending, best = 0.0, (), None
        if meta:
            count, members = len(training), training.members
            resume.check_same_images(meta, count, members, config, accept_changes)
            batches.set_state(meta["iterator"])
            elapsed, pending = meta["elapsed"], meta["pending"]
            best = resume.best_score(checkpoints, config)
        method = make_method(config, parallel.AXIS)
        tx = make_optimizer(config.train, method.model, len(training) / config.train.batch_size)
        state = restore_or_create(config, shapes, checkpoints, method, tx, encoder)
        clock = Clock(config.train, int(state.step), elapsed)
        print(describe(config, state, len(training), len(validation)), flush=True)
        if meta:
            print(f"resuming {workdir} at step {clock.step}", flush=True)

        step = make_train_step(config, method, tx, parallel.AXIS)
        steps = [dataclasses.replace(step, half_size=half) for half in (False, True)]
        step_fns = [parallel.pmap_train_step(step) for step in steps]
        validated = validation_config(config)
        driver, metrics = make_driver(validated, method.with_sampler(validated)), None
        key = jax.random.key(config.seed)
        # A validation is owed to a run that was stopped before it was done or starts elsewhere.
        done = clock.step and has_validation(workdir, clock.step)
        (owed, *_) = parallel.gather(is_validation_due(config, clock) and not done)
        if clock.ended() and not owed:
            print(f"already trained: {summary(clock, best, config, workdir)}", flush=True)
            return
        if parallel.is_main():
            write_file(workdir / "config.json", json.dumps(settings, indent=2))
        stack.enter_context(advice_for_nan(checkpoints, workdir))
        logs = stack.enter_context(Logs(workdir, config, clock.step, pending))
        stop_signal = stack.enter_context(told_to_stop())
        about = {"config": settings, "version": VERSION}
        about |= {"training_images": len(training), "training_members": training.members}
        while True:
            if owed:
                variables = state.averaged()
                scores, pictures = validate(driver, variables, validation, validated)
                if is_better(scores, best):
                    best = next(iter(scores.values()))
                    found = {f"validation_{name}": score for name, score in scores.items()}
                    found |= {"step": clock.step}
                    checkpoints.save_best(clock.step, variables, about | found)
                logs.validation(clock.step, scores, pictures)  # Last: it says that it is done.
                logs.restart_clock()
            if clock.ended():
                break
            clock.start()
            start, former = time.monotonic(), metrics
            batch = parallel.shard(next(batches))
            waited = time.monotonic() - start
            rate = np.float32(learning_rate(config.train, clock.step, clock.minutes))
            half = progress(config.train, clock.step, clock.minutes) < config.train.half_size_share
            state, metrics = step_fns[half](state, batch, key, rate)
            # One step ahead of the device keeps it busy; more would make the clock run ahead.
            jax.block_until_ready(former)
            clock.tick()
            logs.collect(metrics, waited)
            stop, owed = stop_signal(), is_validation_due(config, clock)
            saves = clock.ended() or clock.step % config.train.checkpoint_every == 0
            if owed or saves or clock.step % config.train.log_every == 0 or clock.step == 1:
                logs.flush(clock.step, float(rate), clock.minutes)
            if saves or stop:
                place = {
                    "step": clock.step,
                    "iterator": batches.get_state(),
                    "elapsed": clock.seconds,
                    "pending": logs.pending(clock.step),  # Refuses a state with NaN.
                }
                checkpoints.save_last(clock.step, state.trees(), about | place)
            if stop and not clock.ended():
                raise Stopped(
                    f"stopped by {stop.name} after step {clock.step}, which is saved; the same "
                    "command resumes from there",
                    stop,
                )
            if saves:
                logs.restart_clock()
        print(f"trained: {summary(clock, best, config, workdir)}", flush=True)


def check_run(config: ConfigDict) -> dict[str, Any]:
    """The network's shapes; a UserError names what is wrong, before anything is read or written."""
    check(config)
    train = config.train
    check_trackers(train.trackers)
    scores = config.validation.scores
    known = *SCORES, ENERGY
    if not scores or not set(scores) <= set(known):
        raise UserError(f"validation.scores={scores} must be one or some of {', '.join(known)}")
    if ENERGY in scores and config.data.classes:
        raise UserError(f"validation.scores={scores}: {ENERGY} is for two classes: leave it out")
    if ENERGY in scores and config.validation.samples < 2:
        raise UserError(f"validation.scores={scores} compares samples: set validation.samples to 2")
    devices, microbatches = parallel.device_count(), train.microbatches
    if train.batch_size % (devices * microbatches):
        raise UserError(
            f"train.batch_size={train.batch_size} does not divide over {devices} devices x "
            f"{microbatches} microbatches: choose a multiple of {devices * microbatches}"
        )
    if train.max_minutes and parallel.process_count() > 1:
        raise UserError("train.max_minutes needs a single process: each has a clock of its own")
    shapes = network_shapes(config)
    if train.half_size_share:
        half = config.copy_and_resolve_references()
        half.data.image_size //= 2
        if network_shapes(half, "train.half_size_share: ")["params"] != shapes["params"]:
            raise UserError(
                f"train.half_size_share={train.half_size_share}: the parameters of "
                f"{config.model.name} have the size of the image; set 0"
            )
    return shapes


def network_shapes(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Shapes of the network's variables; a UserError if fields of the network do not fit."""
    try:
        return variables_like(make_method(config))
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


def open_data(config: ConfigDict, overview: Path | None) -> tuple[ResizedSource, ResizedSource]:
    """The training and the validation images; of several masks, the latter may have the majority.

    If the data set has statistics, some images are drawn with their masks in the file `overview`.
    """
    data, classes = config.data, classes_of(config.data)
    prepare = functools.partial(
        ResizedSource,
        image_size=data.full_size or data.image_size,
        colour_constancy=data.colour_constancy,
        data_dir=data.dir,
        classes=classes,
    )
    records = load_training_source(data.dataset, data.extra_datasets, *where(data))
    check_annotators(data.annotators, records.annotators)
    if overview and records.statistics and parallel.is_main():
        show_overview(records, overview, classes)
    training = prepare(records, annotators=tuple(data.annotators))
    records = load_source(data.dataset, "validation", *where(data))
    every = () if ENERGY in config.validation.scores else None
    validation = prepare(records, limit=config.validation.num_images, annotators=every)
    lengths = [len(training), len(validation)]
    parallel.check_same({"the number of training and validation images": lengths})
    return training, validation


def restore_or_create(
    config: ConfigDict,
    shapes: Any,
    checkpoints: Checkpoints,
    method: Method,
    tx: Optimizer,
    encoder: dict[str, Any] | None,
) -> TrainState:
    """The last state, or a new one: from `train.init_from`, or from new parameters.

    `encoder` are the image encoder's new parameters; None: random.
    """
    create = functools.partial(create_state, tx=tx, history=method.timestep_sampler.init())
    if checkpoints.last_step() is not None:
        like = jax.eval_shape(create, shapes)
        state = like.from_trees(checkpoints.restore_last(like.trees()))
    elif config.train.init_from:
        checkpoint = resume.check_same_network(config)
        variables = load_variables(checkpoint, shapes)
        print(f"starting from the parameters of {checkpoint}", flush=True)
        state = jax.jit(create)(variables)
    else:
        variables = jax.jit(lambda: init_variables(method, config.seed))()
        state = jax.jit(create)(with_encoder(variables, encoder) if encoder else variables)
    return parallel.replicate(state)


def is_better(scores: dict[str, float], best: float | None) -> bool:
    """Whether the first score is better than the best one so far."""
    name, score = next(iter(scores.items()))
    return best is None or (score < best if name in LOWER_IS_BETTER else score > best)


def describe(config: ConfigDict, state: TrainState, training: int, validation: int) -> str:
    """What is trained, on what and where."""
    params = sum(x.size for x in jax.tree.leaves(state.params))
    network = f"{config.model.name}, {params:,} parameters"
    datasets = ", ".join([config.data.dataset, *config.data.extra_datasets])
    images = f"{training} training and {validation} validation images of {datasets}"
    return f"{network}; {images}; {parallel.describe_devices()}"


def summary(clock: Clock, best: float | None, config: ConfigDict, workdir: Path) -> str:
    """Steps, minutes, best score and where they are."""
    name = shown(config.validation.scores[0])
    found = "" if best is None else f", best validation {name} {best:.4f}"
    return f"{clock.step} steps, {clock.minutes:.1f} minutes{found}; {workdir}"


@contextlib.contextmanager
def advice_for_nan(checkpoints: Checkpoints, workdir: Path) -> Iterator[None]:
    """A FloatingPointError within says which checkpoint is good, and what to do."""
    try:
        yield
    except FloatingPointError as error:
        kept = checkpoints.last_step()
        folder = workdir / "checkpoints" / "last" / str(kept)
        good = f"last good checkpoint: {folder}" if kept else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{error}; {good}. Lower train.learning_rate or train.clip_norm, or skip such steps "
            "with train.max_skipped"
        ) from error
