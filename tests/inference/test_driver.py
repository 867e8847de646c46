"""The networks are closed forms, so that what the sampler must give is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segdiff_jax.data.pipeline import resize_image
from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.samplers import START
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.inference import driver as module
from segdiff_jax.inference.combine import temper
from segdiff_jax.inference.load import Model, make_ensemble
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.methods.views import from_views, make_views, to_views
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from tests.drivers import Sampled, config_of, driver_of, example_keys

SIZE = 8
SCHEDULE = make_schedule("linear", 100)
NAMES = [f"ISIC_{i}" for i in range(12)]


def for_each(features, x_t):
    """An image's features, for each of its masks."""
    return jnp.repeat(features, len(x_t) // len(features), axis=0)


class Threshold(nn.Module):
    """Certain, by its logits, that bright pixels are lesion, whatever x_t and t are."""

    def encode_image(self, image):
        return image[..., :1]

    def denoise(self, x_t, features, t):
        return jnp.where(for_each(features, x_t) > 0, 50.0, -50.0) + 0 * x_t


class Noisy(nn.Module):
    """An eps that keeps part of the noise, so that each sample is one of its own."""

    def encode_image(self, image):
        return image.mean(axis=-1, keepdims=True)

    def denoise(self, x_t, features, t):
        return 0.1 * x_t - 0.05 * for_each(features, x_t)


class Clock(nn.Module):
    """Predicts x_0 = t / 1000, which tells the timestep of the last step."""

    def encode_image(self, image):
        return image

    def denoise(self, x_t, features, t):
        return jnp.broadcast_to(t[:, None, None, None] / 1000, x_t.shape)


def noisy(seed=0, **changes):
    return Sampled(Noisy(), Process(SCHEDULE), config_of(**changes), seed)


def images_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def predict(driver, images, names):
    """Any number of images in batches, the last one filled up with black: f32[samples, N, S, S]."""
    results = []
    for start in range(0, len(images), driver.batch_size):
        group, ids = images[start:][: driver.batch_size], names[start:][: driver.batch_size]
        missing = driver.batch_size - len(group)
        padded = np.concatenate([group, np.zeros((missing, *group.shape[1:]), np.uint8)])
        results.append(driver({}, padded, [*ids, *["padding"] * missing])[:, : len(group)])
    return np.concatenate(results, axis=1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddim", {}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 1.0, "level_sets": True}),
        ("ddpm", {"samples": 2}),
    ],
)
@pytest.mark.parametrize("input_scale", [1.0, 0.3])
def test_samples_are_the_mask_that_the_network_is_certain_of(name, changes, input_scale):
    process = Process(SCHEDULE, "x0", logits=True, input_scale=input_scale, normalise_input=True)
    config = config_of(name=name, variance="fixed_small", **changes)
    driver = Sampled(Threshold(), process, config)
    images = images_of(driver.batch_size)
    samples = driver({}, images, NAMES[: driver.batch_size])
    assert samples.dtype == np.float32
    assert samples.shape == (config.sampler.samples, driver.batch_size, SIZE, SIZE)
    expected = np.where(images[..., 0] > 127, 1, -1)
    np.testing.assert_allclose(samples, np.broadcast_to(expected, samples.shape), atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "spacing", "last"),
    [
        (1, "trailing", 99),
        (4, "trailing", 24),
        (4, "leading", 0),
        (4, "uniform", 0),
        (4, "ddim", 0),
    ],
)
def test_the_network_is_told_the_timestep_of_the_training_chain(steps, spacing, last):
    config = config_of(steps=steps, spacing=spacing, samples=1, max_batch=1)
    samples = Sampled(Clock(), Process(SCHEDULE, "x0"), config)({}, images_of(4), NAMES[:4])
    np.testing.assert_allclose(samples, last / 1000, atol=1e-6)


class Counter(nn.Module):
    """Predicts its estimate of the step before and 1/4 more."""

    def encode_image(self, image):
        return image

    def denoise(self, x_t, features, t):
        return x_t[..., 1:] + 0.25


