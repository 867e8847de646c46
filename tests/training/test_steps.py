"""The training step: the original's recorded steps, and independence of how a batch is cut."""

import dataclasses
import functools
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from configs import default
from segdiff_jax.config import default_config
from segdiff_jax.data.augment import augment
from segdiff_jax.data.normalise import normalise_mask
from segdiff_jax.diffusion.process import Process, q_sample
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.methods import init_variables
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.interface import Losses
from segdiff_jax.methods.losses import bce_dice_of_mask
from segdiff_jax.methods.supervised import Supervised
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.models import make_model
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.original.weights import config_from_torch, params_from_torch, torch_from_params
from segdiff_jax.runtime import parallel
from segdiff_jax.training.optimizer import make_optimizer
from segdiff_jax.training.state import apply_gradients, create_state
from segdiff_jax.training.steps import TrainStep
from tests.conftest import run_steps


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


@pytest.fixture(scope="module")
def original(golden, golden_state_dict):
    """(recorded arrays, config, parameters, jitted gradient) of the original's training run."""
    arrays, state_dict = golden("train"), golden_state_dict("train")
    config = config_from_torch(state_dict)
    method = Diffusion(SegDiff(**config), Process(make_schedule("linear", 100)))

    @jax.jit
    def gradient(params, image, mask, t, eps):
        def loss_fn(params):
            batch = {"image": image, "mask": mask}
            losses, _ = method.loss_at({"params": params}, batch, t, eps)
            return losses["mse"].mean(), losses["mse"]

        return jax.grad(loss_fn, has_aux=True)(params)

    return arrays, config, list(state_dict), params_from_torch(state_dict), gradient


def numbers(tree, config, names):
    """For each of the original's names: sum, 2-norm and dot with a fixed random tensor."""
    rows, sizes = {}, {}
    for name, leaf in torch_from_params(tree, config).items():
        leaf = leaf.astype(np.float64)
        probe = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).standard_normal(leaf.shape)
        rows[name] = [leaf.sum(), np.sqrt(np.sum(leaf**2)), np.sum(leaf * probe)]
        sizes[name] = [np.sqrt(leaf.size), 1.0, np.sqrt(np.sum(probe**2))]
    return np.array([rows[n] for n in names]), np.array([sizes[n] for n in names])


@pytest.mark.slow
@pytest.mark.parametrize(
    "run, weight_decay, microbatches", [("wd0", 0, 1), ("wd05_micro2", 0.05, 2)]
)
def test_five_steps_of_the_original(original, run, weight_decay, microbatches):
    arrays, config, names, params, gradient = original
    # The original's loss is a sum over pixels, and it adds the gradients of its microbatches.
    pixels = 32 * 32
    tx = optax.chain(
        optax.scale(pixels * microbatches), optax.adamw(1e-3, weight_decay=weight_decay)
    )
    state = create_state({"params": params}, tx)
    update = jax.jit(lambda state, grads: apply_gradients(state, grads, {}, tx, 0.99))
    # Constants that a norm takes away, and the keys' bias that softmax ignores, have no
    # gradient but rounding noise, which Adam blows up to full steps.
    recorded_norm = arrays["wd0/grad0"][:, 1]
    real = (recorded_norm > 1e-3) & np.array(["qkv.bias" not in name for name in names])
    assert real.mean() > 0.8

    def check(tree, what):
        ours, sizes = numbers(tree, config, names)
        expected = arrays[f"{run}/{what}"]
        # A relative error r of a tensor moves its sum by at most r |x| sqrt(n), and so on.
        bound = 1e-3 * expected[:, 1:2] * sizes
        excess = np.abs(ours - expected) / bound
        assert excess[real].max() < 1, (what, names[np.argmax(excess.max(1) * real)])

    for i in range(5):
        batch = [nhwc(arrays["image"][i]), nhwc(arrays["x0"][i])]
        grads, losses = gradient(state.params, *batch, arrays["t"][i], nhwc(arrays["noise"][i]))
        np.testing.assert_allclose(pixels * losses, arrays[f"{run}/losses"][i], rtol=1e-4)
        norm = pixels * microbatches * optax.tree.norm(grads)
        assert float(norm) == pytest.approx(arrays[f"{run}/grad_norm"][i], rel=1e-3)
        if i == 0 and run == "wd0":
            check(jax.tree.map(lambda g: pixels * g, grads), "grad0")
        state = update(state, grads)
    check(state.params, "final")
    check(state.ema_params, "ema")


