"""Supervised learning: the network makes the logits of the mask from the image alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.methods.interface import OF_CHAINS, Batch, Draw, Losses, State
from segdiff_jax.methods.losses import bce_dice
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.methods.views import View, from_views, make_views, of_samples, to_views
from segdiff_jax.models import depth_keys, make_model, mask_stride


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised:
    """See `interface`. `model` is called as model(image); a sample for each view, and no chain."""

    model: nn.Module
    image_size: int = 64
    views: tuple[View, ...] = ((0, ()),)
    input_channels = 0
    timesteps = np.zeros(0, np.int64)
    timestep_sampler = PowerTimesteps(1)
    draws = False
    unread = *OF_CHAINS, "samples", "annotator", "max_memory"

    @classmethod
    def from_config(cls, config: ConfigDict, axis_name: str | None = None) -> "Supervised":
        """See `make_method`."""
        model = make_model(config.model, axis_name)
        return cls(model, config.data.image_size).with_sampler(config)

    def with_sampler(self, config: ConfigDict) -> "Supervised":
        """The same network with the views of another `config.sampler`."""
        sampler = config.sampler
        return dataclasses.replace(self, views=make_views(sampler.flips, sampler.rotations))

    @property
    def samples(self) -> int:
        """V, one for each view."""
        return len(self.views)

    def losses(self, variables: dict[str, Any], batch: Batch, keys: Array) -> Losses:
        """BCE + Dice of the logits."""
        logits, batch_stats = output_in_training(self.model, variables, batch["image"], keys[:, 0])
        return Losses(bce_dice(logits, (batch["mask"] + 1) / 2), batch_stats)

    def encode(self, variables: Any, images: Array) -> Array:
        """The mask in each view, 2 p - 1 = tanh(logits / 2): f32[B, F, s, s, C]."""
        return jnp.tanh(output_of_views(self.model, variables, images, self.views) / 2)

    def begin(self, features: Array, draw: Draw) -> State:
        """The mask that each sample sees."""
        masks = of_samples(features, draw.views)
        return State(masks, jnp.zeros_like(masks))

    def finish(self, state: State, draw: Draw) -> Array:
        """The masks as their images lie: f32[B, V, S, S, C]."""
        return from_views(state.x_t, self.views, draw.views, mask_stride(self.model))


def output_in_training(
    model: nn.Module, variables: dict[str, Any], image: Array, keys: Array
) -> tuple[Array, Any]:
    """What `model(image)` makes of f32[B, S, S, 3], normalised, and the statistics of this batch.

    f32[B, s, s, out_channels]. `keys`, key[B], are for blocks that the model skips at random.
    """
    batch_stats = variables.get("batch_stats", {})
    variables = {"params": variables["params"], "batch_stats": batch_stats}
    options = {"train": True, "mutable": ["batch_stats"], **depth_keys(model, keys)}
    output, updates = model.apply(variables, image, **options)
    return output, updates.get("batch_stats", batch_stats)


def output_of_views(
    model: nn.Module, variables: Any, images: Array, views: tuple[View, ...]
) -> Array:
    """What `model(image)` makes of each view of u8[B, S, S, 3]: f32[B, F, s, s, out_channels]."""
    output = model.apply(variables, normalise_image(to_views(images, views)))
    return output.reshape(len(images), -1, *output.shape[1:])
