"""The schema: limits, what is fixed, older runs, and that its choices are those of the code."""

import ast
import dataclasses
import re

import pytest

from segdiff_jax import config as schema
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.diffusion import process
from segdiff_jax.diffusion.samplers import STEPS
from segdiff_jax.diffusion.schedule import BETAS, SPACINGS
from segdiff_jax.inference.combine import ENSEMBLES
from segdiff_jax.methods import METHODS
from segdiff_jax.methods.losses import LOSSES
from segdiff_jax.models import MODELS
from segdiff_jax.models.baselines import medt
from segdiff_jax.original.import_torch import SCHEDULE_SAMPLERS
from segdiff_jax.training.trackers import TRACKERS

FIELDS = schema.fields("segdiff")


def choices(field):
    """The choices that the message about a wrong one names."""
    wrong = field.wrong("other")
    return sorted(ast.literal_eval(wrong[wrong.index("(") :]))


@pytest.mark.parametrize(
    "name, table",
    [
        ("method", METHODS),
        ("data.colour_constancy", COLOUR_CONSTANCY),
        ("diffusion.schedule", BETAS),
        ("diffusion.prediction", process.PREDICTIONS),
        ("diffusion.loss", [*LOSSES, "rescaled_mse", "kl", "rescaled_kl"]),
        ("diffusion.variance", process.VARIANCES),
        ("diffusion.weight", process.WEIGHTS),
        ("diffusion.timestep_sampler", SCHEDULE_SAMPLERS.values()),
        ("sampler.name", STEPS),
        ("sampler.spacing", SPACINGS),
        ("sampler.ensemble", ENSEMBLES),
    ],
)
def test_choices_are_what_the_code_has(name, table):
    assert choices(FIELDS[name]) == sorted(table)
    assert [FIELDS[name].wrong(choice) for choice in table] == [None] * len(table)


def test_choices_of_the_models_are_what_the_code_has():
    assert schema.MODELS.keys() == MODELS.keys()
    assert choices(schema.sections("unet")["model"]["name"]) == sorted(MODELS)
    assert choices(schema.MODELS["medt"]["variant"]) == sorted(medt.VARIANTS)
    assert set(schema.DENOISERS) == {name for name in MODELS if hasattr(MODELS[name], "denoise")}


def test_trackers_and_artefacts_are_what_the_code_has():
    assert choices(FIELDS["train.trackers"]) == sorted(TRACKERS)
    assert FIELDS["train.trackers"].wrong(tuple(TRACKERS)) is None
    of_pixels = [
        name
        for name in schema.AUGMENT
        if "share of the images" in FIELDS[f"augment.{name}"].meaning
    ]
    assert of_pixels == list(ARTEFACTS)


@pytest.mark.parametrize("name", MODELS)
def test_fields_of_a_model_are_its_networks(name):
    inherited = {"axis_name", "parent", "name"}
    network = {field.name for field in dataclasses.fields(MODELS[name])} - inherited
    assert schema.MODELS[name].keys() == network


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_right(model):
    config = schema.default_config(model)
    schema.check(config)
    assert config.model.name == model
    with pytest.raises(AttributeError):
        config.model.other = 1


def test_several_wrong_fields_are_named_at_once():
    config = schema.default_config()
    config.train.batch_size, config.sampler.eta, config.seed = 0, 1.5, -1
    config.diffusion.schedule = "sine"
    with pytest.raises(schema.UserError) as error:
        schema.check(config)
    assert str(error.value).splitlines() == [
        "seed=-1 must be at least 0",
        "diffusion.schedule='sine' is unknown: choose one of ('linear', 'cosine')",
        "train.batch_size=0 must be at least 1",
        "sampler.eta=1.5 must be from 0 to 1",
    ]


@pytest.mark.parametrize(
    "model, field, value, message",
    [
        ("segdiff", "dtype", "float16", "is unknown: choose one of ('float32', 'bfloat16')"),
        ("segdiff", "attention", "flash", "is unknown: choose one of ('xla', 'cudnn')"),
        ("segdiff", "num_heads", 0, "must be at least 1"),
        ("segdiff", "norm_groups", -1, "must be at least 0"),
        ("unet", "padding", "full", "is unknown: choose one of ('same', 'valid')"),
        ("unet", "norm", "layer", "is unknown: choose one of ('batch', 'group', 'none')"),
        ("unet", "dtype", "float16", "is unknown: choose one of ('float32', 'bfloat16')"),
        (
            "medt",
            "variant",
            "local",
            "is unknown: choose one of ('axial', 'gated', 'logo', 'medt')",
        ),
    ],
)
def test_a_wrong_field_of_a_network_is_named(model, field, value, message):
    config = schema.default_config(model)
    config.model[field] = value
    with pytest.raises(schema.UserError, match=re.escape(f"model.{field}={value!r} {message}")):
        schema.check(config)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("field", ["depth", "axis_name", "parent"])
def test_a_network_has_no_other_fields(model, field):
    saved = {"model": {"name": model, field: 3}}
    with pytest.raises(schema.UserError, match=f"model.{field}=3: there is no such field"):
        schema.complete(saved)