class Stub(nn.Module):
    """Two convolutions of the noisy mask, the image and the timestep."""

    dropout: float = 0.0

    def encode_image(self, image):
        return image

    def __call__(self, x_t, image, t, train):
        return self.denoise(x_t, image, t, train)

    @nn.compact
    def denoise(self, x_t, image, t, train):
        t = t.astype(jnp.float32)[:, None, None, None] / 100
        h = nn.Conv(4, (3, 3))(jnp.concatenate([x_t, image + t], axis=-1))
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        return nn.Conv(1, (3, 3))(h)


def augmentation(**fields):
    return functools.partial(augment, default_config().augment.to_dict() | fields)


@pytest.fixture(scope="module")
def problem():
    """(arguments of `make_step`, a state, a batch of 8)."""
    model, tx = Stub(), optax.adam(1e-2)
    process = Process(make_schedule("linear", 100), "x0", True, 0.3, True)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "mask": 255 * rng.integers(0, 2, (8, 8, 8, 1), np.uint8),
        "index": np.arange(8, dtype=np.int32),
    }
    ones = jnp.ones((1, 8, 8, 1)), jnp.ones((1, 8, 8, 3)), jnp.ones(1), False
    variables = model.init(jax.random.key(0), *ones)
    arguments = {
        "model": model,
        "process": process,
        "tx": tx,
        "augment": augmentation(brightness=0.2),
        "ema_decay": 0.9,
    }
    return arguments, create_state(variables, tx), batch


OF_METHOD = {field.name for field in dataclasses.fields(Diffusion)}


def make_step(**arguments):
    """A step of `Diffusion`: its attributes and those of `TrainStep`."""
    of_method = {k: v for k, v in arguments.items() if k in OF_METHOD}
    of_step = {k: v for k, v in arguments.items() if k not in OF_METHOD}
    loss = {"loss": bce_dice_of_mask} if of_method["process"].logits else {}
    return TrainStep(Diffusion(**loss | of_method), **of_step)


def on_all_devices(state):
    """A copy, since a pmapped step takes its state over."""
    return parallel.replicate(jax.tree.map(jnp.copy, state))


def assert_trees_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.fixture(scope="module")
def reference(problem):
    arguments, state, batch = problem
    return run_steps(jax.jit(make_step(**arguments)), state, batch)


def test_noise_changes_with_the_step_and_the_loss_falls(problem, reference):
    losses, state = reference
    assert len(set(losses)) == 3
    arguments, _, batch = problem
    step = jax.jit(make_step(**arguments))
    later, _ = run_steps(step, state, batch, 60)
    assert np.mean(later[-10:]) < np.mean(losses) - 0.05


def test_soft_masks_are_trained_on_as_they_are_and_others_by_majority(problem):
    arguments, state, batch = problem
    shares = np.uint8([[0, 100], [200, 255]])
    shares = shares[..., None]
    np.testing.assert_array_equal(normalise_mask(shares)[..., 0], [[-1, -1], [1, 1]])
    np.testing.assert_allclose(
        normalise_mask(shares, soft=True)[..., 0], [[-1, -0.21569], [0.56863, 1]], atol=1e-5
    )
    hard = jax.jit(make_step(**arguments))
    soft = jax.jit(make_step(**arguments, soft_masks=True))
    shares = batch | {"mask": np.where(batch["mask"] > 127, 200, 100).astype(np.uint8)}
    first = lambda step, batch: run_steps(step, state, batch, 1)[0][0]
    assert first(hard, shares) == first(hard, batch)
    np.testing.assert_allclose(first(soft, batch), first(hard, batch), rtol=1e-5)
    assert abs(first(soft, shares) - first(hard, batch)) > 0.01


