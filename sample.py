"""Segments images with a trained model: python sample.py --workdir=runs/isic --images=photos."""

import os
import re

from absl import flags

from segdiff_jax.command import parse_settings, run_command
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.folder import FolderSource
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.diffusion.samplers import STEPS as SOLVERS
from segdiff_jax.evaluation.ensemble import ENSEMBLES
from segdiff_jax.evaluation.evaluate import evaluate, format_result
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.trained import load, run_name

WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Workdir of train.py, whose best checkpoint is used; several: their mean."
)
CHECKPOINT = flags.DEFINE_multi_string("checkpoint", [], "Step folders; --workdir: where to write.")
SPLIT = flags.DEFINE_string("split", "validation", "Split of the data set to segment.")
IMAGES = flags.DEFINE_string("images", None, "Instead: a folder, a file or a quoted 'a/*.jpg'.")
MASKS = flags.DEFINE_string("masks", None, "Folder of their masks, to score the result.")
OUT = flags.DEFINE_string("out", None, "Folder to write to; default: samples_* in the workdir.")
RESUME = flags.DEFINE_boolean("resume", True, "Do only what is missing in --out.")
WORKERS = flags.DEFINE_integer("workers", 2, "Threads that read, and that write.", lower_bound=1)
ARTEFACT = flags.DEFINE_enum("artefact", None, sorted(ARTEFACTS), "Added to test robustness.")
SET = flags.DEFINE_multi_string("set", [], "Other fields of config.sampler: --set=flips=true")
SAMPLING = {
    "seed": flags.DEFINE_integer("seed", None, "Draws the samples."),
    "name": flags.DEFINE_enum("sampler", None, sorted(SOLVERS), "Solver."),
    "steps": flags.DEFINE_integer("steps", None, "Sampling steps."),
    "votes": flags.DEFINE_integer("votes", None, "Samples of each image."),
    "ensemble": flags.DEFINE_enum("ensemble", None, sorted(ENSEMBLES), "Combines the samples."),
    "threshold": flags.DEFINE_float("threshold", None, "Probability above which is lesion."),
    "temperature": flags.DEFINE_float("temperature", None, "Divides the log odds of lesion."),
}


def main() -> int:
    paths = CHECKPOINT.value or WORKDIR.value
    if not paths:
        raise ValueError("give --workdir or --checkpoint")
    if CHECKPOINT.value and len(WORKDIR.value) > 1:
        raise ValueError("beside --checkpoint, give one --workdir: where to write")
    if MASKS.value and not IMAGES.value:
        raise ValueError("--masks needs --images")
    given = {name: flag.value for name, flag in SAMPLING.items() if flag.value is not None}
    trained = load(paths, **given | parse_settings(SET.value))
    diffuses = any(name.endswith("steps") for name in trained.settings)
    if not diffuses and {"steps", "votes", "name"} & set(given):
        print(f"{trained.settings['model']} takes no --steps, --votes or --sampler: not read")
    data = trained.config.data
    if IMAGES.value:
        what = os.path.normpath(IMAGES.value)
        records = FolderSource(what, MASKS.value, data.mask_endings)
        name = "images_" + re.sub(r"[^\w.-]+", "_", os.path.basename(what)).strip("_")
    else:
        records = load_source(data.dataset, SPLIT.value, *where(data))
        what, name = f"{data.dataset}, {SPLIT.value} split", SPLIT.value
    if ARTEFACT.value:
        what, name = f"{what}, with {ARTEFACT.value}", f"{name}_{ARTEFACT.value}"
    others = "_".join(run_name(path) for path in paths[1:])
    name = f"ensemble_{others}_{name}" if others else f"samples_{name}"
    out = OUT.value or os.path.join([*WORKDIR.value, "."][0], name)
    if IMAGES.value and os.path.realpath(out) == os.path.realpath(IMAGES.value):
        raise ValueError(f"--out={out} is the folder of images: choose another")
    looks = trained.input_size, data.colour_constancy
    examples = NativeExamples(records, *looks, ARTEFACT.value, WORKERS.value, trained.classes)
    settings, title = {"data": what} | trained.settings, f"{trained.settings['model']} on {what}"
    how = {"history": trained.history, "resume": RESUME.value, "workers": WORKERS.value}
    result = evaluate(trained.predictor, trained.variables, examples, out, settings, title, **how)
    print(format_result(result, out))
    return 2 if result.failures else 0


if __name__ == "__main__":
    run_command(main)
