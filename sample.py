"""Segments images with a trained model: python sample.py --workdir=runs/isic --split=test."""

import os

from absl import flags
from ml_collections import ConfigDict

from configs import default
from segdiff_jax.command import run_command, set_fields
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.data.prepare import load_source
from segdiff_jax.diffusion.samplers import STEPS as SOLVERS
from segdiff_jax.evaluation.evaluate import evaluate, format_result
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.trained import ensemble_of, load_trained, run_name

WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Workdir of train.py, whose best checkpoint is used; several: their mean."
)
CHECKPOINT = flags.DEFINE_multi_string("checkpoint", [], "Step folders; --workdir: where to write.")
SPLIT = flags.DEFINE_string("split", "validation", "Split of the data set to segment.")
IMAGES = flags.DEFINE_string("images", None, "Folder of images to segment instead of a split.")
MASKS = flags.DEFINE_string("masks", None, "Folder of their masks, to score the result.")
OUT = flags.DEFINE_string("out", None, "Folder to write to; default: samples_* in the workdir.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps.")
VOTES = flags.DEFINE_integer("votes", None, "Samples of each image.")
SAMPLER = flags.DEFINE_enum("sampler", None, sorted(SOLVERS), "Solver.")
SET = flags.DEFINE_multi_string("set", [], "Other fields of config.sampler: --set=threshold=0.4")
ENSEMBLE = flags.DEFINE_enum("ensemble", None, ["mean", "vote"], "How the samples are combined.")
ARTEFACT = flags.DEFINE_enum("artefact", None, sorted(ARTEFACTS), "Added to test robustness.")
SEED = flags.DEFINE_integer("seed", None, "Draws the samples.")


def change_sampling(config: ConfigDict) -> None:
    """Applies the flags to a run's config."""
    if config.objective == "supervised" and (STEPS.value or VOTES.value or SAMPLER.value):
        print(f"{config.model.name} takes no --steps, --votes or --sampler: they are not read")
    given = {"name": SAMPLER, "steps": STEPS, "votes": VOTES, "ensemble": ENSEMBLE}
    config.sampler.update({k: flag.value for k, flag in given.items() if flag.value is not None})
    set_fields(config.sampler, SET.value)
    config.seed = config.seed if SEED.value is None else SEED.value


def main() -> int:
    paths = CHECKPOINT.value or WORKDIR.value
    if not paths:
        raise ValueError("give --workdir or --checkpoint")
    if CHECKPOINT.value and len(WORKDIR.value) > 1:
        raise ValueError("beside --checkpoint, give one --workdir: where to write")
    if MASKS.value and not IMAGES.value:
        raise ValueError("--masks needs --images")
    trained = ensemble_of([load_trained(p, default.get_config(), change_sampling) for p in paths])
    data = trained.config.data
    if IMAGES.value:
        records, what = FolderSource(IMAGES.value, MASKS.value), IMAGES.value
        name = "images_" + os.path.basename(os.path.normpath(what))
    else:
        records = load_source(data.dataset, SPLIT.value, data.dir, data.manual_dir)
        what, name = f"{data.dataset}, {SPLIT.value} split", SPLIT.value
    if ARTEFACT.value:
        what, name = f"{what}, with {ARTEFACT.value}", f"{name}_{ARTEFACT.value}"
    others = "_".join(run_name(path) for path in paths[1:])
    name = f"ensemble_{others}_{name}" if others else f"samples_{name}"
    out = OUT.value or os.path.join([*WORKDIR.value, "."][0], name)
    examples = NativeExamples(records, data.image_size, data.colour_constancy, ARTEFACT.value)
    settings = {"data": what} | trained.settings
    title = f"{settings['model']} on {what}"
    result = evaluate(trained.predictor, trained.variables, examples, out, settings, title)
    print(format_result(result, out))
    return 2 if result.failures else 0


if __name__ == "__main__":
    run_command(main)
