"""The schema: limits, what is fixed, older runs, and that its choices are those of the code."""

import ast
import dataclasses
import functools
import re
import subprocess
import sys

import pytest

from segdiff_jax import schema
from segdiff_jax.check import check
from segdiff_jax.config import (
    VERSION,
    changes,
    complete,
    default_config,
    parse_fields,
    sampling_fields,
    saved_config,
    set_fields,
    upgrade,
    with_absolute_paths,
)
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.diffusion import process
from segdiff_jax.diffusion.samplers import STEPS
from segdiff_jax.diffusion.schedule import BETAS, SPACINGS
from segdiff_jax.evaluation.metrics import SCORES
from segdiff_jax.inference.combine import ENSEMBLES
from segdiff_jax.methods import METHODS
from segdiff_jax.methods.losses import LOSSES
from segdiff_jax.models import MODELS
from segdiff_jax.models.baselines import medt
from segdiff_jax.original.import_torch import SCHEDULE_SAMPLERS
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import FREE, NETWORK, RUN, above, all_above, at_least, fields, within
from segdiff_jax.training.trackers import TRACKERS
from tests.conftest import ROOT

FIELDS = fields("segdiff")


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
    assert FIELDS["validation.scores"].default[0] in SCORES
    assert FIELDS["train.trackers"].wrong(tuple(TRACKERS)) is None
    of_pixels = [
        name
        for name in schema.AUGMENT
        if "share of the images" in FIELDS[f"augment.{name}"].meaning
    ]
    assert of_pixels == list(ARTEFACTS)


@pytest.mark.parametrize("name", MODELS)
def test_fields_of_a_model_are_its_networks(name):
    inherited = {"axis_name", "num_annotators", "parent", "name"}
    network = {field.name for field in dataclasses.fields(MODELS[name])} - inherited
    assert schema.MODELS[name].keys() == network


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_right(model):
    config = default_config(model)
    check(config)
    assert config.model.name == model
    with pytest.raises(AttributeError):
        config.model.other = 1


def test_several_wrong_fields_are_named_at_once():
    config = default_config()
    config.train.batch_size, config.sampler.eta, config.seed = 0, 1.5, -1
    config.diffusion.schedule = "sine"
    with pytest.raises(UserError) as error:
        check(config)
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
    config = default_config(model)
    config.model[field] = value
    with pytest.raises(UserError, match=re.escape(f"model.{field}={value!r} {message}")):
        check(config)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("field", ["depth", "axis_name", "num_annotators", "parent"])
def test_a_network_has_no_other_fields(model, field):
    saved = {"model": {"name": model, field: 3}}
    with pytest.raises(UserError, match=f"model.{field}=3: there is no such field"):
        complete(saved)


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match="model.name='unet2' is unknown: choose one of"):
        default_config("unet2")


@pytest.mark.parametrize(
    "name, fixed",
    [
        ("diffusion.variance", RUN),
        ("diffusion.input_scale", RUN),
        ("train.batch_size", RUN),
        ("model.dropout", RUN),
        ("model.channels", NETWORK),
        ("model.attention", FREE),
        ("train.num_steps", FREE),
        ("sampler.steps", FREE),
    ],
)
def test_what_is_fixed(name, fixed):
    assert FIELDS[name].fixed == fixed


def test_the_diffusion_of_a_supervised_run_may_change():
    before, now = default_config("unet"), default_config("unet")
    now.diffusion.variance = "fixed_small"
    assert not changes(before, now, (RUN, NETWORK))
    before, now = default_config(), default_config()
    now.diffusion.variance = "fixed_small"
    assert list(changes(before, now, (RUN, NETWORK))) == ["diffusion.variance"]


