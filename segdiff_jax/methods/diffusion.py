"""Diffusion: the network denoises masks, and samples are made from noise step by step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.normalise import normalise_image
from segdiff_jax.diffusion.process import Prediction, Process, at, make_process, q_sample
from segdiff_jax.diffusion.samplers import START, STEPS, ddim_step, gaussian_noise, uniform_noise
from segdiff_jax.diffusion.samplers import sample as sample_chain
from segdiff_jax.diffusion.schedule import SPACINGS, respace, space_timesteps
from segdiff_jax.methods.interface import Batch, Draw, Losses, State
from segdiff_jax.methods.losses import Noised, find_loss, mse
from segdiff_jax.methods.noise import sample_noise
from segdiff_jax.methods.timesteps import PowerTimesteps
from segdiff_jax.methods.views import View, from_views, make_views, of_samples, to_views
from segdiff_jax.models import depth_keys, make_model, mask_stride
from segdiff_jax.models.segdiff import Features
from segdiff_jax.original.timesteps import LossAwareTimesteps


@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
    """See `interface`.

    With `recycling`, x_t is made of the mask that the network itself predicts from pure noise (Fu
    et al. 2023, MELBA 2023:016, section 3.3), which takes one more forward pass.
    """

    model: nn.Module  # has `encode_image` and `denoise`
    process: Process  # the chain that is trained
    chain: Process | None = None  # the chain that is sampled: fewer steps, maybe clipped
    solver: Callable[..., Array] = ddim_step  # one of `STEPS`, its options bound
    loss: Callable[[Process, Array, Noised], dict[str, Array]] = mse  # see `losses`
    weights: np.ndarray | None = None  # f64[T], see `Process.loss_weights`; None: 1
    timestep_sampler: Any = None  # which timesteps are trained; None: uniform
    recycling: bool = False
    image_size: int = 64
    samples: int = 1
    views: tuple[View, ...] = ((0, ()),)
    annotator: int = 0  # whose masks are sampled, see `SegDiff.denoise`
    level_sets: bool = False  # a step goes towards a `Process.level_set`, not the mean
    unread = ()
    draws = True

    @classmethod
    def from_config(cls, config: ConfigDict, axis_name: str | None = None) -> "Diffusion":
        """See `make_method`."""
        diffusion = config.diffusion
        process = make_process(diffusion, classes_of(config.data).channels)
        timesteps = PowerTimesteps(diffusion.num_timesteps, diffusion.timestep_power)
        if diffusion.timestep_sampler == "loss_second_moment":
            timesteps = LossAwareTimesteps(diffusion.num_timesteps)
        method = cls(
            model=make_model(config.model, axis_name, len(config.data.annotators)),
            process=process,
            loss=find_loss(diffusion.loss, diffusion.variance),
            weights=process.loss_weights(diffusion.weight),
            timestep_sampler=timesteps,
            recycling=diffusion.recycling,
            image_size=config.data.image_size,
        )
        return method.with_sampler(config)

    def with_sampler(self, config: ConfigDict) -> "Diffusion":
        """The same network, sampled as another `config.sampler` and `diffusion.variance` say."""
        sampler = config.sampler
        options = {"ddim": {"eta": sampler.eta}, "ddpm": {"variance": config.diffusion.variance}}
        spacing = SPACINGS[sampler.spacing].format(sampler.steps)
        timesteps = space_timesteps(len(self.process.schedule), spacing)
        schedule = respace(self.process.schedule, timesteps)
        return dataclasses.replace(
            self,
            chain=dataclasses.replace(self.process, schedule=schedule, clip=sampler.clip),
            solver=functools.partial(STEPS[sampler.name], **options.get(sampler.name, {})),
            samples=sampler.samples,
            annotator=("", *config.data.annotators).index(sampler.annotator),
            level_sets=sampler.level_sets,
            views=make_views(sampler.flips, sampler.rotations)[: sampler.samples],
        )

    @property
    def timesteps(self) -> np.ndarray:
        """i64[N], the timestep of the training chain at each step of the sampled one."""
        return self.chain.schedule.timesteps

    @property
    def input_channels(self) -> int:
        """See `Process.input_channels`."""
        return self.process.input_channels

    def losses(self, variables: dict[str, Any], batch: Batch, keys: Array) -> Losses:
        """The loss of each example at a timestep and with a noise drawn for it."""
        u = jax.vmap(jax.random.uniform)(keys[:, 0])
        sampler = self.timestep_sampler or PowerTimesteps(len(self.process.schedule))
        t, importance = sampler.draw(u, variables.get("history"))
        shape = batch["mask"].shape[1:]
        eps = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1])
        terms, batch_stats = self.loss_at(variables, batch, t, eps, keys[:, 2])
        if self.weights is not None:
            terms = jax.tree.map(lambda term: at(self.weights, t, 1) * term, terms)
        seen = t, sum(terms.values())
        return Losses(jax.tree.map(lambda x: importance * x, terms), batch_stats, seen)

    def loss_at(
        self, variables: Any, batch: Batch, t: Array, eps: Array, keys: Array | None = None
    ) -> tuple[dict[str, Array], Any]:
        """The loss of each example at t i32[B] with the noise eps (Amit et al. 2021, eq. 6).

        `keys`, key[B], are for dropout, skipped blocks, recycling and self-conditioning; None if
        there are none. {term: f32[B]} and the statistics of this batch.
        """
        process, T = self.process, len(self.process.schedule)
        frozen = variables | {"params": jax.lax.stop_gradient(variables["params"])}

        def own_estimate(x_t, t):
            output, _ = self._denoise(frozen, batch, process.network_input(x_t, t), t, keys)
            return process.predict(output, x_t, t).x_start

        noisy = x_start = process.input_scale * batch["mask"]
        if self.recycling:
            # Numbers tell draws of `keys` apart; `depth_keys` has 3.
            x_T = gaussian_noise(keys, x_start.shape[1:])(1)
            noisy = own_estimate(x_T, jnp.full_like(t, T - 1))
            noisy = jnp.clip(noisy, -process.input_scale, process.input_scale)
        x_t, estimate = q_sample(process.schedule, noisy, t, eps), None
        if process.self_conditioning:  # Half of the examples see their estimate.
            known = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 2)))(keys)
            estimate = jnp.where(known[:, None, None, None], own_estimate(x_t, t), 0.0)
        inputs = process.network_input(x_t, t, estimate)
        output, batch_stats = self._denoise(variables, batch, inputs, t, keys)
        return self.loss(process, output, Noised(batch["mask"], x_start, t, eps, x_t)), batch_stats

    def _denoise(
        self, variables: Any, batch: Batch, x_t: Array, t: Array, keys: Array | None
    ) -> tuple[Array, Any]:
        """The network's output in training, and the statistics of the batch."""
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        image, depth = batch["image"], depth_keys(self.model, keys)
        options = {"annotator": batch["annotator"]} if "annotator" in batch else {}
        if batch_stats:
            variables = {"params": params, "batch_stats": batch_stats}
            options |= {"train": True, "mutable": ["batch_stats"]} | depth
            output, updates = self.model.apply(variables, x_t, image, t, **options)
            return output, updates["batch_stats"]
        variables = {"params": params}
        if not getattr(self.model, "dropout", 0.0):
            options |= {"train": False} | depth
            return self.model.apply(variables, x_t, image, t, **options), batch_stats
        features = self.model.apply(variables, image, method="encode_image", **depth)

        def denoise(key, x_t, features, t, options):
            x_t, features, t, options = jax.tree.map(lambda x: x[None], (x_t, features, t, options))
            options |= {"train": True, "rngs": {"dropout": key}, "method": "denoise"}
            return self.model.apply(variables, x_t, features, t, **options)[0]

        # Only `denoise` is vmapped: under vmap, a custom gradient is taken image by image.
        return jax.vmap(denoise)(keys, x_t, features, t, options), batch_stats

    def encode(self, variables: Any, images: Array) -> Features:
        """The features of each view of u8[B, S, S, 3], such as [B, F, S, S, channels]."""
        seen = normalise_image(to_views(images, self.views))
        features = self.model.apply(variables, seen, method="encode_image")
        return jax.tree.map(lambda x: x.reshape(len(images), -1, *x.shape[1:]), features)

    def begin(self, features: Features, draw: Draw) -> State:
        """Pure noise x_T."""
        x_T = self._noise(draw, jax.tree.leaves(features)[0].shape[2:4])(START)
        return State(x_T, jnp.zeros_like(x_T))

    def advance(
        self,
        variables: Any,
        first: Array,
        features: Features,
        draw: Draw,
        state: State,
        count: int,
    ) -> State:
        """Some steps of the chain, see `interface`."""
        # With a single view, all samples of an image share its features.
        one_view = len(self.views) == 1
        seen = lambda x: x.squeeze(1) if one_view else of_samples(x, draw.views)
        features = jax.tree.map(seen, features)
        timesteps = jnp.asarray(self.timesteps, jnp.int32)
        size, options = state.x_t.shape[1:3], {"method": "denoise"}
        thresholds = uniform_noise(draw.keys.reshape(-1), (1, 1, self.process.mask_channels))
        if self.annotator:
            options["annotator"] = jnp.full(1, self.annotator, jnp.int32)

        def denoise_fn(x_t: Array, t: Array, previous: Array) -> Prediction:
            inputs = self.chain.network_input(x_t, t, previous), features, timesteps[t][None]
            output = self.model.apply(variables, *inputs, **options)
            prediction = self.chain.predict(output, x_t, t)
            if not self.level_sets:
                return prediction
            # The numbers below N are the noise of the steps.
            u = thresholds(len(timesteps) + t)
            return self.chain.level_set(prediction, x_t, t, u)

        x_t, x_start = sample_chain(
            denoise_fn,
            state.x_t,
            self.chain.schedule,
            self.solver,
            self._noise(draw, size),
            timesteps=first - jnp.arange(count, dtype=jnp.int32),
            previous=state.x_start,
        )
        return State(x_t, x_start)

    def finish(self, state: State, draw: Draw) -> Array:
        """The masks as their images lie: f32[B, V, S, S, C]."""
        masks, stride = state.x_t / self.process.input_scale, mask_stride(self.model)
        return from_views(masks, self.views, draw.views, stride)

    def _noise(self, draw: Draw, size: tuple[int, int]) -> Callable[[Array], Array]:
        return sample_noise(draw, self.views, size, self.process.mask_channels)
