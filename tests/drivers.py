"""Drivers of closed-form networks, as several tests need them."""

import numpy as np

from segdiff_jax.check import check
from segdiff_jax.config import default_config
from segdiff_jax.inference.combine import options_of, segment
from segdiff_jax.inference.driver import Driver, image_names, sample_keys
from segdiff_jax.inference.windows import Windows
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.supervised import Supervised

SAMPLER = {"steps": 3, "samples": 3, "clip": False, "max_batch": 6}


def config_of(variance="fixed_large", **sampler):
    """A checked config with these fields of the sampler."""
    config = default_config()
    config.sampler.update(SAMPLER | sampler)
    config.diffusion.variance = variance
    check(config)
    return config


def driver_of(model, process, config, window=0):
    """The driver of a diffusion model or, without a process, of a supervised one."""
    method = Diffusion(model, process) if process else Supervised(model)
    sampler = config.sampler
    windows = Windows(window, sampler.overlap, sampler.native) if window else None
    method = method.with_sampler(config)
    return Driver(method, sampler.max_batch, sampler.max_memory, windows)


def example_keys(seed, ids, numbers):
    """key[B, V] for images and samples."""
    return sample_keys(seed, image_names(ids), np.array(numbers, np.uint32))


class Sampled:
    """A driver of masks of two classes, without their last axis: samples f32[V, B, S, S]."""

    def __init__(self, model, process, config, seed=0, window=0):
        self.driver, self._config = driver_of(model, process, config, window), config
        self.seed, self.batch_size = seed, self.driver.batch_size

    def __call__(self, variables, images, ids, *shown, seed=None, trace=None):
        seed = self.seed if seed is None else seed
        return self.driver(variables, images, ids, seed, *shown, trace=trace)[..., 0]

    def combine(self, samples):
        """One image's samples f32[V, H, W] as a `Segmentation`."""
        return segment(samples[..., None], **options_of(self._config.sampler))
