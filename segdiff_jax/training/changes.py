"""How the config of a run that goes on differs from the one before."""

import json
from pathlib import Path
from typing import Any

from segdiff_jax.models import MODELS

# A run with another value of these, or of a diffusion model's diffusion, would not be the same run.
FIXED = (
    "data.dataset",
    "data.extra_datasets",
    "data.image_size",
    "data.full_size",
    "data.colour_constancy",
    "data.images",
    "data.masks",
    "data.mask_endings",
    "data.classes",
    "data.mask_values",
    "data.soft_masks",
    "model.",
    "objective",
    "seed",
    "train.batch_size",
    "train.optimizer",
)
# But for these, which change no result.
FREE = ("model.rrdb_remat", "model.remat_resolutions", "model.attention")
# Nor do these change what the parameters mean.
TRAINING = ("model.dropout", "model.dtype")


def report_changes(
    before: dict[str, Any], now: dict[str, Any], workdir: Path, accept: bool = False
) -> None:
    """Prints the config fields that changed since the checkpoint.

    Raises:
        ValueError: unless `accept`, if one of `FIXED` did, but for fields that the run did not know
            yet; of the network's, it knew the default.
    """
    before = before | {"model": _with_defaults(before["model"], now["model"])}
    before, now = flatten(before), flatten(now)
    changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    lines = [f"config.{n}: {before.get(n)!r} before, {now.get(n)!r} now" for n in changed]
    fixed = FIXED if now.get("objective") == "supervised" else (*FIXED, "diffusion.")
    other = [n for n in changed if n in before and n.startswith(fixed) and n not in FREE]
    if other and not accept:
        raise ValueError(
            f"{workdir} holds a run with another config; give it another --workdir, the same "
            "config, or --accept_changes:\n  " + "\n  ".join(lines)
        )
    for line in lines:
        print(line, flush=True)


def check_same_network(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """Prints how `config.diffusion` differs from that of the parameters in `path`.

    Raises:
        ValueError: if `config.model` does.
    """
    model = _with_defaults(before["model"], now["model"])
    former = flatten({"model": model, "diffusion": before.get("diffusion", {})})
    now = {k: v for k, v in flatten(now).items() if k.startswith(("model.", "diffusion."))}
    lines = [
        f"{name}: {former.get(name)!r} there, {value!r} here"
        for name, value in now.items()
        if former.get(name, value) != value and name not in (*FREE, *TRAINING)
    ]
    if any(line.startswith("model.") for line in lines):
        raise ValueError(
            f"train.init_from={path} holds another network; --config=configs/saved.py:WORKDIR has "
            "its config:\n  " + "\n  ".join(lines)
        )
    for line in lines:
        print(f"train.init_from: {line}", flush=True)


def _with_defaults(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`config.model` with what was the default of fields that came later."""
    fields = MODELS[now["name"]].__dataclass_fields__
    defaults = {name: fields[name].default for name in now.keys() & fields.keys()}
    return json.loads(json.dumps(defaults)) | before


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def with_absolute_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A config whose folders of images and masks are found from wherever a command is given."""
    data = settings["data"]
    given = {field: data[field] for field in ("images", "masks") if data.get(field)}
    absolute = {field: str(Path(path).expanduser().absolute()) for field, path in given.items()}
    return settings | {"data": data | absolute}


def how_validated(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that a validation IoU depends on; the others do not make two incomparable."""
    sampler = "name", "spacing", "eta", "variance", "clip", "flips", "ensemble", "threshold"
    names = {"validation": ("num_images", "steps", "votes"), "sampler": (*sampler, "rotations")}
    values = {name: [config[name].get(f, False) for f in fields] for name, fields in names.items()}
    later = {"temperature": 1.0, "overlap": 0.25}
    return values | {name: config["sampler"].get(name, value) for name, value in later.items()}
