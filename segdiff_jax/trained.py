"""A trained model as its checkpoint holds it, ready to segment."""

import csv
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.checkpoint import find_checkpoint, load_meta, load_variables, saved_at
from segdiff_jax.data.classes import Classes, classes_of, mask_channels
from segdiff_jax.data.colour import find_colour_constancy
from segdiff_jax.data.folder import MASK_ENDINGS
from segdiff_jax.data.pipeline import padded_batches, resize_image
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.ensemble import Combined
from segdiff_jax.evaluation.predict import EnsemblePredictor, make_predictor
from segdiff_jax.evaluation.predictor import Predictor
from segdiff_jax.evaluation.windows import input_size, window_size
from segdiff_jax.models import is_diffusion, make_model, variables_like

# Fields that came later, as runs were that lack them.
LATER = {
    "objective": "diffusion",
    "data": {
        "full_size": 0,
        "images": "",
        "masks": "",
        "mask_endings": MASK_ENDINGS,
        "classes": (),
        "mask_values": (),
    },
    "sampler": {
        "max_memory": 0.0,
        "rotations": False,
        "temperature": 1.0,
        "native": False,
        "overlap": 0.25,
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """One model or an ensemble.

    Attributes:
        config: of the run, the first one's if there are several.
        predictor: makes masks of images.
        variables: what it takes for that.
        settings: what made the masks, for a report.
        history: the rows of the training's metrics.csv, if that lies where the checkpoint does.
        sampled: the same with other `sampling`, as `load` takes it.
    """

    config: ConfigDict
    predictor: Predictor
    variables: Any = dataclasses.field(repr=False)
    settings: dict[str, Any]
    history: list[dict[str, float | None]] = dataclasses.field(repr=False)
    sampled: Callable[..., "Trained"] = dataclasses.field(repr=False)

    @property
    def input_size(self) -> int | Callable[[tuple[int, int]], tuple[int, int]]:
        """See `windows.input_size`."""
        return input_size(self.config.data, self.config.sampler)

    @property
    def classes(self) -> Classes | None:
        """Of the masks, if they have several; None: lesion or not."""
        return classes_of(self.config.data)

    def predict(
        self,
        images: Sequence[np.ndarray],
        steps: int | None = None,
        votes: int | None = None,
        key: int | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Combined]:
        """Segments images, as sample.py does; with few images, each other number is compiled.

        Args:
            images: u8[H, W, 3] each, sRGB, of any sizes; or u8[B, H, W, 3].
            steps: of the sampler; None: as the run says. Other values are compiled.
            votes: samples of each image; likewise.
            key: seed of the samples, an int; likewise, but nothing is compiled.
            ids: a name for each image, with which and `key` its samples are always the same; None:
                "0", "1" and so on.
        Returns:
            Of each image, at its own size, mask bool[H, W], probability f32[H, W], deviation
            f32[H, W] and uncertainty, 0 to 1; the last two None of a single vote. Of K classes, the
            mask is u8[H, W], their places in `classes.names`, and the probability f32[H, W, K]. See
            `Combined`.
        Raises:
            ValueError: naming an image that is not u8[H, W, 3], or a setting that cannot be.
        """
        if not isinstance(key, int | None):
            raise ValueError(f"key={key!r} is not an int, the seed of the samples")
        given = {"steps": steps, "votes": votes}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            return self.sampled(**given).predict(images, key=key, ids=ids)
        predictor = self.predictor if key is None else self.predictor.seeded(key)
        images = [np.asarray(image) for image in images]
        ids = [str(i) for i in range(len(images))] if ids is None else ids
        if len(ids) != len(images):
            raise ValueError(f"{len(ids)} ids for {len(images)} images")
        for id, image in zip(ids, images, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"image {id}: {image.dtype}{image.shape} is not uint8 (H, W, 3)")
        data, predictions = self.config.data, []
        correct = find_colour_constancy(data.colour_constancy)
        inputs = (
            {"id": id, "input": correct(resize_image(image, self.input_size)), "image": image}
            for id, image in zip(ids, images, strict=True)
        )
        count = min(predictor.batch_size, parallel.round_up(max(1, len(images))))
        for group, valid in padded_batches(inputs, count):
            batch = np.stack([example["input"] for example in group])
            samples = predictor(self.variables, batch, [example["id"] for example in group])
            for i in np.flatnonzero(valid):
                size = group[i]["image"].shape[:2]
                predictions.append(predictor.at_size(samples[:, i], size))
        return predictions


def load(path: str | Path | Sequence[str | Path], **sampling: Any) -> Trained:
    """A trained model; of several paths, the mean of their probabilities.

    Args:
        path: a workdir of train.py, a folder of checkpoints or one checkpoint.
        sampling: fields of `config.sampler`, such as steps, votes, ensemble or threshold, and
            "seed", the seed of the samples; what is None or not given is as the run's config says.
            Of several paths, "temperature" is that of the mean.
    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: naming what does not fit.
    """
    sampling = {name: value for name, value in sampling.items() if value is not None}
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise ValueError("no path of a model is given")
    if len(paths) == 1:
        return _load(paths[0])(**sampling)
    temperature = sampling.pop("temperature", 1.0)
    return _ensemble([_load(one)(**sampling) for one in paths], temperature)


def set_fields(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Sets fields of a config.

    Raises:
        ValueError: naming a field that does not exist or has another type.
    """
    for field, value in fields.items():
        if field not in config:
            raise ValueError(f"{field}={value}: no such field; there are {', '.join(config)}")
        kind = type(config[field]).__name__
        try:
            config[field] = value
        except TypeError as error:
            raise ValueError(f"{field}={value}: {field} is of type {kind}") from error


def _load(path: str | Path) -> Callable[..., Trained]:
    """Reads a checkpoint; what is returned makes a `Trained` of it with the given sampling."""
    checkpoint = find_checkpoint(path)
    saved = load_meta(checkpoint)["config"]
    model = make_model(ConfigDict(saved["model"]))
    classes = classes_of(LATER["data"] | saved["data"])
    process = make_process(ConfigDict(saved["diffusion"]), mask_channels(classes))
    like = variables_like(model, saved["data"]["image_size"], process.input_channels)
    variables = parallel.replicate(load_variables(checkpoint, like))
    workdir = checkpoint.parent.parent.parent
    history = _history(workdir / "metrics.csv") if (workdir / "checkpoints").is_dir() else []

    def sampled(**sampling: Any) -> Trained:
        config = ConfigDict(LATER | saved)
        for section in ("data", "sampler"):
            config[section] = ConfigDict(LATER[section] | saved[section])
        set_fields(config, {name: sampling.pop(name) for name in ("seed",) if name in sampling})
        set_fields(config.sampler, sampling)
        return made(config.to_json())

    @functools.lru_cache(maxsize=4)  # Each holds its compiled programs.
    def made(config: str) -> Trained:
        config = ConfigDict(json.loads(config))
        data, window = config.data, window_size(config.data, config.sampler)
        predictor = make_predictor(model, process, config.sampler, config.seed, window)
        settings = {"checkpoint": str(checkpoint), "saved": saved_at(checkpoint)}
        settings |= {"model": config.model.name}
        settings |= {"image size": data.image_size}
        settings |= {"full size": data.full_size} if data.full_size else {}
        settings |= {"colour constancy": data.colour_constancy}
        settings |= {"classes": classes.names, "mask values": classes.values} if classes else {}
        fields = ["native", "overlap"] if window else []
        fields += ["flips", "rotations", "ensemble", "temperature", "threshold", "max_batch"]
        if is_diffusion(model):
            settings |= {"seed": config.seed, "sampler": config.sampler.name}
            fields = [field for field in config.sampler if field != "name"]
            fields = fields if window else [f for f in fields if f not in ("native", "overlap")]
        settings |= {field: config.sampler[field] for field in fields}
        more = lambda **others: sampled(**{"seed": config.seed} | config.sampler.to_dict() | others)
        return Trained(config, predictor, variables, settings, history, more)

    return sampled


def _ensemble(members: Sequence[Trained], temperature: float = 1.0) -> Trained:
    """The mean of several models' probabilities as one more, then at a temperature.

    Raises:
        ValueError: if the models do not see images alike, or their thresholds differ.
    """
    first = members[0]
    for section, field in (
        ("data", "image_size"),
        ("data", "colour_constancy"),
        ("data", "full_size"),
        ("data", "classes"),
        ("data", "mask_values"),
        ("sampler", "native"),
        ("sampler", "threshold"),
    ):
        values = [member.config[section][field] for member in members]
        if any(value != values[0] for value in values):
            raise ValueError(f"the models of an ensemble differ in {section}.{field}: {values}")
    sampler = first.config.sampler.copy_and_resolve_references()
    set_fields(sampler, {"temperature": temperature})
    predictor = EnsemblePredictor([member.predictor for member in members], sampler)
    settings = {f"{i}. {k}": v for i, m in enumerate(members, 1) for k, v in m.settings.items()}
    models = " + ".join(m.settings["model"] for m in members)
    settings = {"model": models, "temperature": temperature} | settings

    def sampled(temperature: float = temperature, **others: Any) -> Trained:
        return _ensemble([member.sampled(**others) for member in members], temperature)

    variables = [member.variables for member in members]
    return Trained(first.config, predictor, variables, settings, [], sampled)


def _history(path: Path) -> list[dict[str, float | None]]:
    try:
        with path.open(newline="") as file:
            return [
                {name: float(value) if value else None for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError):  # It is for the report's curves alone.
        return []


def run_name(path: str) -> str:
    """The workdir's name, of a checkpoint in it, too."""
    parts = Path(path).absolute().parts
    return parts[parts.index("checkpoints") - 1 if "checkpoints" in parts else -1]
