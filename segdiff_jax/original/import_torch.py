"""Makes a workdir from a checkpoint of the original PyTorch SegDiff (tomeramit/SegDiff).

python -m segdiff_jax.original.import_torch ema.pt --dataset=monuseg --workdir=runs/monuseg

sample.py segments with it, and train.py trains on from it: see docs/original.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax.check import check
from segdiff_jax.config import VERSION, default_config, set_fields
from segdiff_jax.diffusion.schedule import space_timesteps
from segdiff_jax.original.weights import COLOURS, StateDict, config_from_torch, params_from_torch
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, replacing, write_file

# Our fields of which the original has one value.
FIXED = {
    "data.annotators": (),
    "model.name": "segdiff",
    "model.image_encoder": "rrdb",
    "model.norm_groups": 32,
    "model.rrdb_width": 64,
    "model.rrdb_growth": 32,
    "diffusion.self_conditioning": False,
    "diffusion.input_scale": 1.0,
    "diffusion.normalise_input": False,
}
# Our fields -> arguments of the original with the same values.
SAME = {
    "seed": "seed",
    "data.image_size": "image_size",
    "model.channels": "num_channels",
    "model.num_res_blocks": "num_res_blocks",
    "model.num_heads": "num_heads",
    "model.dropout": "dropout",
    "model.scale_shift_norm": "use_scale_shift_norm",
    "model.rrdb_blocks": "rrdb_blocks",
    "diffusion.schedule": "noise_schedule",
    "diffusion.num_timesteps": "diffusion_steps",
    "sampler.clip": "clip_denoised",
}
# The original's values of arguments that an args.json of an earlier version lacks.
FLAGS = "learn_sigma", "sigma_small", "class_cond", "predict_xstart", "use_kl", "expansion"
DEFAULTS = dict.fromkeys((*FLAGS, "rescale_learned_sigmas"), False) | {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "dropout": 0.0,
    "diffusion_steps": 100,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "rescale_timesteps": True,
    "clip_denoised": True,
    "schedule_sampler": "uniform",
    "class_name": "train",
    "seed": None,
}
SCHEDULE_SAMPLERS = {"uniform": "uniform", "loss-second-moment": "loss_second_moment"}


def import_state_dict(
    state_dict: StateDict, args: dict[str, Any], workdir: str | Path, dataset: str
) -> ConfigDict:
    """Writes a new workdir with the parameters as its best checkpoint; its config.

    `args` is the contents of the original's args.json. `dataset` is one of `COLOURS`, or "" if
    images were normalised to [-1, 1]. UserError names what does not fit.
    """
    params, workdir = params_from_torch(state_dict), absolute(workdir)
    config = config_from_args(args, state_dict, dataset)
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty: give another --workdir")
    saved = json.loads(config.to_json())
    with replacing(workdir) as part:
        with Checkpoints(part) as checkpoints:
            meta = {"config": saved, "version": VERSION, "step": 0, "args": args}
            checkpoints.save_best(0, {"params": params}, meta)
        write_file(part / "config.json", json.dumps(saved, indent=2))
    return config


def config_from_args(args: dict[str, Any], state_dict: StateDict, dataset: str = "") -> ConfigDict:
    """Our config of a network that the original has trained; see `import_state_dict`."""
    args, model = DEFAULTS | args, config_from_torch(state_dict)
    _refuse(args)
    size = int(args["image_size"])
    args |= {"image_size": size, "seed": int(args["seed"] or 0)}
    factors = [size // int(side) for side in str(args["attention_resolutions"]).split(",")]
    deepest = 2 ** (len(model["channel_mult"]) - 1)
    fields = {ours: args[theirs] for ours, theirs in SAME.items()} | {
        "model.attention_resolutions": tuple(sorted(f for f in factors if f <= deepest)),
        "model.out_channels": 1 + args["learn_sigma"],
    }
    for field, value in model.items():
        name = f"model.{field}"
        if fields.get(name, value) != value:
            told = "learn_sigma" if field == "out_channels" else SAME.get(name, field)
            raise UserError(
                f"{told}={args[told]!r} in args.json makes {field} {fields[name]}, and the state "
                f"dict has {value}: they are of different runs"
            )
        fields[name] = value
    if dataset:
        fields["model.image_mean"], fields["model.image_std"] = COLOURS[dataset]
    label = {"bike": "bicycle"}.get(args["class_name"], args["class_name"])
    cityscapes = f"cityscapes_instances/{label}" + "_expanded" * bool(args["expansion"])
    config, respacing = default_config(), str(args["timestep_respacing"])
    train, ddim = config.train, respacing.startswith("ddim")
    steps = int(respacing.removeprefix("ddim") or args["diffusion_steps"])
    fixed = "fixed_small" if args["sigma_small"] else "fixed_large"
    # With a fixed variance, the rescaled squared error is the plain one.
    loss = "rescaled_mse" if args["rescale_learned_sigmas"] and args["learn_sigma"] else "mse"
    fields |= {
        "data.dataset": {"": "isic/2016", "cityscapes_instances": cityscapes}.get(dataset, dataset),
        "data.full_size": 2 * size if dataset == "monuseg" else 0,  # It is trained on crops.
        "diffusion.prediction": "x0" if args["predict_xstart"] else "eps",
        "diffusion.loss": "rescaled_kl" if args["use_kl"] else loss,
        "diffusion.variance": "learned_range" if args["learn_sigma"] else fixed,
        "diffusion.timestep_sampler": SCHEDULE_SAMPLERS[args["schedule_sampler"]],
        "train.learning_rate": args.get("lr", train.learning_rate),
        "train.weight_decay": args.get("weight_decay", train.weight_decay),
        "train.batch_size": args.get("batch_size", train.batch_size),
        # If there are several, ema.pt belongs to the first.
        "train.ema_decay": float(str(args.get("ema_rate", train.ema_decay)).split(",")[0]),
        "train.warmup_steps": 0,
        "train.clip_norm": 0.0,
        "validation.steps": min(config.validation.steps, steps),
        "sampler.name": "ddim" if ddim else "ddpm",
        "sampler.steps": steps,
        "sampler.spacing": "ddim" if ddim else "uniform",
        "sampler.samples": 9,
        "sampler.max_batch": 9,
    }
    set_fields(config, FIXED | fields)
    check(config)
    return config


def _refuse(args: dict[str, Any]) -> None:
    """Raises a UserError that names an argument that is missing or cannot be imported."""
    for name in ("attention_resolutions", *SAME.values()):
        if name not in args:
            raise UserError(f"{name} is missing in args.json: did the original write it?")
    respacing = str(args["timestep_respacing"])
    for name, bad in {
        "class_cond": args["class_cond"],
        "rescale_timesteps": args["rescale_timesteps"],
        "num_heads_upsample": args["num_heads_upsample"] not in (-1, args["num_heads"]),
        "timestep_respacing": "," in respacing,
        "noise_schedule": args["noise_schedule"] not in ("linear", "cosine"),
        "schedule_sampler": args["schedule_sampler"] not in SCHEDULE_SAMPLERS,
    }.items():
        if bad:
            raise UserError(f"{name}={args[name]!r} in args.json: such a run cannot be imported")
    if respacing:
        try:
            space_timesteps(args["diffusion_steps"], respacing)
        except ValueError as error:
            raise UserError(f"timestep_respacing={respacing!r} in args.json: {error}") from error


def read_state_dict(path: str | Path) -> StateDict:
    """Name -> f32 array, from model*.pt or ema*.pt of the original; nothing in the file is run.

    FileNotFoundError if there is none; UserError if it holds something else.
    """
    torch = find_torch()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip files and torch raise all kinds.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a state dict ({reason})") from error
    if not (loaded and isinstance(loaded, Mapping) and all(map(torch.is_tensor, loaded.values()))):
        raise UserError(
            f"{path} holds no state dict of a network: give model*.pt or ema*.pt, not opt.pt"
        )
    # DistributedDataParallel puts this before each name.
    return {name.removeprefix("module."): x.float().numpy() for name, x in loaded.items()}


def find_torch() -> Any:
    """The module torch; UserError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError("this needs torch: pip install -r requirements-torch.txt") from error
    return torch


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
    parser = argument_parser(__doc__)
    parser.add_argument("model", type=absolute, help="model*.pt or, its moving average, ema*.pt")
    parser.add_argument(
        "--args", type=absolute, help="args.json of the run; default: beside the model"
    )
    parser.add_argument("--workdir", type=absolute, required=True, help="a new folder")
    parser.add_argument("--dataset", default="", choices=COLOURS, help="that it was trained on")
    given = parser.parse_args(arguments)

    def import_model() -> None:
        args = read_args(given.args or given.model.parent / "args.json")
        state_dict = read_state_dict(given.model)
        config = import_state_dict(state_dict, args, given.workdir, given.dataset)
        count = sum(array.size for array in state_dict.values())
        print(f"{given.model}: {count:,} parameters, {config.data.image_size} px")
        if not given.dataset:
            print("no --dataset: images are normalised to [-1, 1], unlike the original's")
        if args.get("lr_anneal_steps"):
            print("lr_anneal_steps is not carried over: see train.schedule")
        print(
            f"python sample.py --workdir={given.workdir} --images=FOLDER\n"
            f"python train.py --config=configs/saved.py:{given.workdir} --workdir=OTHER  "
            f"# data.dataset={config.data.dataset} in --config.data.manual_dir=FOLDER"
        )

    run_simple(import_model)


if __name__ == "__main__":
    main()
