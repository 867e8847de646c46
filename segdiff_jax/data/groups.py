"""Images that must share a split: copies of one file and, if a user says so, those of one group."""

import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segdiff_jax.runtime.errors import UserError, some

# {id: what it may have in common with other images: a hash of its bytes and, if any, its group}.
Keys = Mapping[str, Sequence[str]]


class Groups(NamedTuple):
    """What tells an image's group, such as its patient, by its id; without both, there are none."""

    file: str = ""  # A CSV file with the columns id and group.
    pattern: str = ""  # A regular expression: the group is what its first parentheses match.

    def fingerprint(self) -> str:
        """It differs if the groups may differ."""
        content = _content(self.file) if self.file else ""
        return hashlib.sha256(f"{self.pattern}\n{content}".encode()).hexdigest()


NO_GROUPS = Groups()


def groups_of(ids: Collection[str], groups: Groups) -> dict[str, str]:
    """{id: group} of the images that have one; prints which have none.

    In the CSV file, an id may have an ending, such as ".jpg". A UserError names what cannot be
    read, an id of two groups, or says that no image has a group.
    """
    if not any(groups):
        return {}
    told = f"data.group_{'file' if groups.file else 'pattern'}={(groups.file or groups.pattern)!r}"
    if groups.file:
        table = _table(groups.file, told)
        found = {id: table[id] for id in ids if table.get(id)}
    else:
        try:
            matches = {id: re.search(groups.pattern, id) for id in ids}
        except re.error as error:
            raise UserError(f"{told} is no regular expression: {error}") from error
        found = {id: m[min(1, m.re.groups)] for id, m in matches.items() if m}
    alone = sorted(set(ids) - found.keys())
    if ids and not found:
        raise UserError(f"{told} has a group for none of {len(ids)} images, such as {alone[0]}")
    if alone:
        print(f"{told} has no group for {len(alone)} images: {some(alone)}", flush=True)
    return found


def leave_out_copies(parts: Mapping[str, Keys]) -> dict[str, Keys]:
    """The same parts without images that have a key of a later part; prints which."""
    kept, part_of = {}, {}
    for part, images in reversed(parts.items()):
        kept[part] = {id: keys for id, keys in images.items() if part_of.keys().isdisjoint(keys)}
        if copies := sorted(images.keys() - kept[part].keys()):
            others = {part_of[key] for id in copies for key in images[id] if key in part_of}
            print(
                f"{len(copies)} images are left out, because {' and '.join(sorted(others))} has "
                f"the same image or group: {some(copies)}",
                flush=True,
            )
        part_of |= dict.fromkeys(itertools.chain(*images.values()), part)
    return dict(reversed(kept.items()))


def split_by_group(
    images: Keys, split: Callable[[list[str]], dict[str, list[str]]]
) -> dict[str, list[str]]:
    """{split: ids}; `split` splits the first id of each group. Prints how many images are copies.

    Images that have a key in common, directly or through others, are one group.
    """
    first: dict[str, str] = {}

    def first_of(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for id in sorted(images):
        joined = {first_of(f"id {id}"), *(first_of(key) for key in images[id])}
        ids = sorted(name for name in joined if name.startswith("id "))
        for name in joined:
            first[name] = ids[0]
    firsts = {id: first_of(f"id {id}").removeprefix("id ") for id in sorted(images)}
    if copies := len(images) - len({keys[0] for keys in images.values()}):
        print(f"{copies} images are copies of others: copies share a split", flush=True)
    chosen = split(sorted(set(firsts.values()))).items()
    return {name: [i for i, of in firsts.items() if of in {*ids}] for name, ids in chosen}


def _table(path: str, told: str) -> dict[str, str]:
    """{id, also without its ending: group} of a CSV file."""
    table: dict[str, str] = {}
    for row in csv.DictReader(_content(path).splitlines()):
        if not row.keys() >= {"id", "group"}:
            columns = ", ".join(filter(None, row))
            raise UserError(f"{told} must have the columns id and group; it has {columns}")
        id, group = row["id"], row["group"]
        for name in {id, re.sub(r"\.\w{3,4}$", "", id)}:
            if table.setdefault(name, group) != group:
                raise UserError(f"{told}: {name} has two groups, {table[name]} and {group}")
    return table


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.group_file={path!r} cannot be read: {error}") from error
