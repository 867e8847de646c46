"""What is wrong with a config, said before hours of training."""

from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.colour import find_colour_constancy
from segdiff_jax.training.state import learning_rate
from segdiff_jax.training.tracking import check_trackers

OBJECTIVES = ("diffusion", "supervised")


def check_config(config: ConfigDict) -> None:
    """Raises a ValueError that names the first of these fields that cannot be.

    The other sections are checked by what they configure.
    """
    train, validation = config.train, config.validation
    find_colour_constancy(config.data.colour_constancy)
    check_classes(config)
    at_least = {
        ("data", "image_size"): 1,
        ("data", "num_threads"): 0,
        ("train", "num_steps"): 1,
        ("train", "max_minutes"): 0,
        ("train", "batch_size"): 1,
        ("train", "half_size_share"): 0,
        ("train", "microbatches"): 1,
        ("train", "warmup_steps"): 0,
        ("train", "frozen_gate_epochs"): 0,
        ("train", "weight_decay"): 0,
        ("train", "clip_norm"): 0,
        ("train", "max_skipped"): 0,
        ("train", "ema_decay"): 0,
        ("train", "log_every"): 1,
        ("train", "checkpoint_every"): 1,
        ("validation", "every"): 0,
        ("validation", "num_images"): 1,
        ("validation", "steps"): 1,
        ("validation", "votes"): 1,
    }
    for (section, field), least in at_least.items():
        if config[section][field] < least:
            value = config[section][field]
            raise ValueError(f"{section}.{field}={value} must be at least {least}")
    if not 0 <= config.sampler.overlap < 1:
        raise ValueError(f"sampler.overlap={config.sampler.overlap} must be from 0 to below 1")
    size, full_size = config.data.image_size, config.data.full_size
    if 0 != full_size < size:
        raise ValueError(f"data.full_size={full_size} must be 0 or at least data.image_size={size}")
    if train.learning_rate <= 0:
        raise ValueError(f"train.learning_rate={train.learning_rate} must be positive")
    learning_rate(config, 0, 0.0)
    check_trackers(train.trackers)
    if config.diffusion.timestep_power <= 0:
        power = config.diffusion.timestep_power
        raise ValueError(f"diffusion.timestep_power={power} must be positive")
    if config.diffusion.timestep_sampler != "uniform" and config.diffusion.timestep_power != 1:
        raise ValueError(
            f"diffusion.timestep_power={config.diffusion.timestep_power} draws timesteps, and so "
            f"does diffusion.timestep_sampler={config.diffusion.timestep_sampler!r}: set 1.0 or "
            "'uniform'"
        )
    if train.half_size_share > 1:
        raise ValueError(f"train.half_size_share={train.half_size_share} must be at most 1")
    if train.ema_decay >= 1:
        raise ValueError(f"train.ema_decay={train.ema_decay} must be below 1")
    if validation.steps > config.diffusion.num_timesteps:
        raise ValueError(
            f"validation.steps={validation.steps} exceeds "
            f"diffusion.num_timesteps={config.diffusion.num_timesteps}"
        )
    if train.max_minutes and parallel.process_count() > 1:
        raise ValueError("train.max_minutes needs a single process: each has a clock of its own")
    parts = parallel.device_count() * train.microbatches
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size={train.batch_size} does not divide over "
            f"{parallel.device_count()} devices x {train.microbatches} microbatches: choose a "
            f"multiple of {parts}"
        )
    if config.objective == "diffusion":
        check_variance(config)


def check_classes(config: ConfigDict) -> None:
    """Raises a ValueError that names the fields which do not fit the masks' number of classes."""
    data, channels = config.data, config.model.get("out_channels", 1)
    classes = classes_of(data)
    if classes is None:
        if config.objective == "supervised" and channels != 1:
            raise ValueError(
                f"model.out_channels={channels} must be 1: several classes are named in "
                "data.classes"
            )
        return
    if data.dataset != "paired_folder" or data.extra_datasets:
        raise ValueError(
            f"data.classes={classes.names} are of one's own masks: with "
            f"data.dataset={data.dataset!r}, data.extra_datasets={tuple(data.extra_datasets)}, "
            "leave (), or set 'paired_folder' and ()"
        )
    if channels != classes.count:
        raise ValueError(
            f"model.out_channels={channels} does not fit data.classes={classes.names}: set "
            f"model.out_channels={classes.count}"
        )
    if config.objective == "diffusion" and config.sampler.variance == "learned_range":
        raise ValueError(
            "sampler.variance='learned_range' is learned for masks of two classes only: with "
            f"data.classes={classes.names}, set 'fixed_large' or 'fixed_small'"
        )


def check_variance(config: ConfigDict) -> None:
    """Raises a ValueError that names the fields which do not fit a learned variance or a bound."""
    diffusion, loss = config.diffusion, f"diffusion.loss={config.diffusion.loss!r}"
    channels, variance = config.model.get("out_channels", 1), config.sampler.variance
    if channels not in (1, 2) and not config.data.classes:
        raise ValueError(
            f"model.out_channels={channels} must be 1 or, with a variance, 2; or that of "
            "data.classes, if the masks have several"
        )
    learned = channels == 2
    if learned != (variance == "learned_range"):
        raise ValueError(
            f"model.out_channels={channels} does not fit sampler.variance={variance!r}: a learned "
            "variance needs 2 and 'learned_range', a fixed one 1 and another"
        )
    if diffusion.loss == "rescaled_mse" and not learned:
        raise ValueError(
            f"{loss} rescales the bound that trains a variance: set 'mse', or model.out_channels=2 "
            "and sampler.variance='learned_range'"
        )
    if learned and diffusion.loss == "bce_dice":
        raise ValueError(
            f"{loss} trains no variance: with model.out_channels=2, set 'mse', 'rescaled_mse', "
            "'kl' or 'rescaled_kl'"
        )
    bound = learned or diffusion.loss in ("kl", "rescaled_kl")
    if bound and diffusion.recycling:
        raise ValueError(
            f"diffusion.recycling noises the network's own mask, but the bound (of {loss}, "
            f"model.out_channels={channels}) is of the true one: set False"
        )
    if bound and diffusion.weight != "simple":
        raise ValueError(
            f"diffusion.weight={diffusion.weight!r} would weight the terms of the bound (of "
            f"{loss}, model.out_channels={channels}), which is their sum: set 'simple'"
        )


def check_objective(config: ConfigDict, is_diffusion: bool) -> None:
    """Raises a ValueError if `objective` is not that of the network's kind."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"objective={config.objective!r}: choose one of {OBJECTIVES}")
    fits = OBJECTIVES[not is_diffusion]
    if config.objective != fits:
        raise ValueError(
            f"objective={config.objective!r} does not fit model.name={config.model.name!r}: set "
            f"{fits!r}"
        )