def test_half_size_trains_on_the_means_of_2_x_2_pixels(problem):
    arguments, state, batch = problem
    arguments = arguments | {"augment": augmentation(flip=False, right_angles=False)}
    double = {k: v.repeat(2, 1).repeat(2, 2) for k, v in batch.items() if k != "index"}
    double["image"] = double["image"] // 2 + np.indices((16, 16)).sum(0)[..., None] % 2 * 9
    batch = batch | {"image": batch["image"] // 2 + 4.5}
    small = jax.jit(make_step(**arguments))
    half = jax.jit(make_step(**arguments, half_size=True))
    expected, _ = run_steps(small, state, batch)
    losses, _ = run_steps(half, state, double | {"index": batch["index"]})
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("soft, expected", [(True, 0.5), (False, 1.0)])
def test_a_network_of_smaller_masks_gets_the_means_of_their_pixels(soft, expected):
    """Of 2 x 2 pixels, one is skin."""

    class Answers:
        model = types.SimpleNamespace(mask_stride=2)

        def losses(self, variables, batch, keys):
            assert batch["mask"].shape == (2, 2, 2, 1) and batch["image"].shape == (2, 4, 4, 3)
            return Losses({"mask": jnp.mean(batch["mask"], (1, 2, 3))}, {})

    tx = optax.adam(1.0)
    augment = lambda key, image, mask: (jnp.float32(image), jnp.float32(mask))
    step = TrainStep(Answers(), tx, augment, ema_decay=0.9, soft_masks=soft)
    mask = np.tile(np.uint8([[0, 255], [255, 255]]), (2, 2, 2))[..., None]
    batch = {"image": np.zeros((2, 4, 4, 3), np.uint8), "mask": mask, "index": np.arange(2)}
    _, metrics = step(
        create_state({"params": {"w": jnp.zeros(1)}}, tx), batch, jax.random.key(0), 1
    )
    assert metrics["mask"] == pytest.approx(expected)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_twenty_steps_do_not_depend_on_the_number_of_devices(problem, monkeypatch, devices):
    arguments, state, batch = problem
    expected, one = run_steps(jax.jit(make_step(**arguments)), state, batch, 20)
    assert jax.local_device_count() == 4
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "pmap", functools.partial(jax.pmap, devices=some))
    monkeypatch.setattr(jax, "local_devices", lambda: some)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    step = parallel.pmap_train_step(make_step(**arguments, axis_name=parallel.AXIS))
    losses, several = run_steps(step, on_all_devices(state), parallel.shard(batch), 20)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_trees_close(several, one)
    assert len(jax.tree.leaves(several)[0].sharding.device_set) == devices


def test_dropout_follows_the_example_too(problem, reference):
    arguments, state, batch = problem
    arguments = arguments | {"model": Stub(dropout=0.5)}
    losses, one = run_steps(jax.jit(make_step(**arguments)), state, batch)
    assert abs(losses[0] - reference[0][0]) > 1e-4
    step = parallel.pmap_train_step(make_step(**arguments, axis_name=parallel.AXIS))
    four_losses, four = run_steps(step, on_all_devices(state), parallel.shard(batch))
    np.testing.assert_allclose(four_losses, losses, rtol=1e-5)
    assert_trees_close(four, one)


def test_microbatches_give_the_update_of_one_batch(problem, reference):
    arguments, state, batch = problem
    step = jax.jit(make_step(**arguments, microbatches=4))
    losses, sliced = run_steps(step, state, batch)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    assert_trees_close(sliced, reference[1])


