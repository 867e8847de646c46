"""The exported function against the model, and its file in a program without this package."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

from segdiff_jax import models
from segdiff_jax.config import VERSION, default_config
from segdiff_jax.data.builders.synthetic_lesions import drawing
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.inference import export
from segdiff_jax.inference.combine import standard_deviation
from segdiff_jax.inference.driver import Driver
from segdiff_jax.inference.export import export_model, export_settings, write_model
from segdiff_jax.inference.load import Model, load
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.runtime.command import run_simple
from segdiff_jax.runtime.errors import UserError
from tests.conftest import ROOT, tiny_overrides

IDS = ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
EXAMPLE = ROOT / "examples" / "predict_exported.py"


class Noisy(nn.Module):
    """Masks that tell the noise, the timestep and which way the image lies."""

    axis_name: str | None = None

    def encode_image(self, image):
        return jnp.cumsum(image[..., :1], axis=1) * jnp.linspace(0, 1, 16)[None, None, :, None]

    @nn.compact
    def denoise(self, x_t, features, t):
        features = jnp.repeat(features, len(x_t) // len(features), axis=0)
        gain = 1 + self.param("gain", nn.initializers.ones, ())
        return jnp.tanh(gain * (0.5 * x_t + 0.2 * features)) + t[:, None, None, None] / 200

    def __call__(self, x_t, image, t):
        return self.denoise(x_t, self.encode_image(image), t)


@pytest.fixture
def noisy(monkeypatch):
    """noisy(samples=3) -> a `Noisy` model, ready to sample."""
    monkeypatch.setitem(models.MODELS, "noisy", Noisy)
    return lambda **sampler: trained_of({"name": "noisy"}, **sampler)


def config_of(model, seed=0, variance="fixed_large", **sampler):
    """A tiny one; `model` has a name, or changes SegDiff's fields."""
    name = model.get("name", "segdiff")
    if name == "noisy":
        config = default_config().unlock()
        config.model = ConfigDict(model)
        config.data.image_size = 16
        config.sampler.update({"steps": 2, "samples": 2, "max_batch": 4})
    else:
        config = tiny_overrides(default_config(name))
        config.model.update(model)
    if model == ENCODER:
        config.data.image_size = 32
    config.sampler.update(sampler)
    config.seed, config.diffusion.variance = seed, variance
    return config


def random_variables(config):
    """As they may be after training: at its start, the networks' last layers are zero."""
    like = variables_like(make_method(config))
    rng = np.random.default_rng(0)
    width = lambda x: np.prod(x.shape[:-1]) ** -0.5 if len(x.shape) > 1 else 0.5
    draw = lambda x: rng.normal(0, width(x), x.shape).astype(np.float32)
    variables = jax.tree.map(draw, like)
    deviations = jax.tree.map(lambda x: 0.1 + np.abs(x), variables.get("batch_stats", {}))
    return variables | ({"batch_stats": deviations} if deviations else {})


def trained_of(model, **sampler):
    config = config_of(model, **sampler)
    driver = Driver(make_method(config), config.sampler.max_batch)
    return Model(config, {"model": config.model.name}, driver, random_variables(config))


def call(exported, images, ids, seed=0):
    names = np.uint32([zlib.crc32(id.encode()) for id in ids])
    return {k: np.asarray(x) for k, x in exported.call(images, names, np.uint32(seed)).items()}


