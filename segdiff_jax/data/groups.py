"""Images that must share a split: copies of one file and, if a user says so, those of one group."""

import csv
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segdiff_jax.data.folder import IMAGE_SUFFIXES
from segdiff_jax.data.sources import digest
from segdiff_jax.runtime.errors import UserError, some
from segdiff_jax.runtime.files import read_given

# {id: what it may have in common with other images: a hash of its bytes and, if any, its group}.
Keys = Mapping[str, Sequence[str]]


class Groups(NamedTuple):
    """What tells an image's group, such as its patient, by its id; without both, there are none."""

    file: str = ""  # A CSV file with the columns id and group.
    pattern: str = ""  # A regular expression: the group is what its first parentheses match.

    def fingerprint(self) -> str:
        """It differs if the groups may differ."""
        content = read_given(self.file, str(self)) if self.file else ""
        return digest(f"{self.pattern}\n{content}".encode())

    def __str__(self) -> str:
        if self.file:
            return f"data.group_file={self.file!r}"
        return f"data.group_pattern={self.pattern!r}"


NO_GROUPS = Groups()


def groups_of(ids: Collection[str], groups: Groups) -> dict[str, str]:
    """{id: group} of the images that have one.

    In the CSV file, an id may have an image's ending, such as ".jpg". A UserError names what cannot
    be read, and an id of two groups.
    """
    if groups.file:
        table = _table(groups)
        found = {id: table.get(id) for id in ids}
    elif groups.pattern:
        try:
            matches = {id: re.search(groups.pattern, id) for id in ids}
        except re.error as error:
            raise UserError(f"{groups} is no regular expression: {error}") from error
        found = {id: m and m[min(1, m.re.groups)] for id, m in matches.items()}
    else:
        found = {}
    return {id: group for id, group in found.items() if group}


def check_groups(ids: Collection[str], found: Mapping[str, str], groups: Groups) -> None:
    """Prints which images have no group; a UserError if that is all of them."""
    alone = sorted(set(ids) - found.keys())
    if any(groups) and alone and not found:
        raise UserError(f"{groups} has a group for none of {len(ids)} images, such as {alone[0]}")
    if any(groups) and alone:
        print(f"{groups} has no group for {len(alone)} of the images: {some(alone)}", flush=True)


def leave_out_copies(parts: Mapping[str, Keys]) -> dict[str, Keys]:
    """The same parts without images that belong together with one of a later part; prints which."""
    images = {(part, id): keys for part, of_part in parts.items() for id, keys in of_part.items()}
    first, last, order = first_of_each(images), {}, list(parts)
    for (part, _), name in first.items():
        last[name] = max(last.get(name, 0), order.index(part))
    kept, copies = {part: {} for part in parts}, {part: [] for part in parts}
    for (part, id), name in first.items():
        if (latest := order[last[name]]) == part:
            kept[part][id] = images[part, id]
        else:
            copies[latest].append(id)
    for part, ids in copies.items():
        if ids:
            print(
                f"left out, because {part} has the same image or group: {len(ids)} ({some(ids)})",
                flush=True,
            )
    return kept


def split_by_group(
    images: Keys, split: Callable[[list[str]], dict[str, list[str]]]
) -> dict[str, list[str]]:
    """{split: ids}; `split` splits the first ids of those that belong together.

    Prints how many images are copies of others.
    """
    first = first_of_each(images)
    if copies := len(images) - len({keys[0] for keys in images.values()}):
        print(f"copies of other images: {copies}; copies share a split", flush=True)
    chosen = {name: {*ids} for name, ids in split(sorted({*first.values()})).items()}
    return {name: [id for id in first if first[id] in ids] for name, ids in chosen.items()}


def first_of_each(images: Mapping[Hashable, Sequence[str]]) -> dict[Hashable, Hashable]:
    """{image: the first one of those that belong together}, in the order of their names.

    Images belong together if they have a key in common, directly or through others.
    """
    first: dict[Hashable, Hashable] = {}
    owner: dict[str, Hashable] = {}  # An image of each key.

    def first_of(image: Hashable) -> Hashable:
        while first.setdefault(image, image) != image:
            image = first[image]
        return image

    for image in sorted(images):
        joined = sorted(
            {first_of(image), *(first_of(owner.get(key, image)) for key in images[image])}
        )
        first |= dict.fromkeys(joined, joined[0])
        owner |= dict.fromkeys(images[image], image)
    return {image: first_of(image) for image in sorted(images)}


def _table(groups: Groups) -> dict[str, str]:
    """{id, also without its ending: group} of a CSV file."""
    table: dict[str, str] = {}
    reader = csv.DictReader(read_given(groups.file, str(groups)).splitlines())
    if not {"id", "group"} <= {*(reader.fieldnames or ())}:
        columns = ", ".join(reader.fieldnames or ["none"])
        raise UserError(f"{groups} must have the columns id and group; it has {columns}")
    for row in reader:
        id, group = row["id"], row["group"]
        if id is None or group is None:
            raise UserError(f"{groups}, line {reader.line_num}: there are too few columns")
        plain = id[: -len(Path(id).suffix)] if id.lower().endswith(IMAGE_SUFFIXES) else id
        for name in {id, plain}:
            if table.setdefault(name, group) != group:
                raise UserError(f"{groups}: {name} has two groups, {table[name]} and {group}")
    return table
