"""Whole runs of a tiny network: logs, checkpoints, resuming, and how they end."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import saved
from segdiff_jax.diffusion.process import q_sample
from segdiff_jax.methods import init_variables, make_method, variables_like
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.original.bound import vb_term
from segdiff_jax.runtime.checkpoint import Checkpoints, find_checkpoint, load_meta, load_variables
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.stop import Stopped
from segdiff_jax.training import loop, steps
from segdiff_jax.training.loop import check_run, train
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from tests.conftest import tiny_overrides


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_state(config, workdir):
    method, tx = make_method(config), make_optimizer(config.train)
    like = jax.eval_shape(lambda: create_state(init_variables(method, 0), tx))
    with Checkpoints(workdir) as checkpoints:
        return like.from_trees(checkpoints.restore_last(like.trees())), checkpoints.last_meta()


@pytest.fixture(scope="module")
def six_steps(tiny_config, tmp_path_factory):
    """(config, workdir) of a run of six steps, never interrupted."""
    config, workdir = tiny_config(), tmp_path_factory.mktemp("six")
    config.train.num_steps = 6
    config.train.checkpoint_every = 4
    train(config, str(workdir))
    return config, workdir


def test_what_a_run_leaves(six_steps):
    config, workdir = six_steps
    steps = [row for row in rows(workdir) if row["loss"]]
    assert [row["step"] for row in steps] == list("123456")
    assert all(0 < float(row["loss"]) < 3 for row in steps)
    assert float(steps[0]["learning_rate"]) == pytest.approx(1e-3 / 101, rel=1e-4)
    validations = [row for row in rows(workdir) if row["validation_iou"]]
    assert [row["step"] for row in validations] == ["2", "4", "6"]
    assert list(workdir.glob("tensorboard/events*"))
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["train"]["num_steps"] == 6 and saved["model"]["channels"] == 32
    state, meta = last_state(config, workdir)
    assert int(state.step) == meta["step"] == 6
    best = max(validations, key=lambda row: float(row["validation_iou"]))
    checkpoint = find_checkpoint(workdir)
    assert checkpoint.parent.name == "best"
    assert load_meta(checkpoint)["validation_iou"] == pytest.approx(
        float(best["validation_iou"]), abs=1e-5
    )
    variables = load_variables(checkpoint, variables_like(make_method(config)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))


def test_resuming_is_bitwise_the_uninterrupted_run(six_steps, tmp_path, capsys):
    config, uninterrupted = six_steps
    config = config.copy_and_resolve_references()
    config.train.num_steps = 3
    config.validation.every = 0  # Which compiles, and changes nothing here.
    train(config, str(tmp_path))
    # A row of a step after the checkpoint, as a killed run leaves it, must go.
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,9.9,1,1,1,0,0,\n5,1.2")  # The last line is torn.
    config.train.num_steps = 6
    train(config, str(tmp_path))
    output = capsys.readouterr().out
    assert f"resuming {tmp_path} at step 3" in output
    assert "config.train.num_steps: 3 before, 6 now" in output
    (ours, meta), (expected, expected_meta) = (
        last_state(config, tmp_path),
        last_state(config, uninterrupted),
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert meta["iterator"] == expected_meta["iterator"]
    losses = [[r["loss"] for r in rows(w) if r["loss"]] for w in (tmp_path, uninterrupted)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not(
    six_steps, tmp_path, monkeypatch
):
    config, uninterrupted = six_steps
    config = config.copy_and_resolve_references()
    config.train.log_every = config.validation.every = 4
    train(config, str(tmp_path / "whole"))
    steps, pmap = [], loop.parallel.pmap_train_step

    def killed_in_two_steps(step):
        pmapped = pmap(step)

        def run(*args):
            steps.append(1)
            if len(steps) in (3, 4):
                os.kill(os.getpid(), signal.SIGTERM)
            return pmapped(*args)

        return run

    monkeypatch.setattr(loop.parallel, "pmap_train_step", killed_in_two_steps)
    for step in (3, 4):  # In the middle of a row; before a validation.
        message = (
            f"stopped by SIGTERM after step {step}, which is saved; the same command resumes from"
        )
        with pytest.raises(Stopped, match=message) as stopped:
            train(config, str(tmp_path / "cut"))
        assert stopped.value.signum == 15 and len(steps) == step
        assert last_state(config, tmp_path / "cut")[1]["step"] == step
    assert not find_checkpoint(tmp_path / "cut").match("best/*")
    train(config, str(tmp_path / "cut"))
    assert len(steps) == 6
    (ours, meta), (expected, expected_meta) = (
        last_state(config, tmp_path / "cut"),
        last_state(config, uninterrupted),
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert meta["iterator"] == expected_meta["iterator"]
    logged = "step", "loss", "bce", "dice", "grad_norm", "learning_rate", "validation_iou"
    cut, whole = ([[r[k] for k in logged] for r in rows(tmp_path / w)] for w in ("cut", "whole"))
    assert cut == whole and [row[0] for row in cut] == ["1", "4", "4", "6", "6"]
    best, expected = (load_meta(find_checkpoint(tmp_path / w)) for w in ("cut", "whole"))
    assert best["step"] == expected["step"]
    assert best["validation_iou"] == expected["validation_iou"]


@pytest.mark.slow
def test_a_run_that_was_killed_in_its_last_validation_makes_up_for_it(
    tiny_config, tmp_path, capsys
):
    config = tiny_config()

    def killed(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, str(tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
    train(config, str(tmp_path))
    assert [bool(row["validation_iou"]) for row in rows(tmp_path)] == [False, False, True]
    assert find_checkpoint(tmp_path).match("best/2")
    before = (tmp_path / "metrics.csv").read_text()
    train(config, str(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == before


@pytest.mark.slow
def test_changes_that_are_accepted_are_shown_and_trained_on(six_steps, tmp_path, capsys):
    config, workdir = six_steps
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    config = config.copy_and_resolve_references()
    config.train.num_steps, config.diffusion.input_scale = 7, 0.5
    train(config, str(tmp_path), accept_changes=True)
    assert "config.diffusion.input_scale: 0.3 before, 0.5 now" in capsys.readouterr().out
    assert last_state(config, tmp_path)[1]["config"]["diffusion"]["input_scale"] == 0.5


def test_a_finished_run_is_left_alone(six_steps, capsys):
    config, workdir = six_steps
    before = (workdir / "metrics.csv").read_text()
    written = (workdir / "config.json").read_text()
    config = config.copy_and_resolve_references()
    config.augment.hue = 0.5  # Nothing was trained with it.
    train(config, str(workdir))
    assert (workdir / "config.json").read_text() == written
    assert "already trained: 6 steps" in capsys.readouterr().out
    assert (workdir / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("model", "rrdb_width", 16),
        ("data", "image_size", 32),
        ("diffusion", "input_scale", 1.0),
        ("diffusion", "variance", "fixed_small"),
    ],
)
def test_another_model_or_data_is_refused(six_steps, section, field, value):
    config, workdir = six_steps
    config = config.copy_and_resolve_references()
    config[section][field] = value
    message = rf"{re.escape(str(workdir))} holds a run with another config.*{section}\.{field}: "
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        train(config, str(workdir))


def test_a_checkpoint_of_another_network_is_not_trained_on(six_steps, tmp_path):
    config, workdir = six_steps
    meta = last_state(config, workdir)[1]
    state = create_state({"params": {"w": jnp.ones(3)}}, make_optimizer(config.train))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(6, state.trees(), meta)
    config = config.copy_and_resolve_references()
    config.train.num_steps = 7
    with pytest.raises(UserError, match="last/6: not a checkpoint of this network, or damaged"):
        train(config, str(tmp_path))


@pytest.mark.slow
def test_a_run_begins_with_the_parameters_of_another(six_steps, tmp_path, capsys):
    """The validation at step 0 is that of the parameters; other networks are refused."""
    first, workdir = six_steps
    best = find_checkpoint(workdir)
    config = tiny_overrides(saved.get_config(str(workdir)))
    assert config.model == first.model and config.diffusion == first.diffusion
    config.train.update(num_steps=1, learning_rate=1e-12)
    train(config, str(tmp_path / "second"))
    assert f"starting from the parameters of {best}" in capsys.readouterr().out
    iou = load_meta(best)["validation_iou"]
    scores = [(row["step"], row["validation_iou"]) for row in rows(tmp_path / "second")]
    assert [step for step, _ in scores] == ["0", "1", "1"]
    assert float(scores[0][1]) == pytest.approx(iou, abs=1e-5)
    # A run that goes on does not begin again.
    train(config, str(tmp_path / "second"))
    assert "already trained" in capsys.readouterr().out
    config.model.rrdb_width = 16
    with pytest.raises(UserError, match="model.rrdb_width: 8 there, 16 here"):
        train(config, str(tmp_path / "third"))


@pytest.mark.slow
def test_the_time_limit_ends_a_run_like_a_finished_one(tiny_config, tmp_path, capsys):
    config = tiny_config()
    config.train.num_steps = 1000
    config.train.max_minutes = 1e-6
    train(config, str(tmp_path))
    _, meta = last_state(config, tmp_path)
    assert meta["step"] == 1 and [row["step"] for row in rows(tmp_path)] == ["1", "1"]
    assert find_checkpoint(tmp_path).parent.name == "best"
    train(config, str(tmp_path))
    assert "already trained: 1 steps" in capsys.readouterr().out


def test_a_fault_of_the_program_is_not_told_as_a_mistake(tiny_config, monkeypatch):
    def fail(method):
        raise ValueError("axis 9 is out of bounds")

    monkeypatch.setattr(loop, "variables_like", fail)
    with pytest.raises(ValueError, match="^axis 9 is out of bounds$") as error:
        loop.check_run(tiny_config())
    assert not isinstance(error.value, UserError)


@pytest.mark.slow
def test_nan_stops_the_run_and_names_the_step(tiny_config, tmp_path, monkeypatch):
    config = tiny_config()
    config.train.num_steps = 6
    config.train.log_every = 3
    config.train.checkpoint_every = 3
    config.validation.every = 0
    original = steps.TrainStep.__call__

    def poisoned(self, state, batch, key, rate):
        state, metrics = original(self, state, batch, key, rate)
        return state, metrics | {"loss": jnp.where(state.step == 5, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(steps.TrainStep, "__call__", poisoned)
    message = r"step 5: bce 0\.\d+, dice 0\.\d+, grad_norm .*, loss nan; last good checkpoint: "
    with pytest.raises(
        FloatingPointError, match=message + f"{tmp_path}/checkpoints/last/3\\. Lower"
    ):
        train(config, str(tmp_path))
    assert last_state(config, tmp_path)[1]["step"] == 3
    assert [row["step"] for row in rows(tmp_path)] == ["1", "3"]


def test_the_step_is_what_the_config_says(tiny_config, tmp_path, monkeypatch):
    config, made, optimizers = tiny_config(), [], []

    def record(step):
        made.append(step)
        if len(made) == 2:  # At full and at half size.
            raise StopIteration

    config.diffusion.update(weight="min_snr", recycling=True, timestep_power=0.5)
    config.train.update(ema_decay=0.5)
    original = loop.make_optimizer
    monkeypatch.setattr(loop.parallel, "pmap_train_step", record)
    monkeypatch.setattr(
        loop, "make_optimizer", lambda *args: optimizers.append(args) or original(*args)
    )
    with pytest.raises(StopIteration):
        train(config, str(tmp_path))
    method = made[0].method
    weights = method.process.loss_weights("min_snr")
    np.testing.assert_array_equal(method.weights, weights)
    assert method.recycling is True and method.timestep_sampler == PowerTimesteps(100, 0.5)
    assert made[0].ema_decay == 0.5 and [step.half_size for step in made] == [False, True]
    # A pass over the 36 training images, in batches of 4.
    ((_, model, steps_per_epoch),) = optimizers
    assert model == method.model and steps_per_epoch == 9


@pytest.mark.slow
def test_training_starts_at_half_the_size(tiny_config, tmp_path, monkeypatch):
    config, calls, pmap = tiny_config(), [], loop.parallel.pmap_train_step
    config.train.update(num_steps=4, half_size_share=0.5)

    def recorded(step):
        pmapped = pmap(step)
        return lambda *args: calls.append(step.half_size) or pmapped(*args)

    monkeypatch.setattr(loop.parallel, "pmap_train_step", recorded)
    train(config, str(tmp_path))
    assert calls == [True, True, False, False]


@pytest.mark.slow
def test_a_supervised_run_resumes_bitwise_with_its_batch_statistics(tiny_config, tmp_path):
    config = tiny_config("unet")
    config.train.num_steps = 4
    train(config, str(tmp_path / "whole"))
    whole, _ = last_state(config, tmp_path / "whole")
    config.train.num_steps = 2
    train(config, str(tmp_path / "cut"))
    config.train.num_steps = 4
    train(config, str(tmp_path / "cut"))
    cut, _ = last_state(config, tmp_path / "cut")
    assert int(whole.step) == int(cut.step) == 4
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    stats = jax.tree.leaves(whole.batch_stats)
    assert len(stats) == 12 and all((x != 0).any() and (x != 1).any() for x in stats)
    # What sampling reads holds them, too.
    found = find_checkpoint(tmp_path / "whole" / "checkpoints" / "last")
    loaded = load_variables(found, variables_like(make_method(config)))
    jax.tree.map(np.testing.assert_array_equal, loaded, whole.averaged())


@pytest.mark.parametrize(
    "method, name, message",
    [
        ("supervised", "segdiff", "method='supervised' does not fit model.name='segdiff'"),
        ("diffusion", "unet", "method='diffusion' does not fit model.name='unet': set 'superv"),
        ("other", "unet", r"method='other' is unknown: choose one of \('diffusion', 'supervised'"),
    ],
)
def test_a_method_that_does_not_fit_is_named(tiny_config, tmp_path, method, name, message):
    config = tiny_config(name)
    config.method = method
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_network_of_fixed_size_cannot_start_at_half_of_it(tiny_config, tmp_path):
    config = tiny_config("medt")
    config.train.half_size_share = 0.5
    with pytest.raises(UserError, match="half_size_share=0.5: the parameters of medt have the"):
        train(config, str(tmp_path / "run"))


def test_a_network_that_half_the_size_does_not_fit_is_refused(tiny_config, tmp_path):
    config = tiny_config()
    config.data.image_size = 18
    config.train.half_size_share = 0.5
    with pytest.raises(UserError, match="train.half_size_share: mask size 9 x 9 must be"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("seed", -1, "seed=-1 must be at least 0"),
        ("train.batch_size", 6, "train.batch_size=6 does not divide over 4 devices x 1 micro"),
        ("train.microbatches", 3, "train.batch_size=4 does not divide over 4 devices x 3 micro"),
        ("train.log_every", 0, "train.log_every=0 must be at least 1"),
        ("train.learning_rate", 0.0, "train.learning_rate=0.0 must be above 0"),
        ("train.schedule", "linear", "train.schedule='linear' is unknown: choose one of"),
        ("train.optimizer", "sgd", "train.optimizer='sgd' is unknown: choose one of"),
        ("train.ema_decay", 1.0, "train.ema_decay=1.0 must be from 0 to below 1"),
        ("validation.num_images", 0, "validation.num_images=0 must be at least 1"),
        ("validation.steps", 101, "validation.steps=101: .* of steps from 1 to 100"),
        ("validation.scores", (), r"validation.scores=\(\) must be one or some of iou, dice"),
        ("validation.scores", ("iou", "x"), r"validation.scores=\('iou', 'x'\) must be one or"),
        ("validation.scores", ("dice2",), r"some of iou, .*, hd95, energy$"),
        (
            "validation.scores",
            ("energy",),
            "energy',\\) compares samples: set validation.samples to",
        ),
        ("model.out_channels", 2, "model.out_channels=2 does not fit diffusion.variance='fixed_l"),
        ("sampler.ensemble", "max", "sampler.ensemble='max' is unknown: choose one of"),
        ("sampler.steps", 101, "sampler.steps=101: "),
        ("data.image_size", 15, "mask size 15 x 15 must be divisible by 2"),
        ("model.dtype", "float16", "model.dtype='float16' is unknown"),
        ("diffusion.prediction", "y", "diffusion.prediction='y' is unknown: choose one of"),
        ("diffusion.prediction", "eps", "'bce_dice' scores masks: it needs diffusion.prediction="),
        ("diffusion.loss", "l1", "diffusion.loss='l1' is unknown: choose one of"),
        ("diffusion.weight", "none", "diffusion.weight='none' is unknown: choose one of"),
        ("diffusion.input_scale", 0.0, "diffusion.input_scale=0.0 must be above 0"),
        ("diffusion.schedule", "sine", "diffusion.schedule='sine' is unknown"),
        ("diffusion.num_timesteps", 20, "diffusion.num_timesteps=20: .* needs more than 20"),
        ("diffusion.timestep_power", 0.0, "diffusion.timestep_power=0.0 must be above 0"),
        ("train.half_size_share", 1.5, "train.half_size_share=1.5 must be from 0 to 1"),
        ("augment.scale", 1.0, "augment.scale=1.0 must be from 0 to below 1"),
    ],
)
def test_bad_fields_are_named_before_anything_is_written(
    tiny_config, tmp_path, field, value, message
):
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_all_wrong_fields_are_named_at_once(tiny_config):
    config = tiny_config()
    config.seed, config.train.log_every, config.sampler.threshold = -1, 0, 1.0
    with pytest.raises(UserError) as error:
        check_run(config)
    lines = str(error.value).splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "seed",
        "train.log_every",
        "sampler.threshold",
    ]
    config = tiny_config()
    config.diffusion.update(prediction="v", recycling=True)
    with pytest.raises(UserError, match=r"'bce_dice' .* not 'v'\ndiffusion.recycling .* not 'v'$"):
        check_run(config)


LEARNED = {"model.out_channels": 2, "diffusion.variance": "learned_range"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model.out_channels": 3}, "model.out_channels=3 does not fit diffusion.variance='fixed"),
        (
            {"diffusion.variance": "learned_range"},
            "model.out_channels=1 does not fit diffusion.var",
        ),
        (LEARNED, "diffusion.loss='bce_dice' trains no variance"),
        ({"diffusion.loss": "rescaled_mse"}, "diffusion.loss='rescaled_mse' rescales the bound"),
        (
            {"diffusion.loss": "kl", "diffusion.recycling": True},
            "diffusion.recycling=True does not go with the variational bound",
        ),
        (
            LEARNED | {"diffusion.loss": "mse", "diffusion.weight": "min_snr"},
            "diffusion.weight='min_snr' does not go with the variational bound",
        ),
        (
            {"diffusion.timestep_sampler": "loss_second_moment", "diffusion.timestep_power": 0.5},
            "diffusion.timestep_power=0.5 and diffusion.timestep_sampler=.* both draw timesteps",
        ),
        (
            {"diffusion.timestep_sampler": "loss"},
            "diffusion.timestep_sampler='loss' is unknown: choose one",
        ),
        (
            {"diffusion.recycling": True, "diffusion.prediction": "v", "diffusion.loss": "mse"},
            "diffusion.recycling .* needs diffusion.prediction='x0', not 'v'",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_named(tiny_config, fields, message):
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        check_run(config)


class Halves:
    """A network that says 0.5 everywhere, with a variance."""

    def apply(self, variables, x_t, image, t, train):
        return jnp.full((*x_t.shape[:-1], 2), 0.5)


@pytest.mark.slow
def test_a_learned_variance_and_its_losses_are_accepted(tiny_config):
    config = tiny_config()
    config.update_from_flattened_dict(LEARNED)
    mask, t = jnp.ones((2, 4, 4, 1)), jnp.int32([3, 10])
    eps = jax.random.normal(jax.random.key(0), mask.shape)
    batch, found = {"image": jnp.zeros((2, 4, 4, 3)), "mask": mask}, {}
    for loss in ("mse", "rescaled_mse", "kl", "rescaled_kl"):
        config.diffusion.loss = loss
        check_run(config)
        method = dataclasses.replace(make_method(config), model=Halves())
        found[loss], _ = method.loss_at({"params": {}}, batch, t, eps)
    process = method.process
    x_t = q_sample(process.schedule, process.input_scale * mask, t, eps)
    prediction = process.predict(Halves().apply({}, x_t, None, t, True), x_t, t)
    arguments = prediction, process.input_scale * mask, x_t, t
    bound = vb_term(process, "learned_range", *arguments)
    assert (np.abs(bound - vb_term(process, "fixed_large", *arguments)) > 1e-4 * bound).all()
    for loss, factor in {"mse": 1, "rescaled_mse": 0.1, "kl": 1, "rescaled_kl": 100}.items():
        np.testing.assert_allclose(found[loss]["vb"], factor * bound, rtol=1e-5)
        assert ("mse" in found[loss]) == loss.endswith("mse")
    config.update_from_flattened_dict(
        {"model.out_channels": 1, "diffusion.variance": "fixed_small"}
    )
    check_run(config)


def test_another_number_of_images_is_refused(six_steps, monkeypatch):
    config, workdir = six_steps
    load = loop.load_source
    more = lambda dataset, extra, *where: load(dataset, "train+test", *where)
    monkeypatch.setattr(loop, "load_training_source", more)
    with pytest.raises(UserError, match="was trained on 36 images, and isic/2016 now has 41"):
        train(config, str(workdir))


@pytest.mark.slow
def test_the_best_of_another_validation_does_not_count(six_steps, tmp_path):
    config, workdir = six_steps
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    config = config.copy_and_resolve_references()
    config.train.num_steps = 8
    config.validation.steps = 1
    train(config, str(tmp_path))
    assert find_checkpoint(tmp_path).name == "8"


@pytest.mark.slow
def test_a_best_without_a_last_does_not_count(six_steps, tmp_path):
    config, workdir = six_steps
    shutil.copytree(workdir / "checkpoints" / "best", tmp_path / "checkpoints" / "best")
    stale = find_checkpoint(tmp_path)
    stale.rename(stale.with_name("9"))
    config = config.copy_and_resolve_references()
    config.train.num_steps = 2
    train(config, str(tmp_path))
    assert find_checkpoint(tmp_path).name == "2"


def test_a_foreign_metrics_file_is_not_overwritten(tiny_config, tmp_path):
    (tmp_path / "metrics.csv").write_text("id,iou\na,0.5\n")
    with pytest.raises(UserError, match="metrics.csv is not the log of a training run"):
        train(tiny_config(), str(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == "id,iou\na,0.5\n"


def version_1(settings):
    """The config as the version before this one saved it."""
    old = json.loads(json.dumps(settings))
    old["objective"] = old.pop("method")
    old["sampler"]["variance"] = old["diffusion"].pop("variance")
    for section in ("sampler", "validation"):
        old[section]["votes"] = old[section].pop("samples")
    del old["validation"]["scores"]
    old["data"]["cache"], old["model"]["rrdb_scan"] = True, False
    old["train"] |= {"ema_warmup": True, "frozen_gate_epochs": 10.0}
    return old


@pytest.mark.slow
def test_a_run_of_the_version_before_resumes(six_steps, tmp_path, capsys):
    config, workdir = six_steps
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("checkpoints/*/*/meta/metadata"):
        meta = json.loads(file.read_text())
        assert meta.pop("version") == 3
        meta["config"] = version_1(meta["config"])
        meta["config"]["data"]["dir"] = os.path.relpath(config.data.dir)
        file.write_text(json.dumps(meta))
    config = config.copy_and_resolve_references()
    config.train.num_steps, config.validation.every = 7, 0
    best = load_meta(find_checkpoint(workdir))["validation_iou"]
    train(config, str(tmp_path))
    said = capsys.readouterr().out
    changed = [line for line in said.splitlines() if line.startswith("config.")]
    assert changed == [
        "config.train.num_steps: 6 before, 7 now",
        "config.validation.every: 2 before, 0 now",
    ]
    assert f"resuming {tmp_path} at step 6" in said
    assert re.search(rf"trained: 7 steps, .* best validation IoU {best:.4f}; ", said)
    assert last_state(config, tmp_path)[1]["version"] == 3
    config.diffusion.variance = "fixed_small"  # Which was a field of the sampler.
    with pytest.raises(
        UserError, match="config.diffusion.variance: 'fixed_large' before, 'fixed_s"
    ):
        train(config, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("scores, best", [(("hd95", "iou"), 2), (("iou", "hd95"), 3)])
def test_the_first_score_chooses_the_best_checkpoint(
    tiny_config, tmp_path, monkeypatch, capsys, scores, best
):
    """Of a distance, the lowest; all scores get columns."""
    config = tiny_config("unet")
    config.train.num_steps, config.validation.every = 3, 1
    config.validation.scores = scores
    original, found = loop.validate, []
    known = iter([{"hd95": 5.0, "iou": 0.1}, {"hd95": 3.0, "iou": 0.2}, {"hd95": 4.0, "iou": 0.3}])

    def validate(*args):
        computed, pictures = original(*args)
        found.append(computed)
        values = next(known)
        return {name: values[name] for name in scores}, pictures

    monkeypatch.setattr(loop, "validate", validate)
    train(config, str(tmp_path))
    assert all(tuple(computed) == scores for computed in found) and len(found) == 3
    assert all(0 <= of["iou"] <= 1 and of["hd95"] >= 0 for of in found)
    columns = [[row[f"validation_{name}"] for row in rows(tmp_path)] for name in ("hd95", "iou")]
    assert [[x for x in of if x] for of in columns] == [["5", "3", "4"], ["0.1", "0.2", "0.3"]]
    assert [name for name in rows(tmp_path)[0] if "validation" in name] == [
        f"validation_{name}" for name in scores
    ]
    checkpoint = find_checkpoint(tmp_path)
    meta = load_meta(checkpoint)
    assert checkpoint.match(f"best/{best}")
    assert (meta["validation_hd95"], meta["validation_iou"]) == (
        (3.0, 0.2) if best == 2 else (4.0, 0.3)
    )
    said = {2: "best validation hd95 3.0000", 3: "best validation IoU 0.3000"}[best]
    assert said in capsys.readouterr().out
    # Another score is another best.
    config.train.num_steps, config.validation.scores = 4, scores[::-1]
    monkeypatch.setattr(loop, "validate", lambda *args: (dict.fromkeys(scores[::-1], 2.0), ()))
    monkeypatch.setattr(loop.Logs, "validation", lambda *args: None)
    train(config, str(tmp_path))
    assert find_checkpoint(tmp_path).match("best/4")
