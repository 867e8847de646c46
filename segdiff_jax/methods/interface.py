"""What every method offers. A method is what a run trains and what masks are sampled from.

A method is a frozen dataclass in a file of its own, with

    losses(variables, batch, keys) -> Losses
        `keys`: key[B, 3]. In training, variables also hold "history".

    from_config(config, axis_name) -> Method, a class method, and
    with_sampler(config) -> Method, the same one with another `config.sampler`

and four parts of which `sample_masks` is made, so that `inference.driver` can walk it part by part,
show progress between them and measure their memory:

    encode(variables, images) -> features, arrays with a leading axis B
    begin(features, draw) -> State
    advance(variables, first, features, draw, state, count) -> State
        `count` steps of the chain downwards from step `first`, i32[]; only where there is a chain
    finish(state, draw) -> f32[B, V, S, S, C], where clean masks are -1 or +1

Variables are {"params"} and, with batch norm, {"batch_stats"}: trees of f32. The attributes are

    model: the network.
    image_size: S, the side of the images in pixels.
    input_channels: of the noisy mask that the network sees; 0 if it sees none.
    samples: V, how many samples of each image are drawn.
    timesteps: i64[N], ascending, what the steps of the chain are; empty if there is no chain.
    process: of the chain; its `input_scale` is the value of clean masks in `State`.
    views: how samples see the image, see `views.make_views`.
    draws: whether there is noise in its samples.
    unread: the fields of `config.sampler` that it does not read.
    timestep_sampler: its `init`, `draw` and `update` keep the "history", see `timesteps`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

# The fields of `config.sampler` that only a chain reads.
OF_CHAINS = "name", "steps", "spacing", "eta", "clip", "level_sets"
# "image" f32[B, H, W, 3], normalised; "mask" f32[B, h, w, C] from -1 to +1, where h and w are H and
# W divided by `models.mask_stride`.
Batch = dict[str, Array]


class Losses(NamedTuple):
    """The losses of a batch."""

    terms: dict[str, Array]  # name -> f32[B]; their sum is minimised
    batch_stats: Any  # the statistics of this batch, for batch norm
    # (t i32[B], loss f32[B]) for the history of the timestep sampler; () if there is none.
    seen: tuple[Array, ...] = ()


class Draw(NamedTuple):
    """Which samples of a batch are drawn."""

    keys: Array  # key[B, V], the noise of each sample
    views: Array  # i32[B, V], the view that each sample sees
    # u32[B, 2], row and column of each image in a larger image whose noise it shares; None: the
    # images are whole.
    corners: Array | None = None


class State(NamedTuple):
    """Samples that are not finished: f32[B * V, s, s, C] each, where s is S / `mask_stride`."""

    x_t: Array
    x_start: Array  # the estimate of the step before, zero at first


def make_draw(
    keys: Array, numbers: np.ndarray, num_views: int, corners: np.ndarray | None = None
) -> Draw:
    """The samples of these numbers, i64[V]: each sees the next view in turn."""
    views = np.broadcast_to(np.int32(numbers % num_views), keys.shape)
    return Draw(keys, views, corners)


def sample_masks(method: Any, variables: Any, images: Array, draw: Draw) -> Array:
    """Masks of images u8[B, S, S, 3]: f32[V, B, S, S, C]. Pure, for one device."""
    features, steps = method.encode(variables, images), len(method.timesteps)
    state = method.begin(features, draw)
    if steps:
        state = method.advance(variables, jnp.int32(steps - 1), features, draw, state, steps)
    return jnp.moveaxis(method.finish(state, draw), 1, 0)
