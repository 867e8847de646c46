"""Makes a workdir from a checkpoint of the original PyTorch SegDiff (tomeramit/SegDiff).

python -m segdiff_jax.original.import_torch ema.pt --dataset=monuseg --workdir=runs/monuseg

sample.py segments with it, and train.py trains on from it: see docs/original.md.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.config import VERSION, check, default_config, set_fields
from segdiff_jax.diffusion.schedule import space_timesteps
from segdiff_jax.original.weights import COLOURS, config_from_torch, params_from_torch
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import replacing, write_file

# The original's values of arguments that an args.json of an earlier version lacks.
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
) -> ConfigDict:
    """Writes a workdir with the parameters as its best checkpoint, and config.json.

    Args:
        state_dict: the original's names -> arrays.
        args: the contents of its args.json.
        workdir: a new or empty folder.
        dataset: one of `COLOURS`, or "" if images were normalised to [-1, 1].
    Returns:
        The config.
    Raises:
        UserError: naming what does not fit.
        OSError: naming what cannot be written.
    """
    params, workdir = params_from_torch(state_dict), Path(workdir)
    config = config_from_args(args, state_dict, dataset)
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty: give another --workdir")
    saved = json.loads(config.to_json())
    with replacing(workdir) as part:
        with Checkpoints(part) as checkpoints:
            meta = {"config": saved, "version": VERSION, "step": 0, "args": dict(args)}
            checkpoints.save_best(0, {"params": params}, meta)
        write_file(part / "config.json", json.dumps(saved, indent=2))
    return config


def config_from_args(
    args: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], dataset: str = ""
) -> ConfigDict:
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
            raise UserError(
                f"{name}={args[name]!r} in args.json makes {field} {value}, and the state dict has "
                f"{model[field]}: they are of different runs"
            )
    mean, std = COLOURS[dataset] if dataset else ((), ())
    model |= {"num_heads": args["num_heads"], "dropout": args["dropout"]}
    model |= {"image_mean": mean, "image_std": std}
    respacing, T = str(args["timestep_respacing"]), args["diffusion_steps"]
    variance = "fixed_small" if args["sigma_small"] else "fixed_large"
    fields = {f"model.{name}": value for name, value in model.items()} | {
        "seed": int(args["seed"] or 0),
        "data.dataset": _dataset(dataset, args),
        "data.image_size": size,
        "data.full_size": 2 * size if dataset == "monuseg" else 0,  # It is trained on crops.
        "diffusion.schedule": args["noise_schedule"],
        "diffusion.num_timesteps": T,
        "diffusion.prediction": "x0" if args["predict_xstart"] else "eps",
        "diffusion.loss": _loss(args),
        "diffusion.variance": "learned_range" if args["learn_sigma"] else variance,
        "diffusion.timestep_sampler": SCHEDULE_SAMPLERS[args["schedule_sampler"]],
        "diffusion.input_scale": 1.0,
        "diffusion.normalise_input": False,
        "train.warmup_steps": 0,
        "train.clip_norm": 0.0,
        "sampler.name": "ddim" if respacing.startswith("ddim") else "ddpm",
        "sampler.steps": int(respacing.removeprefix("ddim") or T),
        "sampler.spacing": "ddim" if respacing.startswith("ddim") else "uniform",
        "sampler.clip": args["clip_denoised"],
        "sampler.samples": 9,
        "sampler.max_batch": 9,
    }
    for ours, theirs in (("learning_rate", "lr"), ("weight_decay",) * 2, ("batch_size",) * 2):
        if theirs in args:
            fields[f"train.{ours}"] = args[theirs]
    if "ema_rate" in args:  # If there are several, ema.pt belongs to the first.
        fields["train.ema_decay"] = float(str(args["ema_rate"]).split(",")[0])
    config = default_config()
    config.validation.steps = min(config.validation.steps, fields["sampler.steps"])
    set_fields(config, fields)
    check(config)
    return config


def _dataset(dataset: str, args: Mapping[str, Any]) -> str:
    """data.dataset; for Cityscapes, with the class."""
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
    """Raises a UserError that names an argument that is missing or cannot be imported."""
    needed = "image_size", "num_channels", "num_res_blocks", "attention_resolutions"
    for name in (*needed, "rrdb_blocks", "use_scale_shift_norm"):
        if name not in args:
            raise UserError(f"{name} is missing in args.json: did the original write it?")
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
            raise UserError(f"{name}={args[name]!r} in args.json: such a run cannot be imported")
    if respacing := str(args["timestep_respacing"]):
        try:
            space_timesteps(args["diffusion_steps"], respacing)
        except ValueError as error:
            raise UserError(f"timestep_respacing={respacing!r} in args.json: {error}") from error


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> f32 array, from a file that torch saved: model*.pt or ema*.pt of the original.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if there is no torch, or the file holds something else; nothing in it is run.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs torch: pip install -r requirements-torch.txt"
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip files and torch raise all kinds.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a state dict ({reason})") from error
    tensors = isinstance(loaded, Mapping) and all(map(torch.is_tensor, loaded.values()))
    if not tensors or not loaded:
        raise UserError(
            f"{path} holds no state dict of a network: give model*.pt or ema*.pt, not opt.pt"
        )
    # DistributedDataParallel puts this before each name.
    return {name.removeprefix("module."): x.float().numpy() for name, x in loaded.items()}


def read_args(path: str | Path) -> dict[str, Any]:
    """The contents of an args.json; FileNotFoundError or UserError if there are none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give the args.json of the run as --args")
    try:
        args = json.loads(Path(path).read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(args, dict):
        raise UserError(f"{path} holds no arguments, but {type(args).__name__}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="model*.pt or, its moving average, ema*.pt")
    parser.add_argument("--args", help="args.json of the run; default: beside the model")
    parser.add_argument("--workdir", required=True, help="a new folder")
    parser.add_argument("--dataset", default="", choices=COLOURS, help="that it was trained on")
    given = parser.parse_args(arguments)

    def import_model() -> None:
        args = read_args(given.args or os.path.join(os.path.dirname(given.model), "args.json"))
        state_dict = read_state_dict(given.model)
        config = import_state_dict(state_dict, args, given.workdir, given.dataset)
        count = sum(array.size for array in state_dict.values())
        print(f"{given.model}: {count:,} parameters, {config.data.image_size} px")
        if not given.dataset:
            print("no --dataset: images are normalised to [-1, 1], unlike the original's")
        if args.get("lr_anneal_steps"):
            print("lr_anneal_steps is not carried over: see train.schedule")
        print(f"python sample.py --workdir={given.workdir} --images=FOLDER")
        print(
            f"python train.py --config=configs/saved.py:{given.workdir} --workdir=OTHER  "
            f"# data.dataset={config.data.dataset} in --config.data.manual_dir=FOLDER"
        )

    run_simple(import_model)


if __name__ == "__main__":
    main()
