"""The networks, by the name that `config.model.name` gives them.

There are two kinds. A diffusion model denoises: `encode_image(image)` and
`denoise(x_t, features, t)`. A supervised one maps an image to log odds: `model(image)`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segdiff_jax.models.baselines.medt import MedT
from segdiff_jax.models.baselines.unet import RonnebergerUNet
from segdiff_jax.models.medsegdiff import MedSegDiff
from segdiff_jax.models.segdiff import SegDiff

MODELS = {"segdiff": SegDiff, "medsegdiff": MedSegDiff, "unet": RonnebergerUNet, "medt": MedT}


def make_model(config: Mapping[str, Any], axis_name: str | None = None) -> nn.Module:
    """The network that `config.model` describes.

    Args:
        config: `config.model`.
        axis_name: of the devices over which batch statistics are averaged in training, if any.
    Raises:
        ValueError: for an unknown name or field.
    """
    fields = dict(config)
    name = fields.pop("name")
    if name not in MODELS:
        raise ValueError(f"model.name={name!r}: choose one of {sorted(MODELS)}")
    known = MODELS[name].__dataclass_fields__.keys()
    unknown = fields.keys() - (known - {"axis_name"})
    if unknown:
        raise ValueError(f"model.{sorted(unknown)[0]} is not a field of {name}")
    if "axis_name" in known:
        fields["axis_name"] = axis_name
    # Sequences as tuples: a checkpoint's config comes back from JSON with lists.
    return MODELS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def is_diffusion(model: nn.Module) -> bool:
    """Whether the network denoises masks, instead of making one of the image alone."""
    return hasattr(model, "denoise")


def init_variables(
    model: nn.Module, seed: int, image_size: int, mask_channels: int = 1
) -> dict[str, Any]:
    """Initial variables: "params" f32 and, of models with batch norm, "batch_stats" f32.

    To be jitted: the operations one by one compile slowly. `mask_channels` is that of the noisy
    input of a diffusion model, see `Process.input_channels`. The parameters are drawn by XLA's own
    generator, since the default one compiles five times longer.
    """
    x_t, image = (jnp.zeros((1, image_size, image_size, c)) for c in (mask_channels, 3))
    key = jax.random.key(seed, impl="rbg")
    if is_diffusion(model):
        return model.init(key, x_t, image, jnp.zeros((1,), jnp.int32))
    return model.init(key, image)


def variables_like(model: nn.Module, image_size: int, mask_channels: int = 1) -> dict[str, Any]:
    """Shapes and dtypes of the variables, without computing any."""
    return jax.eval_shape(lambda: init_variables(model, 0, image_size, mask_channels))