def test_noise_follows_the_index_not_the_place(problem, reference):
    arguments, state, batch = problem
    turned = {name: x[::-1] for name, x in batch.items()}
    step = jax.jit(make_step(**arguments))
    np.testing.assert_allclose(run_steps(step, state, turned)[0], reference[0], rtol=1e-5)
    other = batch | {"index": batch["index"] + 8}
    assert abs(run_steps(step, state, other, 1)[0][0] - reference[0][0]) > 1e-4


def test_the_step_is_traced_once(problem):
    arguments, state, batch = problem
    traces = []

    def step(state, batch, key, rate):
        traces.append(1)
        update = make_step(**arguments, axis_name=parallel.AXIS)
        return update(state, batch, key, rate)

    run_steps(parallel.pmap_train_step(step), on_all_devices(state), parallel.shard(batch))
    assert len(traces) == 1


@pytest.fixture(scope="module")
def supervised_problem(problem):
    """(what makes its step, a state) of a network with batch norm and gates."""

    class Gated(nn.Module):
        @nn.compact
        def __call__(self, image, train=False):
            h = nn.Conv(4, (3, 3), use_bias=False)(image)  # Whose gradient would be rounding.
            h = nn.BatchNorm(not train, momentum=0.0)(h)
            gates = self.param("gates", nn.initializers.ones, (4,))
            return nn.Conv(1, (3, 3))(gates.reshape(1, 1, 1, 4) * nn.relu(h))

    arguments, _, _ = problem
    tx, image = arguments["tx"], jnp.ones((1, 8, 8, 3))
    state = create_state(jax.jit(lambda: Gated().init(jax.random.key(0), image))(), tx)
    shared = {name: arguments[name] for name in ("tx", "augment", "ema_decay")}

    return functools.partial(TrainStep, Supervised(Gated()), **shared), state


SEGDIFF = {"name": "segdiff", "channels": 8, "channel_mult": [1], "num_res_blocks": 1}
SEGDIFF |= {"attention_resolutions": [], "norm_groups": 0}
SEGDIFF |= {"rrdb_blocks": 1, "rrdb_width": 4, "rrdb_growth": 2}
UNET, MEDT = {"name": "unet", "channels": [4, 8]}, {"name": "medt", "blocks": [1, 1]}


# MedT's norms of norms, here of single pixels, blow up rounding.
@pytest.mark.parametrize(
    "fields, rtol, atol",
    [
        (UNET, 1e-4, 1e-6),
        pytest.param(SEGDIFF, 1e-4, 1e-6, marks=pytest.mark.slow),
        pytest.param(MEDT, 1e-3, 1e-4, marks=pytest.mark.slow),
    ],
    ids=["unet", "segdiff", "medt"],
)
def test_batch_statistics_are_those_of_all_devices(problem, fields, rtol, atol):
    arguments, _, batch = problem
    # Devices whose images differ: without the average over devices, so would the statistics.
    dark = np.arange(1, 9, dtype=np.uint8)[:, None, None, None]
    batch = batch | {"image": batch["image"] // dark}
    tx = optax.sgd(0.1)  # Adam would blow up what rounding leaves of a bias before batch norm.
    shared = {name: arguments[name] for name in ("augment", "ema_decay")} | {"tx": tx}

    def method(axis_name=None):
        model = make_model(fields, axis_name)
        if fields["name"] != "segdiff":
            return Supervised(model, 8)
        options = {"loss": bce_dice_of_mask, "recycling": True, "image_size": 8}
        return Diffusion(model, arguments["process"], **options)

    step = lambda axis_name=None: TrainStep(method(axis_name), axis_name=axis_name, **shared)
    state = jax.jit(lambda: create_state(init_variables(method(), 0), tx))()
    losses, one = run_steps(jax.jit(step()), state, batch)
    pmapped = parallel.pmap_train_step(step(parallel.AXIS))
    four_losses, four = run_steps(pmapped, on_all_devices(state), parallel.shard(batch))
    np.testing.assert_allclose(four_losses, losses, rtol=rtol / 10)
    assert_trees_close(four, one, rtol, atol)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), one.batch_stats, state.batch_stats)
    assert max(jax.tree.leaves(moved)) > 0.1


