"""Configs: make, read, check and compare them. `schema.py` has the fields.

`python -m segdiff_jax.config` lists all fields.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax.data.classes import classes_of
from segdiff_jax.diffusion.schedule import SPACINGS, make_schedule, space_timesteps
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute
from segdiff_jax.schema import DENOISERS, FREE, MODELS, NETWORK, PATHS, RUN, fields, sections

VERSION = 2  # of the fields; `upgrade` reads older ones
READERS = {bool: lambda text: ("false", "true").index(text.lower()) > 0, tuple: ast.literal_eval}


def default_config(model: str = "segdiff") -> ConfigDict:
    """The defaults. The config is locked, so that a misspelt field is an error."""
    config = ConfigDict()
    for section, of_section in sections(model).items():
        values = {name: field.default for name, field in of_section.items()}
        config.update({section: values} if section else values)
    if model not in DENOISERS:
        config.method = "supervised"
    return config.lock()


def complete(saved: Mapping[str, Any], version: int = VERSION) -> ConfigDict:
    """A saved config (section -> field -> value) with all fields; UserError as of `set_fields`."""
    saved = upgrade(saved, version)
    config = default_config(saved["model"]["name"])
    set_fields(config, flatten(saved))
    return config


def saved_config(meta: Mapping[str, Any]) -> ConfigDict:
    """The config in the metadata of a checkpoint; errors as of `complete`."""
    return complete(meta["config"], meta.get("version", 1))


def upgrade(saved: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The fields of an older version under their names of today.

    A UserError says that a newer version made them, or that a field has no equivalent.
    """
    saved = {k: dict(v) if isinstance(v, Mapping) else v for k, v in saved.items()}
    if version > VERSION:
        raise UserError(
            f"the config has version {version}, this package reads up to {VERSION}: update it"
        )
    if version == VERSION:
        return saved
    saved["method"] = saved.pop("objective", saved.get("method", "diffusion"))
    model, train = saved["model"], saved.setdefault("train", {})
    if model.get("rrdb_scan") or train.get("ema_warmup") is False:
        raise UserError(
            "the run used model.rrdb_scan or train.ema_warmup=False, which are gone: use the "
            "version of the package that trained it"
        )
    for gone in ("model.rrdb_scan", "model.remat", "data.cache", "train.ema_warmup"):
        section, name = gone.split(".")
        saved.get(section, {}).pop(name, None)
    if (epochs := train.pop("frozen_gate_epochs", None)) is not None and model["name"] == "medt":
        model["frozen_gate_epochs"] = epochs
    for section in ("sampler", "validation"):
        if "votes" in saved.get(section, {}):
            saved[section]["samples"] = saved[section].pop("votes")
    if "variance" in saved.get("sampler", {}):
        saved["diffusion"]["variance"] = saved["sampler"].pop("variance")
    return saved


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """A copy whose paths mean the same in any folder; "" stays. See `files.absolute`."""
    config = config.copy_and_resolve_references()
    for path in PATHS:
        section, _, field = path.partition(".")
        if value := config[section][field]:
            config[section][field] = str(absolute(value))
    return config


