"""From a batch of images to samples of their masks."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.diffusion.process import VARIANCES, Process
from segdiff_jax.diffusion.samplers import START, STEPS, gaussian_noise, sample
from segdiff_jax.diffusion.schedule import respace, space_timesteps
from segdiff_jax.evaluation.ensemble import ENSEMBLES, to_mask

# Of the two axes before the channels, or of a mask; each is its own inverse.
FLIPS = (
    lambda x: x,
    lambda x: jnp.flip(x, -2),
    lambda x: jnp.flip(x, -3),
    lambda x: jnp.flip(x, (-3, -2)),
)
SPACINGS = {"trailing": "trailing{}", "leading": "leading{}", "uniform": "{}"}


class Predictor:
    """Samples masks on all devices, the image encoded once, votes folded into the batch.

    Attributes:
        batch_size: images of one call.
    """

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        sampler: ConfigDict,
        seed: int,
        num_images: int | None = None,
    ):
        """Compiles nothing yet.

        Args:
            model: with `encode_image` and `denoise`.
            process: of the training; it is respaced here.
            sampler: `config.sampler`.
            seed: of the samples.
            num_images: in all; a batch is no larger.
        Raises:
            ValueError: naming a field of `sampler` that does not fit.
        """
        for field, choices in (
            ("name", STEPS),
            ("spacing", SPACINGS),
            ("variance", VARIANCES),
            ("ensemble", ENSEMBLES),
        ):
            if sampler[field] not in choices:
                raise ValueError(
                    f"sampler.{field}={sampler[field]!r}: choose one of {sorted(choices)}"
                )
        for field in ("steps", "votes", "max_batch"):
            if sampler[field] < 1:
                raise ValueError(f"sampler.{field}={sampler[field]} must be at least 1")
        if not 0 <= sampler.eta <= 1:
            raise ValueError(f"sampler.eta={sampler.eta} must be from 0 to 1")
        if not 0 < sampler.threshold < 1:
            raise ValueError(f"sampler.threshold={sampler.threshold} must be between 0 and 1")
        spacing = SPACINGS[sampler.spacing].format(sampler.steps)
        try:
            timesteps = space_timesteps(len(process.schedule), spacing)
        except ValueError as error:
            raise ValueError(f"sampler.steps={sampler.steps}: {error}") from error
        if timesteps[-1] == 0 < len(process.schedule) - 1:
            raise ValueError(
                f"sampler.steps=1 with sampler.spacing={sampler.spacing!r} would take noise for "
                "the clean mask: choose 'trailing'"
            )
        respaced = respace(process.schedule, timesteps)
        process = dataclasses.replace(process, schedule=respaced, clip=sampler.clip)
        options = {"ddim": {"eta": sampler.eta}, "ddpm": {"variance": sampler.variance}}
        step_fn = functools.partial(STEPS[sampler.name], **options.get(sampler.name, {}))
        # The votes of a chunk, such that the chunks are alike; the images fill it up.
        chunks = -(-sampler.votes // sampler.max_batch)
        self._votes, self._chunk = sampler.votes, -(-sampler.votes // chunks)
        devices = parallel.round_up(1)
        self.batch_size = devices * max(1, sampler.max_batch // self._chunk)
        if num_images is not None:
            self.batch_size = min(self.batch_size, parallel.round_up(num_images))
        self._seed, self._ensemble, self._threshold = seed, sampler.ensemble, sampler.threshold
        self._flips = min(len(FLIPS), sampler.votes) if sampler.flips else 1
        self._encode = parallel.pmap_map(functools.partial(encode, model, self._flips), 1)
        self._sample = parallel.pmap_map(
            functools.partial(sample_votes, model, process, step_fn), 3
        )

    def __call__(self, params: Any, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Samples every image `votes` times.

        Args:
            params: of the network.
            images: u8[B, S, S, 3] with B = `batch_size`.
            ids: B names; an image's noise follows from the seed, its name and the vote alone.
        Returns:
            f32[votes, B, S, S], where clean masks are -1 or +1.
        """
        features = self._encode(params, parallel.shard(images))
        samples = []
        for start in range(0, self._votes, self._chunk):
            votes = np.arange(start, start + self._chunk)
            keys = example_keys(self._seed, ids, votes)
            flips = np.broadcast_to(votes % self._flips, keys.shape)
            masks = self._sample(params, features, parallel.shard(keys), parallel.shard(flips))
            samples.append(np.moveaxis(parallel.unshard(masks), 1, 0))
        return np.concatenate(samples)[: self._votes]

    def combine(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One image's votes f32[V, H, W] as probability f32[H, W] and mask bool[H, W]."""
        probability = ENSEMBLES[self._ensemble](samples)
        return probability, to_mask(probability, self._threshold)


def example_keys(seed: int, ids: Sequence[str], votes: Sequence[int]) -> Array:
    """key[B, V], one per image and vote: order and batching do not change a sample."""
    names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), names),
        np.array(votes, np.uint32),
    )


def encode(model: nn.Module, flips: int, params: Any, images: Array) -> Array:
    """The features of u8[B, S, S, 3] and of its mirror images: [B, flips, S, S, C].

    See the model's `encode_image`; `flips` is how many of `FLIPS`.
    """
    images = jnp.stack([flip(images) for flip in FLIPS[:flips]], axis=1)
    flat = normalise_image(images.reshape(-1, *images.shape[2:]))
    features = model.apply({"params": params}, flat, method="encode_image")
    return features.reshape(*images.shape[:2], *features.shape[1:])


def sample_votes(
    model: nn.Module,
    process: Process,
    step_fn: Any,
    params: Any,
    features: Array,
    keys: Array,
    flips: Array,
) -> Array:
    """Samples masks of a batch, about +-1.

    Args:
        features: [B, F, S, S, C] of each image's mirror images, from `encode`.
        keys: key[B, V], the noise of each vote.
        flips: i32[B, V], which of the F each vote sees; the result is mirrored back.
    Returns:
        f32[B, V, S, S].
    """
    votes, size = keys.shape, features.shape[2:4]
    features = jax.vmap(lambda of_image, which: of_image[which])(features, flips)
    features = features.reshape(-1, *features.shape[2:])
    noise_fn = gaussian_noise(keys.reshape(-1), (*size, 1))
    timesteps = jnp.asarray(process.schedule.timesteps, jnp.int32)

    def denoise_fn(x_t, t, previous):
        t_model = jnp.broadcast_to(timesteps[t], len(x_t))
        network_input = process.network_input(x_t, t, previous)
        output = model.apply({"params": params}, network_input, features, t_model, method="denoise")
        return process.predict(output, x_t, t)

    x_T = noise_fn(START)
    x_0 = sample(denoise_fn, x_T, process.schedule, step_fn, noise_fn)
    masks = x_0.reshape(*votes, *size, 1) / process.input_scale
    which = [flips[..., None, None, None] == k for k in range(len(FLIPS))]
    return jnp.select(which, [flip(masks) for flip in FLIPS])[..., 0]
