"""Builds a data set if it is not there yet, and opens a split of it."""

import functools
import importlib
import pkgutil
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from segdiff_jax.data import builders
from segdiff_jax.data.builders.image_and_mask.sets import SETS, builder_of
from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.folder import Folder
from segdiff_jax.data.groups import NO_GROUPS, Groups, groups_of
from segdiff_jax.data.pairs import PairsBuilder
from segdiff_jax.data.records import NO_RULES, Records, Rules, metadata_of, read_split
from segdiff_jax.data.sources import digest, fingerprint
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import locked


def where(data: ConfigDict) -> tuple[str, str, Folder, Rules]:
    """The last four arguments of `load_source`, from the section `data` of a config."""
    own = data.images, data.masks, data.mask_endings, data.several_annotators
    folder = Folder(*own, classes_of(data))
    groups = Groups(data.group_file, data.group_pattern)
    rules = Rules(groups, data.allow_empty_splits, data.folds, data.fold)
    return data.dir, data.manual_dir, folder, rules


def load_source(
    dataset: str,
    split: str,
    data_dir: str,
    manual_dir: str = "",
    folder: Folder | None = None,
    rules: Rules = NO_RULES,
) -> Records:
    """Opens a split, or a part of it: "train" of "monuseg", "train[90%:]" of "isic/2016".

    `data_dir` holds the builds, `manual_dir` the official files, if there are any, and `folder` the
    images and masks of "paired_folder". The data set is built if there is no build, or if the build
    was made of other files. A record is {id: bytes, image: bytes, mask: bytes, height: int, width:
    int}; image and mask are encoded, as in their original files or as PNG. If several annotators
    drew masks, it has the fields of annotations.py, too. With folds, "validation"
    is the fold, and "train" all other images of the two. A UserError says that there is no such
    data set, split or folder, or that the data is faulty.
    """
    builder = _open("data.dataset", dataset, data_dir, manual_dir, folder, rules)
    return read_split(builder, split, rules)


def load_training_source(
    dataset: str,
    extra: Sequence[str],
    data_dir: str,
    manual_dir: str = "",
    folder: Folder | None = None,
    rules: Rules = NO_RULES,
) -> Records:
    """The training split of `dataset`, and then the official training images of `extra`.

    An image of `extra` is left out if a split of `dataset` has its id or the same bytes, or if a
    split that is not trained on has its group: ISIC 2017 has images of the test set of ISIC 2016.
    If `dataset` has no test split, that split is unknown, and a warning says so. For the other
    arguments, names and errors see `load_source`.
    """
    builder = _open("data.dataset", dataset, data_dir, manual_dir, folder, rules)
    source = read_split(builder, "train", rules)
    if not extra:
        return source
    if "test" not in builder.info.splits:
        print(
            f"warning: {dataset} has no test split here, so {', '.join(extra)} may hold images of "
            "it: do not report scores on it",
            flush=True,
        )
    read = lambda split: source if split == "train" else read_split(builder, split, rules)
    keys = {split: _keys(read(split)) for split in builder.info.splits}
    known = {key for of_split in keys.values() for pair in of_split for key in pair}
    ids = [id for split, of_split in keys.items() if split != "train" for id, _ in of_split]
    held = {*groups_of(ids, rules.groups).values()}
    records, parts = [(source, i) for i in range(len(source))], [source.fingerprint]
    added, without_groups = [source.members], rules._replace(groups=NO_GROUPS, folds=0)
    most_masks, annotators = source.most_masks, {*source.annotators}
    for name in extra:
        opened = _open("data.extra_datasets", name, data_dir, manual_dir, folder, without_groups)
        more = read_split(opened, "train+validation")
        new, more_keys = [], _keys(more)
        group_of = groups_of([id for id, _ in more_keys], rules.groups)
        for i, (id, image) in enumerate(more_keys):
            if known.isdisjoint((id, image)) and group_of.get(id) not in held:
                new.append(i)
                known |= {id, image}
        print(f"{name}: {len(new)} of {len(more)} training images are new and are added")
        records += [(more, i) for i in new]
        parts += [more.fingerprint, new]
        added += [more_keys[i] for i in new]
        most_masks = max(most_masks, more.most_masks)
        annotators |= {*more.annotators}
    members = fingerprint(added) if source.members else ""
    return Records(
        records,
        fingerprint(tuple(parts)),
        members,
        source.statistics,
        extra=len(records) - len(source),
        most_masks=most_masks,
        annotators=annotators,
    )


def _keys(records: Records) -> list[tuple[str, str]]:
    """Id and hash of the image of each record."""
    return [(record["id"].decode(), digest(record["image"])) for record in records]