def test_gates_are_frozen_for_the_first_steps(problem, supervised_problem):
    make, state = supervised_problem
    medt = make_model({"name": "medt", "frozen_gate_epochs": 1.2})
    tx = make_optimizer(default.get_config().train, medt, steps_per_epoch=1.5)  # Two steps.
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    frozen, state = jax.jit(make(tx=tx)), create_state(variables, tx)
    _, state = run_steps(frozen, state, problem[2], 2)
    np.testing.assert_array_equal(state.params["gates"], np.ones(4))
    assert (state.params["Conv_1"]["bias"] != 0).all()
    _, state = run_steps(frozen, state, problem[2], 1)
    assert (np.abs(state.params["gates"] - 1) > 1e-3).all()


def test_a_step_with_a_bad_gradient_changes_nothing_but_its_count(supervised_problem, problem):
    make, state = supervised_problem
    tx = optax.apply_if_finite(optax.adam(0.1), 2)
    state = create_state({"params": state.params, "batch_stats": state.batch_stats}, tx)
    _, _, batch = problem
    broken = batch | {"image": np.full_like(batch["image"], 77)}

    class Breaks(Supervised):
        """NaN for images of one value."""

        def losses(self, variables, batch, keys):
            terms, stats, _ = super().losses(variables, batch, keys)
            good = jnp.where(jnp.ptp(batch["image"]) < 1e-3, jnp.nan, 1.0)
            bad = good * jnp.sum(variables["params"]["gates"]) * jnp.ones(len(batch["image"]))
            return Losses(terms | {"bad": bad}, stats)

    method = Breaks(make().method.model)
    augment = lambda key, *x: x
    step = jax.jit(dataclasses.replace(make(), method=method, tx=tx, augment=augment))
    state, metrics = step(state, batch, jax.random.key(7), 1.0)
    assert metrics["nonfinite"] == 0 and np.isfinite(metrics["loss"])
    assert metrics["loss"] == pytest.approx(metrics["bce"] + metrics["dice"] + metrics["bad"])
    for count in (1, 2):
        former = state
        state, metrics = step(state, broken, jax.random.key(7), 1.0)
        assert np.isnan(metrics["loss"]) and metrics["nonfinite"] == count
        assert_trees_close(state.params, former.params, 0, 0)
        assert_trees_close(state.batch_stats, former.batch_stats, 0, 1e-7)
        same = former.opt_state.inner_state
        jax.tree.map(np.testing.assert_array_equal, state.opt_state.inner_state, same)
    recovered, metrics = step(state, batch, jax.random.key(7), 1.0)
    assert metrics["nonfinite"] == 0 and np.isfinite(recovered.params["gates"]).all()
    state, metrics = step(state, broken, jax.random.key(7), 1.0)  # One too many.
    assert metrics["nonfinite"] == 3 and np.isnan(state.params["gates"]).any()


