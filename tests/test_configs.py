"""Every config file: it loads, its network is built, and it trains two steps."""

import ast
import functools
import importlib
import json
import re
import subprocess
import sys

import jax
import pytest

from segdiff_jax.config import (
    FREE,
    MODELS,
    NETWORK,
    RUN,
    VERSION,
    above,
    all_above,
    at_least,
    changes,
    check,
    complete,
    default_config,
    fields,
    sampling_fields,
    saved_config,
    set_fields,
    within,
)
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.diffusion.process import PREDICTIONS, VARIANCES, WEIGHTS
from segdiff_jax.diffusion.samplers import STEPS
from segdiff_jax.diffusion.schedule import BETAS
from segdiff_jax.evaluation.metrics import SCORES
from segdiff_jax.inference.combine import ENSEMBLES
from segdiff_jax.methods import METHODS, make_method, variables_like
from segdiff_jax.models import MODELS as NETWORKS
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train
from segdiff_jax.training.trackers import TRACKERS
from tests.conftest import ROOT, tiny_overrides

NAMES = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py"))
NAMES.remove("compare")
NAMES.remove("saved")  # Needs a workdir: see training/test_loop.py.
NAMES[NAMES.index("cityscapes_instances")] += ":car_expanded"
NAMES += [f"compare:{model}" for model in MODELS]
PARAMETERS = {
    "cityscapes_instances:car_expanded": 162_766_017,
    "compare:medsegdiff": 1_397_801,
    "compare:medt": 1_522_505,
    "compare:segdiff": 1_077_097,
    "compare:unet": 1_942_577,
    "cvc_clinicdb": 1_077_097,
    "default": 3_405_345,
    "folder": 1_077_097,
    "isic2016": 159_838_209,
    "isic2016_128": 3_514_817,
    "isic2016_64": 1_077_097,
    "isic2016_64_paper": 1_327_377,
    "kvasir_seg": 1_077_097,
    "monuseg": 164_154_753,
    "ph2": 1_077_097,
    "synthetic": 1_077_097,
    "vaihingen": 159_838_209,
}
# test_loop.py trains the first, and the second is isic2016_64.
TRAINED = [name for name in NAMES if name not in ("default", "compare:segdiff")]
QUICK = ("compare:unet",)  # to compile
TRAINED = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TRAINED]


