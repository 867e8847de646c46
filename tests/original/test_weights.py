"""Reading state dicts in the original's names."""

import re

import numpy as np
import pytest

from segdiff_jax.original.weights import config_from_torch, params_from_torch
from segdiff_jax.runtime.errors import UserError


@pytest.fixture
def state_dict(golden_state_dict):
    return golden_state_dict("train")


def test_the_network_is_told_from_the_shapes(golden_state_dict):
    expected = {
        "channels": 32,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 2,
        "attention_resolutions": (4, 8),
        "scale_shift_norm": True,
        "out_channels": 2,
        "rrdb_blocks": 2,
        "rrdb_width": 64,
        "rrdb_growth": 32,
    }
    assert config_from_torch(golden_state_dict("model_B")) == expected


def test_layouts(state_dict):
    params = params_from_torch(state_dict)
    kernel = params["unet"]["down0_res0"]["conv_in"]["kernel"]
    expected = state_dict["input_blocks.1.0.in_layers.2.weight"]
    assert kernel[2, 1, 5, 7] == expected[7, 5, 2, 1]
    qkv = params["unet"]["middle_attention"]["qkv"]["kernel"]
    assert qkv[3, 11] == state_dict["middle_block.1.qkv.weight"][11, 3, 0]
    norm = params["unet"]["out_norm"]["scale"]
    np.testing.assert_array_equal(norm, state_dict["out.0.weight"])


@pytest.mark.parametrize(
    "name",
    ["middle_block.1.qkv.bias", "input_blocks.0.0.weight", "rrdb.RRDB_trunk.0.RDB3.conv5.weight"],
)
def test_a_missing_array_is_named(state_dict, name):
    del state_dict[name]
    with pytest.raises(UserError, match=re.escape(f"{name} is missing")):
        params_from_torch(state_dict)


def test_extra_arrays_are_named(state_dict):
    state_dict["label_emb.weight"] = state_dict["input_blocks.9.1.norm.bias"] = np.zeros(3)
    with pytest.raises(
        ValueError, match="input_blocks.9.1.norm.bias is not used; label_emb.weight"
    ):
        params_from_torch(state_dict)


def test_a_wrong_shape_is_named(state_dict):
    state_dict["out.0.bias"] = np.zeros(31)
    with pytest.raises(UserError, match=r"out.0.bias has shape \(31,\), not \(32,\)"):
        params_from_torch(state_dict)