def test_microbatches_average_the_batch_statistics(problem, supervised_problem):
    step, state = supervised_problem
    whole = problem[2]
    _, sliced = run_steps(jax.jit(step(microbatches=2)), state, whole, 1)
    step, halves = jax.jit(step()), []
    for part in (slice(4), slice(4, 8)):
        _, half = run_steps(step, state, {name: x[part] for name, x in whole.items()}, 1)
        halves.append(half.batch_stats["BatchNorm_0"])
    start = state.batch_stats["BatchNorm_0"]
    for name, value in sliced.batch_stats["BatchNorm_0"].items():
        assert (np.abs(halves[0][name] - halves[1][name]) > 1e-5).any()
        assert (np.abs(value - start[name]) > 1e-3).all()
        expected = (halves[0][name] + halves[1][name]) / 2
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction, target", [("eps", "eps"), ("x0", "mask"), ("v", "v")])
def test_mse_scores_what_the_network_predicts(prediction, target):
    class Constant(nn.Module):
        def __call__(self, x_t, image, t, train):
            return jnp.full_like(x_t, 0.25)

    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.choice([-1.0, 1.0], (2, 4, 4, 1)), jnp.float32)
    eps = jnp.asarray(rng.normal(size=mask.shape), jnp.float32)
    process = Process(make_schedule("linear", 100), prediction, input_scale=0.3)
    batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": mask}
    method = Diffusion(Constant(), process)
    losses = method.loss_at({"params": {}}, batch, jnp.array([3, 90]), eps)[0]["mse"]
    abar = process.schedule.alphas_cumprod[[3, 90], None, None, None]
    v = np.sqrt(abar) * eps - np.sqrt(1 - abar) * 0.3 * mask
    expected = np.mean((0.25 - {"eps": eps, "mask": mask, "v": v}[target]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class Recorder:
    """Stands for a model and keeps what it is given; its output is the image's first channel."""

    def __init__(self):
        self.calls = []

    def apply(self, variables, x_t, image, t, train):
        self.calls.append((np.asarray(x_t), np.asarray(t)))
        return image[..., :1]


@pytest.fixture
def example():
    """(image whose first channel is a mask, another mask, t, eps, keys), four of each."""
    rng = np.random.default_rng(0)
    own, mask = (jnp.asarray(rng.choice([-1.0, 1.0], (4, 8, 8, 1)), jnp.float32) for _ in "ab")
    eps = jnp.asarray(rng.normal(size=mask.shape), jnp.float32)
    image = jnp.repeat(own, 3, axis=-1)
    return image, mask, jnp.array([3, 50, 90, 99]), eps, jax.random.split(jax.random.key(0), 4)


def test_recycling_noises_the_mask_predicted_from_pure_noise(example):
    image, mask, t, eps, keys = example
    model = Recorder()
    process = Process(make_schedule("linear", 100), "x0", input_scale=0.5)
    method = Diffusion(model, process, recycling=True)
    loss_of = lambda image: method.loss_at(
        {"params": {}}, {"image": image, "mask": mask}, t, eps, keys
    )
    losses = loss_of(image)[0]["mse"]
    (x_T, last), (x_t, told) = model.calls[:2]
    assert (last == 99).all() and abs(x_T.mean()) < 0.2 and abs(x_T.std() - 1) < 0.1
    np.testing.assert_array_equal(told, t)
    np.testing.assert_allclose(
        x_t, q_sample(process.schedule, 0.5 * image[..., :1], t, eps), rtol=1e-6
    )
    loss_of(3 * image)
    np.testing.assert_array_equal(model.calls[3][0], x_t)  # Clipped, as when sampling.
    # It is scored against the true mask.
    np.testing.assert_allclose(
        losses, np.mean((image[..., :1] - mask) ** 2, axis=(1, 2, 3)), rtol=1e-6
    )


def test_self_conditioning_shows_the_estimate_to_half_of_the_examples(example):
    image, mask, t, eps, _ = example
    keys = jax.random.split(jax.random.key(1), 400)
    image, mask, t, eps = (jnp.tile(x, (100, *[1] * (x.ndim - 1))) for x in (image, mask, t, eps))
    model = Recorder()
    process = Process(make_schedule("linear", 100), "x0", self_conditioning=True)
    batch = {"image": image, "mask": mask}
    Diffusion(model, process).loss_at({"params": {}}, batch, t, eps, keys)
    (first, _), (second, _) = model.calls
    assert first.shape == (400, 8, 8, 2) and (first[..., 1] == 0).all()
    np.testing.assert_array_equal(first[..., 0], second[..., 0])
    shown = (second[..., 1] == image[..., 0]).all((1, 2))
    assert (shown | (second[..., 1] == 0).all((1, 2))).all()
    assert 0.4 < shown.mean() < 0.6


def test_the_extra_pass_has_no_gradient(example):
    _, mask, t, eps, keys = example

    class Scaled:
        def apply(self, variables, x_t, image, t, train):
            return variables["params"] * x_t

    process = Process(make_schedule("linear", 100), "x0", input_scale=0.5)

    def loss(p, own):
        """The loss with x_t made of the mask that the parameter `own` predicts."""
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, 1), (8, 8, 1))
        noisy = jnp.clip(0.5 * own * jax.vmap(draw)(keys), -0.5, 0.5)
        x_t = q_sample(process.schedule, noisy, t, eps)
        return jnp.mean((p * x_t - mask) ** 2)

    def recycled(p):
        method = Diffusion(Scaled(), process, recycling=True)
        batch = {"image": jnp.zeros((4, 8, 8, 3)), "mask": mask}
        losses, _ = method.loss_at({"params": p}, batch, t, eps, keys)
        return losses["mse"].mean()

    value, gradient = jax.value_and_grad(recycled)(0.4)
    np.testing.assert_allclose(value, loss(0.4, 0.4), rtol=1e-5)
    np.testing.assert_allclose(gradient, jax.grad(loss)(0.4, 0.4), rtol=1e-4)


