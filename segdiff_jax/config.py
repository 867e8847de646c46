"""The schema of a config: every field once, with its default, meaning and limits.

`python -m segdiff_jax.config` lists all fields. The files in configs/ change some of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.classes import classes_of
from segdiff_jax.diffusion.schedule import SPACINGS, make_schedule, space_timesteps
from segdiff_jax.runtime.errors import UserError

VERSION = 2  # of the fields; `upgrade` reads older ones

# What may change when a run resumes (first) and when another run starts from its parameters.
FREE = ""  # may always change
RUN = "run"  # fixed when a run resumes
NETWORK = "network"  # also fixed for runs that start from the parameters


Wrong = Callable[[Any], str | None]  # value -> what is wrong with it, if anything


class Field(NamedTuple):
    """One field; the type of the default is its type. `fixed` is FREE, RUN or NETWORK."""

    default: Any
    fixed: str
    wrong: Wrong
    meaning: str


def anything(value: Any) -> None:
    return None


def at_least(least: float) -> Wrong:
    return lambda value: None if value >= least else f"must be at least {least}"


def above(limit: float) -> Wrong:
    return lambda value: None if value > limit else f"must be above {limit}"


def within(low: float, high: float, ends: str = "[]") -> Wrong:
    """`ends` says whether an end itself is allowed, as in mathematics."""
    above_low = (lambda x: x >= low) if ends[0] == "[" else (lambda x: x > low)
    below_high = (lambda x: x <= high) if ends[1] == "]" else (lambda x: x < high)
    first, last = {"[": "from", "(": "above"}[ends[0]], {"]": "to", ")": "to below"}[ends[1]]
    words = f"must be {first} {low} {last} {high}"
    return lambda value: None if above_low(value) and below_high(value) else words


def one_of(*choices: str) -> Wrong:
    return lambda value: None if value in choices else f"is unknown: choose one of {choices}"


def some_of(*choices: str) -> Wrong:
    return lambda value: None if set(value) <= set(choices) else f"must be some of {choices}"


def all_above(limit: float) -> Wrong:
    return lambda value: None if all(x > limit for x in value) else f"must all be above {limit}"


# fmt: off
TOP = {
    "seed": Field(0, RUN, at_least(0), "of the first parameters, the data order, noise and samples"),
    "method": Field("diffusion", RUN, one_of("diffusion", "supervised"), "what the network learns: to denoise masks, or to make them from the image alone"),
}

DATA = {
    "dataset": Field("isic/2016", RUN, anything, "see docs/data.md; paired_folder is your own images and masks"),
    "extra_datasets": Field((), RUN, anything, "data sets whose training images are added, without ids that `dataset` has"),
    "image_size": Field(64, RUN, at_least(1), "side in pixels of the square that the network sees"),
    "full_size": Field(0, RUN, at_least(0), "resize to this size instead and train on patches of image_size; 0: off"),
    "colour_constancy": Field("none", RUN, one_of("none", "shades_of_gray"), "corrects the colour of the light"),
    "soft_masks": Field(False, RUN, anything, "train on each pixel's share of lesion, not on whether it is over one half"),
    "dir": Field("data", FREE, anything, "folder for the built data set and its resized images"),
    "manual_dir": Field("", FREE, anything, "folder of the official archives; empty: download them"),
    "images": Field("", RUN, anything, "paired_folder: a folder of images, searched with its subfolders"),
    "masks": Field("", RUN, anything, "paired_folder: a folder of their masks"),
    "mask_endings": Field(("_Segmentation", "_mask", ""), RUN, anything, "what may follow the image's name in the mask's name"),
    "classes": Field((), RUN, anything, "paired_folder: names of the classes, the background first; empty: lesion or not"),
    "mask_values": Field((), RUN, anything, "the values of the classes in mask files; empty: 0, 1, 2, ..."),
    "num_threads": Field(2, FREE, at_least(0), "threads that read ahead of the training step"),
}

AUGMENT = {
    "flip": Field(True, FREE, anything, "mirror left-right and up-down"),
    "right_angles": Field(True, FREE, anything, "turn by 0, 90, 180 or 270 degrees"),
    "rotation": Field(0.0, FREE, at_least(0), "turn by up to this many degrees either way"),
    "scale": Field(0.0, FREE, within(0, 1, "[)"), "zoom by a factor of 1 +- this"),
    "shift": Field(0.0, FREE, at_least(0), "move by up to this share of the side"),
    "brightness": Field(0.0, FREE, at_least(0), "add up to this much, where the image spans [0, 1]"),
    "contrast": Field(0.0, FREE, within(0, 1, "[)"), "multiply by 1 +- this"),
    "saturation": Field(0.0, FREE, within(0, 1, "[)"), "multiply by 1 +- this"),
    "hue": Field(0.0, FREE, at_least(0), "turn the hue by up to this share of the circle"),
    **{name: Field(0.0, FREE, within(0, 1), f"share of the images with: {artefact.meaning}") for name, artefact in ARTEFACTS.items()},
}

_SEGDIFF = {
    "channels": Field(32, NETWORK, at_least(1), "width of the first level, a multiple of norm_groups"),
    "channel_mult": Field((1, 2, 2, 4), NETWORK, all_above(0), "width of each level in units of channels; each level halves the size"),
    "num_res_blocks": Field(1, NETWORK, at_least(1), "residual blocks per level"),
    "attention_resolutions": Field((4, 8), NETWORK, anything, "downsampling factors of the levels with attention"),
    "num_heads": Field(4, NETWORK, at_least(1), "heads of the attention"),
    "dropout": Field(0.0, RUN, within(0, 1, "[)"), "in the residual blocks"),
    "scale_shift_norm": Field(False, NETWORK, anything, "the timestep scales and shifts instead of being added"),
    "norm_groups": Field(32, NETWORK, at_least(0), "groups of each GroupNorm; 0: batch norm"),
    "out_channels": Field(1, NETWORK, at_least(1), "1, the number of data.classes, or 2 for a learned variance"),
    "rrdb_blocks": Field(1, NETWORK, at_least(1), "blocks of the image encoder G"),
    "rrdb_width": Field(32, NETWORK, at_least(1), "channels of G"),
    "rrdb_growth": Field(16, NETWORK, at_least(1), "channels that each convolution of G adds"),
    "rrdb_remat": Field(False, FREE, anything, "compute G again in the backward pass, to save memory"),
    "remat_resolutions": Field((), FREE, anything, "compute the levels of these factors again in the backward pass, to save memory"),
    "attention": Field("xla", FREE, one_of("xla", "cudnn"), "implementation; cudnn needs bfloat16 and is xla except on GPUs"),
    "image_mean": Field((), NETWORK, anything, "colours from 0 to 255 that G sees as 0; empty: it sees -1 to +1"),
    "image_std": Field((), NETWORK, anything, "colours from 0 to 255 that G sees as 1"),
    "dtype": Field("float32", RUN, one_of("float32", "bfloat16"), "of the computation; parameters stay float32"),
}
_MASKS = {"out_channels": Field(1, NETWORK, at_least(1), "1, or the number of data.classes")}
MODELS = {
    "segdiff": _SEGDIFF,
    "medsegdiff": _SEGDIFF,
    "unet": {
        "channels": Field((16, 32, 64, 128, 256), NETWORK, all_above(0), "width of each level; the paper's are 64 to 1024"),
        "padding": Field("same", NETWORK, one_of("same", "valid"), "valid is the paper's"),
        "norm": Field("batch", NETWORK, one_of("batch", "group", "none"), "none is the paper's"),
        "dtype": Field("float32", RUN, one_of("float32", "bfloat16"), "of the computation; parameters stay float32"),
        **_MASKS,
    },
    "medt": {
        "variant": Field("medt", NETWORK, one_of("axial", "gated", "logo", "medt"), "see segdiff_jax/models/baselines/medt.py"),
        "channels": Field(8, NETWORK, at_least(1), "of the stem, a multiple of groups"),
        "blocks": Field((1, 2, 4, 1), NETWORK, all_above(0), "blocks of each level"),
        "groups": Field(8, NETWORK, at_least(1), "heads of the attention"),
        "frozen_gate_epochs": Field(10.0, FREE, at_least(0), "passes over the data before the gates move"),
        **_MASKS,
    },
}
DENOISERS = "segdiff", "medsegdiff"

DIFFUSION = {
    "schedule": Field("linear", RUN, one_of("linear", "cosine"), "of the noise"),
    "num_timesteps": Field(100, RUN, at_least(1), "T, the length of the chain"),
    "prediction": Field("x0", RUN, one_of("eps", "x0", "v"), "what the network predicts"),
    "loss": Field("bce_dice", RUN, one_of("mse", "bce_dice", "rescaled_mse", "kl", "rescaled_kl"), "bce_dice is on the logits of x0"),
    "variance": Field("fixed_large", RUN, one_of("fixed_large", "fixed_small", "learned_range"), "of DDPM's steps and of the losses kl"),
    "weight": Field("simple", RUN, one_of("simple", "min_snr"), "of the loss at each timestep"),
    "timestep_power": Field(1.0, RUN, above(0), "draws t = T u^this, u uniform; below 1 trains more at the noisy end"),
    "timestep_sampler": Field("uniform", RUN, one_of("uniform", "loss_second_moment"), "how timesteps are drawn; the second by their losses"),
    "recycling": Field(False, RUN, anything, "train on x_t made of the network's own mask (x0 only)"),
    "self_conditioning": Field(False, RUN, anything, "the network sees its estimate of the step before"),
    "input_scale": Field(0.3, RUN, above(0), "b; clean masks are -b or +b"),
    "normalise_input": Field(True, RUN, anything, "the network sees x_t at unit variance"),
}

TRAIN = {
    "num_steps": Field(10_000, FREE, at_least(1), "updates"),
    "init_from": Field("", FREE, anything, "a workdir or checkpoint whose averaged parameters a new run starts from"),
    "max_minutes": Field(0.0, FREE, at_least(0), "end after this many minutes of training; 0: off"),
    "batch_size": Field(16, RUN, at_least(1), "images of all devices together"),
    "half_size_share": Field(0.0, FREE, within(0, 1), "share of the training, at its start, at half of image_size"),
    "microbatches": Field(1, FREE, at_least(1), "average gradients over this many parts of the batch, to save memory"),
    "optimizer": Field("adamw", RUN, one_of("adamw", "muon"), "muon is for the kernels: see segdiff_jax/training/optimizer.py"),
    "learning_rate": Field(1e-3, FREE, above(0), "at its peak"),
    "schedule": Field("constant", FREE, one_of("constant", "cosine"), "of the learning rate; cosine falls to 0 at the end"),
    "warmup_steps": Field(100, FREE, at_least(0), "updates in which the learning rate grows to its peak"),
    "weight_decay": Field(0.0, FREE, at_least(0), "decoupled"),
    "clip_norm": Field(1.0, FREE, at_least(0), "largest norm of the gradient; 0: off"),
    "max_skipped": Field(0, FREE, at_least(0), "updates in a row that may be skipped for a NaN or infinite gradient"),
    "ema_decay": Field(0.999, FREE, within(0, 1, "[)"), "of the averaged parameters, which are evaluated and sampled"),
    "log_every": Field(20, FREE, at_least(1), "steps between rows of metrics.csv"),
    "trackers": Field(("tensorboard",), FREE, some_of("tensorboard", "wandb", "mlflow"), "where the numbers are shown as well"),
    "checkpoint_every": Field(500, FREE, at_least(1), "steps between checkpoints; there is one at the end too"),
}

VALIDATION = {
    "every": Field(500, FREE, at_least(0), "steps; 0: off, then sample.py takes the last checkpoint"),
    "num_images": Field(64, FREE, at_least(1), "the first images of the validation split"),
    "steps": Field(5, FREE, at_least(1), "of the sampler, whose other fields hold"),
    "samples": Field(1, FREE, at_least(1), "samples of each image"),
    "scores": Field(("iou",), FREE, anything, "see segdiff_jax/evaluation/metrics.py; the first chooses the best checkpoint"),
}

SAMPLER = {
    "name": Field("ddim", FREE, one_of("ddim", "ddpm", "dpm_solver_pp_2m"), "the solver"),
    "steps": Field(10, FREE, at_least(1), "evaluations of the network per sample"),
    "spacing": Field("trailing", FREE, one_of(*SPACINGS), "of the steps: trailing ends at T - 1, leading and ddim begin at 0, uniform has both ends"),
    "eta": Field(0.0, FREE, within(0, 1), "ddim: 0 is deterministic, 1 as noisy as DDPM"),
    "clip": Field(True, FREE, anything, "keep the predicted clean mask in its range"),
    "samples": Field(5, FREE, at_least(1), "samples of each image"),
    "flips": Field(False, FREE, anything, "the samples see the image mirrored in turn: not, left-right, up-down, both"),
    "rotations": Field(False, FREE, anything, "the samples see the image turned by right angles in turn"),
    "ensemble": Field("mean", FREE, one_of("mean", "vote", "staple"), "how samples are combined: mean probability, majority, STAPLE"),
    "temperature": Field(1.0, FREE, above(0), "divides the logits of the probability"),
    "threshold": Field(0.5, FREE, within(0, 1, "()"), "a pixel is lesion if its probability is above it"),
    "native": Field(False, FREE, anything, "segment windows of images at their own size"),
    "overlap": Field(0.25, FREE, within(0, 1, "[)"), "of neighbouring windows, as a share of their side"),
    "max_batch": Field(32, FREE, at_least(1), "most samples (images x samples) computed together on a device"),
    "max_memory": Field(0.0, FREE, at_least(0), "GiB of a device that sampling may take; 0: what is free"),
}
# fmt: on


def sections(model: str) -> dict[str, dict[str, Field]]:
    """Section -> field -> `Field`, for configs with this `model.name`; "" is the top level."""
    name = Field(model, NETWORK, one_of(*MODELS), "the network")
    if reason := name.wrong(model):
        raise UserError(f"model.name={model!r} {reason}")
    return {
        "": TOP,
        "data": DATA,
        "augment": AUGMENT,
        "model": {"name": name} | MODELS[model],
        "diffusion": DIFFUSION,
        "train": TRAIN,
        "validation": VALIDATION,
        "sampler": SAMPLER,
    }


def fields(model: str) -> dict[str, Field]:
    """The same, flat: "data.image_size" -> `Field`."""
    return {
        f"{section}.{name}".lstrip("."): field
        for section, of_section in sections(model).items()
        for name, field in of_section.items()
    }


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
    """A saved config (section -> field -> value) with every field of today.

    Raises:
        UserError: naming a field that cannot be read.
    """
    saved = upgrade(saved, version)
    config = default_config(saved["model"]["name"])
    set_fields(config, flatten(saved))
    return config


def saved_config(meta: Mapping[str, Any]) -> ConfigDict:
    """The config in the metadata of a checkpoint; UserError as of `complete`."""
    return complete(meta["config"], meta.get("version", 1))


def upgrade(saved: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The fields of an older version as fields of today; `complete` adds what is missing.

    Raises:
        UserError: if a newer version of the package made them, or a field has no equivalent.
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
    epochs = train.pop("frozen_gate_epochs", None)
    if model["name"] == "medt" and epochs is not None:
        model["frozen_gate_epochs"] = epochs
    for section in ("sampler", "validation"):
        if "votes" in saved.get(section, {}):
            saved[section]["samples"] = saved[section].pop("votes")
    if "variance" in saved.get("sampler", {}):
        saved["diffusion"]["variance"] = saved["sampler"].pop("variance")
    return saved


def set_fields(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields, by names such as "sampler.steps".

    Raises:
        UserError: naming a field that does not exist or has another type.
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

    Raises:
        UserError: naming an argument that is not of this form.
    """
    known, found = fields("segdiff"), {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals or not argument.startswith("--config."):
            raise UserError(f"{argument}: write --config.FIELD=VALUE")
        if name not in known:
            raise UserError(f"{argument}: there is no field {name}")
        kind = type(known[name].default)
        try:
            found[name] = ("false", "true").index(text.lower()) > 0 if kind is bool else kind(text)
        except ValueError as error:
            raise UserError(f"{name}={text!r} must be of type {kind.__name__}") from error
    return found


def sampling_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """["--config.sampler.steps=3"] -> {"steps": 3}, as `load` takes them; see `parse_fields`."""
    found = {}
    for name, value in parse_fields(arguments).items():
        if not name.startswith("sampler.") and name not in ("seed", "diffusion.variance"):
            raise UserError(f"{name}={value!r}: the run decides this; sampling has sampler.*")
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
    wrong = [reason for reason in _wrong_together(config) if reason]
    if wrong:
        raise UserError("\n".join(wrong))


def _wrong_together(config: ConfigDict) -> Iterator[str | None]:
    """What is wrong with fields that must fit each other."""
    data, diffusion = config.data, config.diffusion
    classes, channels = classes_of(data), config.model.out_channels
    if 0 != data.full_size < data.image_size:
        yield (
            f"data.full_size={data.full_size} must be 0 or at least "
            f"data.image_size={data.image_size}"
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
    supervised = config.model.name not in DENOISERS
    if supervised != (config.method == "supervised"):
        fits = "supervised" if supervised else "diffusion"
        yield f"method={config.method!r} does not fit model.name={config.model.name!r}: set {fits!r}"
    elif (supervised or classes.several) and channels != classes.channels:
        yield (
            f"model.out_channels={channels} does not fit data.classes={tuple(data.classes)}: "
            f"set {classes.channels}"
        )
    if supervised:
        return
    yield from _wrong_variance(config, channels, classes.several)
    if diffusion.loss == "bce_dice" and diffusion.prediction != "x0":
        yield (
            "diffusion.loss='bce_dice' scores masks: it needs diffusion.prediction='x0', not "
            f"{diffusion.prediction!r}"
        )
    if diffusion.recycling and diffusion.prediction != "x0":
        yield (
            "diffusion.recycling adds noise to the network's own mask: it needs "
            f"diffusion.prediction='x0', not {diffusion.prediction!r}"
        )
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
    for model in MODELS:
        for name, field in fields(model).items():
            if model == "segdiff" or (name.startswith("model.") and model in ("unet", "medt")):
                note = f" ({model})" if model != "segdiff" else ""
                lines.append(f"{name}{note} = {field.default!r}\n    {field.meaning}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
