"""Bits per pixel of a trained diffusion model: python -m tools.bound --workdir=runs/isic.

The variational bound of the negative log likelihood of masks given their images, all T steps,
each at one noisy mask (Nichol and Dhariwal 2021, arXiv 2102.09672). The split is of the data set
that the run was trained on.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import Array

import segdiff_jax
from segdiff_jax.data.normalise import normalise_image, normalise_mask
from segdiff_jax.data.pipeline import ResizedSource, padded_batches
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.diffusion.samplers import gaussian_noise
from segdiff_jax.evaluation.examples import open_split
from segdiff_jax.inference.load import Model
from segdiff_jax.models import mask_stride
from segdiff_jax.original.bound import Bound, variational_bound
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute


def make_bound_fn(model: Model) -> Callable[[Array, Array, Array], Bound]:
    """(image u8[B, S, S, 3], mask u8[B, S, S, 1], key[B]) -> Bound, for a diffusion model.

    The variance is `diffusion.variance`, and x_start is clipped if `sampler.clip` is set.

    Raises:
        UserError: if the model does not denoise, or masks have several classes.
    """
    config = model.config
    if config.method != "diffusion":
        raise UserError(f"method={config.method!r} is no diffusion: there is no bound")
    if names := tuple(config.data.annotators):
        raise UserError(f"data.annotators={names}: the bound is of masks by anyone")
    if model.classes.several:
        raise UserError(f"data.classes={model.classes.names}: the bound needs masks of two classes")
    network = model.driver.method.model
    if (stride := mask_stride(network)) > 1:
        raise UserError(f"model.mask_stride={stride}: the bound needs masks of the images' size")
    process = dataclasses.replace(make_process(config.diffusion), clip=config.sampler.clip)
    variance = config.diffusion.variance

    def run(variables, image, mask, keys):
        features = network.apply(variables, normalise_image(image), method="encode_image")
        x_start = process.input_scale * normalise_mask(mask, soft=config.data.soft_masks)

        def denoise_fn(x_t, t):
            inputs = process.network_input(x_t, t), features, t[None]
            return process.predict(network.apply(variables, *inputs, method="denoise"), x_t, t)

        noise_fn = gaussian_noise(keys, x_start.shape[1:])
        return variational_bound(process, variance, denoise_fn, x_start, noise_fn)

    compiled = jax.jit(run)
    return lambda *batch: compiled(model.variables, *batch)


def measure(workdir: str, split: str, num_images: int, batch_size: int) -> list[np.ndarray]:
    """For each image the bound, its prior and the terms of each step: f32[N], f32[N], f32[N, T]."""
    model = segdiff_jax.load(workdir)
    bound_fn, data = make_bound_fn(model), model.config.data
    if data.full_size:
        raise UserError(f"data.full_size={data.full_size}: the bound needs whole images")
    records = open_split(model.config, split)
    limit = num_images or None
    source = ResizedSource(records, data.image_size, limit, data.colour_constancy)
    examples, found = ({"number": i, **source[i]} for i in range(len(source))), []
    for group, valid in padded_batches(examples, min(batch_size, len(source))):
        image, mask = (np.stack([e[name] for e in group]) for name in ("image", "mask"))
        numbers = np.array([e["number"] for e in group])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(model.config.seed), numbers)
        bound = bound_fn(image, mask, keys)
        found.append([np.asarray(x)[valid] for x in (bound.total, bound.prior, bound.vb)])
        print(f"{sum(len(total) for total, *_ in found)} of {len(source)} images", flush=True)
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--workdir", type=absolute, required=True, help="of train.py, or a checkpoint"
    )
    parser.add_argument("--split", default="test", help="such as validation")
    parser.add_argument("--num_images", type=int, default=0, help="the first ones; 0: all")
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args()

    def bound() -> None:
        if options.num_images < 0 or options.batch_size < 1:
            raise UserError("--num_images must be at least 0 and --batch_size at least 1")
        total, prior, vb = measure(**vars(options))
        parts = {"bits per pixel": total, "prior": prior}
        parts |= {"steps": vb[:, 1:].sum(1), "mask": vb[:, 0]}
        print("\n".join(f"{name:<16}{part.mean():>12.6f}" for name, part in parts.items()))

    run_simple(bound)


if __name__ == "__main__":
    main()
