"""Supervised learning: the network makes the logits of the mask from the image alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.methods.interface import Draw, Losses, State
from segdiff_jax.methods.losses import bce_dice
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.methods.views import View, from_views, make_views, of_samples, to_views
from segdiff_jax.models import make_model


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised:
    """See `interface`. There is one sample for each view, and no chain.

    Attributes:
        model: a network called as model(image).
        image_size: S.
        views: see `interface`.
    """

    model: nn.Module
    image_size: int = 64
    views: tuple[View, ...] = ((0, ()),)
    input_channels = 0
    timesteps = np.zeros(0, np.int64)
    timestep_sampler = PowerTimesteps(1)
    unread = "name", "steps", "spacing", "eta", "clip", "samples", "max_memory"

    @classmethod
    def from_config(cls, config: ConfigDict, axis_name: str | None = None) -> "Supervised":
        """See `make_method`."""
        model = make_model(config.model, axis_name)
        return cls(model, config.data.image_size).with_sampler(config)

    def with_sampler(self, config: ConfigDict) -> "Supervised":
        """The same network with the views of another `config.sampler`."""
        views = make_views(config.sampler.flips, config.sampler.rotations)
        return dataclasses.replace(self, views=views)

    @property
    def samples(self) -> int:
        """V, one for each view."""
        return len(self.views)

    def losses(self, variables: dict[str, Any], batch: dict[str, Array], keys: Array) -> Losses:
        """BCE + Dice of the logits."""
        batch_stats = variables.get("batch_stats", {})
        variables = {"params": variables["params"], "batch_stats": batch_stats}
        logits, updates = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        terms = bce_dice(logits, (batch["mask"] + 1) / 2)
        return Losses(terms, updates.get("batch_stats", batch_stats))

    def encode(self, variables: Any, images: Array) -> Array:
        """The mask in each view, 2 p - 1 = tanh(logits / 2): f32[B, F, S, S, C]."""
        seen = to_views(images, self.views)
        flat = normalise_image(seen.reshape(-1, *seen.shape[2:]))
        masks = jnp.tanh(self.model.apply(variables, flat) / 2)
        return masks.reshape(*seen.shape[:2], *masks.shape[1:])

    def begin(self, features: Array, draw: Draw) -> State:
        """The mask that each sample sees."""
        masks = of_samples(features, draw.views)
        masks = masks.reshape(-1, *masks.shape[2:])
        return State(masks, jnp.zeros_like(masks))

    def finish(self, state: State, draw: Draw) -> Array:
        """The masks as their images lie: f32[B, V, S, S, C]."""
        masks = state.x_t.reshape(*draw.keys.shape, *state.x_t.shape[1:])
        return from_views(masks, self.views, draw.views)
