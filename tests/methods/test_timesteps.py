"""Timesteps drawn by their losses: against plain numpy, on several devices, in whole runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.data.augment import augment
from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.original.losses import bound_loss
from segdiff_jax.original.timesteps import History, LossAwareTimesteps, timestep_probabilities
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import TrainStep
from tests.conftest import run_steps


class Queues:
    """The same with a list for each timestep (Nichol and Dhariwal 2021, section 3.3)."""

    def __init__(self, num_timesteps):
        self.losses = [[] for _ in range(num_timesteps)]

    def add(self, ts, losses):
        for t, loss in zip(ts, losses, strict=True):
            self.losses[t] = [*self.losses[t], loss][-10:]

    def probabilities(self):
        T = len(self.losses)
        if min(map(len, self.losses)) < 10:
            return np.full(T, 1 / T)
        moments = np.sqrt([np.mean(np.square(losses)) for losses in self.losses])
        return 0.999 * moments / moments.sum() + 0.001 / T


def empty(T):
    return LossAwareTimesteps(T).init()


def test_the_history_is_that_of_queues():
    """With batches that hold a timestep more than ten times, and out of order."""
    rng, T = np.random.default_rng(0), 3
    history, queues, add = empty(T), Queues(T), jax.jit(LossAwareTimesteps(T).update)
    warm = []
    for _ in range(12):
        t, losses = rng.choice(T, 20, p=[0.75, 0.05, 0.2]), rng.gamma(2.0, size=20)
        index = rng.permutation(20)
        history = add(history, jnp.asarray(index), jnp.asarray(t), jnp.float32(losses))
        order = np.argsort(index)
        queues.add(t[order], losses[order])
        p = timestep_probabilities(history)
        np.testing.assert_allclose(p, queues.probabilities(), rtol=1e-5)
        assert float(p.sum()) == pytest.approx(1, abs=1e-6)
        warm.append(float(jnp.ptp(p)) > 0)
    assert warm == sorted(warm) and not warm[0] and warm[-1]  # Uniform at first.
    kept = [sorted(losses) for losses in queues.losses]
    np.testing.assert_allclose(jnp.sort(history.losses, axis=1), kept, rtol=1e-6)


def test_draws_and_importance_follow_the_probabilities():
    losses = jnp.array([1.0, 0.0, 2.0, 5.0])[:, None] * jnp.ones((4, 10))
    history, u = History(losses, jnp.full(4, 10)), (jnp.arange(80_000) + 0.5) / 80_000
    t, importance = LossAwareTimesteps(4).draw(u, history)
    p = np.array([1, 0, 2, 5]) / 8 * 0.999 + 0.001 / 4
    np.testing.assert_allclose(np.bincount(t, minlength=4) / len(t), p, atol=1e-4)
    np.testing.assert_allclose(importance, 1 / (4 * p[t]), rtol=1e-5)
    # The mean of anything is that of uniform timesteps.
    value = jnp.array([3.0, -1.0, 0.5, 2.0])
    assert float(jnp.mean(importance * value[t])) == pytest.approx(1.125, abs=0.01)
    ends = jnp.array([0.0, np.nextafter(1, 0, dtype=np.float32)])
    last, _ = LossAwareTimesteps(4).draw(ends, history)
    np.testing.assert_array_equal(last, [0, 3])


def test_before_that_they_are_uniform():
    u = (jnp.arange(1000) + 0.5) / 1000
    t, importance = LossAwareTimesteps(100).draw(u, empty(100))
    np.testing.assert_array_equal(t, PowerTimesteps(100).draw(u, None)[0])
    np.testing.assert_allclose(importance, 1, rtol=1e-6)


class Stub(nn.Module):
    """A convolution of the noisy mask and the image to mean and variance."""

    @nn.compact
    def __call__(self, x_t, image, t, train=False):
        return nn.Conv(2, (3, 3))(jnp.concatenate([x_t, image], axis=-1))


@pytest.fixture(scope="module")
def problem():
    """(make_step, a state, a batch of 8) with four timesteps and a learned variance."""
    tx = optax.apply_if_finite(optax.adam(1e-2), 3)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "mask": 255 * rng.integers(0, 2, (8, 8, 8, 1), np.uint8),
        "index": np.arange(8, dtype=np.int32),
    }
    variables = Stub().init(jax.random.key(0), batch["mask"] / 255, batch["image"] / 255, 0)
    method = Diffusion(
        model=Stub(),
        process=Process(make_schedule("cosine", 4), "eps"),
        loss=bound_loss("rescaled_kl", "learned_range"),
        timestep_sampler=LossAwareTimesteps(4),
    )

    def make_step(**changes):
        change = functools.partial(augment, default_config().augment.to_dict())
        options = {"augment": change, "ema_decay": 0.9, "tx": tx, "method": method}
        return TrainStep(**options | changes)

    return make_step, create_state(variables, tx, empty(4)), batch


@pytest.fixture(scope="module")
def reference(problem):
    make_step, state, batch = problem
    return run_steps(jax.jit(make_step()), state, batch, 16)


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_steps_fill_the_history_and_draw_by_it(reference):
    losses, state = reference
    history = state.history
    assert history.counts.sum() == 16 * 8 and (history.counts >= 10).all()
    p = timestep_probabilities(history)
    assert float(p.max()) > 2 * float(p.min())
    # Unlike what is minimised, it is not multiplied by the importance.
    assert history.losses.mean(1).max() > 2 * history.losses.mean(1).min() > 0
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_steps_do_not_depend_on_the_number_of_devices(problem, reference, monkeypatch, devices):
    make_step, state, batch = problem
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "pmap", functools.partial(jax.pmap, devices=some))
    monkeypatch.setattr(jax, "local_devices", lambda: some)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    step = parallel.pmap_train_step(make_step(axis_name=parallel.AXIS))
    state = parallel.replicate(jax.tree.map(jnp.copy, state))
    losses, several = run_steps(step, state, parallel.shard(batch), 16)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-4)
    assert_trees_close(several, reference[1])


@pytest.mark.slow
def test_steps_do_not_depend_on_microbatches_or_places(problem, reference):
    make_step, state, batch = problem
    turned = {name: x[::-1] for name, x in batch.items()}
    for changes, given in (({"microbatches": 4}, batch), ({}, turned)):
        losses, other = run_steps(jax.jit(make_step(**changes)), state, given, 16)
        np.testing.assert_allclose(losses, reference[0], rtol=1e-4)
        assert_trees_close(other, reference[1])


def test_a_step_that_is_left_out_leaves_no_losses(problem, reference):
    make_step, _, batch = problem
    state, method = reference[1], make_step().method
    broken = lambda *args: {"vb": jnp.nan * method.loss(*args)["vb"]}
    step = make_step(method=dataclasses.replace(method, loss=broken))
    after, metrics = jax.jit(step)(state, batch, jax.random.key(7), 1.0)
    assert metrics["nonfinite"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.history, state.history)


def test_a_history_is_of_the_config(tiny_config):
    config = tiny_config()
    history = lambda: make_method(config).timestep_sampler.init()
    assert history() is None
    config.diffusion.timestep_sampler = "loss_second_moment"
    assert history().losses.shape == (100, 10)
    config.diffusion.timestep_sampler = "best"
    with pytest.raises(UserError, match="diffusion.timestep_sampler='best' is unknown: choose"):
        check(config)
    supervised = default_config("unet")
    supervised.diffusion.timestep_sampler = "loss_second_moment"
    assert make_method(supervised).timestep_sampler.init() is None


@pytest.fixture
def learned(tiny_config):
    """A config with all of it."""
    config = tiny_config()
    config.model.out_channels = 2
    config.sampler.name = "ddpm"
    config.diffusion.variance = "learned_range"
    config.diffusion.update(loss="rescaled_mse", schedule="cosine", num_timesteps=2)
    config.diffusion.timestep_sampler = "loss_second_moment"
    return config


def last_state(config, workdir):
    method, tx = make_method(config), make_optimizer(config.train)
    create = lambda variables: create_state(variables, tx, method.timestep_sampler.init())
    like = jax.eval_shape(create, variables_like(method))
    with Checkpoints(workdir) as checkpoints:
        return like.from_trees(checkpoints.restore_last(like.trees()))


@pytest.mark.slow
def test_a_run_with_a_learned_variance_resumes_bitwise(learned, tmp_path):
    learned.train.num_steps = learned.train.checkpoint_every = learned.validation.every = 9
    train(learned, str(tmp_path / "whole"))
    learned.train.num_steps, learned.validation.every = 5, 0
    train(learned, str(tmp_path / "cut"))
    # As a run that was begun before there was a bound has it.
    path = tmp_path / "cut" / "metrics.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert lines[0][2:4] == ["mse", "vb"] and all(float(line[3]) > 0 for line in lines[1:])
    path.write_text("".join(",".join(line[:3] + line[4:]) + "\n" for line in lines))
    learned.train.num_steps = 9
    train(learned, str(tmp_path / "cut"))
    after = [line.split(",") for line in path.read_text().splitlines()]
    assert (
        after[0] == lines[0] and [line[3] == "" for line in after[1:]] == [True] * 5 + [False] * 4
    )
    ours, expected = (last_state(learned, tmp_path / name) for name in ("cut", "whole"))
    assert (ours.history.counts >= 10).all()
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    start = variables_like(make_method(learned))["params"]["unet"]["out_conv"]
    kernel = ours.params["unet"]["out_conv"]["kernel"]  # Zero at first.
    assert kernel.shape == start["kernel"].shape and (np.abs(kernel).max((0, 1, 2)) > 0).all()


def test_a_checkpoint_without_a_history_is_refused_by_name(tmp_path):
    state = create_state({"params": {"w": jnp.ones(3)}}, optax.sgd(1.0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(0, state.trees(), {"config": {}})
        restored = state.from_trees(checkpoints.restore_last(state.trees()))
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        other = dataclasses.replace(state, history=empty(4))
        with pytest.raises(UserError, match=r"rest.timestep_history.counts: absent in the check"):
            checkpoints.restore_last(other.trees())