@pytest.mark.slow
def test_the_extra_passes_are_the_same_on_four_devices(problem):
    arguments, state, batch = problem
    process = dataclasses.replace(arguments["process"], self_conditioning=True)
    model = arguments["model"]
    ones = jnp.ones((1, 8, 8, 2)), jnp.ones((1, 8, 8, 3)), jnp.ones(1), False
    state = create_state(model.init(jax.random.key(0), *ones), arguments["tx"])
    arguments = arguments | {"process": process, "recycling": True}
    arguments["timestep_sampler"] = PowerTimesteps(100, 0.5)
    step = make_step(**arguments, axis_name=parallel.AXIS)
    losses, _ = run_steps(jax.jit(make_step(**arguments)), state, batch)
    sharded = parallel.shard(batch)
    four, _ = run_steps(parallel.pmap_train_step(step), on_all_devices(state), sharded)
    np.testing.assert_allclose(four, losses, rtol=1e-5)


def test_timesteps_and_weights():
    """With power 1/3, P(t < T / 2) is 1/8; weights multiply the losses of their timesteps."""
    process = Process(make_schedule("linear", 100), "x0")
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2000, 2, 2, 3), np.uint8),
        "mask": 255 * rng.integers(0, 2, (2000, 2, 2, 1), np.uint8),
        "index": np.arange(2000, dtype=np.int32),
    }

    def loss(weights, power):
        model, tx = Recorder(), optax.identity()
        state = create_state({"params": {"unused": jnp.zeros(())}}, tx)
        draw = {"weights": weights, "timestep_sampler": PowerTimesteps(100, power)}
        step = make_step(
            model=model, process=process, **draw, tx=tx, augment=augmentation(), ema_decay=0.9
        )
        with jax.disable_jit():
            _, metrics = step(state, batch, jax.random.key(0), 1.0)
        return float(metrics["loss"]), model.calls[-1][1]

    plain, t = loss(None, 1 / 3)
    assert abs((t < 50).mean() - 1 / 8) < 0.03 and t.max() == 99 and t.min() >= 0
    _, uniform = loss(None, 1.0)
    assert abs((uniform < 50).mean() - 1 / 2) < 0.05 and set(uniform) == set(range(100))
    weights = np.where(np.arange(100) < 50, 3.0, 0.0)
    assert 0 < loss(weights, 1 / 3)[0] < 3 * plain * 1 / 8 * 1.3
