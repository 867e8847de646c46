"""A checkpoint of the original PyTorch SegDiff (tomeramit/SegDiff) as a workdir.

python -m segdiff_jax.import_torch ema.pt --dataset=monuseg --workdir=runs/monuseg

sample.py segments with it, and train.py goes on from it: see docs/original.md.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdiff_jax.checkpoint import Checkpoints
from segdiff_jax.command import MISTAKES
from segdiff_jax.models.original import COLOURS, config_from_torch, params_from_torch

# What the original takes for arguments that an args.json of an earlier version lacks.
DEFAULTS = {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "dropout": 0.0,
    "learn_sigma": False,
    "sigma_small": False,
    "class_cond": False,
    "diffusion_steps": 100,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "predict_xstart": False,
    "rescale_timesteps": True,
    "clip_denoised": True,
    "use_kl": False,
    "rescale_learned_sigmas": False,
    "schedule_sampler": "uniform",
    "class_name": "train",
    "expansion": False,
    "seed": None,
}
SCHEDULE_SAMPLERS = {"uniform": "uniform", "loss-second-moment": "loss_second_moment"}


def import_state_dict(
    state_dict: Mapping[str, np.ndarray], args: Mapping[str, Any], workdir: str | Path, dataset: str
) -> dict[str, Any]:
    """Writes a workdir with the parameters as its best checkpoint, and config.json.

    Args:
        state_dict: the original's names -> arrays.
        args: the contents of its args.json.
        workdir: a new or empty folder.
        dataset: one of `COLOURS`, or "" where images were normalised to [-1, 1].
    Returns:
        The config: data, model, diffusion, sampler and, of train, what the original has.
    Raises:
        ValueError: naming what does not fit.
        OSError: naming what cannot be written.
    """
    params, workdir = params_from_torch(state_dict), Path(workdir)
    config = config_from_args(args, state_dict, dataset)
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty: give another --workdir")
    part = workdir.with_name(f".{workdir.name}.part")  # Renamed when it is whole.
    shutil.rmtree(part, ignore_errors=True)
    with Checkpoints(part) as checkpoints:
        meta = {"config": config, "step": 0, "args": dict(args)}
        checkpoints.save_best(0, {"params": params}, meta)
    (part / "config.json").write_text(json.dumps(config, indent=2))
    part.replace(workdir)
    return config


def config_from_args(
    args: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], dataset: str = ""
) -> dict[str, Any]:
    """Our config of a network that the original has trained; see `import_state_dict`."""
    args, model = DEFAULTS | dict(args), config_from_torch(state_dict)
    _refuse(args)
    size, sides = int(args["image_size"]), str(args["attention_resolutions"]).split(",")
    deepest = 2 ** (len(model["channel_mult"]) - 1)
    factors = sorted(factor for side in sides if (factor := size // int(side)) <= deepest)
    told = {
        "channels": ("num_channels", args["num_channels"]),
        "num_res_blocks": ("num_res_blocks", args["num_res_blocks"]),
        "attention_resolutions": ("attention_resolutions", tuple(factors)),
        "scale_shift_norm": ("use_scale_shift_norm", args["use_scale_shift_norm"]),
        "out_channels": ("learn_sigma", 1 + args["learn_sigma"]),
        "rrdb_blocks": ("rrdb_blocks", args["rrdb_blocks"]),
    }
    for field, (name, value) in told.items():
        if model[field] != value:
            raise ValueError(
                f"{name}={args[name]!r} in args.json makes {field} {value}, and the state dict has "
                f"{model[field]}: they are of different runs"
            )
    mean, std = COLOURS[dataset] if dataset else ((), ())
    model |= {"name": "segdiff", "num_heads": args["num_heads"], "dropout": args["dropout"]}
    model |= {"image_mean": mean, "image_std": std}
    steps, spacing = _spacing(str(args["timestep_respacing"]), args["diffusion_steps"])
    variance = "fixed_small" if args["sigma_small"] else "fixed_large"
    config = {
        "seed": int(args["seed"] or 0),
        "objective": "diffusion",
        "data": {
            "dataset": _dataset(dataset, args),
            "image_size": size,
            "full_size": 2 * size if dataset == "monuseg" else 0,  # It is trained on crops.
            "colour_constancy": "none",
            "soft_masks": False,
            "dir": "data",
            "manual_dir": "",
        },
        "model": model,
        "diffusion": {
            "schedule": args["noise_schedule"],
            "num_timesteps": args["diffusion_steps"],
            "prediction": "x0" if args["predict_xstart"] else "eps",
            "loss": _loss(args),
            "weight": "simple",
            "timestep_power": 1.0,
            "timestep_sampler": SCHEDULE_SAMPLERS[args["schedule_sampler"]],
            "recycling": False,
            "self_conditioning": False,
            "input_scale": 1.0,
            "normalise_input": False,
        },
        "train": {"warmup_steps": 0, "clip_norm": 0.0, "schedule": "constant"},
        "sampler": {
            "name": "ddpm",
            "steps": steps,
            "spacing": spacing,
            "eta": 0.0,
            "variance": "learned_range" if args["learn_sigma"] else variance,
            "clip": args["clip_denoised"],
            "votes": 9,
            "flips": False,
            "rotations": False,
            "ensemble": "mean",
            "temperature": 1.0,
            "threshold": 0.5,
            "max_batch": 9,
            "max_memory": 0.0,
        },
    }
    for ours, theirs in (("learning_rate", "lr"), ("weight_decay",) * 2, ("batch_size",) * 2):
        if theirs in args:
            config["train"][ours] = args[theirs]
    if "ema_rate" in args:  # Of several, ema.pt is of the first.
        config["train"]["ema_decay"] = float(str(args["ema_rate"]).split(",")[0])
    return json.loads(json.dumps(config))


def _dataset(dataset: str, args: Mapping[str, Any]) -> str:
    """data.dataset; of Cityscapes, with the class."""
    if dataset != "cityscapes_instances":
        return dataset or "isic/2016"
    label = {"bike": "bicycle"}.get(args["class_name"], args["class_name"])
    return f"{dataset}/{label}" + "_expanded" * bool(args["expansion"])


def _loss(args: Mapping[str, Any]) -> str:
    """diffusion.loss; with a fixed variance, the rescaled squared error is the plain one."""
    if args["use_kl"]:
        return "rescaled_kl"
    return "rescaled_mse" if args["rescale_learned_sigmas"] and args["learn_sigma"] else "mse"


def _refuse(args: Mapping[str, Any]) -> None:
    """Raises a ValueError that names an argument that is missing or cannot be imported."""
    needed = "image_size", "num_channels", "num_res_blocks", "attention_resolutions"
    for name in (*needed, "rrdb_blocks", "use_scale_shift_norm"):
        if name not in args:
            raise ValueError(f"{name} is missing in args.json: is it that of the original?")
    heads, sampler = args["num_heads_upsample"], args["schedule_sampler"]
    for name, bad in {
        "class_cond": args["class_cond"],
        "rescale_timesteps": args["rescale_timesteps"],
        "num_heads_upsample": heads not in (-1, args["num_heads"]),
        "timestep_respacing": "," in str(args["timestep_respacing"]),
        "noise_schedule": args["noise_schedule"] not in ("linear", "cosine"),
        "schedule_sampler": sampler not in SCHEDULE_SAMPLERS,
    }.items():
        if bad:
            raise ValueError(f"{name}={args[name]!r} in args.json: such a run cannot be imported")


def _spacing(respacing: str, num_timesteps: int) -> tuple[int, str]:
    """sampler.steps and sampler.spacing."""
    if respacing.startswith("ddim"):
        return int(respacing.removeprefix("ddim")), "leading"
    return int(respacing or num_timesteps), "uniform"


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> f32 array, of a file that torch saved: model*.pt or ema*.pt of the original.

    Raises:
        ImportError: if there is no torch.
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else; nothing in it is run.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs torch: pip install -r requirements-torch.txt"
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip files and torch raise all kinds.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a state dict ({reason})") from error
    tensors = isinstance(loaded, Mapping) and all(map(torch.is_tensor, loaded.values()))
    if not tensors or not loaded:
        raise ValueError(
            f"{path} holds no state dict of a network: give model*.pt or ema*.pt, not opt.pt"
        )
    # Of a network that DistributedDataParallel wraps, each name begins so.
    return {name.removeprefix("module."): x.float().numpy() for name, x in loaded.items()}


def read_args(path: str | Path) -> dict[str, Any]:
    """The contents of an args.json; FileNotFoundError or ValueError if there are none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give the args.json of the run as --args")
    try:
        args = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(args, dict):
        raise ValueError(f"{path} holds no arguments, but {type(args).__name__}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a mistake ends it with a sentence, status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model*.pt or, its moving average, ema*.pt")
    parser.add_argument("--args", help="args.json of the run; default: beside the model")
    parser.add_argument("--workdir", required=True, help="a new folder")
    parser.add_argument("--dataset", default="", choices=COLOURS, help="that it was trained on")
    given = parser.parse_args(arguments)
    try:
        args = read_args(given.args or os.path.join(os.path.dirname(given.model), "args.json"))
        state_dict = read_state_dict(given.model)
        config = import_state_dict(state_dict, args, given.workdir, given.dataset)
    except (*MISTAKES, ImportError) as error:
        sys.exit(f"error: {error}")
    count = sum(array.size for array in state_dict.values())
    print(f"{given.model}: {count:,} parameters, {config['data']['image_size']} px")
    if not given.dataset:
        print("no --dataset: images are taken as normalised to [-1, 1], unlike the original's")
    if args.get("lr_anneal_steps"):
        print("lr_anneal_steps is not carried over: see train.schedule")
    data = f"data.dataset={config['data']['dataset']}, of --config.data.manual_dir=FOLDER"
    print(f"python sample.py --workdir={given.workdir} --images=FOLDER")
    print(f"python train.py --config=configs/saved.py:{given.workdir} --workdir=OTHER  # {data}")


if __name__ == "__main__":
    main()
