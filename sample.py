"""Segments images with a trained model: python sample.py --workdir=runs/isic --split=test."""

import os

from absl import flags

from configs import default
from segdiff_jax.checkpoint import find_checkpoint, load_ema_params, load_meta
from segdiff_jax.command import run_command, set_fields
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.data.prepare import load_source
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.diffusion.samplers import STEPS as SOLVERS
from segdiff_jax.evaluation.evaluate import evaluate, native_examples
from segdiff_jax.evaluation.outputs import format_metrics
from segdiff_jax.evaluation.predict import Predictor
from segdiff_jax.models import make_model, params_like

WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of train.py; its best checkpoint is used.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Another checkpoint: folder of a step.")
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


def main() -> None:
    if not (WORKDIR.value or CHECKPOINT.value):
        raise ValueError("give --workdir or --checkpoint")
    if MASKS.value and not IMAGES.value:
        raise ValueError("--masks needs --images")
    checkpoint = find_checkpoint(CHECKPOINT.value or WORKDIR.value)
    config = default.get_config().unlock()  # Fields that the run did not know yet.
    config.update(load_meta(checkpoint)["config"])
    data, sampler = config.data, config.sampler
    given = {"name": SAMPLER, "steps": STEPS, "votes": VOTES, "ensemble": ENSEMBLE}
    sampler.update({k: flag.value for k, flag in given.items() if flag.value is not None})
    set_fields(sampler, SET.value)
    seed = config.seed if SEED.value is None else SEED.value
    if IMAGES.value:
        records, what = FolderSource(IMAGES.value, MASKS.value), IMAGES.value
        name = "images_" + os.path.basename(os.path.normpath(what))
    else:
        records = load_source(data.dataset, SPLIT.value, data.dir, data.manual_dir)
        what, name = f"{data.dataset}, {SPLIT.value} split", SPLIT.value
    if ARTEFACT.value:
        what, name = f"{what}, with {ARTEFACT.value}", f"{name}_{ARTEFACT.value}"
    out = OUT.value or os.path.join(WORKDIR.value or ".", f"samples_{name}")
    model, process = make_model(config.model), make_process(config.diffusion)
    like = params_like(model, data.image_size, process.input_channels)
    params = load_ema_params(checkpoint, like)
    predictor = Predictor(model, process, sampler, seed, len(records))
    settings = {"data": what, "checkpoint": str(checkpoint), "image size": data.image_size}
    settings |= {"colour constancy": data.colour_constancy, "seed": seed, "sampler": sampler.name}
    settings |= {field: sampler[field] for field in sampler if field != "name"}
    examples = native_examples(records, data.image_size, data.colour_constancy, ARTEFACT.value)
    title = f"{config.model.name} on {what}"
    metrics = evaluate(predictor, params, examples, len(records), out, settings, title)
    report = os.path.join(out, "report.html")
    if metrics is None:
        print(f"{len(records)} images, report {report}")
        return
    print(format_metrics(metrics))
    print(f"mean IoU {metrics['mean']['iou']:.4f}, report {report}")


if __name__ == "__main__":
    run_command(main)
