"""A trained model as its checkpoint holds it, ready to segment."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax import parallel
from segdiff_jax.checkpoint import find_checkpoint, load_meta, load_variables, saved_at
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.predict import EnsemblePredictor, make_predictor
from segdiff_jax.evaluation.predictor import Predictor
from segdiff_jax.models import is_diffusion, make_model, variables_like


@dataclasses.dataclass(frozen=True)
class Trained:
    """One model or an ensemble.

    Attributes:
        config: of the run, the first one's if there are several.
        predictor: makes masks of images.
        variables: what it takes for that.
        settings: what made the masks, for a report.
    """

    config: ConfigDict
    predictor: Predictor
    variables: Any
    settings: dict[str, Any]


def load_trained(
    path: str | Path,
    defaults: ConfigDict,
    change: Callable[[ConfigDict], None] = lambda config: None,
) -> Trained:
    """Loads a checkpoint of train.py.

    Args:
        path: see `checkpoint.find_checkpoint`.
        defaults: values of the fields that the run did not know yet.
        change: changes how the run's config samples: its sampler and seed.
    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: naming what does not fit.
    """
    checkpoint = find_checkpoint(path)
    saved, config = load_meta(checkpoint)["config"], defaults.copy_and_resolve_references().unlock()
    config.model = ConfigDict()  # The fields of another network are none of its own.
    config.update(saved)
    change(config)
    model, process = make_model(config.model), make_process(config.diffusion)
    like = variables_like(model, config.data.image_size, process.input_channels)
    variables = parallel.replicate(load_variables(checkpoint, like))
    predictor = make_predictor(model, process, config.sampler, config.seed)
    settings = {"checkpoint": str(checkpoint), "saved": saved_at(checkpoint)}
    settings |= {"model": config.model.name}
    settings |= {"image size": config.data.image_size}
    settings |= {"colour constancy": config.data.colour_constancy}
    fields = ["flips", "ensemble", "threshold", "max_batch"]
    if is_diffusion(model):
        settings |= {"seed": config.seed, "sampler": config.sampler.name}
        fields = [field for field in config.sampler if field != "name"]
    settings |= {field: config.sampler[field] for field in fields}
    return Trained(config, predictor, variables, settings)


def ensemble_of(members: Sequence[Trained]) -> Trained:
    """The mean of several models' probabilities as one more; of one model, that itself.

    Raises:
        ValueError: if the models do not see images alike, or their thresholds differ.
    """
    first, *others = members
    if not others:
        return first
    for section, field in (
        ("data", "image_size"),
        ("data", "colour_constancy"),
        ("sampler", "threshold"),
    ):
        values = [member.config[section][field] for member in members]
        if len(set(values)) > 1:
            raise ValueError(f"the models of an ensemble differ in {section}.{field}: {values}")
    predictor = EnsemblePredictor([member.predictor for member in members], first.config.sampler)
    settings = {f"{i}. {k}": v for i, m in enumerate(members, 1) for k, v in m.settings.items()}
    settings = {"model": " + ".join(m.settings["model"] for m in members)} | settings
    return Trained(first.config, predictor, [member.variables for member in members], settings)


def run_name(path: str) -> str:
    """The workdir's name, of a checkpoint in it, too."""
    parts = Path(path).absolute().parts
    return parts[parts.index("checkpoints") - 1 if "checkpoints" in parts else -1]
