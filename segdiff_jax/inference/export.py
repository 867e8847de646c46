"""A trained model as one file, which jax alone loads and runs: see docs/export.md.

python -m segdiff_jax.inference.export --workdir=runs/isic --out=isic.zip

Fields of sampling are set as in train.py: --config.sampler.steps=10.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from segdiff_jax.config import parse_fields, sampling_fields
from segdiff_jax.inference.combine import ENSEMBLES, standard_deviation, temper
from segdiff_jax.inference.driver import sample_keys
from segdiff_jax.inference.load import Model, load
from segdiff_jax.methods import make_method
from segdiff_jax.methods.interface import make_draw, sample_masks
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, write_file

PLATFORMS = "cpu", "cuda"
KNOWN_PLATFORMS = *PLATFORMS, "rocm", "tpu"
MOST_BYTES = 2 * 10**9  # of weights; flatbuffers end at 2 GiB
# Settings that say nothing about an exported model: where its checkpoint lay, what single masks
# are, and memory.
LEFT_OUT = "checkpoint", "samples_from", "max_batch", "max_memory"


def export_model(model: Model, platforms: Sequence[str] = PLATFORMS) -> jax.export.Exported:
    """The whole of sampling as one function on one device, with the weights inside.

    It is (images u8[b, S, S, 3], names u32[b], seed u32[]) -> samples, probability and deviation
    for any b, see docs/export.md. A name is the CRC-32 of an image's id: samples are the ones that
    the network has for this id and seed. Attention is XLA's, because cuDNN's runs on one platform
    alone. A UserError says what cannot be exported.
    """
    config = model.config.copy_and_resolve_references()
    data, sampler = config.data, config.sampler
    unknown = ", ".join(sorted(set(platforms) - set(KNOWN_PLATFORMS))) if platforms else "none"
    windows, staple = data.full_size or sampler.native, sampler.ensemble == "staple"
    refused = {
        f"platforms={unknown}: choose from {', '.join(KNOWN_PLATFORMS)}": unknown,
        "an ensemble cannot be exported: export its models one by one": model.members,
        f"data.classes={data.classes}: only models of two classes can be exported": data.classes,
        "a model that segments in windows cannot be exported: it takes one size": windows,
        "sampler.ensemble='staple' cannot be exported: choose 'mean' or 'vote'": staple,
    }
    for reason, holds in refused.items():
        if holds:
            raise UserError(reason)
    if "attention" in config.model:
        config.model.attention = "xla"
    method = make_method(config)
    variables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), model.variables)

    def predict_one(image: Array, name: Array, seed: Array) -> dict[str, Array]:
        numbers = np.arange(method.samples, dtype=np.uint32)
        draw = make_draw(sample_keys(seed, name[None], numbers), numbers, len(method.views))
        samples = sample_masks(method, variables, image[None], draw)[:, 0]
        probability = temper(ENSEMBLES[sampler.ensemble](samples), sampler.temperature)
        found = {"samples": samples[..., 0], "probability": probability[..., 0]}
        return found | {"deviation": standard_deviation(samples)}

    # One image's program, mapped: its shapes are known, the number of images is not.
    predict = jax.vmap(predict_one, (0, 0, None))
    batch, size = jax.export.symbolic_shape("b"), data.image_size
    return jax.export.export(jax.jit(predict), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((*batch, size, size, 3), np.uint8),
        jax.ShapeDtypeStruct(batch, np.uint32),
        jax.ShapeDtypeStruct((), np.uint32),
    )


def export_settings(model: Model, exported: jax.export.Exported) -> dict[str, Any]:
    """What a program needs to know beside the function, as JSON: see docs/export.md."""
    settings = {k: v for k, v in model.settings.items() if k not in LEFT_OUT}
    made = {"jax": jax.__version__, "platforms": list(exported.platforms)}
    # CRC-32 and seed are words; jax does not read more than 32 bits of a seed either.
    return settings | {"seed": model.config.seed & 0xFFFFFFFF} | made


def write_model(model: Model, path: str | Path, platforms: Sequence[str] = PLATFORMS) -> None:
    """Writes a zip file of function.bin, see `export_model`, and settings.json.

    A UserError says what cannot be exported, such as over 2 GB of weights.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(model.variables))
    if size > MOST_BYTES:
        raise UserError(f"{size / 1e9:.1f} GB of weights: an exported function holds 2 GB at most")
    exported, file = export_model(model, platforms), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # Not compressed: weights are noise.
        archive.writestr("function.bin", bytes(exported.serialize()))
        archive.writestr("settings.json", json.dumps(export_settings(model, exported), indent=2))
    write_file(absolute(path), file.getvalue())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--workdir", type=absolute, required=True, help="of train.py, or a step folder in it"
    )
    parser.add_argument("--out", type=absolute, default="segdiff.zip", help="the file to write")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), help=", ".join(KNOWN_PLATFORMS))
    given, fields = parser.parse_known_args()
    model = load(given.workdir, **sampling_fields(parse_fields(fields)))
    write_model(model, given.out, given.platforms.split(","))
    print(f"{given.out}, {given.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_simple(main)