def test_self_conditioning_shows_the_estimate_of_the_step_before():
    process = Process(SCHEDULE, "x0", input_scale=0.5, self_conditioning=True)
    config = config_of(steps=3, samples=1, max_batch=1)
    samples = Sampled(Counter(), process, config)({}, images_of(4), NAMES[:4])
    np.testing.assert_allclose(samples, 0.75, atol=1e-6)


@pytest.mark.parametrize(("clip", "bound"), [(True, 1.0), (False, 50.0)])
def test_clip_bounds_the_prediction(clip, bound):
    # Read as x_0 rather than as logits, the network's output is -50 or 50.
    config = config_of(clip=clip, samples=1, max_batch=1)
    samples = Sampled(Threshold(), Process(SCHEDULE, "x0"), config)({}, images_of(4), NAMES[:4])
    np.testing.assert_allclose(np.abs(samples), bound, rtol=1e-5)


class Quadrant(nn.Module):
    """Predicts the image's brightness in the upper left quarter and 0 elsewhere."""

    def encode_image(self, image):
        half = SIZE // 2
        return jnp.zeros_like(image[..., :1]).at[:, :half, :half].set(image[:, :half, :half, :1])

    def denoise(self, x_t, features, t):
        return for_each(features, x_t) + 0 * x_t


