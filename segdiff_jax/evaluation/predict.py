"""From a batch of images to samples of their masks."""

import dataclasses
import functools
import zlib
from collections.abc import Collection, Sequence
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
from segdiff_jax.models import is_diffusion

# Of the two axes before the channels, or of a mask; each is its own inverse.
FLIPS = (
    lambda x: x,
    lambda x: jnp.flip(x, -2),
    lambda x: jnp.flip(x, -3),
    lambda x: jnp.flip(x, (-3, -2)),
)
SPACINGS = {"trailing": "trailing{}", "leading": "leading{}", "uniform": "{}"}


class Predictor:
    """From images to samples of their masks, on all devices; `make_predictor` chooses which.

    Attributes:
        batch_size: most images of one call, a multiple of the number of devices.
        passes: by method of the network, how often it runs for one image; of an ensemble, none.
    """

    def __init__(self, sampler: ConfigDict, samples: int, passes: dict[str, int]):
        """Checks what all kinds read of `sampler`; `samples` of an image are made at once."""
        self.passes = passes
        check_choice(sampler, "ensemble", ENSEMBLES)
        check_positive(sampler, "max_batch")
        if not 0 < sampler.threshold < 1:
            raise ValueError(f"sampler.threshold={sampler.threshold} must be between 0 and 1")
        self._ensemble, self._threshold = sampler.ensemble, sampler.threshold
        self.batch_size = parallel.round_up(1) * max(1, sampler.max_batch // samples)

    def __call__(self, variables: Any, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Samples every image.

        Args:
            variables: of the network.
            images: u8[B, S, S, 3], B a multiple of the number of devices.
            ids: B names; an image's noise follows from the seed, its name and the vote alone.
        Returns:
            f32[V, B, S, S], where clean masks are -1 or +1.
        """
        raise NotImplementedError

    def combine(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One image's samples f32[V, H, W] as probability f32[H, W] and mask bool[H, W]."""
        probability = ENSEMBLES[self._ensemble](samples)
        return probability, to_mask(probability, self._threshold)


class DiffusionPredictor(Predictor):
    """Denoises masks, the image encoded once, votes folded into the batch."""

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        sampler: ConfigDict,
        seed: int,
    ):
        """As `make_predictor`."""
        check_choice(sampler, "name", STEPS)
        check_choice(sampler, "spacing", SPACINGS)
        check_choice(sampler, "variance", VARIANCES)
        for field in ("steps", "votes", "max_batch"):
            check_positive(sampler, field)
        if not 0 <= sampler.eta <= 1:
            raise ValueError(f"sampler.eta={sampler.eta} must be from 0 to 1")
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
        self._seed = seed
        self._flips = min(len(FLIPS), sampler.votes) if sampler.flips else 1
        passes = {"encode_image": self._flips, "denoise": sampler.votes * sampler.steps}
        super().__init__(sampler, self._chunk, passes)
        self._encode = parallel.pmap_map(functools.partial(encode, model, self._flips), 1)
        self._sample = parallel.pmap_map(
            functools.partial(sample_votes, model, process, step_fn), 3
        )

    def __call__(self, variables: Any, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """As `Predictor.__call__`; V is `sampler.votes`."""
        features = self._encode(variables, parallel.shard(images))
        samples = []
        for start in range(0, self._votes, self._chunk):
            votes = np.arange(start, start + self._chunk)
            keys = example_keys(self._seed, ids, votes)
            flips = np.broadcast_to(votes % self._flips, keys.shape)
            masks = self._sample(variables, features, parallel.shard(keys), parallel.shard(flips))
            samples.append(np.moveaxis(parallel.unshard(masks), 1, 0))
        return np.concatenate(samples)[: self._votes]


class SupervisedPredictor(Predictor):
    """One pass for each image or, with `sampler.flips`, for each of its four mirror images."""

    def __init__(self, model: nn.Module, sampler: ConfigDict):
        """As `make_predictor`."""
        flips = len(FLIPS) if sampler.flips else 1
        super().__init__(sampler, flips, {"__call__": flips})
        self._segment = parallel.pmap_map(functools.partial(segment, model, flips), 1)

    def __call__(self, variables: Any, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """As `Predictor.__call__`; V is the number of mirror images, and `ids` are not read."""
        masks = self._segment(variables, parallel.shard(images))
        return np.moveaxis(parallel.unshard(masks), 1, 0)


class EnsemblePredictor(Predictor):
    """The mean of several models' probabilities, such as of a diffusion and a supervised one.

    Fu et al. 2023 (MELBA 2023:016) found this ensemble the best of what they compared.
    """

    def __init__(self, members: Sequence[Predictor], sampler: ConfigDict):
        """Takes what its members say.

        Args:
            members: for images of the same size.
            sampler: its threshold is taken.
        """
        super().__init__(sampler, 1, {})
        self._members, self._ensemble = members, "mean"
        self.batch_size = min(member.batch_size for member in members)

    def __call__(self, variables: Any, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """As `Predictor.__call__`, with one sample a member: 2 p - 1.

        `variables` are a sequence of those of each member.
        """
        means = []
        for member, own in zip(self._members, variables, strict=True):
            samples = member(own, images, ids)
            means.append([2 * member.combine(samples[:, i])[0] - 1 for i in range(len(images))])
        return np.array(means, np.float32)


def make_predictor(
    model: nn.Module,
    process: Process,
    sampler: ConfigDict,
    seed: int,
) -> Predictor:
    """The predictor of a network. Compiles nothing yet.

    Args:
        model: a diffusion model, with `encode_image` and `denoise`, or a supervised one.
        process: of the training of a diffusion model; it is respaced here.
        sampler: `config.sampler`; of it, supervised models read flips, ensemble, threshold and
            max_batch only.
        seed: of the samples.
    Raises:
        ValueError: naming a field of `sampler` that does not fit.
    """
    if is_diffusion(model):
        return DiffusionPredictor(model, process, sampler, seed)
    return SupervisedPredictor(model, sampler)


def check_choice(sampler: ConfigDict, field: str, choices: Collection[str]) -> None:
    """Raises a ValueError that names the field if its value is none of `choices`."""
    if sampler[field] not in choices:
        raise ValueError(f"sampler.{field}={sampler[field]!r}: choose one of {sorted(choices)}")


def check_positive(sampler: ConfigDict, field: str) -> None:
    """Raises a ValueError that names the field if it is under 1."""
    if sampler[field] < 1:
        raise ValueError(f"sampler.{field}={sampler[field]} must be at least 1")


def example_keys(seed: int, ids: Sequence[str], votes: Sequence[int]) -> Array:
    """key[B, V], one per image and vote: order and batching do not change a sample."""
    names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), names),
        np.array(votes, np.uint32),
    )


def mirrored(images: Array, flips: int) -> Array:
    """u8[B, S, S, 3] -> f32[B * flips, S, S, 3], normalised; `flips` is how many of `FLIPS`."""
    images = jnp.stack([flip(images) for flip in FLIPS[:flips]], axis=1)
    return normalise_image(images.reshape(-1, *images.shape[2:]))


def segment(model: nn.Module, flips: int, variables: Any, images: Array) -> Array:
    """Masks of u8[B, S, S, 3] and of its mirror images, mirrored back: f32[B, flips, S, S].

    They are 2 p - 1 = tanh(logits / 2).
    """
    logits = model.apply(variables, mirrored(images, flips))[..., 0]
    masks = jnp.tanh(logits / 2).reshape(-1, flips, *logits.shape[1:])
    return jnp.stack(
        [flip(masks[:, k, ..., None])[..., 0] for k, flip in enumerate(FLIPS[:flips])], 1
    )


def encode(model: nn.Module, flips: int, variables: Any, images: Array) -> Array:
    """The features of u8[B, S, S, 3] and of its mirror images: [B, flips, S, S, C].

    See the model's `encode_image`; `flips` is how many of `FLIPS`.
    """
    features = model.apply(variables, mirrored(images, flips), method="encode_image")
    return features.reshape(len(images), flips, *features.shape[1:])


def sample_votes(
    model: nn.Module,
    process: Process,
    step_fn: Any,
    variables: Any,
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
        output = model.apply(variables, network_input, features, t_model, method="denoise")
        return process.predict(output, x_t, t)

    x_T = noise_fn(START)
    x_0 = sample(denoise_fn, x_T, process.schedule, step_fn, noise_fn)
    masks = x_0.reshape(*votes, *size, 1) / process.input_scale
    which = [flips[..., None, None, None] == k for k in range(len(FLIPS))]
    return jnp.select(which, [flip(masks) for flip in FLIPS])[..., 0]
