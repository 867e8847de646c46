"""Parameters of the original PyTorch SegDiff (tomeramit/SegDiff) as ours, and back.

Names and layouts there: convolutions OIHW, conv1d OI1, linear OI. Here: HWIO and IO.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from segdiff_jax.models import variables_like
from segdiff_jax.models.segdiff import SegDiff
from segdiff_jax.runtime.errors import UserError

StateDict = Mapping[str, np.ndarray]  # the original's names -> arrays

# Mean and standard deviation of the colours, 0 to 255, by which the original normalises.
COLOURS = {
    "monuseg": ((142.07, 98.48, 132.96), (65.78, 57.05, 57.78)),
    "vaihingen": (
        (0.47341759 * 255, 0.28791303 * 255, 0.2850705 * 255),
        (0.22645572 * 255, 0.15276193 * 255, 0.140702 * 255),
    ),
    "cityscapes_instances": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}

# The original's names of our modules where they differ; `_unet_block` has those with numbers.
NAMES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
    "proj": "proj_out",
    "conv_trunk": "trunk_conv",
    "conv_hr": "HRconv",
    "time_0": "time_embed.0",
    "time_1": "time_embed.2",
    "out_norm": "out.0",
    "out_conv": "out.2",
    "middle_res0": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_res1": "middle_block.2",
}


def params_from_torch(state_dict: StateDict) -> dict[str, Any]:
    """The parameters f32 of `SegDiff(**config_from_torch(state_dict))`.

    UserError names every array that is missing, left over or of another shape.
    """
    config = config_from_torch(state_dict)
    smallest = 2 ** (len(config["channel_mult"]) - 1)
    leaves = traverse_util.flatten_dict(variables_like(SegDiff(**config), smallest)["params"])
    problems, params, used = [], {}, set()
    for path, leaf in leaves.items():
        name, shape = torch_name(path, config), torch_shape(path, leaf.shape)
        used.add(name)
        if name not in state_dict:
            problems.append(f"{name} is missing")
        elif state_dict[name].shape != shape:
            problems.append(f"{name} has shape {state_dict[name].shape}, not {shape}")
        else:
            array, like = np.asarray(state_dict[name], np.float32), leaf.shape
            is_conv = len(like) == 4
            params[path] = array.transpose(2, 3, 1, 0) if is_conv else array.reshape(like[::-1]).T
    problems += [f"{name} is not used" for name in state_dict.keys() - used]
    if problems:
        raise UserError("not a state dict of the original SegDiff: " + "; ".join(sorted(problems)))
    return traverse_util.unflatten_dict(params)


def torch_from_params(params: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
    """The f32 arrays of the parameters of `SegDiff(**config)`."""
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        array = np.asarray(leaf, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        array = np.array(array, order="C").reshape(torch_shape(path, leaf.shape))
        state_dict[torch_name(path, config)] = array
    return state_dict


def config_from_torch(state_dict: StateDict) -> dict[str, Any]:
    """The fields of the SegDiff that a state dict describes; UserError if an array is missing.

    The number of heads (4 in the original) and the dropout leave no trace in the shapes.
    """

    def shape(name):
        if name not in state_dict:
            raise UserError(f"not a state dict of the original SegDiff: {name} is missing")
        return state_dict[name].shape

    def numbers(pattern):
        matches = (re.fullmatch(pattern, name) for name in state_dict)
        return {int(match[1]) for match in matches if match}

    channels = shape("input_blocks.0.0.weight")[0]
    levels = len(numbers(r"input_blocks\.(\d+)\.0\.op\.weight")) + 1
    num_res_blocks = len(numbers(r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight")) // levels
    last = [level * (num_res_blocks + 1) + num_res_blocks for level in range(levels)]
    width = [shape(f"input_blocks.{i}.0.out_layers.3.weight")[0] for i in last]
    attention = numbers(r"input_blocks\.(\d+)\.1\.qkv\.weight")
    rrdb_growth, rrdb_width = shape("rrdb.RRDB_trunk.0.RDB1.conv1.weight")[:2]
    return {
        "channels": channels,
        "channel_mult": tuple(w // channels for w in width),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(2**k for k, i in enumerate(last) if i in attention),
        "scale_shift_norm": shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * width[0],
        "out_channels": shape("out.2.weight")[0],
        "rrdb_blocks": len(numbers(r"rrdb\.RRDB_trunk\.(\d+)\.RDB1\.conv1\.weight")),
        "rrdb_width": rrdb_width,
        "rrdb_growth": rrdb_growth,
    }


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The original's shape of our parameter at `path`: OIHW, OI11 (skip), OI1 (attention), OI."""
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    ones = {"skip": (1, 1), "qkv": (1,), "proj": (1,)} if len(shape) == 2 else {}
    return *shape[::-1], *ones.get(path[-2], ())


def torch_name(path: tuple[str, ...], config: Mapping[str, Any]) -> str:
    """The original's name of our parameter at `path`, such as ("F", "kernel")."""
    *modules, leaf = path
    suffix = "bias" if leaf == "bias" else "weight"
    match modules:
        case ["F"]:
            name = "input_blocks.0.0"
        case ["G", block, dense, conv]:
            name = f"rrdb.RRDB_trunk.{block.removeprefix('block')}.RDB{dense[-1]}.{conv}"
        case ["G", end]:
            name = f"rrdb.{NAMES.get(end, end)}"
        case ["unet", block, *layers]:
            name = ".".join([_unet_block(block, config), *(NAMES.get(x, x) for x in layers)])
    return f"{name}.{suffix}"


def _unet_block(block: str, config: Mapping[str, Any]) -> str:
    """The original's name of a block of our U-Net; it counts the blocks through all levels."""
    if block in NAMES:
        return NAMES[block]
    side, level, kind, i = re.fullmatch(r"(down|up)(\d+)_([a-z]+)(\d*)", block).groups()
    level, i = int(level), int(i or config["num_res_blocks"])
    attention = 2**level in config["attention_resolutions"]
    position = {"res": 0, "attention": 1, "downsample": 0, "upsample": 1 + attention}[kind]
    name = {"downsample": ".op", "upsample": ".conv"}.get(kind, "")
    if side == "down":
        return f"input_blocks.{1 + level * (config['num_res_blocks'] + 1) + i}.{position}{name}"
    level = len(config["channel_mult"]) - 1 - level
    return f"output_blocks.{level * (config['num_res_blocks'] + 1) + i}.{position}{name}"