def test_an_unknown_model_is_named():
    with pytest.raises(schema.UserError, match="model.name='unet2' is unknown: choose one of"):
        schema.default_config("unet2")


@pytest.mark.parametrize(
    "name, fixed",
    [
        ("diffusion.variance", schema.RUN),
        ("diffusion.input_scale", schema.RUN),
        ("train.batch_size", schema.RUN),
        ("model.dropout", schema.RUN),
        ("model.channels", schema.NETWORK),
        ("model.attention", schema.FREE),
        ("train.num_steps", schema.FREE),
        ("sampler.steps", schema.FREE),
    ],
)
def test_what_is_fixed(name, fixed):
    assert FIELDS[name].fixed == fixed


def test_changes_of_a_kind():
    before, now = schema.default_config(), schema.default_config()
    now.sampler.steps, now.diffusion.variance, now.model.channels = 3, "fixed_small", 64
    assert schema.changes(before, now) == {
        "model.channels": (32, 64),
        "diffusion.variance": ("fixed_large", "fixed_small"),
        "sampler.steps": (10, 3),
    }
    assert list(schema.changes(before, now, (schema.RUN,))) == ["diffusion.variance"]
    # Nothing reads the diffusion of a supervised run.
    before, now = schema.default_config("unet"), schema.default_config("unet")
    now.diffusion.variance = "fixed_small"
    assert not schema.changes(before, now, (schema.RUN, schema.NETWORK))


FORMER = {
    "objective": "diffusion",
    "data": {"cache": True, "image_size": 48},
    "model": {"name": "segdiff", "channels": 16, "rrdb_scan": False, "remat": True},
    "diffusion": {"loss": "mse"},
    "train": {"ema_warmup": True, "frozen_gate_epochs": 3.0},
    "validation": {"votes": 2},
    "sampler": {"votes": 7, "variance": "fixed_small"},
}


def test_a_config_of_version_1_is_read():
    config = schema.saved_config({"config": FORMER})  # No version: the first.
    schema.check(config)
    # What it does not have is as by default; what is gone is left out.
    expected = schema.default_config()
    expected.data.image_size, expected.model.channels = 48, 16
    expected.diffusion.update(loss="mse", variance="fixed_small")
    expected.sampler.samples, expected.validation.samples = 7, 2
    assert config.to_dict() == expected.to_dict()
    assert FORMER["sampler"] == {"votes": 7, "variance": "fixed_small"}  # It stays as it is.
    assert schema.complete(config.to_dict()).to_dict() == config.to_dict()


def test_fields_of_version_1_have_other_names_now():
    now = schema.upgrade(FORMER | {"objective": "supervised"}, 1)
    assert now == {
        "method": "supervised",
        "data": {"image_size": 48},
        "model": {"name": "segdiff", "channels": 16},
        "diffusion": {"loss": "mse", "variance": "fixed_small"},
        "train": {},
        "validation": {"samples": 2},
        "sampler": {"samples": 7},
    }
    assert schema.upgrade(now, schema.VERSION) == now
    without = {name: section for name, section in FORMER.items() if name != "objective"}
    assert schema.upgrade(without, 1)["method"] == "diffusion"


def test_frozen_gates_of_version_1_belong_to_medt():
    former = FORMER | {"objective": "supervised", "model": {"name": "medt"}}
    config = schema.saved_config({"config": former})
    assert config.method == "supervised" and config.model.frozen_gate_epochs == 3.0
    assert "frozen_gate_epochs" not in config.train


@pytest.mark.parametrize(
    "config, version, message",
    [
        (FORMER | {"model": {"name": "segdiff", "rrdb_scan": True}}, 1, "model.rrdb_scan"),
        (FORMER | {"train": {"ema_warmup": False}}, 1, "train.ema_warmup=False"),
        (FORMER, 3, "the config has version 3, this package reads up to 2: update it"),
        (FORMER | {"model": {"name": "segdiff", "more": 1}}, 1, "model.more=1: there is no such"),
    ],
)
def test_configs_that_cannot_be_read_are_named(config, version, message):
    with pytest.raises(schema.UserError, match=message):
        schema.complete(config, version)


def test_fields_of_sampling_from_a_command():
    given = ["--config.sampler.steps=3", "--config.sampler.flips=true", "--config.seed=5"]
    given += ["--config.sampler.eta=1e-1", "--config.diffusion.variance=fixed_small"]
    expected = {"steps": 3, "flips": True, "seed": 5, "eta": 0.1, "variance": "fixed_small"}
    assert schema.sampling_fields(given) == expected
    for wrong, message in {
        "--config.sampler.steps=many": "sampler.steps='many' must be of type int",
        "--config.sampler.flips=yes": "sampler.flips='yes' must be of type bool",
        "--config.model.channels=3": "model.channels=3: the run decides this",
        "--config.sampler.votes=3": "there is no field sampler.votes",
        "--config.sampler.steps": "write --config.FIELD=VALUE",
    }.items():
        with pytest.raises(schema.UserError, match=message):
            schema.sampling_fields([wrong])


def test_every_field_is_described():
    text = schema.describe()
    assert all(f"{name} = " in text for name in FIELDS)
    assert "model.padding (unet) = 'same'" in text