def check_equal(trained, parts=(slice(0, 1), slice(1, 4))):
    """One function of one image, and of three, gives what the model gives of four."""
    scale = trained.config.data.image_size // IMAGES.shape[1]
    images = IMAGES.repeat(scale, axis=1).repeat(scale, axis=2)
    expected = trained.sample(images, IDS)[..., 0]
    assert expected.std() > 0.01, "the network says nothing"
    exported = jax.export.deserialize(export_model(trained).serialize())
    assert exported.platforms == ("cpu", "cuda")
    for part in parts:
        result = call(exported, images[part], IDS[part], trained.config.seed)
        samples = result["samples"]
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples.swapaxes(0, 1), expected[:, part], atol=1e-5)
        for i, of_image in enumerate(samples[..., None]):
            probability = trained.segment(of_image).probability
            np.testing.assert_allclose(result["probability"][i], probability, atol=1e-6)
            deviation = standard_deviation(of_image)
            np.testing.assert_allclose(result["deviation"][i], deviation, atol=1e-6)
    return exported


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "ddim", "eta": 1.0, "samples": 5, "flips": True, "steps": 12},  # Two programs.
        {"name": "ddpm", "samples": 8, "flips": True, "rotations": True, "ensemble": "vote"},
        {"name": "ddpm", "variance": "fixed_small", "samples": 3, "flips": True, "clip": False},
        {"name": "ddim", "eta": 1.0, "level_sets": True},
        {"name": "dpm_solver_pp_2m", "steps": 4, "spacing": "uniform", "temperature": 1.5},
    ],
    ids=lambda sampler: sampler["name"],
)
def test_every_way_to_sample(noisy, sampler):
    check_equal(noisy(**sampler))


def test_samples_follow_from_seed_and_name_alone(noisy):
    exported = export_model(noisy(name="ddpm"))
    samples = call(exported, IMAGES, IDS)["samples"]
    order = [2, 0, 3, 1]
    again = call(exported, IMAGES[order], [IDS[i] for i in order])["samples"]
    np.testing.assert_array_equal(again, samples[order])
    others = np.concatenate([IMAGES[:1], IMAGES[:0:-1]])
    mixed = call(exported, others, [IDS[0], *"abc"])["samples"]
    np.testing.assert_array_equal(mixed[0], samples[0])
    for ids, seed in ((IDS[::-1], 0), (IDS, 1)):
        assert np.abs(call(exported, IMAGES, ids, seed)["samples"] - samples).mean() > 0.001


def test_a_seed_of_more_than_32_bits_is_that_of_the_model(noisy):
    for seed in (2**40 - 3, -1):
        trained = noisy(samples=1, steps=1, seed=seed)
        exported = export_model(trained)
        settings = export_settings(trained, exported)
        samples = call(exported, IMAGES, IDS, settings["seed"])["samples"][:, 0]
        expected = trained.sample(IMAGES, IDS)[0, ..., 0]
        np.testing.assert_allclose(samples, expected, atol=1e-5)


ENCODER = {"image_encoder": "efficientnet_lite0", "mask_stride": 2}
UNET = {"name": "unet", "channels": (8, 16), "norm": "batch"}


@pytest.mark.parametrize(
    "model, sampler",
    [
        ({"channel_mult": (1,)}, {"samples": 1}),
        pytest.param({"norm_groups": 0}, {"name": "ddpm"}, marks=pytest.mark.slow),
        pytest.param({"name": "medsegdiff"}, {}, marks=pytest.mark.slow),
        (UNET, {"flips": True, "rotations": True}),
        pytest.param({"name": "medt"}, {}, marks=pytest.mark.slow),
        pytest.param(ENCODER, {"flips": True}, marks=pytest.mark.slow),
    ],
    ids=["segdiff", "batch norm", "medsegdiff", "unet", "medt", "image encoder"],
)
def test_every_network(model, sampler):
    check_equal(trained_of(model, **sampler), [slice(1, 4)])


