"""A trained model, ready to segment."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.check import check
from segdiff_jax.config import saved_config, set_fields, with_absolute_paths
from segdiff_jax.data.classes import Classes, classes_of
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.data.pipeline import padded_batches, resize_image, shrink_labels
from segdiff_jax.inference.combine import (
    Segmentation,
    disagreement,
    options_of,
    resize_samples,
    segment,
)
from segdiff_jax.inference.drawn import single_masks
from segdiff_jax.inference.driver import Driver, Trace, make_driver
from segdiff_jax.inference.windows import Progress
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.checkpoint import (
    find_checkpoints,
    load_meta,
    load_variables,
    read_history,
    saved_at,
)
from segdiff_jax.runtime.errors import UserError

# Fields in which the models of an ensemble must agree.
ALIKE = {
    "data": ("full_size", "colour_constancy", "classes", "mask_values"),
    "sampler": ("native", "threshold", "largest_component", "samples_from"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network, with a driver and variables, or an ensemble of members."""

    # Of the run or, in an ensemble, of the member with the largest images (the first of them); with
    # the fields of sampling as given.
    config: ConfigDict
    settings: dict[str, Any]  # what the masks are made with, for a report
    driver: Driver | None = None
    variables: Any = dataclasses.field(default=None, repr=False)
    members: tuple["Model", ...] = ()
    # Rows of the training's metrics.csv, if there is one beside the checkpoint.
    history: Sequence[dict[str, float | None]] = dataclasses.field(default=(), repr=False)
    trained_on: str = ""  # `Records.members` of its training images, if its checkpoint tells.
    _others: dict[Any, "Model"] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def classes(self) -> Classes:
        return classes_of(self.config.data)

    @property
    def batch_size(self) -> int:
        """The largest number of images that `sample` takes."""
        return min(m.driver.batch_size for m in self.members or (self,))

    @property
    def unread(self) -> set[str]:
        """The fields of the sampler that nothing reads."""
        unread = (set(m.driver.method.unread) for m in self.members or (self,))
        return set.intersection(*unread) - _read_to_draw(self.config.sampler)

    @property
    def draws(self) -> bool:
        """Whether single masks are random, and not all that there are, as of views or members."""
        whole = self.config.sampler.samples_from == "network"
        return not whole or (not self.members and self.driver.method.draws)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which an image of this size is resized before it is segmented.

        A square or, with `sampler.native`, its own size, enlarged if no window fits in.
        """
        data, least = self.config.data, self.config.data.image_size
        if not self.config.sampler.native:
            return (data.full_size or least,) * 2
        scale = max(1.0, least / min(size))
        height, width = (max(least, round(scale * side)) for side in size)
        return height, width

    def sample(
        self,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Progress = lambda share: None,
        trace: Trace | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Samples f32[V, B, H, W, C], see `Driver`; each member of an ensemble gives one, 2 p - 1.

        If single masks are samples of the network, each member gives all of its own, repeated so
        that all members give equally many: then their mean is still the members'. A member of
        another size sees the images resized once more; its masks are resized to `images`. Fu et al.
        2023 (MELBA 2023:016) found the mean of a diffusion and a supervised model best.
        """
        seed = self.config.seed if seed is None else seed
        if not self.members:
            return self.driver(self.variables, images, ids, seed, progress, trace)
        whole, found = self.config.sampler.samples_from == "network", []
        for k, member in enumerate(self.members):
            so_far = lambda share, k=k: progress((k + share) / len(self.members))
            seen = np.stack([resize_image(image, member.input_size) for image in images])
            samples, size = member.sample(seen, ids, so_far, seed=seed), images.shape[1:3]
            resized = [resize_samples(samples[:, i], size) for i in range(len(images))]
            if whole:
                found.append(np.stack(resized, axis=1))
            else:
                means = [segment(of, **member.options).probabilities for of in resized]
                found.append(2 * np.array([means], np.float32) - 1)
        count = np.lcm.reduce([len(samples) for samples in found])
        return np.concatenate([np.tile(x, (count // len(x), 1, 1, 1, 1)) for x in found])

    @property
    def options(self) -> dict[str, Any]:
        """The options of `combine.segment`."""
        options = options_of(self.config.sampler)
        return options | {"ensemble": "mean"} if self.members else options

    def segment(
        self,
        samples: np.ndarray,
        size: tuple[int, int] | None = None,
        id: str = "0",
        seed: int | None = None,
    ) -> Segmentation:
        """One image's samples f32[V, h, w, C] as one mask and as single ones.

        They have this (height, width); None: the samples' own. What is drawn follows from `id` and
        the seed; None: the seed of the run.
        """
        resized = samples if size is None else resize_samples(samples, size)
        found = segment(resized, **self.options)
        seed = self.config.seed if seed is None else seed
        drawing = found, self.config.sampler, id, seed
        labels, deviation = single_masks(resized, samples.shape[1:3], *drawing)
        small = shrink_labels(labels, self.classes)
        return dataclasses.replace(
            found,
            deviation=deviation,
            uncertainty=disagreement(small, len(self.classes.names)),
            samples=labels,
            small_samples=small,
        )

    def with_fields(self, **fields: Any) -> "Model":
        """The same model with other fields of sampling, as `load` takes them; kept for later."""
        key = tuple(sorted(fields.items()))
        if key not in self._others and self.members:
            temperature = fields.pop("temperature", self.config.sampler.temperature)
            members = [member.with_fields(**fields) for member in self.members]
            self._others[key] = make_ensemble(members, temperature)
        elif key not in self._others:
            config = with_sampling(self.config, fields)
            origin = {k: v for k, v in self.settings.items() if k in ("checkpoint", "saved")}
            other = make_model_of(config, self.variables, origin, self.history)
            self._others[key] = dataclasses.replace(other, trained_on=self.trained_on)
        return self._others[key]

    def predict(
        self,
        images: Sequence[np.ndarray],
        steps: int | None = None,
        samples: int | None = None,
        key: int | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Segmentation]:
        """Segments images u8[H, W, 3], sRGB, of any sizes, at these sizes, as sample.py does.

        It compiles for each new number of images, steps or samples. `key` is the seed of the
        samples; for None, steps, samples and seed are the run's. `ids` are a name for each image,
        by default "0", "1" and so on: an image's samples follow from it and the key. A UserError
        names an image of another shape or type, or a setting that is wrong.
        """
        if not isinstance(key, int | None) or (key or 0) < 0:
            raise UserError(f"key={key!r} is no seed of samples: give an int from 0")
        given = {k: v for k, v in (("steps", steps), ("samples", samples)) if v is not None}
        if given:
            return self.with_fields(**given).predict(images, key=key, ids=ids)
        images = [np.asarray(image) for image in images]
        ids = list(map(str, range(len(images)))) if ids is None else ids
        if len(ids) != len(images):
            raise UserError(f"{len(ids)} ids for {len(images)} images")
        for id, image in zip(ids, images, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"image {id}: {image.dtype}{image.shape} is not uint8 (H, W, 3)")
        correct, found = COLOUR_CONSTANCY[self.config.data.colour_constancy], []
        inputs = (correct(resize_image(image, self.input_size)) for image in images)
        examples = zip(ids, inputs, (image.shape[:2] for image in images), strict=True)
        count = parallel.batch_size(self.batch_size, len(images))
        for group, valid in padded_batches(examples, count):
            names, resized, sizes = zip(*group, strict=True)
            made = self.sample(np.stack(resized), names, seed=key)
            found += [
                self.segment(made[:, i], sizes[i], names[i], key) for i in np.flatnonzero(valid)
            ]
        return found


def load(path: str | Path | Sequence[str | Path], **sampling: Any) -> Model:
    """A trained model; with several paths, the mean of their probabilities.

    The mean of several folds has seen all training and validation images: score it on others.

    A path is a workdir of train.py, a folder of checkpoints or one checkpoint, or a folder whose
    `MEMBERS` lists several workdirs; FileNotFoundError if there is none. `sampling` are fields of
    `config.sampler`, such as steps, samples or threshold, "seed" and "variance" (of DDPM's steps);
    None: as in the run's config. Of several models, "temperature" belongs to the mean. A UserError
    names a field or file that does not fit.
    """
    sampling = {name: value for name, value in sampling.items() if value is not None}
    paths = [path] if isinstance(path, str | Path) else path
    if not paths:
        raise UserError("no path of a model is given")
    checkpoints = [checkpoint for path in paths for checkpoint in find_checkpoints(path)]
    temperature = sampling.pop("temperature", 1.0) if len(checkpoints) > 1 else None
    models = []
    for checkpoint in checkpoints:
        config = with_absolute_paths(saved_config(meta := load_meta(checkpoint)))
        config = with_sampling(config, sampling)
        variables = load_variables(checkpoint, variables_like(make_method(config)))
        origin = {"checkpoint": str(checkpoint), "saved": saved_at(checkpoint)}
        history = read_history(checkpoint.parent.parent.parent)
        model = make_model_of(config, parallel.replicate(variables), origin, history)
        trained_on = meta.get("training_members", "")
        models.append(dataclasses.replace(model, trained_on=trained_on))
    return models[0] if temperature is None else make_ensemble(models, temperature)


def make_model_of(
    config: ConfigDict, variables: Any, origin: dict[str, Any], history: Sequence[dict] = ()
) -> Model:
    """A model of a checked config; compiles nothing yet. `origin` begins the settings."""
    method, data, sampler = make_method(config), config.data, config.sampler
    driver, classes = make_driver(config, method), classes_of(data)
    settings = origin | {"model": config.model.name, "image size": data.image_size}
    settings |= {"full size": data.full_size} if data.full_size else {}
    settings["colour constancy"] = data.colour_constancy
    if classes.several:
        settings |= {"classes": classes.names, "mask values": classes.values}
    settings |= {"method": config.method}
    if len(method.timesteps):
        settings |= {"variance": config.diffusion.variance}
    if method.draws or sampler.samples_from != "network":
        settings |= {"seed": config.seed}
    unread = {*method.unread} | (set() if driver.windows else {"native", "overlap"})
    unread -= _read_to_draw(sampler)
    read = {name: value for name, value in sampler.items() if name not in unread}
    settings |= {{"name": "sampler"}.get(name, name): value for name, value in read.items()}
    return Model(config, settings, driver, variables, history=history)


def _read_to_draw(sampler: ConfigDict) -> set[str]:
    """The fields that `segment` reads, though the network may not."""
    return set() if sampler.samples_from == "network" else {"samples"}


def make_ensemble(members: Sequence[Model], temperature: float = 1.0) -> Model:
    """The mean of several models, with a temperature of its own; UserError if they do not fit."""
    for section, fields in ALIKE.items():
        for field in fields:
            values = [member.config[section][field] for member in members]
            if any(value != values[0] for value in values):
                one = "; give one for all" if section == "sampler" else ""
                raise UserError(
                    f"the models of an ensemble differ in {section}.{field}: {values}{one}"
                )
    largest = max(members, key=lambda member: member.config.data.image_size)
    samples = max(member.config.sampler.samples for member in members)
    config = with_sampling(largest.config, {"temperature": temperature, "samples": samples})
    models = " + ".join(member.settings["model"] for member in members)
    settings = {"model": models, "temperature": temperature} | settings_of(members)
    return Model(config, settings, members=tuple(members))


def settings_of(models: Sequence[Model]) -> dict[str, Any]:
    """The settings of one, or of all of several, numbered from 1."""
    if len(models) == 1:
        return models[0].settings
    return {f"{i}. {k}": v for i, model in enumerate(models, 1) for k, v in model.settings.items()}


def with_sampling(config: ConfigDict, sampling: dict[str, Any]) -> ConfigDict:
    """A copy of a config with these fields, named as in `load`; UserError as of `check`."""
    config = config.copy_and_resolve_references()
    full_names = {"seed": "seed", "variance": "diffusion.variance"}
    set_fields(config, {full_names.get(k, f"sampler.{k}"): v for k, v in sampling.items()})
    check(config)
    return config