def test_all_fields_are_listed_with_defaults_and_meanings():
    command = [sys.executable, "-m", "segdiff_jax.config"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for model, note in (("segdiff", ""), ("unet", " (unet)"), ("medt", " (medt)")):
        for name, field in fields(model).items():
            if not note or name.startswith("model."):
                assert f"{name}{note} = {field.default!r}\n    {field.meaning}\n" in f"{said}\n"


class WithoutProse(ast.NodeTransformer):
    """Empties docstrings and messages, which name fields without reading them."""

    def visit_JoinedStr(self, node):
        return ast.Constant("")

    def visit_Constant(self, node):
        prose = isinstance(node.value, str) and (" " in node.value or "=" in node.value)
        return ast.Constant("") if prose else node


@functools.cache
def code(path):
    return ast.unparse(WithoutProse().visit(ast.parse(path.read_text())))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_explained_and_read(field):
    section, _, name = field.rpartition(".")
    assert FIELDS[field].meaning and FIELDS[field].fixed in (FREE, RUN, NETWORK)
    if section == "augment":  # Passed on whole; see data/test_augment.py.
        read = code(ROOT / "segdiff_jax/data/augment.py")
        assert name in ARTEFACTS or f"'{name}'" in read
        return
    if section == "model" and name != "name":
        return  # Those of each network are compared above.
    files = [*(ROOT / "segdiff_jax").rglob("*.py"), ROOT / "sample.py"]
    source = "".join(code(path) for path in files if path.name != "schema.py")
    owner = section or "config"
    read = rf"\b{owner}\.{name}\b(?! = |\\.)|\b{owner}\['{name}'\]|fields\.pop\('{name}'\)"
    assert re.search(read, source), field


@pytest.mark.parametrize(
    "field, right, wrong, message",
    [
        (at_least(1), 1, 0, "must be at least 1"),
        (above(0), 0.1, 0, "must be above 0"),
        (within(0, 1), 1, 1.5, "must be from 0 to 1"),
        (within(0, 1), 0, -0.5, "must be from 0 to 1"),
        (within(0, 1), 0.5, float("nan"), "must be from 0 to 1"),
        (within(0, 1, "[)"), 0, 1, "must be from 0 to below 1"),
        (within(0, 1, "(]"), 1, 0, "must be above 0 to 1"),
        (within(0, 1, "()"), 0.5, 0, "must be above 0 to below 1"),
        (all_above(0), (2, 1), (1, 0), "must all be above 0"),
        (all_above(0), (1,), (), "must all be above 0"),
    ],
)
def test_limits(field, right, wrong, message):
    assert field(wrong) == message and field(right) is None


def test_changes_are_those_of_a_kind():
    before, now = default_config(), default_config()
    now.seed, now.model.channels, now.train.num_steps = 1, 64, 7
    everything = {"seed": (0, 1), "model.channels": (32, 64), "train.num_steps": (10_000, 7)}
    assert changes(before, now) == everything
    for kind, name in ((RUN, "seed"), (NETWORK, "model.channels"), (FREE, "train.num_steps")):
        assert changes(before, now, (kind,)) == {name: everything[name]}
    other = changes(before, default_config("unet"), (NETWORK,))
    assert other["model.name"] == ("segdiff", "unet") and other["model.norm"] == (None, "batch")


OLD = {
    "seed": 3,
    "objective": "diffusion",
    "data": {"dataset": "isic/2017", "cache": True},
    "model": {"name": "segdiff", "remat": True, "rrdb_scan": False, "channel_mult": [1, 2]},
    "diffusion": {"loss": "mse", "recycling": False},
    "train": {"ema_warmup": True, "frozen_gate_epochs": 4.0},
    "validation": {"votes": 2},
    "sampler": {"votes": 7, "variance": "fixed_small"},
}


def test_a_config_of_the_version_before_is_read():
    config = saved_config({"config": OLD})
    expected = default_config()
    expected.seed, expected.data.dataset, expected.model.channel_mult = 3, "isic/2017", (1, 2)
    expected.diffusion.update(loss="mse", variance="fixed_small")
    expected.validation.samples, expected.sampler.samples = 2, 7
    assert config == expected and config.is_locked
    assert OLD["sampler"] == {"votes": 7, "variance": "fixed_small"}  # It stays as it was.
    medt = {"config": OLD | {"model": {"name": "medt"}, "objective": "supervised"}}
    config = saved_config(medt)
    assert (config.method, config.model.frozen_gate_epochs) == ("supervised", 4.0)
    assert "frozen_gate_epochs" not in config.train
    assert saved_config({"config": {"model": {"name": "segdiff"}}}) == default_config()


def test_fields_of_version_1_have_other_names_now():
    now = upgrade(OLD | {"objective": "supervised"}, 1)
    assert now == {
        "seed": 3,
        "method": "supervised",
        "data": {"dataset": "isic/2017"},
        "model": {"name": "segdiff", "channel_mult": [1, 2]},
        "diffusion": {"loss": "mse", "recycling": False, "variance": "fixed_small"},
        "train": {},
        "validation": {"samples": 2},
        "sampler": {"samples": 7},
    }
    assert upgrade(now, VERSION) == now
    of_version_2 = now | {"diffusion": {"train_samples": 2, "bce_dice_share": 0.0}}
    assert upgrade(of_version_2, 2) == now | {"diffusion": {}}
    without = {name: section for name, section in OLD.items() if name != "objective"}
    assert upgrade(without, 1)["method"] == "diffusion"


@pytest.mark.parametrize(
    "meta, message",
    [
        ({"version": VERSION + 1}, f"config has version {VERSION + 1}, .* up to {VERSION}: update"),
        ({"config": OLD | {"train": {"ema_warmup": False}}}, "train.ema_warmup=False, which are g"),
        (
            {"config": OLD | {"model": {"name": "segdiff", "rrdb_scan": True}}},
            "model.rrdb_scan or .* use the version of the package that trained it",
        ),
        ({"config": {"model": {"name": "x"}}}, "model.name='x' is unknown: choose one of"),
        (
            {"config": {"model": {"name": "unet", "norm": "batch", "nosuch": 1}}},
            "model.nosuch=1: there is no such field; there are channels, dtype",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_named(meta, message):
    with pytest.raises(UserError, match=message):
        saved_config({"config": OLD} | meta)


def test_fields_are_set_by_name():
    config = default_config()
    set_fields(config, {"seed": 4, "sampler.steps": 3, "model.channel_mult": [1, 1]})
    assert (config.seed, config.sampler.steps, config.model.channel_mult) == (4, 3, (1, 1))
    for field, value, message in (
        ("nosuch", 1, "nosuch=1: there is no such field; there are augment, data, diff"),
        ("sampler.vote", 3, "sampler.vote=3: there is no such field; there are annotator, clip"),
        ("nosuch.steps", 3, "nosuch.steps=3: there is no such field"),
        ("sampler.steps", "many", "sampler.steps='many' must be of type int"),
    ):
        with pytest.raises(UserError, match=message):
            set_fields(config, {field: value})
    assert config.sampler.steps == 3


def test_arguments_of_sampling():
    arguments = ["threshold=0.4", "eta=1e-1", "clip=false", "samples=9", "name=ddpm", "native=True"]
    found = sampling_fields(parse_fields([f"--config.sampler.{field}" for field in arguments]))
    expected = {
        "threshold": 0.4,
        "eta": 0.1,
        "clip": False,
        "samples": 9,
        "name": "ddpm",
        "native": True,
    }
    assert found == expected
    found = sampling_fields({"seed": 5, "diffusion.variance": "fixed_small"})
    assert found == {"seed": 5, "variance": "fixed_small"}


def test_an_argument_that_is_given_twice_is_named():
    twice = ["--config.sampler.steps=3", "--config.sampler.steps=4"]
    with pytest.raises(UserError, match="sampler.steps is given twice: 3 and '4'"):
        parse_fields(twice)


def test_an_argument_has_the_type_of_its_field():
    found = parse_fields(["--config.model.channel_mult=(1, 2)", "--config.train.optimizer=muon"])
    assert found == {"model.channel_mult": (1, 2), "train.optimizer": "muon"}


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.chdir(tmp_path)
    config = default_config()
    config.data.images, config.data.masks, config.train.init_from = "~/b", "/c/./d/", "runs/e"
    config.model.encoder_weights = "~/w.npz"
    found = with_absolute_paths(config)
    assert (found.data.dir, found.data.manual_dir) == (f"{tmp_path}/data", "")
    assert (found.data.images, found.data.masks) == ("/home/a/b", "/c/d")
    assert found.train.init_from == f"{tmp_path}/runs/e"
    assert found.model.encoder_weights == "/home/a/w.npz"
    assert config.data.dir == "data" and found.is_locked
    changed = {name for name, pair in changes(config, found).items()}
    assert changed == set(schema.PATHS) - {"data.manual_dir", "data.group_file"}
    arguments = ["--config.data.dir=~/b", "--config.data.masks="]
    assert parse_fields(arguments) == {"data.dir": "/home/a/b", "data.masks": ""}
    config.model.encoder_weights = "imagenet"  # No path.
    assert with_absolute_paths(config).model.encoder_weights == "imagenet"
    arguments = ["--config.model.encoder_weights=imagenet", "--config.data.dir=imagenet"]
    assert parse_fields(arguments) == {
        "model.encoder_weights": "imagenet",
        "data.dir": f"{tmp_path}/imagenet",
    }
    assert with_absolute_paths(default_config("medt")).model.name == "medt"


@pytest.mark.parametrize(
    "argument, message",
    [
        ("sampler.vote=3", "--config.sampler.vote=3: there is no field sampler.vote"),
        ("train.batch_size=3", "train.batch_size=3: the run decides this; sampling has sampler"),
        ("sampler.samples=many", "sampler.samples='many' must be of type int"),
        ("sampler.samples=", "sampler.samples='' must be of type int"),
        ("sampler.samples={", "sampler.samples='{' must be of type int"),
        ("model.channel_mult=wide", "model.channel_mult='wide' must be of type tuple"),
        ("sampler.samples", "--config.sampler.samples: write --config.FIELD=VALUE"),
        ("sampler.clip=maybe", "sampler.clip='maybe' must be of type bool"),
        ("sampler.flips=yes", "sampler.flips='yes' must be of type bool"),
        ("model.channels=3", "model.channels=3: the run decides this"),
        ("data.dir=data", "data.dir=.*/data.: the run decides this; sampling has sampler"),
        ("sampler.eta=0,5", "sampler.eta='0,5' must be of type float"),
    ],
)
def test_a_wrong_argument_of_sampling_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        sampling_fields(parse_fields([f"--config.{argument}"]))


STRIDE_2 = {"model.image_encoder": "efficientnet_lite0", "model.mask_stride": 2}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data.extra_share": 0.5}, "data.extra_share=0.5 needs data.extra_datasets"),
        ({"data.folds": 3, "data.fold": 3}, "data.fold=3 must be below data.folds=3"),
        ({"data.fold": 1}, "data.fold=1 needs data.folds, the number of folds"),
        (STRIDE_2 | {"sampler.native": True}, "sampler.native=True needs model.mask_stride=1"),
        (STRIDE_2 | {"data.full_size": 256}, "data.full_size=256 needs model.mask_stride=1"),
        ({"train.encoder_rate": 0.1}, "train.encoder_rate=0.1 needs a .* weights .*, not 'rrdb'"),
        ({"model.mask_stride": 2}, "model.mask_stride=2 needs a model.image_encoder with publi"),
        ({"model.encoder_weights": "a.npz"}, "model.encoder_weights='a.npz' needs a .* not 'rrdb'"),
        (
            {"sampler.level_sets": True, "diffusion.loss": "mse"},
            r"sampler.level_sets=True needs .* in \('bce', 'bce_dice'\), not 'mse'",
        ),
        (
            {"sampler.level_sets": True, "sampler.name": "dpm_solver_pp_2m"},
            "sampler.level_sets=True is random, sampler.name='dpm_solver_pp_2m' is not",
        ),
        ({"model.frozen_blocks": 3}, "model.frozen_blocks=3 needs a"),
        ({"model.stochastic_depth": 0.1}, "model.stochastic_depth=0.1 needs a"),
        ({"model.pyramid": False}, "model.pyramid=False needs a"),
        ({"model.name": "unet", "model.mask_stride": 2}, "model.mask_stride=2 needs a .* 'none'"),
        (
            {"model.image_encoder": "efficientnet_lite0", "model.frozen_blocks": 17},
            "model.frozen_blocks=17: efficientnet_lite0 has 16 blocks",
        ),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(fields, message):
    config = default_config(fields.get("model.name", "segdiff"))
    set_fields(config, fields)
    with pytest.raises(UserError, match=f"^{message}"):
        check(config)


def test_staple_takes_64_samples():
    config = default_config()
    config.sampler.update(ensemble="staple", samples=64)
    check(config)
    config.sampler.samples = 65
    with pytest.raises(
        UserError, match="^sampler.samples=65: 'staple' combines at most 64 samples"
    ):
        check(config)


def test_one_step_that_takes_noise_for_the_mask_is_named_where_it_is_taken():
    config = default_config()
    config.sampler.spacing, config.sampler.steps, config.validation.steps = "uniform", 10, 1
    with pytest.raises(UserError, match="^validation.steps=1 with sampler.spacing='uniform' would"):
        check(config)
    config.validation.every = 0
    check(config)
    config.sampler.steps = 1
    with pytest.raises(UserError, match="^sampler.steps=1 with sampler.spacing='uniform' would"):
        check(config)