@pytest.mark.slow
def test_attention_of_one_platform_alone_is_replaced(monkeypatch):
    """As on a machine with a GPU, where the network would ask for cuDNN's."""
    trained = trained_of({"dtype": "bfloat16", "attention": "cudnn"}, samples=1, steps=1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert export_model(trained).platforms == ("cpu", "cuda")


@pytest.mark.slow
def test_the_file_is_enough_for_a_program_without_this_package(tmp_path):
    """The command and the example, as a user runs them; the latter cannot import ours or Flax."""
    config = config_of(UNET, flips=True, threshold=0.4)
    config.data.colour_constancy = "shades_of_gray"
    workdir, file, photos = tmp_path / "run", tmp_path / "model.zip", tmp_path / "photos"
    with Checkpoints(workdir) as checkpoints:
        meta = {"config": config.to_dict(), "version": VERSION, "step": 1}
        checkpoints.save_best(1, random_variables(config), meta)
    photos.mkdir()
    Image.fromarray(drawing.draw(3, 48)[0][:40]).save(photos / "a b.png")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla-tests")}

    def run(*command):
        command = [sys.executable, *map(str, command)]
        options = {"env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, cwd=ROOT if command[1] == "-m" else tmp_path, **options)

    fields = {"threshold": 0.52, "temperature": 2.0, "largest_component": True}
    more = [f"--config.sampler.{name}={value}" for name, value in fields.items()]
    made = run("-m", "segdiff_jax.inference.export", f"--workdir={workdir}", f"--out={file}", *more)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1].startswith(f"{file}, 0.")
    code = (
        "import runpy, sys, numpy; sys.modules |= dict.fromkeys(['flax', 'segdiff_jax'], None);"
        "numpy.save('p.npy', runpy.run_path(sys.argv.pop(1))['probability'])"
    )
    used = run("-c", code, EXAMPLE, file, photos / "a b.png", "mask.png")
    assert used.returncode == 0, used.stderr

    trained = load(workdir, **fields)
    example = NativeExamples(FolderSource(str(photos)), trained)[0]
    samples = trained.sample(example["input"][None].repeat(4, 0), IDS)
    found = trained.segment(samples[:, 0], (40, 48))
    probability, mask = found.probability, found.mask
    assert 0 < mask.mean() < (probability > 0.52).mean() < 0.99  # The largest component alone.
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), probability, atol=1e-5)
    picture = np.asarray(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(picture, np.where(mask, 255, 0))

    settings = json.loads(zipfile.ZipFile(file).read("settings.json"))
    facts = {"model": "unet", "image size": 16, "colour constancy": "shades_of_gray"}
    facts |= {
        "flips": True,
        "threshold": 0.52,
        "largest_component": True,
        "ensemble": "mean",
        "seed": 0,
    }
    facts |= {"jax": jax.__version__, "platforms": ["cpu", "cuda"]}
    assert facts.items() <= settings.items() and str(tmp_path) not in str(settings)


def test_the_example_is_short_and_needs_little():
    """Jax itself needs numpy and scipy."""
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 36
    imported = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert imported - set(sys.stdlib_module_names) == {"jax", "numpy", "scipy", "PIL"}


def test_what_cannot_be_exported_is_named(noisy, monkeypatch, tmp_path):
    trained, file = noisy(), tmp_path / "model.zip"
    file.write_bytes(b"former")
    ensemble = dataclasses.replace(trained, members=(trained, trained))
    with pytest.raises(UserError, match="an ensemble cannot be exported"):
        write_model(ensemble, file)
    with pytest.raises(UserError, match="sampler.ensemble='staple' cannot be exported"):
        write_model(noisy(ensemble="staple"), file)
    with pytest.raises(UserError, match="a model that segments in windows cannot be exported"):
        write_model(noisy(native=True), file)
    for platforms in (["cpu", "vulkan"], []):
        with pytest.raises(UserError, match="platforms=.*: choose from cpu, cuda, rocm, tpu"):
            write_model(trained, file, platforms)
    monkeypatch.setattr(export, "MOST_BYTES", 3)
    with pytest.raises(UserError, match=r"0\.0 GB of weights: .* holds 2 GB at most"):
        write_model(trained, file)
    assert file.read_bytes() == b"former"
    with pytest.raises(OSError, match="cannot write .*model.zip/other.zip"):
        monkeypatch.setattr(export, "MOST_BYTES", 1000)
        write_model(trained, file / "other.zip")
    with pytest.raises(SystemExit, match="error: .*nowhere: no checkpoint there"):
        monkeypatch.setattr(sys, "argv", ["export", f"--workdir={tmp_path}/nowhere"])
        run_simple(export.main)
