"""Configs: make, read and compare them. `schema.py` has the fields, `check.py` checks them.

`python -m segdiff_jax.config` lists all fields.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute
from segdiff_jax.schema import DENOISERS, FREE, MODELS, NETWORK, PATHS, RUN, fields, sections

VERSION = 3  # of the fields; `upgrade` reads older ones
PUBLISHED = "model.encoder_weights", "imagenet"  # the one value of a path that is none
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
    gone = "model.rrdb_scan", "model.remat", "data.cache", "train.ema_warmup"
    for name in (*gone, "diffusion.train_samples", "diffusion.bce_dice_share"):
        section, _, field = name.partition(".")
        saved.get(section, {}).pop(field, None)
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
        if value := config[section].get(field):
            config[section][field] = _absolute(path, value)
    return config


def _absolute(name: str, value: str) -> str:
    return value if (name, value) == PUBLISHED else str(absolute(value))


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
            found[name] = _absolute(name, text)
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


def changes(
    before: ConfigDict, now: ConfigDict, kinds: tuple[str, ...] = (FREE, RUN, NETWORK)
) -> dict[str, tuple[Any, Any]]:
    """Field -> (value before, value now), for the fields of these kinds that differ."""
    old, new = (flatten(config.to_dict()) for config in (before, now))
    known = fields(before.model.name) | fields(now.model.name)
    unread = tuple({"diffusion.", "ssn."} - {f"{now.method}."})  # Fields of other methods.
    known = {k: v._replace(fixed=FREE) if k.startswith(unread) else v for k, v in known.items()}
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
