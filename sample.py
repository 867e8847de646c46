"""Segments images with a trained model: python sample.py --workdir=runs/isic --images=photos.

Fields of sampling are set as in train.py; --config.data.dir=FOLDER says where data lie now.
With --split=out_of_fold, each --workdir segments its own fold.
"""

import os
import re

from absl import flags

from segdiff_jax.config import parse_fields, sampling_fields
from segdiff_jax.data.artefacts import ARTEFACTS
from segdiff_jax.data.folder import open_folder
from segdiff_jax.evaluation.evaluate import evaluate, format_result
from segdiff_jax.evaluation.examples import OUT_OF_FOLD, NativeExamples, open_parts
from segdiff_jax.inference.load import load, settings_of
from segdiff_jax.runtime.checkpoint import run_name
from segdiff_jax.runtime.command import path_flag, path_flags, run_command
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import OF_SPLITS, fields

WORKDIR = path_flags("workdir", "Of train.py. Several: the mean of their models, or one a fold.")
CHECKPOINT = path_flags("checkpoint", "Use these; --workdir is only written to.")
SPLIT = flags.DEFINE_string("split", "validation", "Split of the data set, or out_of_fold.")
IMAGES = path_flag("images", "Segment a folder, a file or a quoted 'a/*.jpg'.")
MASKS = path_flag("masks", "Folder of the masks of --images, to score the result.")
OUT = path_flag("out", "Folder to write to; default: samples_* in the workdir.")
AGREEMENT = path_flag("agreement", "CSV of id and annotators' agreement, to compare with.")
RESUME = flags.DEFINE_boolean("resume", True, "Do only what is missing in --out.")
WORKERS = flags.DEFINE_integer("workers", 2, "Threads that read, and that write.", lower_bound=1)
ARTEFACT = flags.DEFINE_enum("artefact", None, sorted(ARTEFACTS), "Add this to every image.")
SHORT = {"seed": "seed", "sampler": "sampler.name"}
SHORT |= {n: f"sampler.{n}" for n in ("steps", "samples", "ensemble", "threshold", "temperature")}
KNOWN = fields("segdiff")
SAMPLING = {
    field: flags.DEFINE_string(name, None, f"{KNOWN[field].meaning}; short for --config.{field}.")
    for name, field in SHORT.items()
}


def main(arguments: list[str]) -> int:
    if not (paths := CHECKPOINT.value or WORKDIR.value):
        raise UserError("give --workdir or --checkpoint")
    if CHECKPOINT.value and len(WORKDIR.value) > 1:
        raise UserError("beside --checkpoint, give one --workdir: where to write")
    if MASKS.value and not IMAGES.value:
        raise UserError("--masks needs --images")
    short = [f"--config.{f}={flag.value}" for f, flag in SAMPLING.items() if flag.value is not None]
    given = parse_fields([*short, *arguments])
    places = {k: given.pop(k) for k in OF_SPLITS if k in given and not IMAGES.value}
    given, by_fold = sampling_fields(given), SPLIT.value == OUT_OF_FOLD and not IMAGES.value
    models = [load(path, **given) for path in (paths if by_fold else [paths])]
    model, what = models[0], IMAGES.value
    for field in sorted(model.unread & given.keys()):
        print(f"{model.settings['model']} does not read sampler.{field}")
    if what:
        parts = [(open_folder(what, MASKS.value, model.config.data), model)]
        name = "images_" + re.sub(r"[^\w.-]+", "_", os.path.basename(what)).strip("_")
    else:
        parts = open_parts(models, SPLIT.value, places)
        of = places.get("data.images", model.config.data.dataset)
        what, name = f"{of}, {SPLIT.value} split", SPLIT.value
    if ARTEFACT.value:
        what, name = f"{what}, with {ARTEFACT.value}", f"{name}_{ARTEFACT.value}"
    others = "" if by_fold else "_".join(run_name(path) for path in paths[1:])
    name = f"ensemble_{others}_{name}" if others else f"samples_{name}"
    out = OUT.value or os.path.abspath(os.path.join([*WORKDIR.value, "."][0], name))
    if IMAGES.value and os.path.realpath(out) == os.path.realpath(IMAGES.value):
        raise UserError(f"--out={out} is the folder of images: choose another")
    parts = [NativeExamples(*part, ARTEFACT.value, WORKERS.value) for part in parts]
    settings, title = {"data": what} | settings_of(models), f"{model.settings['model']} on {what}"
    how = RESUME.value, WORKERS.value, AGREEMENT.value
    print(format_result(result := evaluate(parts, out, settings, title, *how), out))
    return 2 if result.failures else 0


if __name__ == "__main__":
    run_command(main, takes_fields=True)
