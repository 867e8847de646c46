"""A trained model as one file, which jax alone loads and runs: see docs/export.md.

python -m segdiff_jax.export --workdir=runs/isic --out=isic.zip
"""

import argparse
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.command import MISTAKES, parse_settings
from segdiff_jax.diffusion.samplers import STEPS
from segdiff_jax.evaluation.denoise import DiffusionPredictor, advance, begin, encode
from segdiff_jax.evaluation.outputs import write_file
from segdiff_jax.evaluation.predict import SupervisedPredictor, segment
from segdiff_jax.evaluation.predictor import View, views_of
from segdiff_jax.evaluation.windows import WindowedPredictor
from segdiff_jax.models import make_model
from segdiff_jax.trained import Trained, load

PLATFORMS = "cpu", "cuda"
MOST_BYTES = 2 * 10**9  # of weights; flatbuffers end at 2 GiB
KNOWN_PLATFORMS = "cpu", "cuda", "rocm", "tpu"
# As `ensemble.ENSEMBLES`, of probabilities f32[V, S, S], in jax.
ENSEMBLES = {
    "mean": lambda votes: votes.mean(axis=0),
    "vote": lambda votes: (votes > 0.5).mean(axis=0, dtype=jnp.float32),
}
# Of a report, which say nothing of an exported model: where its checkpoint lay, and memory.
LEFT_OUT = "checkpoint", "max_batch", "max_memory"


def export_model(trained: Trained, platforms: Sequence[str] = PLATFORMS) -> jax.export.Exported:
    """The whole of sampling as one function on one device, the weights within.

    Attention is XLA's, whatever `model.attention` says: cuDNN's is for one platform alone.

    Args:
        trained: one model, not an ensemble.
        platforms: of jax, to run on, here or elsewhere.
    Returns:
        (images u8[b, S, S, 3], names u32[b], seed u32[]) -> {"samples": f32[b, V, S, S], where
        clean masks are -1 or +1; "probability": f32[b, S, S], of lesion; "deviation": f32[b, S, S],
        the standard deviation of the votes' probabilities}, for any b. A name is the CRC-32 of an
        image's id: samples are those of the predictor for this id and seed.
    Raises:
        ValueError: for an ensemble, several classes, an unknown platform or a `sampler.ensemble`
            that is not in `ENSEMBLES`.
    """
    unknown = set(platforms) - set(KNOWN_PLATFORMS)
    if unknown or not platforms:
        wrong = ", ".join(sorted(unknown)) or "none"
        raise ValueError(f"platforms={wrong}: choose of {', '.join(KNOWN_PLATFORMS)}")
    config = trained.config
    if config.data.classes:
        raise ValueError(
            f"data.classes={tuple(config.data.classes)}: only models of masks of two classes can "
            "be exported"
        )
    if config.sampler.ensemble not in ENSEMBLES:
        raise ValueError(
            f"sampler.ensemble={config.sampler.ensemble!r} cannot be exported: choose one of "
            f"{sorted(ENSEMBLES)}"
        )
    combine, size = ENSEMBLES[config.sampler.ensemble], config.data.image_size
    samples_of = _image_sampler(trained)

    def temper(probability):
        """As `ensemble.temper`."""
        if config.sampler.temperature == 1:
            return probability
        odds = jax.scipy.special.logit(jnp.clip(probability, 1 / 510, 509 / 510))
        return jax.scipy.special.expit(odds / config.sampler.temperature)

    def predict(images, names, seed):
        # One image's program, mapped: its shapes are known, the number of images is not.
        samples = jax.vmap(samples_of, (0, 0, None))(images, names, seed)
        votes = jnp.clip((samples + 1) / 2, 0, 1)
        probability, deviation = temper(jax.vmap(combine)(votes)), votes.std(axis=1)
        return {"samples": samples, "probability": probability, "deviation": deviation}

    batch = jax.export.symbolic_shape("b")
    return jax.export.export(jax.jit(predict), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((*batch, size, size, 3), np.uint8),
        jax.ShapeDtypeStruct(batch, np.uint32),
        jax.ShapeDtypeStruct((), np.uint32),
    )


