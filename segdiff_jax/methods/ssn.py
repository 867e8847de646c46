"""Stochastic segmentation networks: the logits of a mask are normally distributed.

Monteiro et al. 2020, arXiv 2006.06015. The network makes the distribution of the logits eta from
the image alone, in one pass. A sample of it is one mask that an expert might draw:

    eta ~ N(mu, P P^T + D)        p(y | x) = E_eta prod_i p(y_i | eta_i)

Each channel of each pixel has a mean in mu, a variance in the diagonal matrix D, and a row of
`rank` numbers in P. P makes pixels change together; D changes each by itself. As in
`losses.bce_dice`, p(y_i = 1 | eta_i) is the sigmoid of eta_i, also with several classes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.diffusion.samplers import START, gaussian_noise
from segdiff_jax.methods.interface import OF_CHAINS, Batch, Draw, Losses, State
from segdiff_jax.methods.noise import sample_noise
from segdiff_jax.methods.supervised import output_in_training, output_of_views
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.methods.views import View, from_views, make_views, of_samples
from segdiff_jax.models import make_model, mask_stride

Z = 0  # the number for which a key draws z; for START, it draws the noise of the pixels


@dataclasses.dataclass(frozen=True, eq=False)
class SSN:
    """See `interface`. `model` is called as model(image), see `make_logits`; there is no chain."""

    model: nn.Module
    rank: int = 10  # R, as in the paper; 0: pixels are independent
    train_samples: int = 20  # of each image's logits, for the loss; as in the paper
    image_size: int = 64
    samples: int = 1
    views: tuple[View, ...] = ((0, ()),)
    input_channels = 0
    timesteps = np.zeros(0, np.int64)
    timestep_sampler = PowerTimesteps(1)
    unread = *OF_CHAINS, "annotator"
    draws = True

    @classmethod
    def from_config(cls, config: ConfigDict, axis_name: str | None = None) -> "SSN":
        """See `make_method`."""
        model, ssn = make_model(config.model, axis_name), config.ssn
        method = cls(model, ssn.rank, ssn.train_samples, config.data.image_size)
        return method.with_sampler(config)

    def with_sampler(self, config: ConfigDict) -> "SSN":
        """The same network with the samples and views of another `config.sampler`."""
        sampler = config.sampler
        views = make_views(sampler.flips, sampler.rotations)[: sampler.samples]
        return dataclasses.replace(self, samples=sampler.samples, views=views)

    def losses(self, variables: dict[str, Any], batch: Batch, keys: Array) -> Losses:
        """`negative_log_likelihood`, by samples of each example's logits."""
        output, batch_stats = output_in_training(self.model, variables, batch["image"], keys[:, 0])
        mask = (batch["mask"] + 1) / 2

        def loss(key: Array, output: Array, mask: Array) -> Array:
            keys = jax.random.split(key, self.train_samples)
            z = gaussian_noise(keys, (self.rank,))(Z)
            eps = gaussian_noise(keys, mask.shape)(START)
            logits = jax.vmap(make_logits, (None, 0, 0))(output, z, eps)
            return negative_log_likelihood(logits, mask)

        return Losses({"nll": jax.vmap(loss)(keys[:, 1], output, mask)}, batch_stats)

    def encode(self, variables: Any, images: Array) -> Array:
        """The distribution in each view: f32[B, F, s, s, C (2 + R)], see `make_logits`."""
        return output_of_views(self.model, variables, images, self.views)

    def begin(self, features: Array, draw: Draw) -> State:
        """The masks in the samples' views, 2 p - 1 = tanh(eta / 2).

        In windows of a larger image, z belongs to the sample, and eps to the image's pixels.
        """
        output = of_samples(features, draw.views)
        channels = output.shape[-1] // (2 + self.rank)
        z = gaussian_noise(draw.keys.reshape(-1), (self.rank,))(Z)
        eps = sample_noise(draw, self.views, output.shape[1:3], channels)(START)
        masks = jnp.tanh(jax.vmap(make_logits)(output, z, eps) / 2)
        return State(masks, jnp.zeros_like(masks))

    def finish(self, state: State, draw: Draw) -> Array:
        """The masks as their images lie: f32[B, V, S, S, C]."""
        return from_views(state.x_t, self.views, draw.views, mask_stride(self.model))


def make_logits(output: Array, z: Array, eps: Array) -> Array:
    """One sample of an image's logits, eta = mu + P z + D^(1/2) eps: f32[s, s, C].

    `output` of the network, [s, s, C (2 + R)], holds mu, log D and R^(1/2) P in this order; the R
    numbers of a channel lie together. `z` f32[R] and `eps` f32[s, s, C] are standard normal.

    The authors' code reads P itself there. Then the variance of a new network's logits grows with
    R, and its samples have less in common. The code also adds 1e-5 to D, because it divides by D.
    """
    ends, rank = np.array([1, 2]) * eps.shape[-1], len(z)
    mean, log_variance, factor = jnp.split(output.astype(jnp.float32), ends, axis=-1)
    factor = factor.reshape(*eps.shape, rank) / max(rank, 1) ** 0.5
    together = jnp.einsum("hwcr,r->hwc", factor, z, precision="highest")
    return mean + together + jnp.exp(log_variance / 2) * eps


def negative_log_likelihood(logits: Array, mask: Array) -> Array:
    """-log p(y | x) by Monte Carlo, over the number of pixels and channels: f32[].

        -logsumexp_m(sum_i log p(y_i | eta_i^(m))) + log M

    for the samples eta^(1), ..., eta^(M) in `logits` f32[M, s, s, C]. If they are alike, it is the
    mean of the binary cross entropy. `mask`, f32[s, s, C] from 0 to 1, may hold shares of a pixel.
    """
    bce = optax.sigmoid_binary_cross_entropy(logits, mask[None])
    total = jax.nn.logsumexp(-jnp.sum(bce, (1, 2, 3)))
    return (jnp.log(len(logits)) - total) / mask.size
