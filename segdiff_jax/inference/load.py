"""A trained model, ready to segment."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.config import check, saved_config, set_fields
from segdiff_jax.data.classes import Classes, classes_of
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.data.pipeline import padded_batches, resize_image
from segdiff_jax.inference.combine import Segmentation, disagreement, resize_samples, segment
from segdiff_jax.inference.driver import Driver, Progress, Trace
from segdiff_jax.inference.windows import input_size, make_windows
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.checkpoint import find_checkpoint, load_meta, load_variables, saved_at
from segdiff_jax.runtime.errors import UserError

# The models of an ensemble must agree in these fields.
ALIKE = {
    "data": ("image_size", "full_size", "colour_constancy", "classes", "mask_values"),
    "sampler": ("native", "threshold"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network, or an ensemble of several.

    Attributes:
        config: of the run, with the fields of sampling as given; the first member's in an ensemble.
        settings: what the masks are made with, for a report.
        driver, variables: of a single network.
        members: the models of an ensemble.
        history: rows of the training's metrics.csv, if there is one beside the checkpoint.
    """

    config: ConfigDict
    settings: dict[str, Any]
    driver: Driver | None = None
    variables: Any = dataclasses.field(default=None, repr=False)
    members: tuple["Model", ...] = ()
    history: Sequence[dict[str, float | None]] = dataclasses.field(default=(), repr=False)
    _others: dict[Any, "Model"] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def classes(self) -> Classes:
        """Of the masks."""
        return classes_of(self.config.data)

    @property
    def batch_size(self) -> int:
        """The largest number of images that `sample` takes."""
        return min(m.batch_size for m in self.members) if self.members else self.driver.batch_size

    @property
    def unread(self) -> set[str]:
        """The fields of the sampler that no network reads."""
        return set.intersection(*(set(m.driver.method.unread) for m in self.members or (self,)))

    @property
    def input_size(self) -> int | Callable[[tuple[int, int]], tuple[int, int]]:
        """See `windows.input_size`."""
        return input_size(self.config.data, self.config.sampler)

    def sample(
        self,
        images: np.ndarray,
        ids: Sequence[str],
        progress: Progress = lambda share: None,
        trace: Trace | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Samples masks f32[V, B, H, W, C], see `Driver`.

        Each member of an ensemble gives one sample, 2 p - 1. Fu et al. 2023 (MELBA 2023:016) found
        the mean of a diffusion and a supervised model the best of what they compared.
        """
        seed = self.config.seed if seed is None else seed
        if not self.members:
            return self.driver(self.variables, images, ids, seed, progress, trace)
        means = []
        for k, member in enumerate(self.members):
            so_far = lambda share, k=k: progress((k + share) / len(self.members))
            samples = member.sample(images, ids, so_far, seed=seed)
            means.append([member.segment(samples[:, i]).probabilities for i in range(len(images))])
        return 2 * np.array(means, np.float32) - 1

    def segment(self, samples: np.ndarray, size: tuple[int, int] | None = None) -> Segmentation:
        """One image's samples f32[V, h, w, C] as one mask; of this (height, width), if given."""
        sampler = self.config.sampler
        ensemble = "mean" if self.members else sampler.ensemble
        resized = samples if size is None else resize_samples(samples, size)
        found = segment(resized, ensemble, sampler.temperature, sampler.threshold)
        return dataclasses.replace(found, uncertainty=disagreement(samples))

    def with_fields(self, **fields: Any) -> "Model":
        """The same with other fields of the sampler, as `load` takes them; kept for later."""
        key = tuple(sorted(fields.items()))
        if key not in self._others:
            if self.members:
                temperature = fields.pop("temperature", self.config.sampler.temperature)
                members = [member.with_fields(**fields) for member in self.members]
                self._others[key] = make_ensemble(members, temperature)
            else:
                config = self.config.copy_and_resolve_references()
                set_fields(config, _full_names(fields))
                origin = {k: v for k, v in self.settings.items() if k in ("checkpoint", "saved")}
                self._others[key] = make_model_of(config, self.variables, origin, self.history)
        return self._others[key]

    def predict(
        self,
        images: Sequence[np.ndarray],
        steps: int | None = None,
        samples: int | None = None,
        key: int | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Segmentation]:
        """Segments images as sample.py does; each new number of images is compiled.

        Args:
            images: u8[H, W, 3] each, sRGB, of any sizes; or u8[B, H, W, 3].
            steps, samples: of the sampler; None: as the run says. Other values are compiled.
            key: seed of the samples, an int; None: as the run says.
            ids: a name for each image, which decides its samples with `key`; None: "0", "1", ...
        Returns:
            For each image, at its own size: mask bool[H, W], probability f32[H, W], deviation
            f32[H, W] and uncertainty, 0 to 1; the last two are None with a single sample. With K
            classes, the mask is u8[H, W], places in `classes.names`, and the probability is
            f32[H, W, K].
        Raises:
            UserError: naming an image that is not u8[H, W, 3], or a setting that is wrong.
        """
        if not isinstance(key, int | None):
            raise UserError(f"key={key!r} is not an int, the seed of the samples")
        given = {k: v for k, v in (("steps", steps), ("samples", samples)) if v is not None}
        if given:
            return self.with_fields(**given).predict(images, key=key, ids=ids)
        images = [np.asarray(image) for image in images]
        ids = [str(i) for i in range(len(images))] if ids is None else ids
        if len(ids) != len(images):
            raise UserError(f"{len(ids)} ids for {len(images)} images")
        for id, image in zip(ids, images, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"image {id}: {image.dtype}{image.shape} is not uint8 (H, W, 3)")
        correct, found = COLOUR_CONSTANCY[self.config.data.colour_constancy], []
        inputs = (
            {"id": id, "input": correct(resize_image(x, self.input_size)), "size": x.shape[:2]}
            for id, x in zip(ids, images, strict=True)
        )
        count = parallel.batch_size(self.batch_size, len(images))
        for group, valid in padded_batches(inputs, count):
            batch = np.stack([example["input"] for example in group])
            made = self.sample(batch, [example["id"] for example in group], seed=key)
            found += [self.segment(made[:, i], group[i]["size"]) for i in np.flatnonzero(valid)]
        return found


def load(path: str | Path | Sequence[str | Path], **sampling: Any) -> Model:
    """A trained model; with several paths, the mean of their probabilities.

    Args:
        path: a workdir of train.py, a folder of checkpoints or one checkpoint.
        sampling: fields of `config.sampler`, such as steps, samples or threshold, "seed" and
            "variance" (of DDPM's steps). What is None or absent is as the run's config says. With
            several paths, "temperature" belongs to the mean.
    Raises:
        FileNotFoundError: if there is no checkpoint.
        UserError: naming what does not fit.
    """
    sampling = {name: value for name, value in sampling.items() if value is not None}
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise UserError("no path of a model is given")
    temperature = sampling.pop("temperature", 1.0) if len(paths) > 1 else None
    models = []
    for checkpoint in map(find_checkpoint, paths):
        config = saved_config(load_meta(checkpoint))
        set_fields(config, _full_names(sampling))
        like = variables_like(make_method(config))
        variables = parallel.replicate(load_variables(checkpoint, like))
        workdir = checkpoint.parent.parent.parent
        history = _history(workdir / "metrics.csv") if (workdir / "checkpoints").is_dir() else []
        origin = {"checkpoint": str(checkpoint), "saved": saved_at(checkpoint)}
        models.append(make_model_of(config, variables, origin, history))
    return models[0] if temperature is None else make_ensemble(models, temperature)


def make_model_of(
    config: ConfigDict,
    variables: Any,
    origin: Mapping[str, Any],
    history: Sequence[dict[str, float | None]] = (),
) -> Model:
    """A model of a whole config; UserError names a field that is wrong. Compiles nothing yet.

    `origin` says where the variables come from and begins the settings.
    """
    check(config)
    method, data, sampler = make_method(config), config.data, config.sampler
    windows, classes = make_windows(data, sampler), classes_of(data)
    settings = dict(origin) | {"model": config.model.name, "image size": data.image_size}
    settings |= {"full size": data.full_size} if data.full_size else {}
    settings |= {"colour constancy": data.colour_constancy}
    if classes.several:
        settings |= {"classes": classes.names, "mask values": classes.values}
    if len(method.timesteps):
        settings |= {"seed": config.seed, "variance": config.diffusion.variance}
    unread = {*method.unread} | (set() if windows else {"native", "overlap"})
    read = {name: value for name, value in sampler.items() if name not in unread}
    settings |= {{"name": "sampler"}.get(name, name): value for name, value in read.items()}
    driver = Driver(method, sampler.max_batch, sampler.max_memory, windows)
    return Model(config, settings, driver, variables, history=history)


def make_ensemble(members: Sequence[Model], temperature: float = 1.0) -> Model:
    """Several models, the mean of whose probabilities is divided by a temperature.

    Raises:
        UserError: naming a field of `ALIKE` in which the models differ.
    """
    for section, fields in ALIKE.items():
        for field in fields:
            values = [member.config[section][field] for member in members]
            if any(value != values[0] for value in values):
                raise UserError(f"the models of an ensemble differ in {section}.{field}: {values}")
    config = members[0].config.copy_and_resolve_references()
    set_fields(config, {"sampler.temperature": temperature})
    check(config)
    models = " + ".join(member.settings["model"] for member in members)
    settings = {"model": models, "temperature": temperature}
    settings |= {f"{i}. {k}": v for i, m in enumerate(members, 1) for k, v in m.settings.items()}
    return Model(config, settings, members=tuple(members))


def _full_names(sampling: Mapping[str, Any]) -> dict[str, Any]:
    places = {"seed": "seed", "variance": "diffusion.variance"}
    return {places.get(name, f"sampler.{name}"): value for name, value in sampling.items()}


def _history(path: Path) -> list[dict[str, float | None]]:
    try:
        with path.open(newline="") as file:
            return [
                {name: float(value) if value else None for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError):  # Only the report's curves need it.
        return []


def run_name(path: str | Path) -> str:
    """The name of the workdir that a path of `load` lies in or is."""
    path = Path(path).absolute()
    held = (folder for folder in (path, *path.parents) if (folder / "checkpoints").is_dir())
    return next(held, path).name