def _image_sampler(trained: Trained) -> Callable[[Array, Array, Array], Array]:
    """(image u8[S, S, 3], name u32[], seed u32[]) -> samples f32[V, S, S]."""
    predictor, sampler = trained.predictor, trained.config.sampler
    fields = trained.config.model.to_dict()
    model = make_model(fields | ({"attention": "xla"} if "attention" in fields else {}))
    variables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), trained.variables)
    if isinstance(predictor, SupervisedPredictor):
        views = views_of(sampler)

        def supervised(image: Array, name: Array, seed: Array) -> Array:
            return _seen_back(segment(model, views, variables, image[None])[0], views)

        return supervised
    if isinstance(predictor, WindowedPredictor):
        raise ValueError("a model that segments in windows cannot be exported: it takes one size")
    if not isinstance(predictor, DiffusionPredictor):
        raise ValueError("an ensemble cannot be exported: export its models one by one")
    views = views_of(sampler)[: sampler.votes]
    process, steps = predictor.process, len(predictor.process.schedule)
    # Those of a view in a row, as `advance` wants them.
    votes = np.argsort(np.arange(sampler.votes) % len(views), kind="stable")

    def diffusion(image: Array, name: Array, seed: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), name)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.uint32(votes))[None]
        features = encode(model, views, variables, image[None])
        inputs = features, keys, np.int32(votes % len(views))[None], *begin(features, keys)
        first = jnp.int32(steps - 1)
        x_0, _ = advance(model, process, predictor.step_fn, steps, variables, first, *inputs)
        return _seen_back((x_0[..., 0] / process.input_scale)[np.argsort(votes)], views)

    return diffusion


def _seen_back(masks: Array, views: Sequence[View]) -> Array:
    """f32[V, S, S], each of a view in turn -> f32[V, S, S], as the image lies."""
    back = lambda mask, k, axes: jnp.rot90(jnp.flip(mask, axes), -k)
    return jnp.stack([back(mask, *views[i % len(views)]) for i, mask in enumerate(masks)])


def export_settings(trained: Trained, exported: jax.export.Exported) -> dict[str, Any]:
    """What a program needs to know beside the function, as JSON: see docs/export.md."""
    settings = {k: v for k, v in trained.settings.items() if k not in LEFT_OUT}
    made = {"jax": jax.__version__, "platforms": list(exported.platforms)}
    # CRC-32 and seed are words; what is over 32 bits of a seed, jax does not read either.
    return settings | {"seed": trained.config.seed & 0xFFFFFFFF} | made


def write_model(
    trained: Trained, path: str | os.PathLike, platforms: Sequence[str] = PLATFORMS
) -> None:
    """Writes a zip file, whole or not at all: function.bin, an `export_model`, and settings.json.

    Raises:
        ValueError: as `export_model`, or if there are over 2 GB of weights.
        OSError: if the file cannot be written.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(trained.variables))
    if size > MOST_BYTES:
        raise ValueError(f"{size / 1e9:.1f} GB of weights: an exported function holds 2 GB at most")
    exported, file = export_model(trained, platforms), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # Not compressed: weights are noise.
        archive.writestr("function.bin", bytes(exported.serialize()))
        archive.writestr("settings.json", json.dumps(export_settings(trained, exported), indent=2))
    write_file(Path(path), file.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m segdiff_jax.export`; a mistake ends it with a sentence, status 1."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", required=True, help="of train.py, or a step folder in it")
    parser.add_argument("--out", default="segdiff.zip", help="the file to write")
    parser.add_argument("--steps", type=int, help="of sampling")
    parser.add_argument("--votes", type=int, help="samples of each image")
    parser.add_argument("--sampler", dest="name", choices=sorted(STEPS), help="the solver")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), help=", ".join(KNOWN_PLATFORMS))
    given = parser.parse_args(arguments)
    sampling = {name: getattr(given, name) for name in ("steps", "votes", "name")}
    try:
        trained = load(given.workdir, **sampling | parse_settings(given.set))
        write_model(trained, given.out, given.platforms.split(","))
    except (*MISTAKES, ImportError) as error:  # Of flatbuffers, which jax alone does not need.
        sys.exit(f"error: {error}")
    print(f"{given.out}, {os.path.getsize(given.out) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
