"""The schema of a config: every field once, with its default, meaning and limits.

`python -m segdiff_jax.config` lists all fields. The files in configs/ change some of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.diffusion.schedule import SPACINGS
from segdiff_jax.models.efficientnet import VARIANTS
from segdiff_jax.runtime.errors import UserError

FREE = ""  # may change when a run resumes
RUN = "run"  # fixed for a run
NETWORK = "network"  # fixed for a run, and for runs that start from its parameters

Wrong = Callable[[Any], str | None]  # value -> what is wrong with it, if anything


class Field(NamedTuple):
    """One field; the type of the default is its type. `fixed` is FREE, RUN or NETWORK."""

    default: Any
    fixed: str
    wrong: Wrong
    meaning: str


def must(hold: Callable[[Any], bool], words: str) -> Wrong:
    return lambda value: None if hold(value) else words


def within(low: float, high: float, ends: str = "[]") -> Wrong:
    """`ends` says whether an end itself is allowed, as in mathematics."""
    above_low = (lambda x: x >= low) if ends[0] == "[" else (lambda x: x > low)
    below_high = (lambda x: x <= high) if ends[1] == "]" else (lambda x: x < high)
    first, last = {"[": "from", "(": "above"}[ends[0]], {"]": "to", ")": "to below"}[ends[1]]
    return must(lambda x: above_low(x) and below_high(x), f"must be {first} {low} {last} {high}")


anything = must(lambda x: True, "")
at_least = lambda least: must(lambda x: x >= least, f"must be at least {least}")
above = lambda limit: must(lambda x: x > limit, f"must be above {limit}")
all_above = lambda a: must(lambda x: len(x) > 0 and min(x) > a, f"must all be above {a}")
one_of = lambda *choices: must(lambda x: x in choices, f"is unknown: choose one of {choices}")
some_of = lambda *choices: must(lambda x: {*x} <= {*choices}, f"must be some of {choices}")

# fmt: off
TOP = {
    "seed": Field(0, RUN, at_least(0), "draws the first parameters, the data order, noise and samples"),
    "method": Field("diffusion", RUN, one_of("diffusion", "supervised", "ssn"), "what the network learns: to denoise masks, to make them from the image alone, or to make their distribution"),
}

DATA = {
    "dataset": Field("isic/2016", RUN, anything, "its name, see docs/data.md; paired_folder is your own images and masks"),
    "extra_datasets": Field((), RUN, anything, "data sets whose training images are added, but for those that `dataset` has"),
    "extra_share": Field(0.0, RUN, within(0, 1, "[)"), "share of the images trained on that come from extra_datasets; 0: as their numbers say"),
    "image_size": Field(64, RUN, at_least(1), "side in pixels of the square that the network sees"),
    "full_size": Field(0, RUN, at_least(0), "resize to this size instead and train on patches of image_size; 0: off"),
    "colour_constancy": Field("none", RUN, one_of("none", "shades_of_gray"), "corrects the colour of the light"),
    "soft_masks": Field(False, RUN, anything, "train on each pixel's share of lesion, not on whether it is over one half"),
    "dir": Field("data", FREE, anything, "folder for the built data set and its resized images"),
    "manual_dir": Field("", FREE, anything, "folder of the official archives; empty: download them"),
    "images": Field("", RUN, anything, "paired_folder: a folder of images, searched with its subfolders"),
    "masks": Field("", RUN, anything, "paired_folder: a folder of their masks"),
    "mask_endings": Field(("_Segmentation", "_mask", ""), RUN, anything, "what may follow the image's name in the mask's name"),
    "group_file": Field("", RUN, anything, "a CSV file with the columns id and group (lesion, patient, ...); images of a group share a split"),
    "group_pattern": Field("", RUN, anything, "instead: a regular expression whose first parentheses match the group in an id"),
    "folds": Field(0, RUN, must(lambda x: x == 0 or x >= 2, "must be 0 or at least 2"), "cut training and validation images anew into this number of folds; 0: off"),
    "fold": Field(0, RUN, at_least(0), "the fold, from 0, that is the validation split; all others are trained on"),
    "allow_empty_splits": Field(False, FREE, anything, "take a data set although no mask of a split has any foreground"),
    "classes": Field((), RUN, anything, "paired_folder: names of the classes, the background first; empty: lesion or not"),
    "mask_values": Field((), RUN, anything, "the values of the classes in mask files; empty: 0, 1, 2, ..."),
    "several_annotators": Field(False, RUN, anything, "paired_folder: each image may have several masks, named IMAGE_ANNOTATOR or ANNOTATOR/IMAGE"),
    "annotators": Field((), NETWORK, anything, "annotators, skills or tools that the network is told, such as ('A04', 'A06') or ('S1', 'S2'): it learns to draw like each"),
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

ENCODER = {  # Of those with published weights.
    "encoder_weights": Field("imagenet", RUN, anything, "where the published image_encoder starts: imagenet (needs its package), a .npz or .safetensors file, or empty: random"),
    "frozen_blocks": Field(0, RUN, at_least(0), "number of the published image_encoder's first blocks that are not trained"),
    "stochastic_depth": Field(0.0, RUN, within(0, 1, "[)"), "share of the training images that skip the last block of the published image_encoder; it falls to 0 at the first; only blocks that add to their input are skipped"),
    "mask_stride": Field(1, NETWORK, one_of(1, 2, 4), "inside the network, masks have 1 / this of the image's size; above 1 needs a published image_encoder"),
}
_SEGDIFF = {
    "channels": Field(32, NETWORK, at_least(1), "width of the first level, a multiple of norm_groups"),
    "channel_mult": Field((1, 2, 2, 4), NETWORK, all_above(0), "width of each level in units of channels; each level halves the size"),
    "num_res_blocks": Field(1, NETWORK, at_least(1), "residual blocks per level"),
    "attention_resolutions": Field((4, 8), NETWORK, anything, "downsampling factors of the levels with attention"),
    "num_heads": Field(4, NETWORK, at_least(1), "heads of the attention"),
    "dropout": Field(0.0, RUN, within(0, 1, "[)"), "share of activations dropped in the residual blocks"),
    "scale_shift_norm": Field(False, NETWORK, anything, "the timestep scales and shifts instead of being added"),
    "norm_groups": Field(32, NETWORK, at_least(0), "groups of each GroupNorm; 0: batch norm"),
    "out_channels": Field(1, NETWORK, at_least(1), "1, the number of data.classes, or 2 for a learned variance"),
    "rrdb_blocks": Field(1, NETWORK, at_least(1), "blocks of the image encoder G"),
    "rrdb_width": Field(32, NETWORK, at_least(1), "channels of G"),
    "rrdb_growth": Field(16, NETWORK, at_least(1), "channels that each convolution of G adds"),
    "rrdb_remat": Field(False, FREE, anything, "compute G again in the backward pass, to save memory"),
    "remat_resolutions": Field((), FREE, anything, "compute the levels of these factors again in the backward pass, to save memory"),
    "attention": Field("xla", FREE, one_of("xla", "cudnn"), "implementation; cudnn needs bfloat16 and is xla except on GPUs"),
    "image_encoder": Field("rrdb", NETWORK, one_of("rrdb", *VARIANTS), "G: the paper's rrdb, or a published one, see docs/encoders.md"),
    "pyramid": Field(True, NETWORK, anything, "the published image_encoder reaches every level of E, not only the first"),
    **ENCODER,
    "image_mean": Field((), NETWORK, anything, "colours from 0 to 255 that G sees as 0; empty: it sees -1 to +1"),
    "image_std": Field((), NETWORK, anything, "colours from 0 to 255 that G sees as 1"),
    "dtype": Field("float32", RUN, one_of("float32", "bfloat16"), "the computation has this type; parameters stay float32"),
}
_MASKS = {"out_channels": Field(1, NETWORK, at_least(1), "1, or the number of data.classes; for method='ssn', 2 + ssn.rank times as many")}
MODELS = {
    "segdiff": _SEGDIFF,
    "medsegdiff": _SEGDIFF,
    "unet": {
        "channels": Field((16, 32, 64, 128, 256), NETWORK, all_above(0), "width of each level; the paper's are 64 to 1024"),
        "padding": Field("same", NETWORK, one_of("same", "valid"), "valid is the paper's"),
        "norm": Field("batch", NETWORK, one_of("batch", "group", "none"), "none is the paper's"),
        "image_encoder": Field("none", NETWORK, one_of("none", *VARIANTS), "adds the features of a published encoder to each level"),
        **ENCODER,
        "dtype": Field("float32", RUN, one_of("float32", "bfloat16"), "the computation has this type; parameters stay float32"),
        **_MASKS,
    },
    "medt": {
        "variant": Field("medt", NETWORK, one_of("axial", "gated", "logo", "medt"), "the network, see segdiff_jax/models/baselines/medt.py"),
        "channels": Field(8, NETWORK, at_least(1), "width of the stem, a multiple of groups"),
        "blocks": Field((1, 2, 4, 1), NETWORK, all_above(0), "blocks of each level"),
        "groups": Field(8, NETWORK, at_least(1), "heads of the attention"),
        "frozen_gate_epochs": Field(10.0, FREE, at_least(0), "passes over the data before the gates move"),
        **_MASKS,
    },
}
DENOISERS = "segdiff", "medsegdiff"

DIFFUSION = {
    "schedule": Field("linear", RUN, one_of("linear", "cosine"), "how the noise grows with t"),
    "num_timesteps": Field(100, RUN, at_least(1), "T, the length of the chain"),
    "prediction": Field("x0", RUN, one_of("eps", "x0", "v"), "what the network predicts"),
    "loss": Field("bce_dice", RUN, one_of("mse", "bce", "bce_dice", "rescaled_mse", "kl", "rescaled_kl"), "bce and bce_dice are on the logits of x0; for which to take, see docs/distributions.md"),
    "variance": Field("fixed_large", RUN, one_of("fixed_large", "fixed_small", "learned_range"), "the variance of DDPM's steps and in the losses kl and rescaled_kl"),
    "weight": Field("simple", RUN, one_of("simple", "min_snr"), "how the loss is weighted at each timestep"),
    "timestep_power": Field(1.0, RUN, above(0), "draws t = T u^this, u uniform; below 1 trains more at the noisy end"),
    "timestep_sampler": Field("uniform", RUN, one_of("uniform", "loss_second_moment"), "how timesteps are drawn; the second by their losses"),
    "recycling": Field(False, RUN, anything, "train on x_t made of the network's own mask (x0 only)"),
    "self_conditioning": Field(False, RUN, anything, "the network sees its estimate of the step before"),
    "input_scale": Field(0.3, RUN, above(0), "b; clean masks are -b or +b"),
    "normalise_input": Field(True, RUN, anything, "the network sees x_t at unit variance"),
}

SSN = {
    "rank": Field(10, NETWORK, at_least(0), "of the covariance of the logits; 0: pixels are independent"),
    "train_samples": Field(20, RUN, at_least(1), "samples of each image's logits in the loss; if there are few, rare answers are sampled too often"),
}

TRAIN = {
    "num_steps": Field(10_000, FREE, at_least(1), "updates"),
    "init_from": Field("", FREE, anything, "a workdir or checkpoint whose averaged parameters a new run starts from"),
    "max_minutes": Field(0.0, FREE, at_least(0), "end after this many minutes of training; 0: off"),
    "batch_size": Field(16, RUN, at_least(1), "images of all devices together"),
    "half_size_share": Field(0.0, FREE, within(0, 1), "share of the training, at its start, at half of image_size"),
    "microbatches": Field(1, FREE, at_least(1), "average gradients over this many parts of the batch, to save memory"),
    "optimizer": Field("adamw", RUN, one_of("adamw", "muon"), "muon is for the kernels: see segdiff_jax/training/optimizer.py"),
    "learning_rate": Field(1e-3, FREE, above(0), "the rate at its peak"),
    "encoder_rate": Field(1.0, FREE, at_least(0), "learning rate of a pretrained image encoder, as a share of learning_rate"),
    "schedule": Field("constant", FREE, one_of("constant", "cosine"), "how the learning rate changes; cosine falls to 0 at the end"),
    "warmup_steps": Field(100, FREE, at_least(0), "updates in which the learning rate grows to its peak"),
    "weight_decay": Field(0.0, FREE, at_least(0), "decoupled"),
    "clip_norm": Field(1.0, FREE, at_least(0), "largest norm of the gradient; 0: off"),
    "max_skipped": Field(0, FREE, at_least(0), "updates in a row that may be skipped for a NaN or infinite gradient"),
    "ema_decay": Field(0.999, FREE, within(0, 1, "[)"), "decay of the averaged parameters, which are evaluated and sampled"),
    "log_every": Field(20, FREE, at_least(1), "steps between rows of metrics.csv"),
    "trackers": Field(("tensorboard",), FREE, some_of("tensorboard", "wandb", "mlflow"), "where the numbers are shown as well"),
    "checkpoint_every": Field(500, FREE, at_least(1), "steps between checkpoints; there is one at the end too"),
}

VALIDATION = {
    "every": Field(500, FREE, at_least(0), "steps; 0: off, then sample.py takes the last checkpoint"),
    "num_images": Field(64, FREE, at_least(1), "the first images of the validation split"),
    "steps": Field(5, FREE, at_least(1), "steps of the sampler, whose other fields stay as they are"),
    "samples": Field(1, FREE, at_least(1), "samples of each image"),
    "scores": Field(("iou",), FREE, anything, "names in SCORES of segdiff_jax/evaluation/metrics.py, or energy, of single masks; the first chooses the best checkpoint"),
}

SAMPLER = {
    "name": Field("ddim", FREE, one_of("ddim", "ddpm", "dpm_solver_pp_2m"), "the solver"),
    "steps": Field(10, FREE, at_least(1), "evaluations of the network per sample"),
    "spacing": Field("trailing", FREE, one_of(*SPACINGS), "where the steps lie: trailing ends at T - 1, leading and ddim begin at 0, uniform has both ends"),
    "eta": Field(0.0, FREE, within(0, 1), "ddim: 0 is deterministic, 1 as noisy as DDPM"),
    "clip": Field(True, FREE, anything, "keep the predicted clean mask in its range"),
    "samples": Field(5, FREE, at_least(1), "samples of each image: of the network, and single masks"),
    "samples_from": Field("levels", FREE, one_of("levels", "pixels", "network"), "what single masks are: level sets of the probability at random thresholds, independent pixels, or the samples of the network"),
    "level_sets": Field(False, FREE, anything, "a step of diffusion goes towards a level set of the clean mask's probability at a random threshold, not towards its mean"),
    "annotator": Field("", FREE, anything, "draw like this one of data.annotators; empty: like anyone"),
    "flips": Field(False, FREE, anything, "the samples see the image mirrored in turn: not, left-right, up-down, both"),
    "rotations": Field(False, FREE, anything, "the samples see the image turned by right angles in turn"),
    "ensemble": Field("mean", FREE, one_of("mean", "vote", "staple"), "how samples are combined: mean probability, majority, STAPLE"),
    "temperature": Field(1.0, FREE, above(0), "divides the logits of the probability"),
    "threshold": Field(0.5, FREE, within(0, 1, "()"), "a pixel is lesion if its probability is above it"),
    "largest_component": Field(False, FREE, anything, "keep only the largest connected component of a mask, and fill its holes; for two classes"),
    "native": Field(False, FREE, anything, "segment windows of images at their own size"),
    "overlap": Field(0.25, FREE, within(0, 1, "[)"), "overlap of neighbouring windows, as a share of their side"),
    "max_batch": Field(32, FREE, at_least(1), "most samples (images x samples) computed together on a device"),
    "max_memory": Field(0.0, FREE, at_least(0), "GiB of a device that sampling may take; 0: what is free"),
}
# fmt: on

PLACES = "data.dir", "data.manual_dir", "data.images", "data.masks"
PATHS = *PLACES, "data.group_file", "train.init_from", "model.encoder_weights"
# Fields that change neither what is trained nor what is scored.
NO_MATTER = (
    *("data.num_threads", "data.dir", "data.manual_dir", "sampler.max_batch", "sampler.max_memory"),
    *("train.trackers", "train.log_every", "train.checkpoint_every"),
)
# Fields that sample.py takes to open a split: data may have moved.
OF_SPLITS = *PLACES, "data.allow_empty_splits"


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
        "ssn": SSN,
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
