"""The records of a built data set: of a split, or of a fold of its training images."""

import dataclasses
import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

from segdiff_jax.data.groups import NO_GROUPS, Groups
from segdiff_jax.data.sources import fingerprint
from segdiff_jax.data.splits import fold_of, has_training_images
from segdiff_jax.runtime.errors import UserError


@dataclasses.dataclass(eq=False, repr=False)
class Records(Sequence):
    """The records of one or several sources as one sequence."""

    records: list[tuple[Sequence[dict], int]]  # Source and place of each.
    fingerprint: str  # It differs if the records differ.
    members: str  # It differs if other images are in it; "" if a build does not say which.
    statistics: Any  # `Statistics.summary` or None.
    extra: int = 0  # Number of records, the last ones, that are of extra data sets.
    most_masks: int = 0  # of an image, if several annotators drew masks, see annotations.py
    # Names of them, their skills and tools; with folds, those of training and validation.
    annotators: Collection[str] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        source, i = self.records[index]
        return source[i]


class Rules(NamedTuple):
    """How images are split, and whether a split without any foreground is taken."""

    groups: Groups = NO_GROUPS
    empty_splits: bool = False
    folds: int = 0  # See `data.folds`.
    fold: int = 0


NO_RULES = Rules()


def metadata_of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """What a build says of itself, see `PairsBuilder`; {} if it says nothing."""
    return builder.info.metadata or {}


def read_split(builder: tfds.core.DatasetBuilder, split: str, rules: Rules = NO_RULES) -> Records:
    """A split of a built data set; names and errors as of `prepare.load_source`."""
    if rules.folds:
        return _read_fold(builder, split, rules)
    encoded = {"image", "mask", "annotations"} & builder.info.features.keys()
    skip = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
    try:
        source = builder.as_data_source(split, decoders=skip)
    except (ValueError, AssertionError) as error:  # TFDS: there is no such split or slice.
        raise UserError(f"split {split!r} of {builder.info.full_name}: {error}") from error
    stats = [(path.name, path.stat()) for path in sorted(Path(builder.data_path).iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    metadata, records = metadata_of(builder), [(source, i) for i in range(len(source))]
    members = metadata.get("members", {}).get(split, "")
    name = fingerprint((builder.info.full_name, split, files))
    names = metadata.get("split_annotators", {})
    return Records(
        records,
        name,
        members,
        metadata.get("statistics"),
        most_masks=metadata.get("most_masks", 0),
        annotators={one for part in re.findall(r"\w+", split) for one in names.get(part, ())},
    )


@functools.lru_cache(maxsize=1)
def ids_of(records: Records) -> list[str]:
    """Their ids, for which all images are read; kept for the next split of the same records."""
    return [record["id"].decode() for record in tqdm(records, "reading ids", leave=False)]


def _read_fold(builder: tfds.core.DatasetBuilder, split: str, rules: Rules) -> Records:
    """A split, after the images of training and validation are cut into folds."""
    if split not in ("train", "validation"):
        if has_training_images(split):
            raise UserError(f"split {split!r}: with data.folds, give 'train' or 'validation'")
        return read_split(builder, split)
    both, joined = read_split(builder, "train+validation"), metadata_of(builder).get("joined", {})
    ids = ids_of(both)
    folds = [fold_of(joined.get(id, id), rules.folds) for id in ids]
    if empty := {*range(rules.folds)} - {*folds}:
        raise UserError(
            f"data.folds={rules.folds}: no image of {builder.info.full_name} is in fold "
            f"{min(empty)}: choose fewer folds"
        )
    held = split == "validation"
    chosen = [i for i, fold in enumerate(folds) if (fold == rules.fold) == held]
    return dataclasses.replace(
        both,
        records=[both.records[i] for i in chosen],
        fingerprint=fingerprint((both.fingerprint, split, rules.folds, rules.fold)),
        members=fingerprint(sorted(ids[i] for i in chosen)),
    )
