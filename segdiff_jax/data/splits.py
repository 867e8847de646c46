"""Which images are held out, by a fixed hash of their id; shared by the builders."""

import hashlib
import re
from collections.abc import Iterable


def is_validation(id: str) -> bool:
    """Whether a training image belongs to the validation split: a fixed hash, about 10% of ids."""
    return _hash(id) % 10 == 0


def hashed_split(id: str) -> str:
    """Split of an image of a data set without official ones: about 10% validation, 20% test."""
    return {0: "validation", 1: "test", 2: "test"}.get(_hash(id) % 10, "train")


def by_hash(ids: Iterable[str]) -> dict[str, list[str]]:
    """{"train": ids, "validation": ids, "test": ids}, see `hashed_split`."""
    splits = {id: hashed_split(id) for id in ids}
    return {
        split: [id for id in splits if splits[id] == split]
        for split in ("train", "validation", "test")
    }


def hold_out(ids: Iterable[str]) -> dict[str, list[str]]:
    """{"train": ids, "validation": ids}, neither of them empty if there are two ids or more.

    Where `is_validation` holds out none or all, the first tenth by hash, at least one, is held out.
    """
    ids = sorted(ids)
    held = {id for id in ids if is_validation(id)}
    if len(held) in (0, len(ids)):
        held = set(sorted(ids, key=_hash)[: max(1, len(ids) // 10)])
    return {"train": [id for id in ids if id not in held], "validation": sorted(held)}


def fold_of(id: str, folds: int) -> int:
    """The fold of an image, from 0 to `folds` - 1.

    By the same hash, without its last digit, because `hashed_split` uses that one.
    """
    return _hash(id) // 10 % folds


def has_training_images(split: str) -> bool:
    """Whether a split, such as "train[:50%]+test", has images of training or validation."""
    return bool(re.search(r"\b(train|validation|all)\b", split))


def _hash(id: str) -> int:
    return int(hashlib.sha256(id.encode()).hexdigest(), 16)
