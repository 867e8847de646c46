"""What is wrong with a config: each field by itself, and fields that must fit each other."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from segdiff_jax.config import flatten
from segdiff_jax.data.classes import classes_of
from segdiff_jax.diffusion.process import OF_LOGITS
from segdiff_jax.diffusion.schedule import SPACINGS, make_schedule, space_timesteps
from segdiff_jax.models.efficientnet import VARIANTS, blocks_of
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import DENOISERS, ENCODER, fields


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
    yield from _wrong_encoder(config)
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
    if classes.several and (data.several_annotators or data.annotators):
        yield (
            f"data.classes={classes.names} does not go with masks of several annotators: leave out "
            "data.classes, or data.several_annotators and data.annotators"
        )
    if len({*data.annotators}) < len(data.annotators):
        yield f"data.annotators={tuple(data.annotators)} must be different names"
    if data.several_annotators and data.dataset != "paired_folder":
        yield (
            f"data.several_annotators=True is for data.dataset='paired_folder', not "
            f"{data.dataset!r}: set False"
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
    if config.sampler.annotator not in ("", *data.annotators):
        yield (
            f"sampler.annotator={config.sampler.annotator!r} is none of "
            f"data.annotators={tuple(data.annotators)}"
        )
    denoises, method = config.model.name in DENOISERS, config.method
    if data.annotators and not denoises:
        yield (
            f"data.annotators={tuple(data.annotators)} needs a diffusion model, not "
            f"model.name={config.model.name!r}"
        )
    needed, rank = classes.channels, ""
    if method == "ssn":
        needed, rank = needed * (2 + config.ssn.rank), f" and ssn.rank={config.ssn.rank}"
    if denoises != (method == "diffusion"):
        fits = "'diffusion'" if denoises else "'supervised' or 'ssn'"
        yield f"method={method!r} does not fit model.name={config.model.name!r}: set {fits}"
    elif (not denoises or classes.several) and channels != needed:
        yield (
            f"model.out_channels={channels} does not fit data.classes={tuple(data.classes)}{rank}: "
            f"set {needed}"
        )
    windows = {"sampler.native": config.sampler.native, "data.full_size": data.full_size}
    stride = config.model.get("mask_stride", 1)
    for name, value in windows.items():
        if value and stride > 1 and method != "supervised":
            yield f"{name}={value} needs model.mask_stride=1, not {stride}"
    if not denoises:
        return
    yield from _wrong_variance(config, channels, classes.several)
    needs_x0 = {
        f"diffusion.loss={diffusion.loss!r} scores masks": diffusion.loss in OF_LOGITS,
        "diffusion.recycling adds noise to the network's own mask": diffusion.recycling,
    }
    for reason, holds in needs_x0.items():
        if holds and diffusion.prediction != "x0":
            yield f"{reason}: it needs diffusion.prediction='x0', not {diffusion.prediction!r}"
    if config.sampler.level_sets and diffusion.loss not in OF_LOGITS:
        yield (
            f"sampler.level_sets=True needs probabilities: diffusion.loss in {OF_LOGITS}, not "
            f"{diffusion.loss!r}"
        )
    if config.sampler.level_sets and config.sampler.name not in ("ddim", "ddpm"):
        yield (
            f"sampler.level_sets=True is random, sampler.name={config.sampler.name!r} is not: set "
            "'ddim' or 'ddpm'"
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


def _wrong_encoder(config: ConfigDict) -> Iterator[str]:
    """What is wrong with the fields of an image encoder with published weights."""
    encoder, flat = config.model.get("image_encoder", "none"), flatten(config.to_dict())
    if encoder in VARIANTS:
        frozen, number = config.model.frozen_blocks, len(blocks_of(encoder))
        if frozen > number:
            yield f"model.frozen_blocks={frozen}: {encoder} has {number} blocks"
        return
    known = fields(config.model.name)
    for name in (*(f"model.{name}" for name in (*ENCODER, "pyramid")), "train.encoder_rate"):
        if name in known and flat[name] not in (known[name].default, ""):
            yield (
                f"{name}={flat[name]!r} needs a model.image_encoder with published weights "
                f"({', '.join(VARIANTS)}), not {encoder!r}"
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
    if learned and diffusion.loss in OF_LOGITS:
        yield f"{loss} trains no variance: set 'mse', 'rescaled_mse', 'kl' or 'rescaled_kl'"
    bound = learned or diffusion.loss in ("kl", "rescaled_kl")
    for field, needed in (("recycling", False), ("weight", "simple")):
        if bound and diffusion[field] != needed:
            yield (
                f"diffusion.{field}={diffusion[field]!r} does not go with the variational bound "
                f"(of {loss}, model.out_channels={channels}): set {needed!r}"
            )
