"""What a run that resumes, or starts from another one's parameters, must have in common with it."""

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segdiff_jax.config import changes, saved_config, with_absolute_paths
from segdiff_jax.evaluation.metrics import ENERGY
from segdiff_jax.runtime.checkpoint import Checkpoints, find_checkpoint, load_meta
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import NETWORK, RUN

# What decides which images a fold has.
FOLD_OF = operator.attrgetter(
    *("dataset", "images", "masks", "group_file", "group_pattern", "folds", "fold")
)


def check_resumable(
    checkpoints: Checkpoints, config: ConfigDict, workdir: Path, accept_changes: bool
) -> dict[str, Any] | None:
    """The metadata of the last checkpoint, None if there is none; prints what changed since.

    A UserError names fields that changed and are fixed for a run, unless `accept_changes`; or says
    that the workdir holds an imported checkpoint.
    """
    meta = checkpoints.last_meta()
    if meta is None:
        if "args" in (checkpoints.best_meta() or {}):
            raise UserError(
                f"{workdir} holds an imported checkpoint: train from it with another --workdir and "
                f"--config=configs/saved.py:{workdir}"
            )
        return None
    before = with_absolute_paths(saved_config(meta))
    lines = _lines(changes(before, config), "before", "now")
    if changes(before, config, (RUN, NETWORK)) and not accept_changes:
        raise UserError(
            f"{workdir} holds a run with another config; give it another --workdir, the same "
            "config, or --accept_changes:\n  " + "\n  ".join(lines)
        )
    for line in lines:
        print(line, flush=True)
    return meta


def check_same_images(
    meta: dict[str, Any], count: int, members: str, config: ConfigDict, accept_changes: bool
) -> None:
    """Raises a UserError if a resumed run had another number of training images, or other ones."""
    count_before, before = meta["training_images"], meta.get("training_members")
    changed = count_before != count or (members and before and before != members)
    if changed and not accept_changes:
        others = "other ones" if count_before == count else count
        raise UserError(
            f"the run was trained on {count_before} images, and {config.data.dataset} now has "
            f"{others}: give another --workdir, or --accept_changes"
        )


def check_same_network(config: ConfigDict) -> Path:
    """The checkpoint of `train.init_from`; prints how its `config.diffusion` differs.

    A UserError says that it holds another network, or that it has seen images of the fold.
    """
    path = config.train.init_from
    checkpoint = find_checkpoint(path)
    before = saved_config(load_meta(checkpoint))
    if other := changes(before, config, (NETWORK,)):
        raise UserError(
            f"train.init_from={path} holds another network; --config=configs/saved.py:WORKDIR has "
            "its config:\n  " + "\n  ".join(_lines(other, "there", "here"))
        )
    data = config.data
    for other in (run.data for run in _with_its_starts(before)):
        either = data.folds or other.folds
        if either and _shares_images(data, other) and FOLD_OF(data) != FOLD_OF(other):
            raise UserError(
                f"train.init_from={path} may have been trained on images that score this run "
                f"(it has data.folds={other.folds}, data.fold={other.fold}; this run "
                f"{data.folds}, {data.fold}): leave it out, or start from a run of the same fold"
            )
    changed = changes(before, config, (RUN,))
    changed = {name: pair for name, pair in changed.items() if name.startswith("diffusion.")}
    for line in _lines(changed, "there", "here"):
        print(f"train.init_from: {line}", flush=True)
    return checkpoint


def _with_its_starts(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config of a run, of the run that it started from, and so on, as far as they are there."""
    paths = set()
    while True:
        yield config
        if (path := config.train.init_from) in ("", *paths):
            return
        paths.add(path)
        try:
            config = saved_config(load_meta(find_checkpoint(path)))
        except (FileNotFoundError, UserError):
            return


def _shares_images(data: ConfigDict, other: ConfigDict) -> bool:
    """Whether a run on `other` may have seen images of `data.dataset`; years of ISIC share some."""
    if data.dataset == other.dataset == "paired_folder":
        return data.images == other.images
    family = lambda name: name.partition("/")[0]
    return family(data.dataset) in map(family, (other.dataset, *other.extra_datasets))


def best_score(checkpoints: Checkpoints, config: ConfigDict) -> float | None:
    """The best validation score so far, if it was found by the same validation as now's."""
    meta = checkpoints.best_meta() or {}
    name = config.validation.scores[0]
    score = f"validation_{name}"
    if score not in meta:
        return None
    changed = changes(saved_config(meta), config)
    free = "validation.every", "sampler.steps", "sampler.samples", "sampler.native"
    free += "sampler.max_batch", "sampler.max_memory"
    free += () if name == ENERGY else ("sampler.samples_from",)
    same = "validation.", "sampler.", "diffusion.variance"
    other = any(field.startswith(same) and field not in free for field in changed)
    return None if other else meta[score]


def _lines(changed: dict[str, tuple[Any, Any]], before: str, now: str) -> list[str]:
    return [
        f"config.{name}: {old!r} {before}, {new!r} {now}" for name, (old, new) in changed.items()
    ]
