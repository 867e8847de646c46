"""The networks, by the name that `config.model.name` gives them.

There are two kinds. A diffusion model denoises masks: it has `encode_image(image)` and
`denoise(x_t, features, t)`. A supervised model makes logits of an image, or their
distribution: `model(image)`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from segdiff_jax.models.baselines.medt import MedT, freeze_gates
from segdiff_jax.models.baselines.unet import RonnebergerUNet
from segdiff_jax.models.efficientnet import VARIANTS, slow
from segdiff_jax.models.medsegdiff import MedSegDiff
from segdiff_jax.models.pretrained import encoder_params
from segdiff_jax.models.segdiff import SegDiff

MODELS = {"segdiff": SegDiff, "medsegdiff": MedSegDiff, "unet": RonnebergerUNet, "medt": MedT}


def make_model(
    config: Mapping[str, Any], axis_name: str | None = None, num_annotators: int = 0
) -> nn.Module:
    """The network that `config.model` describes.

    Fields that do not fit each other are a UserError, here or when variables are made. Training
    averages the statistics of batch norm over the devices of `axis_name`. A diffusion model may be
    told which of `num_annotators` drew a mask.
    """
    fields = dict(config) | ({"num_annotators": num_annotators} if num_annotators else {})
    return MODELS[fields.pop("name")](**fields, axis_name=axis_name)


def init_variables(
    model: nn.Module, seed: int, image_size: int, mask_channels: int = 1
) -> dict[str, Any]:
    """Initial variables: "params" f32 and, for models with batch norm, "batch_stats" f32.

    A diffusion model's noisy input has `mask_channels`, see `Process.input_channels`.

    Call it under `jax.jit`: without, each operation is compiled alone, which is slow. XLA's own
    generator draws the parameters, since the default one takes five times as long to compile.
    """
    side = image_size // mask_stride(model)
    x_t = jnp.zeros((1, side, side, mask_channels))
    image = jnp.zeros((1, image_size, image_size, 3))
    key = jax.random.key(seed, impl="rbg")
    if hasattr(model, "denoise"):
        return model.init(key, x_t, image, jnp.zeros((1,), jnp.int32))
    return model.init(key, image)


def mask_stride(model: nn.Module) -> int:
    """How many times smaller than its images the masks are that a network sees or makes."""
    return getattr(model, "mask_stride", 1)


def published_encoder(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that the image encoder of `config.model` starts with, if it has any.

    UserError as of `pretrained.encoder_params`.
    """
    variant, weights = (config.get(name, "") for name in ("image_encoder", "encoder_weights"))
    return encoder_params(variant, weights) if variant in VARIANTS and weights else None


def with_encoder(variables: dict[str, Any], encoder: dict[str, Any]) -> dict[str, Any]:
    """The same variables, with these parameters of the image encoder."""
    params = variables["params"]
    return variables | {"params": params | {"G": params["G"] | {"encoder": encoder}}}


def depth_keys(model: nn.Module, keys: Array | None) -> dict[str, Array]:
    """{"keys": key[B]} for a model in training whose image encoder skips blocks, else {}."""
    if keys is None or not getattr(model, "stochastic_depth", 0.0):
        return {}
    return {"keys": jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)}


def variables_like(model: nn.Module, image_size: int, mask_channels: int = 1) -> dict[str, Any]:
    """Shapes and dtypes of what `init_variables` gives, without computing any."""
    return jax.eval_shape(lambda: init_variables(model, 0, image_size, mask_channels))


def slow_encoder(model: nn.Module, updates: dict[str, Any], rate: float) -> dict[str, Any]:
    """The updates, those of a published image encoder as `efficientnet.slow` has them."""
    encoder = slow(updates["G"]["encoder"], rate, model.frozen_blocks)
    return updates | {"G": updates["G"] | {"encoder": encoder}}


def prepare_optimizer(
    model: nn.Module | None, tx: optax.GradientTransformation, steps_per_epoch: float
) -> optax.GradientTransformation:
    """The optimiser with what a network asks of it: MedT's gates are frozen at first."""
    if isinstance(model, MedT):
        return freeze_gates(tx, math.ceil(model.frozen_gate_epochs * steps_per_epoch))
    return tx
