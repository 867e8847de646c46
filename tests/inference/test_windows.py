"""Windows over large images: they cover them, share their noise and blend without a seam."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from segdiff_jax.data.augment import random_patch
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.diffusion.process import Process
from segdiff_jax.diffusion.samplers import field_noise
from segdiff_jax.diffusion.schedule import make_schedule
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.inference.load import Model, load
from segdiff_jax.inference.windows import window_starts, window_weight
from segdiff_jax.methods.noise import ROW, pixel_numbers
from segdiff_jax.methods.views import make_views
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train
from tests.drivers import Sampled, config_of


@pytest.mark.parametrize(
    "length, size, overlap, starts",
    [
        (16, 16, 0.5, [0]),
        (17, 16, 0.5, [0, 1]),
        (32, 16, 0.0, [0, 16]),
        (32, 16, 0.5, [0, 8, 16]),
        (512, 256, 0.25, [0, 128, 256]),
        (40, 16, 0.25, [0, 12, 24]),
    ],
)
def test_windows_cover_a_side(length, size, overlap, starts):
    assert window_starts(length, size, overlap) == starts


def test_the_centre_of_a_window_counts_most():
    weight = window_weight(16)
    assert weight[7, 7] == weight.max() == pytest.approx(np.exp(-2 * 0.5 * (0.5 / 2) ** 2))
    assert weight[0, 0] == pytest.approx(1e-3) and (weight > 0).all()
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])


VIEWS = make_views(flips=True, rotations=True)


def test_noise_belongs_to_pixels():
    """Whatever window and view show them; it is standard normal, another in each draw."""
    pixels = pixel_numbers(12, VIEWS)
    offsets = np.array([[0, 0], [5, 3]])
    numbers = (offsets[:, 0] * ROW + offsets[:, 1])[:, None, None, None] + pixels
    keys = jnp.broadcast_to(jax.random.key(3), (2 * len(VIEWS),))
    noise_fn = jax.jit(field_noise(keys, jnp.uint32(numbers.reshape(-1, 12, 12)), 1))
    noise = np.array(noise_fn(0)).reshape(2, len(VIEWS), 12, 12)
    for k, (turns, axes) in enumerate(VIEWS):  # Back as the image lies.
        for window in noise[:, k]:
            window[:] = np.rot90(np.flip(window, axes), -turns)
    np.testing.assert_array_equal(noise, noise[:, :1].repeat(len(VIEWS), 1))
    np.testing.assert_array_equal(noise[0, 0, 5:, 3:], noise[1, 0, :7, :9])
    other = np.asarray(noise_fn(1))[0, ..., 0]
    assert abs(np.corrcoef(noise[0, 0].ravel(), other.ravel())[0, 1]) < 0.25
    many = jnp.uint32(np.arange(10_000).reshape(1, 100, 100))
    draws = np.asarray(jax.jit(field_noise(keys[:1], many, 2))(0))
    assert draws.shape == (1, 100, 100, 2)
    assert abs(draws.mean()) < 0.03 and draws.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(draws[..., 0].ravel(), draws[..., 1].ravel())[0, 1]) < 0.05


class PerPixel(nn.Module):
    """A denoiser that sees one pixel at a time: a whole image and its windows must agree."""

    @nn.compact
    def __call__(self, x_t, image, t):
        return self.denoise(x_t, self.encode_image(image), t)

    def encode_image(self, image):
        return image

    def denoise(self, x_t, features, t):
        masks = x_t.reshape(len(features), -1, *x_t.shape[1:])
        output = jnp.tanh(features[:, None, ..., :1] - 0.5 * masks)
        return output.reshape(x_t.shape)


@pytest.fixture
def config():
    return config_of(name="ddpm", samples=4, flips=True, overlap=0.5, clip=True, max_batch=4)


PROCESS = Process(make_schedule("linear", 100), "x0")


def test_windows_agree_with_the_whole_image(config):
    whole, windows = (Sampled(PerPixel(), PROCESS, config, window=size) for size in (24, 16))
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    shares = []
    samples = windows({}, images, ["a", "b"], shares.append)
    assert samples.shape == (4, 2, 24, 24) and 0.3 < samples.std() < 3
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    np.testing.assert_allclose(samples, whole({}, images, ["a", "b"]), atol=1e-5)
    # Each sample has noise of its own, and another seed another.
    assert all(np.abs(samples[0] - other).mean() > 0.1 for other in samples[1:])
    again = windows({}, images, ["a", "b"], seed=7)
    assert np.abs(again - samples).mean() > 0.1
    np.testing.assert_allclose(again, whole({}, images, ["a", "b"], seed=7), atol=1e-5)


def test_windows_of_oblong_images(config):
    driver = Sampled(PerPixel(), PROCESS, config, window=16)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 20, 3), np.uint8)
    samples = driver({}, image, ["a"])
    assert samples.shape == (4, 1, 40, 20) and np.isfinite(samples).all()
    # The noise does not tell where an image ends.
    part = driver({}, image[:, :30], ["a"])
    np.testing.assert_allclose(samples[:, :, :30], part, atol=1e-5)


def test_an_overlap_that_cannot_be_is_named():
    with pytest.raises(UserError, match=r"sampler.overlap=1.0 must be from 0 to below 1"):
        config_of(overlap=1.0)


def test_to_what_size_images_are_brought(tiny_config):
    model = Model(tiny_config(), {})
    assert model.input_size((100, 30)) == (16, 16)
    model.config.data.full_size = 48
    assert model.input_size((100, 30)) == (48, 48)
    model.config.sampler.native = True
    own = model.input_size
    assert own((100, 30)) == (100, 30) and own((16, 16)) == (16, 16)
    assert own((20, 8)) == (40, 16) and own((7, 5)) == (22, 16)


def test_patches_are_of_the_image_and_its_mask():
    image = np.arange(20 * 30 * 3, dtype=np.int32).reshape(1, 20, 30, 3).repeat(64, axis=0)
    keys = jax.random.split(jax.random.key(0), 64)
    cut = jax.jit(lambda *args: random_patch(*args, 8))
    patches, masks = cut(keys, image, image[..., :1] + 7)
    np.testing.assert_array_equal(patches[..., :1] + 7, masks)
    starts = np.asarray(patches)[:, 0, 0, 0] // 3
    rows, columns = starts // 30, starts % 30
    assert rows.min() == 0 and rows.max() == 12 and columns.min() < 3 and columns.max() > 19
    for patch, row, column in zip(patches, rows, columns, strict=True):
        np.testing.assert_array_equal(patch, image[0, row : row + 8, column : column + 8])


@pytest.mark.slow
def test_a_run_of_patches_validates_and_samples_in_windows(tiny_config, tmp_path):
    config = tiny_config()
    config.data.full_size = 24
    train(config, str(tmp_path / "run"))
    trained = load(tmp_path / "run", native=True, samples=2)
    assert trained.settings["full size"] == 24 and trained.settings["overlap"] == 0.25
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    for name, size in {"a": (30, 41), "b": (9, 12)}.items():
        Image.fromarray(noise[: size[0], : size[1]]).save(tmp_path / "photos" / f"{name}.png")
    examples = NativeExamples(FolderSource(str(tmp_path / "photos")), trained)
    assert examples[0]["input"].shape == (30, 41, 3) and examples[1]["input"].shape == (16, 21, 3)
    out = tmp_path / "out"
    evaluate([examples], out, trained.settings, "windows")
    for name, size in {"a": (30, 41), "b": (9, 12)}.items():
        assert np.asarray(Image.open(out / "masks" / f"{name}_Segmentation.png")).shape == size
    # As sample.py, so the library.
    (combined,) = trained.predict([noise], ids=["a"])
    stored = np.asarray(Image.open(out / "masks" / "a_Segmentation.png")) > 127
    np.testing.assert_array_equal(combined.mask, stored)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["full_size"] == 24
    square = load(tmp_path / "run")
    assert square.input_size((30, 41)) == (24, 24)
    assert square.predict([noise])[0].mask.shape == (30, 41)


def test_a_size_that_windows_do_not_fit_is_named(tiny_config, tmp_path):
    config = tiny_config()
    config.data.full_size = 12
    with pytest.raises(
        ValueError, match="data.full_size=12 must be 0 or at least data.image_size=16"
    ):
        train(config, str(tmp_path))
