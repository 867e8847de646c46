"""A trained SegDiff as a checkpoint of the original PyTorch one (tomeramit/SegDiff).

python -m segdiff_jax.export_torch --workdir=runs/isic2016 --out=original

The folder then holds ema_STEP.pt and args.json, as its sampling scripts want: see docs/original.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.checkpoint import find_checkpoint, load_meta, load_variables
from segdiff_jax.command import MISTAKES
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.models import make_model, variables_like
from segdiff_jax.models.original import torch_from_params

# Fields that say how a network is trained and sampled, and their only values in the original.
FIXED = {
    "model": {"name": "segdiff", "norm_groups": 32, "rrdb_scan": False},
    "diffusion": {
        "self_conditioning": False,
        "input_scale": 1.0,
        "normalise_input": False,
    },
}
# By the image's size; at 256 px, there is a choice.
DEEPER = 1, 1, 1, 2, 2, 4, 4
CHANNEL_MULT = {
    256: ((1, 1, 2, 2, 4, 4), DEEPER),
    128: ((1, 1, 2, 2, 4, 4),),
    64: ((1, 2, 3, 4),),
    32: ((1, 2, 2, 2),),
}


def export_state_dict(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any], dict]:
    """The averaged parameters of a checkpoint, in the original's names, its args.json and its meta.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: naming a field for which the original has no equivalent.
    """
    checkpoint = find_checkpoint(path)
    meta = load_meta(checkpoint)
    config = meta["config"]
    if config["data"].get("classes"):
        raise ValueError(f"data.classes={config['data']['classes']}: the original has two classes")
    model = make_model(ConfigDict(config["model"]))
    for section, fields in FIXED.items():
        for field, only in fields.items():
            given = config[section].get(field, only)
            if given != only:
                raise ValueError(
                    f"{section}.{field}={given!r}: the original has only {only!r}; "
                    "segdiff_jax.export writes any model for jax"
                )
    args = args_from_config(config)
    channels = make_process(ConfigDict(config["diffusion"])).input_channels
    variables = variables_like(model, config["data"]["image_size"], channels)
    params = load_variables(checkpoint, variables)["params"]
    return torch_from_params(params, config["model"]), args, meta


def args_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the original calls our fields; ValueError for those that it cannot have."""
    model, diffusion, sampler = (config[name] for name in ("model", "diffusion", "sampler"))
    size, label = config["data"]["image_size"], config["data"]["dataset"].partition("/")[2]
    label = label if config["data"]["dataset"].startswith("cityscapes") else ""
    mult = tuple(model["channel_mult"])
    if mult not in CHANNEL_MULT.get(size, ()):
        known = ", ".join(f"{m} at {s}" for s, mults in CHANNEL_MULT.items() for m in mults)
        raise ValueError(
            f"model.channel_mult={mult} at data.image_size={size}: the original has {known}"
        )
    for field, only in {"rrdb_width": 64, "rrdb_growth": 32}.items():
        if model[field] != only:
            raise ValueError(f"model.{field}={model[field]}: the original has only {only}")
    if diffusion["loss"] not in ("mse", "rescaled_mse", "rescaled_kl"):
        raise ValueError(
            f"diffusion.loss={diffusion['loss']!r}: the original has mse, rescaled_mse, rescaled_kl"
        )
    if diffusion["prediction"] == "v":
        raise ValueError("diffusion.prediction='v': the original predicts eps or x0")
    return {
        "image_size": size,
        "num_channels": model["channels"],
        "num_res_blocks": model["num_res_blocks"],
        "num_heads": model["num_heads"],
        "num_heads_upsample": -1,
        "attention_resolutions": ",".join(str(size // f) for f in model["attention_resolutions"]),
        "dropout": model["dropout"],
        "rrdb_blocks": model["rrdb_blocks"],
        "deeper_net": mult == DEEPER,
        "use_scale_shift_norm": model["scale_shift_norm"],
        "learn_sigma": model["out_channels"] == 2,
        "sigma_small": sampler["variance"] == "fixed_small",
        "class_cond": False,
        "class_name": label.removesuffix("_expanded") or "train",
        "expansion": label.endswith("_expanded"),
        "diffusion_steps": diffusion["num_timesteps"],
        "noise_schedule": diffusion["schedule"],
        "timestep_respacing": "",
        "use_kl": diffusion["loss"] == "rescaled_kl",
        "predict_xstart": diffusion["prediction"] == "x0",
        "rescale_timesteps": False,
        "rescale_learned_sigmas": diffusion["loss"] == "rescaled_mse",
        "use_checkpoint": False,
        "clip_denoised": sampler["clip"],
        "seed": config["seed"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a mistake ends it with a sentence, status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of train.py, or a step folder in it")
    parser.add_argument("--out", required=True, help="the folder to write to")
    given = parser.parse_args(arguments)
    out = Path(given.out)
    try:
        import torch

        state_dict, args, meta = export_state_dict(given.workdir)
        step, model = meta["step"], meta["config"]["model"]
        text, path = json.dumps(args, indent=4), out / "args.json"
        if path.exists() and path.read_text() != text:
            raise ValueError(f"{path} is of another run: give another --out")
        out.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.from_numpy(array) for name, array in state_dict.items()}
        torch.save(tensors, out / f"ema_{step:06d}.pt")
        path.write_text(text)
    except ImportError:
        sys.exit("error: this needs torch: pip install -r requirements-torch.txt")
    except (*MISTAKES, RuntimeError) as error:  # As torch tells of full disks.
        sys.exit(f"error: {error}")
    mean, std = (model.get(name) or [127.5] * 3 for name in ("image_mean", "image_std"))
    print(f"{out}: ema_{step:06d}.pt, {len(tensors)} arrays, and args.json")
    print(f"its data set must normalise the colours, 0 to 255, by mean {mean} and std {std}")


if __name__ == "__main__":
    main()