def _open(
    field: str,
    dataset: str,
    data_dir: str,
    manual_dir: str,
    folder: Folder | None,
    rules: Rules,
) -> tfds.core.DatasetBuilder:
    """The builder of a data set, which `field` names, after it has built it; see `load_source`."""
    name, _, config = dataset.partition("/")
    builder_cls, folders = _builder_class(dataset, field), {"data.manual_dir": manual_dir}
    if name == "paired_folder":
        config = builder_cls.config_of(folder or Folder(), rules.groups)
        folders = {"data.images": folder.images, "data.masks": folder.masks}
        manual_dir = folder.images
    configs = builder_cls.builder_configs
    if (config or configs) and (config or "default") not in configs:
        known = ", ".join(f"{name}/{known}" for known in configs) or name
        raise UserError(f"{field}={dataset!r} is unknown; there are {known}")
    options = {"config": config or None, "data_dir": data_dir, "file_format": "array_record"}

    def make() -> tfds.core.DatasetBuilder:
        builder = builder_cls(**options)
        if rules.folds and not getattr(builder, "FOLDS", True):
            raise UserError(
                f"{field}={dataset!r} cannot be cut into folds, because neighbouring images are "
                "almost copies of each other: set data.folds=0"
            )
        if isinstance(builder, PairsBuilder):
            builder.groups = rules.groups
        elif any(rules.groups):
            raise UserError(f"{field}={dataset!r} has no groups: leave out {rules.groups}")
        return builder

    builder = make()
    for given, path in folders.items():
        if not path or Path(path).is_dir():
            continue
        if not builder.data_path.exists():
            raise UserError(f"{given}={path!r} is not a folder")
        if not _is_current(builder, "", rules):
            raise UserError(
                f"{given}={path!r} is not a folder, and {builder.data_path} was built of other "
                "groups or by an older version: give the folder, so that it is built again"
            )
        print(f"{path} is not there; reading {builder.data_path}, built before", flush=True)
        manual_dir = ""
    if manual_dir and isinstance(builder, PairsBuilder):
        for note in builder.notes(manual_dir):
            _say_once(note)
    if not _is_current(builder, manual_dir, rules):
        builder = _build(make, manual_dir, rules)
    empty = metadata_of(builder).get("statistics", {}).get("empty_splits")
    if empty and not rules.empty_splits:
        raise UserError(
            f"{builder.info.full_name}: no mask of {' and '.join(empty)} has any foreground: check "
            "the masks; if that is right, set data.allow_empty_splits=True"
        )
    return builder


@functools.cache
def _say_once(line: str) -> None:
    print(line, flush=True)


def _builder_class(dataset: str, field: str) -> type[tfds.core.DatasetBuilder]:
    """The builder class of a plain data set, or of one that has a package in `builders`."""
    name = dataset.partition("/")[0]
    packages = {package.name for package in pkgutil.iter_modules(builders.__path__)}
    known = sorted((packages | SETS.keys()) - {"image_and_mask"})
    if name not in known:
        raise UserError(f"{field}={dataset!r} is unknown; there are {', '.join(known)}")
    if name in SETS:
        return builder_of(name)
    return importlib.import_module(f"{builders.__name__}.{name}.{name}_dataset_builder").Builder


def _is_current(builder: tfds.core.DatasetBuilder, manual_dir: str, rules: Rules) -> bool:
    """Whether there is a build for these rules, and manual_dir holds its files, or none."""
    if not builder.info.initialized:  # No build was there when the builder was made.
        return False
    if not isinstance(builder, PairsBuilder):
        return True
    metadata, groups = metadata_of(builder), rules.groups
    if metadata.get("format", 1) != builder.FORMAT:
        return False
    if rules.folds and "joined" not in metadata:
        return False
    if groups.file and not Path(groups.file).exists():
        _say_once(f"{groups} is not there; the splits stay as they were built")
    elif metadata.get("groups", NO_GROUPS.fingerprint()) != groups.fingerprint():
        return False
    return not manual_dir or builder.manual_sources(manual_dir) in ({}, metadata["sources"])


def _build(
    make: Callable[[], tfds.core.DatasetBuilder], manual_dir: str, rules: Rules
) -> tfds.core.DatasetBuilder:
    """Builds the data set while no other process builds it."""
    builder = make()
    path, root = Path(builder.data_path), Path(builder.data_dir_root)
    with locked(root / f".{builder.info.full_name.replace('/', '_')}.lock", str(path)):
        builder = make()
        if _is_current(builder, manual_dir, rules):  # Another process has built it in the meantime.
            return builder
        for left_over in path.parent.glob("incomplete.*"):
            shutil.rmtree(left_over)
        former = path.with_name("incomplete.former")
        if path.exists():
            why = "was built of other files or groups, or by an older version"
            print(f"{path} {why}: building again", flush=True)
            path.rename(former)
        try:
            builder = make()
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
        except BaseException:
            if former.exists():
                former.rename(path)
            raise
        shutil.rmtree(former, ignore_errors=True)
        return builder
