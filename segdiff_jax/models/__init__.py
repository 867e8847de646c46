"""The networks, by the name that `config.model.name` gives them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segdiff_jax.models.segdiff import SegDiff

MODELS = {"segdiff": SegDiff}


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config.model` describes; ValueError for an unknown name or field."""
    fields = dict(config)
    name = fields.pop("name")
    if name not in MODELS:
        raise ValueError(f"model.name={name!r}: choose one of {sorted(MODELS)}")
    unknown = fields.keys() - MODELS[name].__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"model.{sorted(unknown)[0]} is not a field of {name}")
    # Sequences as tuples: a checkpoint's config comes back from JSON with lists.
    return MODELS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def init_params(model: nn.Module, seed: int, image_size: int, mask_channels: int = 1) -> Any:
    """Initial parameters, f32. To be jitted: the operations one by one compile slowly.

    `mask_channels` is that of the noisy input, see `Process.input_channels`.
    They are drawn by XLA's own generator, since the default one compiles five times longer.
    """
    x_t, image = (jnp.zeros((1, image_size, image_size, c)) for c in (mask_channels, 3))
    key = jax.random.key(seed, impl="rbg")
    return model.init(key, x_t, image, jnp.zeros((1,), jnp.int32))["params"]


def params_like(model: nn.Module, image_size: int, mask_channels: int = 1) -> Any:
    """Shapes and dtypes of the parameters, without computing any."""
    return jax.eval_shape(lambda: init_params(model, 0, image_size, mask_channels))
