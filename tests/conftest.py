"""Strict settings for every test, and what several of them share."""

import gc
import io
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from segdiff_jax.config import VERSION, default_config
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw
from segdiff_jax.methods import init_variables, make_method
from segdiff_jax.models.efficientnet import blocks_of
from segdiff_jax.runtime.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
MAPS = 30_000  # under half of what Linux allows
SHARED = Path(os.environ.get("SEGDIFF_SHARED", ROOT.parent / "shared"))

# They compile two to four times as fast; must be set before the first computation.
FLAGS = " --xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # Later ones know only the slower kind of emitters.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla-tests"))
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Forgets the compiled programs before they fill the 65530 memory maps of a process."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def keep_tidy(tmp_path_factory):
    """Temporary files lie where pytest removes them: each TFDS builder leaves an empty folder."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and full golden files; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent (set SEGDIFF_SHARED to the folder of shared data)")
    return SHARED


@pytest.fixture(scope="session")
def golden():
    """golden("diffusion") -> the arrays of tests/golden/diffusion.npz."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session")
def golden_state_dict():
    """golden_state_dict("model_A") -> the original's parameters, rebuilt from their names."""

    def build(name):
        recipe = json.loads((GOLDEN / f"{name}.json").read_text())["params"]
        return {
            key: offset + scale * normal(zlib.crc32(key.encode()), shape)
            for key, (shape, scale, offset) in recipe.items()
        }

    def normal(seed, shape):
        return np.random.RandomState(seed).standard_normal(shape)

    return lambda name: {k: v.astype(np.float32) for k, v in build(name).items()}


def run_steps(step, state, batch, count=3):
    """The losses of `count` training steps on one batch, and the last state."""
    losses = []
    for _ in range(count):
        state, metrics = step(state, batch, jax.random.key(7), np.float32(1))
        losses.append(float(metrics["loss"]))
    return losses, state


def tiny_overrides(config):
    """Makes a config small enough to compile in seconds; its kind of model and loss stays."""
    config.data.image_size = 16
    if config.model.get("image_encoder", "rrdb") not in ("rrdb", "none"):
        config.data.image_size, config.model.encoder_weights = 32, ""
    config.data.full_size = 24 if config.data.full_size else 0
    if config.model.name == "unet":
        config.model.channels = (8, 16)
    elif config.model.name == "medt":
        config.model.blocks = (1, 1)
    else:
        config.model.channels = 32
        config.model.channel_mult = (1, 1)
        config.model.num_res_blocks = 1
        config.model.attention_resolutions = ()  # There is attention in the middle.
        config.model.rrdb_blocks = 1
        config.model.rrdb_width = 8
        config.model.rrdb_growth = 4
    config.train.batch_size = 4
    config.train.num_steps = 2
    config.train.max_minutes = 0.0
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.validation.every = 2
    config.validation.num_images = 4
    config.validation.steps = 2
    config.sampler.steps = 2
    config.sampler.samples = 2
    config.sampler.max_batch = 4
    return config


def encoder_arrays(variant):
    """Random arrays by the names of an image encoder's published files."""
    rng, arrays = np.random.default_rng(0), {}

    def add(conv, norm, shape):
        arrays[f"{conv}.weight"] = rng.standard_normal(shape).astype(np.float32)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{kind}"] = rng.uniform(0.5, 1, shape[0]).astype(np.float32)

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    inputs = 32
    for i, stage in enumerate(blocks_of(variant)):
        wide, k, block = stage.expansion * inputs, stage.kernel, f"_blocks.{i}."
        if stage.expansion > 1:
            add(f"{block}_expand_conv", f"{block}_bn0", (wide, inputs, 1, 1))
        add(f"{block}_depthwise_conv", f"{block}_bn1", (wide, 1, k, k))
        add(f"{block}_project_conv", f"{block}_bn2", (stage.channels, wide, 1, 1))
        inputs = stage.channels
    return arrays


@pytest.fixture(scope="session")
def tiny_isic(tmp_path_factory):
    """A folder with ISIC 2016 archives of 40 training and 5 test images, 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("isic2016")
    for part, first, count in (("Training", 0, 40), ("Test", 900, 5)):
        for kind, suffix in (("Data", ".jpg"), ("GroundTruth", "_Segmentation.png")):
            name = f"ISBI2016_ISIC_Part1_{part}_{kind}"
            with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
                for number in range(first, first + count):
                    picture = draw(number, 48)[kind == "GroundTruth"][:40]
                    file = io.BytesIO()
                    Image.fromarray(picture).save(file, "PNG" if suffix[-3:] == "png" else "JPEG")
                    archive.writestr(f"{name}/ISIC_{number:07d}{suffix}", file.getvalue())
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_isic, tmp_path_factory):
    """tiny_config("unet") -> a new config of a network, by default segdiff.

    It trains two steps on `tiny_isic` in a few seconds.
    """
    data_dir = tmp_path_factory.mktemp("data")

    def build(model="segdiff"):
        config = tiny_overrides(default_config(model))
        config.data.manual_dir, config.data.dir = str(tiny_isic), str(data_dir)
        return config

    return build


def save_untrained(config, workdir):
    """The workdir, with the checkpoint of a network that was never trained."""
    variables = jax.jit(lambda: init_variables(make_method(config), 0))()
    with Checkpoints(workdir) as checkpoints:
        meta = {"config": json.loads(config.to_json()), "version": VERSION, "step": 1}
        checkpoints.save_best(1, variables, meta)
    return workdir
