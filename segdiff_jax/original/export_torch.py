"""Writes a trained SegDiff as a checkpoint of the original PyTorch one (tomeramit/SegDiff).

python -m segdiff_jax.original.export_torch --workdir=runs/isic2016 --out=original

The folder then holds ema_STEP.pt and args.json for its sampling scripts: see docs/original.md.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax.config import flatten, saved_config
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.models import make_model, variables_like
from segdiff_jax.original.import_torch import FIXED, SAME, find_torch, read_args
from segdiff_jax.original.weights import StateDict, torch_from_params
from segdiff_jax.runtime.checkpoint import find_checkpoint, load_meta, load_variables
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, write_file

# By the image's size; at 256 px, there is a choice.
DEEPER = 1, 1, 1, 2, 2, 4, 4
CHANNEL_MULT = {
    256: ((1, 1, 2, 2, 4, 4), DEEPER),
    128: ((1, 1, 2, 2, 4, 4),),
    64: ((1, 2, 3, 4),),
    32: ((1, 2, 2, 2),),
}


def export_state_dict(path: str | Path) -> tuple[StateDict, dict[str, Any], dict[str, Any]]:
    """The averaged parameters of a checkpoint, its args.json and its meta.

    FileNotFoundError if there is no checkpoint; UserError as of `args_from_config`.
    """
    checkpoint = find_checkpoint(path)
    meta = load_meta(checkpoint)
    config = saved_config(meta)
    args = args_from_config(config)
    model, channels = make_model(config.model), make_process(config.diffusion).input_channels
    like = variables_like(model, config.data.image_size, channels)
    params = load_variables(checkpoint, like)["params"]
    return torch_from_params(params, config.model), args, meta


def args_from_config(config: ConfigDict) -> dict[str, Any]:
    """What the original calls our fields; UserError names a field that it cannot have."""
    if config.data.classes:
        raise UserError(f"data.classes={config.data.classes}: the original has two classes")
    fields = flatten(config.to_dict())
    for name, only in FIXED.items():
        if fields[name] != only:
            raise UserError(
                f"{name}={fields[name]!r}: the original has only {only!r}; "
                "segdiff_jax.inference.export writes any model for jax"
            )
    model, diffusion = config.model, config.diffusion
    size, mult = config.data.image_size, model.channel_mult
    label = config.data.dataset.partition("cityscapes_instances/")[2]
    if mult not in CHANNEL_MULT.get(size, ()):
        known = ", ".join(f"{m} at {s}" for s, mults in CHANNEL_MULT.items() for m in mults)
        raise UserError(
            f"model.channel_mult={mult} at data.image_size={size}: the original has {known}"
        )
    if diffusion.loss not in ("mse", "rescaled_mse", "rescaled_kl"):
        raise UserError(
            f"diffusion.loss={diffusion.loss!r}: the original has mse, rescaled_mse, rescaled_kl"
        )
    if diffusion.prediction == "v":
        raise UserError("diffusion.prediction='v': the original predicts eps or x0")
    return {theirs: fields[ours] for ours, theirs in SAME.items()} | {
        "num_heads_upsample": -1,
        "attention_resolutions": ",".join(str(size // f) for f in model.attention_resolutions),
        "deeper_net": mult == DEEPER,
        "learn_sigma": model.out_channels == 2,
        "sigma_small": diffusion.variance == "fixed_small",
        "class_cond": False,
        "class_name": label.removesuffix("_expanded") or "train",
        "expansion": label.endswith("_expanded"),
        "timestep_respacing": "",
        "use_kl": diffusion.loss == "rescaled_kl",
        "predict_xstart": diffusion.prediction == "x0",
        "rescale_timesteps": False,
        "rescale_learned_sigmas": diffusion.loss == "rescaled_mse",
        "use_checkpoint": False,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--workdir", type=absolute, required=True, help="of train.py, or a step folder in it"
    )
    parser.add_argument("--out", type=absolute, required=True, help="the folder to write to")
    given = parser.parse_args(arguments)

    def export() -> None:
        torch = find_torch()
        state_dict, args, meta = export_state_dict(given.workdir)
        out, name = given.out, f"ema_{meta['step']:06d}.pt"
        path = out / "args.json"
        if path.exists() and read_args(path) != args:
            raise UserError(f"{path} is of another run: give another --out")
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(x) for name, x in state_dict.items()}, buffer)
        write_file(out / name, buffer.getvalue())
        write_file(path, json.dumps(args, indent=4))
        model = saved_config(meta).model
        mean, std = (model[name] or [127.5] * 3 for name in ("image_mean", "image_std"))
        print(
            f"{out}: {name}, {len(state_dict)} arrays, and args.json\n"
            "the data set there must normalise the colours, 0 to 255, by mean "
            f"{list(mean)} and standard deviation {list(std)}"
        )

    run_simple(export)


if __name__ == "__main__":
    main()