@pytest.mark.parametrize("max_batch", [6, 4, 3, 2])
def test_each_sample_sees_its_mirror_image_and_is_mirrored_back(max_batch):
    config = config_of(samples=6, flips=True, max_batch=max_batch)
    images = images_of(12)
    samples = predict(Sampled(Quadrant(), Process(SCHEDULE, "x0"), config), images, NAMES)
    first, second = slice(SIZE // 2), slice(SIZE // 2, None)
    expected = np.zeros_like(samples)
    # Not mirrored, left-right, up-down, both, and again.
    quadrants = [(first, first), (first, second), (second, first), (second, second)]
    for i, (rows, columns) in enumerate([*quadrants, *quadrants[:2]]):
        expected[i, :, rows, columns] = images[:, rows, columns, 0] / 127.5 - 1
    np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_a_sample_equals_ddim_by_hand():
    driver = noisy(samples=1, max_batch=1, steps=1)
    images = images_of(4)
    samples = driver({}, images, NAMES[:4])
    abar = SCHEDULE.alphas_cumprod[99]
    for i in range(4):
        key = example_keys(0, [NAMES[i]], [0])[0, 0]
        x_t = np.asarray(jax.random.normal(jax.random.fold_in(key, START), (SIZE, SIZE)))
        eps = 0.1 * x_t - 0.05 * (images[i].mean(axis=-1) / 127.5 - 1)
        expected = (x_t - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
        np.testing.assert_allclose(samples[0, i], expected, rtol=1e-3, atol=1e-3)


def test_samples_follow_from_seed_id_and_number_alone():
    driver = noisy()
    assert driver.batch_size == 8
    images = images_of(8)
    samples = driver({}, images, NAMES[:8])
    assert (samples.std(axis=(2, 3)) > 0.1).all()
    # Another order.
    order = np.random.default_rng(0).permutation(8)
    again = driver({}, images[order], [NAMES[i] for i in order])
    np.testing.assert_array_equal(again, samples[:, order])
    # Other neighbours.
    others = np.concatenate([images[:3], images_of(5, seed=1)])
    mixed = driver({}, others, [*NAMES[:3], *"abcde"])
    np.testing.assert_array_equal(mixed[:, :3], samples[:, :3])
    # The same image under another name, as another sample or from another seed.
    same = driver({}, images[:1].repeat(8, axis=0), NAMES[:8])
    np.testing.assert_array_equal(same[:, 0], samples[:, 0])
    distinct = np.concatenate([*same, *noisy(seed=1)({}, images[:1].repeat(8, axis=0), NAMES[:8])])
    gaps = np.abs(distinct[:, None] - distinct[None]).mean(axis=(2, 3))
    assert (gaps[~np.eye(len(gaps), dtype=bool)] > 0.1).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_do_not_depend_on_how_many_are_computed_together(eta):
    images = images_of(12)
    expected = predict(noisy(samples=5, max_batch=32, eta=eta), images, NAMES)
    assert expected.shape == (5, 12, SIZE, SIZE)
    for count, max_batch in ((5, 2), (5, 4), (3, 12)):
        driver = noisy(samples=count, max_batch=max_batch, eta=eta)
        samples = predict(driver, images, NAMES)
        np.testing.assert_allclose(samples, expected[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "max_batch", "images", "chunk", "chunks"),
    [
        (1, 1, 1, 1, 1),
        (1, 32, 32, 1, 1),
        (5, 32, 6, 5, 1),
        (9, 9, 1, 9, 1),
        (9, 17, 1, 9, 1),
        (9, 18, 2, 9, 1),
        (9, 8, 1, 5, 2),  # 5 and 4, rather than 8 and 1
        (9, 4, 1, 3, 3),
        (7, 3, 1, 3, 3),
        (5, 1, 1, 1, 5),
    ],
)
def test_images_and_samples_fill_a_devices_batch(
    monkeypatch, count, max_batch, images, chunk, chunks
):
    """`images` of one device and `chunk` samples at a time, `chunks` times."""
    calls = record_calls(monkeypatch)
    driver = noisy(samples=count, max_batch=max_batch)
    devices = jax.local_device_count()
    assert driver.batch_size == devices * images
    size = driver.batch_size
    driver({}, images_of(size), [str(i) for i in range(size)])  # Sees what fits, too.
    calls.clear()
    samples = driver({}, images_of(size), [str(i) for i in range(size)])
    assert samples.shape == (count, size, SIZE, SIZE)
    assert calls == [
        ("encode", (devices, images)),
        *[("begin", (devices, images)), ("advance", (devices, images, chunk))] * chunks,
    ]
    assert images * chunk <= max_batch


def record_calls(monkeypatch):
    """Calls of a driver's programs: name and leading axes of images, features or keys."""
    calls, pmap_map = [], parallel.pmap_map
    leading = {
        "encode": lambda variables, images: images.shape[:2],
        "begin": lambda features, draw: features.shape[:2],
        "<lambda>": lambda variables, first, features, draw, state: draw.keys.shape[:3],
    }

    def recorded(fn, *args, **options):
        program, name = pmap_map(fn, *args, **options), fn.__name__

        def call(*inputs):
            if name in leading:
                calls.append((name.replace("<lambda>", "advance"), leading[name](*inputs)))
            return program(*inputs)

        call.lower = program.lower
        return call

    monkeypatch.setattr(parallel, "pmap_map", recorded)
    return calls


def test_each_batch_is_encoded_once_and_each_part_traced_once(monkeypatch):
    calls, traces = record_calls(monkeypatch), []

    class Traced(Noisy):
        def encode_image(self, image):
            traces.append("encode")
            return super().encode_image(image)

        def denoise(self, x_t, features, t):
            traces.append((x_t.shape[0], features.shape[0], t.shape[0]))
            return super().denoise(x_t, features, t)

    config = config_of(samples=4, max_batch=2, steps=20)
    driver = Sampled(Traced(), Process(SCHEDULE), config)
    for seed in range(3):
        calls.clear()
        driver({}, images_of(4, seed), NAMES[:4])
        names = [name for name, _ in calls]
        if seed:
            assert names == ["encode", *["begin", *["advance"] * 4] * 2]
    # Two samples of an image share its features, and all the timestep.
    assert traces == ["encode", (2, 1, 1)]


def compilations(caplog):
    return [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_a_chain_in_parts_compiles_once_and_is_the_chain_in_one(monkeypatch, caplog):
    images, changes = images_of(4), {"samples": 2, "steps": 20, "eta": 1.0, "max_batch": 2}
    driver = noisy(**changes)
    ours = driver({}, images, NAMES[:4])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        driver({}, images_of(4, 1), NAMES[:4])
    assert not compilations(caplog)
    monkeypatch.setattr(module, "MOST_STEPS", 20)
    whole = noisy(**changes)
    np.testing.assert_allclose(ours, whole({}, images, NAMES[:4]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps, shares", [(20, 4), (6, 2), (11, 11)])
def test_progress_is_shown_within_the_chain(steps, shares):
    seen = []
    driver = noisy(samples=4, max_batch=2, steps=steps)
    driver({}, images_of(4), NAMES[:4], seen.append)
    np.testing.assert_allclose(seen, np.arange(1, 2 * shares + 1) / (2 * shares))


@pytest.mark.parametrize(
    ("fits", "images", "count"), [(32, 4, 8), (31, 4, 4), (9, 4, 2), (4, 4, 1), (3, 2, 1)]
)
def test_samples_and_then_images_are_halved_until_they_fit(monkeypatch, fits, images, count):
    """A sample takes a GiB, and `fits` GiB are free; four images and eight samples a device."""
    expected = noisy(samples=8, max_batch=32)({}, images_of(16), [*NAMES, *"abcd"])
    calls = record_calls(monkeypatch)

    def bytes_of(program, *inputs):
        return 2**30 * (np.prod(inputs[3].keys.shape[1:]) if len(inputs) > 2 else 1)

    monkeypatch.setattr(parallel, "program_bytes", bytes_of)
    driver = noisy(samples=8, max_batch=32, max_memory=float(fits))
    samples = driver({}, images_of(16), [*NAMES, *"abcd"])
    np.testing.assert_allclose(samples, expected, rtol=1e-4, atol=1e-4)
    advances = [shape for name, shape in calls if name == "advance"]
    assert advances == [(4, images, count)] * (4 // images * 8 // count)


def test_images_are_fewer_where_encoding_them_is_what_does_not_fit(monkeypatch):
    """12 GiB to encode an image, one for each sample of one, 16 free; three images a device."""
    expected = noisy(samples=8, max_batch=24)({}, images_of(12), NAMES)
    calls = record_calls(monkeypatch)

    def bytes_of(program, *inputs):
        samples = np.prod(inputs[3].keys.shape[1:]) if len(inputs) > 2 else 12 * inputs[1].shape[1]
        return 2**30 * samples

    monkeypatch.setattr(parallel, "program_bytes", bytes_of)
    samples = noisy(samples=8, max_batch=24, max_memory=16.0)({}, images_of(12), NAMES)
    np.testing.assert_allclose(samples, expected, rtol=1e-4, atol=1e-4)
    assert [shape for name, shape in calls if name == "advance"] == [(4, 1, 8)] * 3


def test_memory_for_less_than_one_sample_is_named(monkeypatch):
    with pytest.raises(
        ValueError, match=r"sampler\.max_memory=1e-06 GiB: one image with one sample"
    ):
        noisy(max_memory=1e-6)({}, images_of(4), NAMES[:4])
    with pytest.raises(UserError, match=r"sampler\.max_memory=-1\.0 must be at least 0"):
        noisy(max_memory=-1.0)
    monkeypatch.setattr(parallel, "free_bytes", lambda: 0)  # It is tried, all the same.
    assert noisy()({}, images_of(4), NAMES[:4]).shape == (3, 4, SIZE, SIZE)


class Left(nn.Module):
    """Log odds of a pixel's brightness and, times a parameter, of its distance from the left."""

    @nn.compact
    def __call__(self, image, train=False):
        slope = self.param("slope", nn.initializers.ones, ())
        return slope * jnp.arange(SIZE).reshape(1, 1, SIZE, 1) + image[..., :1]


def test_a_supervised_model_is_run_once_on_each_mirror_image():
    variables = {"params": {"slope": jnp.float32(0.5)}}
    images = images_of(4)
    for flips, slopes in ((False, [1]), (True, [1, -1, 1, -1])):
        driver = Sampled(Left(), None, config_of(flips=flips))
        assert driver.batch_size == (4 if flips else 24)
        samples = driver(variables, images, NAMES[:4])
        assert samples.shape == (len(slopes), 4, SIZE, SIZE)
        for sample, slope in zip(samples, slopes, strict=True):
            # Mirrored back, the image is what it was, and the slope runs the other way.
            ramp = 0.5 * np.arange(SIZE)[::slope]
            expected = 2 / (1 + np.exp(-(images[..., 0] / 127.5 - 1 + ramp))) - 1
            np.testing.assert_allclose(sample, expected, atol=1e-5)
    combined = driver.combine(samples[:, 0])
    probability, mask = combined.probability, combined.mask
    np.testing.assert_allclose(probability, (samples[:, 0].mean(axis=0) + 1) / 2, atol=1e-6)
    np.testing.assert_array_equal(mask, probability > 0.5)


TURNED = (lambda x: x), np.rot90, (lambda x: np.rot90(x, 2)), (lambda x: np.rot90(x, 3))


def views_as_arrays(image, flips, rotations):
    """All that the views can be, of one array, whatever their order."""
    turns = TURNED if rotations else TURNED[:1]
    mirrors = [lambda x: x, lambda x: x[:, ::-1]] if flips else [lambda x: x]
    if flips and not rotations:
        mirrors += [lambda x: x[::-1], lambda x: x[::-1, ::-1]]
    return {turn(mirror(image)).tobytes() for turn in turns for mirror in mirrors}


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("rotations", [False, True])
def test_views_are_all_mirror_images_and_turns_and_come_back(flips, rotations):
    views = make_views(flips, rotations)
    assert len(views) == {(0, 0): 1, (1, 0): 4, (0, 1): 4, (1, 1): 8}[flips, rotations]
    images = images_of(2)
    flat = to_views(jnp.asarray(images), views)
    seen_as = np.asarray(flat).reshape(2, len(views), *images.shape[1:])
    np.testing.assert_array_equal(seen_as[:, 0], images)
    for i in range(2):
        expected = views_as_arrays(images[i, ..., 0], flips, rotations)
        assert {view.tobytes() for view in seen_as[i, ..., 0]} == expected
    which = jnp.broadcast_to(jnp.arange(len(views)), (2, len(views)))
    back = from_views(jnp.float32(flat), views, which)
    for view in np.moveaxis(np.asarray(back), 1, 0):
        np.testing.assert_array_equal(view, images)


def test_a_diffusion_model_sees_the_image_turned():
    """Samples of a model that says what it sees are the image itself, however it was turned."""
    config = config_of(samples=8, flips=True, rotations=True, steps=2)
    driver = Sampled(Threshold(), Process(SCHEDULE, "x0", True), config)
    images = images_of(4)
    samples = driver({}, images, NAMES[:4])
    expected = np.where(images[..., 0] > 127, 1.0, -1.0)
    for sample in samples:
        np.testing.assert_array_equal(np.sign(sample), expected)


def test_a_trace_goes_from_noise_to_the_first_sample():
    config, frames = config_of(samples=3, steps=10), []
    driver = Sampled(Threshold(), Process(SCHEDULE, "x0", True), config)
    samples = driver({}, images_of(4), NAMES[:4], trace=lambda *frame: frames.append(frame))
    assert [t for t, *_ in frames] == [100, 50, 0]
    assert frames[0][1].shape == (4, SIZE, SIZE, 1) and abs(frames[0][1].std() - 1) < 0.2
    assert (frames[0][2] == 0).all()
    np.testing.assert_array_equal(frames[-1][1][..., 0], samples[0])
    assert np.abs(frames[1][1][..., 0] - samples[0]).mean() > 0.1


def test_a_temperature_changes_probabilities_and_not_the_mask_at_one_half():
    samples = np.random.default_rng(0).uniform(-1.2, 1.2, (5, 30, 40)).astype(np.float32)
    plain, warm = (
        Sampled(Left(), None, config_of(temperature=t)).combine(samples) for t in (1.0, 2.0)
    )
    np.testing.assert_array_equal(plain.mask, warm.mask)
    np.testing.assert_array_equal(warm.probabilities, temper(plain.probabilities, 2.0))
    np.testing.assert_allclose(plain.deviation, np.clip((samples + 1) / 2, 0, 1).std(0), atol=1e-6)
    with pytest.raises(UserError, match=r"sampler\.temperature=0\.0 must be above 0"):
        config_of(temperature=0.0)


def test_another_seed_compiles_nothing(caplog):
    driver, images, names = noisy(), images_of(4), NAMES[:4]
    first = driver({}, images, names)
    with jax.log_compiles():
        other = driver({}, images, names, seed=1)
    assert not compilations(caplog)
    assert (first != other).any()
    np.testing.assert_array_equal(driver({}, images, names), first)
    np.testing.assert_array_equal(noisy(seed=1)({}, images, names), other)


@pytest.mark.parametrize("small", [SIZE, SIZE // 2])
def test_an_ensemble_is_the_mean_of_its_members_probabilities(small):
    """Each sees the images at its own size."""
    variables = {"params": {"slope": jnp.float32(0.5)}}
    members = []
    for model, process, own, flips, size in (
        (Threshold(), Process(SCHEDULE, "x0", True), {}, False, small),
        (Left(), None, variables, True, SIZE),
    ):
        config = config_of(flips=flips, ensemble="vote")
        config.data.image_size = size
        driver = driver_of(model, process, config)
        members.append(Model(config, {"model": "m"}, driver, own))
    ensemble, images = make_ensemble(members), images_of(4)
    assert ensemble.batch_size == 4  # The smallest of 8 and 4.
    assert ensemble.input_size((30, 20)) == (SIZE, SIZE)
    samples = ensemble.sample(images, NAMES[:4])
    assert samples.shape == (2, 4, SIZE, SIZE, 1)
    seen = np.stack([resize_image(image, small) for image in images])
    own = [members[0].sample(seen, NAMES[:4]), members[1].sample(images, NAMES[:4])]
    for i in range(4):
        probabilities = [
            m.segment(s[:, i], (SIZE, SIZE)).probability for m, s in zip(members, own, strict=True)
        ]
        probability = ensemble.segment(samples[:, i]).probability
        np.testing.assert_allclose(probability, np.mean(probabilities, axis=0), atol=1e-6)


def test_members_of_an_ensemble_give_all_their_samples_if_single_masks_are_the_networks():
    members = []
    for seed, count in ((0, 3), (1, 2)):
        config = config_of(steps=2, samples=count, samples_from="network")
        config.seed, config.data.image_size = seed, SIZE
        driver = driver_of(Noisy(), Process(SCHEDULE), config)
        members.append(Model(config, {"model": "m"}, driver, {}))
    ensemble, images = make_ensemble(members), images_of(4)
    samples = ensemble.sample(images, NAMES[:4], seed=5)
    own = [member.sample(images, NAMES[:4], seed=5) for member in members]
    # 3 and 2 samples, so that each member has 6.
    repeated = np.concatenate([np.tile(own[0], (2, 1, 1, 1, 1)), np.tile(own[1], (3, 1, 1, 1, 1))])
    np.testing.assert_allclose(samples, repeated, atol=1e-6)
    found = ensemble.segment(samples[:, 0])
    np.testing.assert_array_equal(found.samples, samples[:, 0, ..., 0] > 0)
    means = [member.segment(x[:, 0]).probability for member, x in zip(members, own, strict=True)]
    np.testing.assert_allclose(found.probability, np.mean(means, axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver_pp_2m"])
@pytest.mark.parametrize("flips, rotations", [(False, False), (True, False), (True, True)])
def test_the_driver_gives_what_sample_gives_at_once(name, flips, rotations):
    """With two parts of the chain, two chunks of three samples and views that share no features."""
    images, options = images_of(4), {"flips": flips, "rotations": rotations, "eta": 0.5}
    config = config_of(name=name, steps=10, samples=6, max_batch=4, **options)
    driver = driver_of(Noisy(), Process(SCHEDULE), config)
    keys = example_keys(3, NAMES[:4], range(6))
    draw = make_draw(keys, np.arange(6), len(driver.method.views))
    samples = jax.jit(functools.partial(sample_masks, driver.method))({}, jnp.asarray(images), draw)
    np.testing.assert_allclose(driver({}, images, NAMES[:4], 3), samples, rtol=1e-5, atol=1e-4)


def test_the_driver_gives_what_a_supervised_method_samples():
    variables, images = {"params": {"slope": jnp.float32(0.5)}}, images_of(4)
    driver = driver_of(Left(), None, config_of(flips=True, rotations=True))
    draw = make_draw(example_keys(0, NAMES[:4], range(8)), np.arange(8), 8)
    sample_all = jax.jit(functools.partial(sample_masks, driver.method))
    samples = sample_all(variables, jnp.asarray(images), draw)
    np.testing.assert_allclose(driver(variables, images, NAMES[:4]), samples, atol=1e-6)


def test_samples_that_are_not_finite_are_refused():
    variables = {"params": {"slope": jnp.float32(jnp.nan)}}
    with pytest.raises(FloatingPointError, match="samples hold NaN or infinity: .* diverged"):
        Sampled(Left(), None, config_of())(variables, images_of(4), NAMES[:4])


def test_keys_of_images_and_samples_are_distinct():
    bits = [jax.random.key_data(example_keys(seed, NAMES, range(3))) for seed in (0, 1)]
    assert bits[0].shape == (12, 3, 2)
    assert len(np.unique(np.reshape(bits, (-1, 2)), axis=0)) == 2 * 12 * 3
    part = jax.random.key_data(example_keys(0, NAMES[4:6], range(1, 3)))
    np.testing.assert_array_equal(part, bits[0][4:6, 1:])


@pytest.mark.parametrize("field", ["sampler.name", "sampler.spacing", "diffusion.variance"])
def test_rejects_an_unknown_choice(field):
    with pytest.raises(UserError, match=rf"{field}='other' is unknown: choose one of \('"):
        noisy(**{field.partition(".")[2]: "other"})


@pytest.mark.parametrize("field", ["steps", "samples", "max_batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_rejects_numbers_below_1(field, value):
    with pytest.raises(UserError, match=rf"sampler\.{field}={value} must be at least 1"):
        noisy(**{field: value})


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_rejects_a_threshold_that_makes_all_alike(value):
    with pytest.raises(UserError, match=rf"sampler\.threshold={value} must be above 0 to below 1"):
        noisy(threshold=value)


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_rejects_an_eta_that_no_variance_allows(value):
    with pytest.raises(UserError, match=rf"sampler\.eta={value} must be from 0 to 1"):
        noisy(eta=value)


def test_rejects_more_steps_than_the_chain_has():
    with pytest.raises(UserError, match="'101' must be a whole number of steps from 1 to 100"):
        noisy(steps=101)


@pytest.mark.parametrize("spacing", ["leading", "uniform", "ddim"])
def test_rejects_one_step_that_would_begin_without_noise(spacing):
    with pytest.raises(UserError, match=rf"sampler\.steps=1 with sampler\.spacing='{spacing}'"):
        noisy(steps=1, spacing=spacing)


def test_rejects_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="a batch of 3 does not divide over 4 devices"):
        noisy()({}, images_of(3), NAMES[:3])