def get(name):
    name, *arguments = name.split(":")
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    config = get(name)
    config.data.image_size = 64
    leaves = variables_like(make_method(config))["params"]
    assert sum(x.size for x in jax.tree.leaves(leaves)) == PARAMETERS[name]


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps(name, tiny_config, tmp_path):
    config, data = tiny_overrides(get(name)), tiny_config().data
    config.data.update(dataset=data.dataset, manual_dir=data.manual_dir, dir=data.dir)
    # test_loop.py does both; here it would compile them for each.
    config.validation.every, config.train.half_size_share = 0, 0.0
    train(config, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 2
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("name", MODELS)
def test_every_field_of_a_network_can_be_set_and_no_other(name):
    """The command line refuses what the config does not have."""
    known = NETWORKS[name].__dataclass_fields__
    own = default_config(name).model.to_dict()
    assert own.pop("name") == name and own.keys() == known.keys() - {"parent", "name", "axis_name"}
    network = make_method(default_config(name)).model
    assert {field: getattr(network, field) for field in own} == own


@pytest.mark.parametrize("name", NAMES)
def test_a_config_opens_with_command_machine_time_and_score(name):
    file = name.split(":")[0] + ".py"
    header = (ROOT / "configs" / file).read_text().split('"""')[1]
    assert f"--config=configs/{file}" in header
    for word in ("machine", "time", "score"):
        assert re.search(rf"\b{word}( and \w+)?: \S", header, re.IGNORECASE), word


FIELDS = fields("segdiff")


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
    source = "".join(code(path) for path in files if path.name != "config.py")
    owner = section or "config"
    read = rf"\b{owner}\.{name}\b(?! = |\\.)|\b{owner}\['{name}'\]|fields\.pop\('{name}'\)"
    assert re.search(read, source), field


def test_all_fields_are_listed_with_defaults_and_meanings():
    command = [sys.executable, "-m", "segdiff_jax.config"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for model, note in (("segdiff", ""), ("unet", " (unet)"), ("medt", " (medt)")):
        for name, field in fields(model).items():
            if not note or name.startswith("model."):
                assert f"{name}{note} = {field.default!r}\n    {field.meaning}\n" in f"{said}\n"


@pytest.mark.parametrize(
    "field, choices",
    [
        ("method", METHODS),
        ("model.name", NETWORKS),
        ("sampler.name", STEPS),
        ("sampler.ensemble", ENSEMBLES),
        ("data.colour_constancy", COLOUR_CONSTANCY),
        ("diffusion.prediction", PREDICTIONS),
        ("diffusion.variance", VARIANCES),
        ("diffusion.weight", WEIGHTS),
        ("diffusion.schedule", BETAS),
    ],
)
def test_the_choices_are_those_there_are(field, choices):
    message = FIELDS[field].wrong("nosuch")
    named = message.removeprefix("is unknown: choose one of ")
    assert message != named and set(ast.literal_eval(named)) == set(choices)
    assert all(FIELDS[field].wrong(choice) is None for choice in choices)


def test_trackers_and_scores_are_those_there_are():
    assert FIELDS["train.trackers"].wrong(tuple(TRACKERS)) is None
    assert FIELDS["train.trackers"].wrong(("nosuch",)) == f"must be some of {tuple(TRACKERS)}"
    assert FIELDS["validation.scores"].default[0] in SCORES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_right_and_comes_back_from_json(name):
    config = get(name)
    check(config)
    assert complete(json.loads(config.to_json())) == config and config.is_locked


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
    ],
)
def test_limits(field, right, wrong, message):
    assert field(wrong) == message and field(right) is None


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
    assert saved_config({"config": {"model": {"name": "segdiff"}}}) == default_config()


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
        ("sampler.vote", 3, "sampler.vote=3: there is no such field; there are clip, ensemble"),
        ("nosuch.steps", 3, "nosuch.steps=3: there is no such field"),
        ("sampler.steps", "many", "sampler.steps='many' must be of type int"),
    ):
        with pytest.raises(UserError, match=message):
            set_fields(config, {field: value})
    assert config.sampler.steps == 3


def test_arguments_of_sampling():
    arguments = ["threshold=0.4", "clip=false", "samples=9", "name=ddpm", "native=True"]
    found = sampling_fields([f"--config.sampler.{argument}" for argument in arguments])
    expected = {"threshold": 0.4, "clip": False, "samples": 9, "name": "ddpm", "native": True}
    assert found == expected
    found = sampling_fields(["--config.seed=5", "--config.diffusion.variance=fixed_small"])
    assert found == {"seed": 5, "variance": "fixed_small"}


@pytest.mark.parametrize(
    "argument, message",
    [
        ("sampler.vote=3", "--config.sampler.vote=3: there is no field sampler.vote"),
        ("train.batch_size=3", "train.batch_size=3: the run decides this; sampling has sampler"),
        ("sampler.samples=many", "sampler.samples='many' must be of type int"),
        ("sampler.samples=", "sampler.samples='' must be of type int"),
        ("sampler.samples={", "sampler.samples='{' must be of type int"),
        ("sampler.samples", "--config.sampler.samples: write --config.FIELD=VALUE"),
        ("sampler.clip=maybe", "sampler.clip='maybe' must be of type bool"),
        ("sampler.eta=0,5", "sampler.eta='0,5' must be of type float"),
    ],
)
def test_a_wrong_argument_of_sampling_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        sampling_fields([f"--config.{argument}"])


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


def test_changes_are_those_of_a_kind():
    before, now = default_config(), default_config()
    now.seed, now.model.channels, now.train.num_steps = 1, 64, 7
    everything = {"seed": (0, 1), "model.channels": (32, 64), "train.num_steps": (10_000, 7)}
    assert changes(before, now) == everything
    for kind, name in ((RUN, "seed"), (NETWORK, "model.channels"), (FREE, "train.num_steps")):
        assert changes(before, now, (kind,)) == {name: everything[name]}
    other = changes(before, default_config("unet"), (NETWORK,))
    assert other["model.name"] == ("segdiff", "unet") and other["model.norm"] == (None, "batch")