def set_fields(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields by names such as "sampler.steps".

    A UserError names a field that does not exist or has another type.
    """
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        part = config.get(section, {}) if section else config
        if field not in part:
            known = ", ".join(part or config)
            raise UserError(f"{name}={value!r}: there is no such field; there are {known}")
        try:
            part[field] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            kind = type(part[field]).__name__
            raise UserError(f"{name}={value!r} must be of type {kind}") from error


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """["--config.sampler.steps=3"] -> {"sampler.steps": 3}, with the types of the fields.

    Paths become absolute, see `files.absolute`.
    A UserError names an argument that does not have this form.
    """
    known, found = fields("segdiff"), {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals or not argument.startswith("--config."):
            raise UserError(f"{argument}: write --config.FIELD=VALUE")
        if name not in known:
            raise UserError(f"{argument}: there is no field {name}")
        if name in found:
            raise UserError(f"{name} is given twice: {found[name]!r} and {text!r}")
        kind = type(known[name].default)
        try:
            found[name] = READERS.get(kind, kind)(text)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"{name}={text!r} must be of type {kind.__name__}") from error
        if name in PATHS and text:
            found[name] = str(absolute(text))
    return found


def sampling_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"sampler.steps": 3} -> {"steps": 3}, as `load` takes them; a UserError names others."""
    found = {}
    for name, value in values.items():
        if not name.startswith("sampler.") and name not in ("seed", "diffusion.variance"):
            raise UserError(
                f"{name}={value!r}: the run decides this; sampling has sampler.*, and data.dir "
                "and other places if a split is segmented"
            )
        found[name.rpartition(".")[2]] = value
    return found


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become tuples."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= {f"{name}.{k}": v for k, v in flatten(dict(value.items())).items()}
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def check(config: ConfigDict) -> None:
    """Raises a UserError that names every field whose value is wrong."""
    flat, wrong = flatten(config.to_dict()), []
    for name, field in fields(config.model.name).items():
        if reason := field.wrong(flat[name]):
            wrong.append(f"{name}={flat[name]!r} {reason}")
    if wrong:
        raise UserError("\n".join(wrong))
    if wrong := list(_wrong_together(config)):
        raise UserError("\n".join(wrong))


def _wrong_together(config: ConfigDict) -> Iterator[str]:
    """What is wrong with fields that must fit each other."""
    data, diffusion = config.data, config.diffusion
    classes, channels = classes_of(data), config.model.out_channels
    if 0 != data.full_size < data.image_size:
        full, size = data.full_size, data.image_size
        yield f"data.full_size={full} must be 0 or at least data.image_size={size}"
    if data.extra_share and not data.extra_datasets:
        yield f"data.extra_share={data.extra_share} needs data.extra_datasets"
    if data.fold >= data.folds > 0:
        yield f"data.fold={data.fold} must be below data.folds={data.folds}"
    if data.fold and not data.folds:
        yield f"data.fold={data.fold} needs data.folds, the number of folds"
    if data.group_file and data.group_pattern:
        yield (
            f"data.group_file={data.group_file!r} and data.group_pattern={data.group_pattern!r} "
            "both tell groups: give one"
        )
    if classes.several and (data.dataset != "paired_folder" or data.extra_datasets):
        yield (
            f"data.classes={classes.names} needs data.dataset='paired_folder' and no "
            f"data.extra_datasets, not {data.dataset!r} and {tuple(data.extra_datasets)}"
        )
    if classes.several and config.sampler.ensemble == "staple":
        yield (
            "sampler.ensemble='staple' combines masks of two classes: with data.classes, choose "
            "'mean' or 'vote'"
        )
    if classes.several and config.sampler.largest_component:
        yield "sampler.largest_component=True is for two classes: with data.classes, set False"
    if config.sampler.ensemble == "staple" and config.sampler.samples > 64:
        yield f"sampler.samples={config.sampler.samples}: 'staple' combines at most 64 samples"
    supervised = config.model.name not in DENOISERS
    if supervised != (config.method == "supervised"):
        fits = "supervised" if supervised else "diffusion"
        yield (
            f"method={config.method!r} does not fit model.name={config.model.name!r}: set {fits!r}"
        )
    elif (supervised or classes.several) and channels != classes.channels:
        yield (
            f"model.out_channels={channels} does not fit data.classes={tuple(data.classes)}: "
            f"set {classes.channels}"
        )
    if supervised:
        return
    if config.model.mask_stride > 1 and config.sampler.native:
        yield f"sampler.native=True needs model.mask_stride=1, not {config.model.mask_stride}"
    yield from _wrong_variance(config, channels, classes.several)
    needs_x0 = {
        "diffusion.loss='bce_dice' scores masks": diffusion.loss == "bce_dice",
        "diffusion.recycling adds noise to the network's own mask": diffusion.recycling,
    }
    for reason, holds in needs_x0.items():
        if holds and diffusion.prediction != "x0":
            yield f"{reason}: it needs diffusion.prediction='x0', not {diffusion.prediction!r}"
    if diffusion.timestep_sampler != "uniform" and diffusion.timestep_power != 1:
        yield (
            f"diffusion.timestep_power={diffusion.timestep_power} and "
            f"diffusion.timestep_sampler={diffusion.timestep_sampler!r} both draw timesteps: set "
            "1.0 or 'uniform'"
        )
    try:
        make_schedule(diffusion.schedule, diffusion.num_timesteps)
    except ValueError as error:
        yield f"diffusion.num_timesteps={diffusion.num_timesteps}: {error}"
        return
    for name in ("sampler", "validation"):
        steps, spacing = config[name].steps, config.sampler.spacing
        try:
            timesteps = space_timesteps(diffusion.num_timesteps, SPACINGS[spacing].format(steps))
        except ValueError as error:
            yield f"{name}.steps={steps}: {error}"
            continue
        used = name == "sampler" or config.validation.every
        if used and timesteps[-1] == 0 < diffusion.num_timesteps - 1:
            yield (
                f"{name}.steps=1 with sampler.spacing={spacing!r} would take noise for the clean "
                "mask: choose 'trailing'"
            )


def _wrong_variance(config: ConfigDict, channels: int, several: bool) -> Iterator[str]:
    """What is wrong with a learned variance or a loss that is a bound."""
    diffusion, loss = config.diffusion, f"diffusion.loss={config.diffusion.loss!r}"
    learned = diffusion.variance == "learned_range"
    if several and learned:
        yield (
            "diffusion.variance='learned_range' works for masks of two classes only: with "
            "data.classes, set 'fixed_large' or 'fixed_small'"
        )
    if several:
        return
    if channels != 1 + learned:
        yield (
            f"model.out_channels={channels} does not fit diffusion.variance="
            f"{diffusion.variance!r}: a learned variance needs 2 and 'learned_range', a fixed one "
            "needs 1"
        )
    if diffusion.loss == "rescaled_mse" and not learned:
        yield (
            f"{loss} rescales the bound that trains a variance: set 'mse', or model.out_channels=2 "
            "and diffusion.variance='learned_range'"
        )
    if learned and diffusion.loss == "bce_dice":
        yield f"{loss} trains no variance: set 'mse', 'rescaled_mse', 'kl' or 'rescaled_kl'"
    bound = learned or diffusion.loss in ("kl", "rescaled_kl")
    for field, needed in (("recycling", False), ("weight", "simple")):
        if bound and diffusion[field] != needed:
            yield (
                f"diffusion.{field}={diffusion[field]!r} does not go with the variational bound "
                f"(of {loss}, model.out_channels={channels}): set {needed!r}"
            )


def changes(
    before: ConfigDict, now: ConfigDict, kinds: tuple[str, ...] = (FREE, RUN, NETWORK)
) -> dict[str, tuple[Any, Any]]:
    """Field -> (value before, value now), for the fields of these kinds that differ."""
    old, new = (flatten(config.to_dict()) for config in (before, now))
    known = fields(before.model.name) | fields(now.model.name)
    if now.method == "supervised":  # Nothing reads the fields of the diffusion.
        known = {k: v._replace(fixed=FREE) if "diffusion." in k else v for k, v in known.items()}
    return {
        name: (old.get(name), new.get(name))
        for name, field in known.items()
        if old.get(name) != new.get(name) and field.fixed in kinds
    }


def describe() -> str:
    """All fields with their defaults and meanings, for a terminal."""
    lines = []
    for model, own in MODELS.items():
        for name, field in fields(model).items():
            if model == "segdiff" or (name.startswith("model.") and own != MODELS["segdiff"]):
                note = f" ({model})" if model != "segdiff" else ""
                lines.append(f"{name}{note} = {field.default!r}\n    {field.meaning}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
