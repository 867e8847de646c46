"""Builds a data set if it is not there yet, and opens a split of it."""

import dataclasses
import functools
import importlib
import pkgutil
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from segdiff_jax.data import builders
from segdiff_jax.data.builders.image_and_mask.sets import SETS, builder_of
from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.folder import Folder
from segdiff_jax.data.pairs import fingerprint
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import locked


@dataclasses.dataclass(eq=False, repr=False)
class Records(Sequence):
    """The records of one or several sources as one sequence."""

    records: list[tuple[Sequence[dict], int]]  # Source and place of each.
    fingerprint: str  # It differs if the records differ.
    statistics: Any  # `Statistics.summary` or None.

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        source, i = self.records[index]
        return source[i]


def where(data: ConfigDict) -> tuple[str, str, Folder]:
    """The last three arguments of `load_source`, from the section `data` of a config."""
    folder = Folder(data.images, data.masks, data.mask_endings, classes_of(data))
    return data.dir, data.manual_dir, folder


def load_source(
    dataset: str, split: str, data_dir: str, manual_dir: str = "", folder: Folder | None = None
) -> Records:
    """Opens a split, or a part of it: "train" of "monuseg", "train[90%:]" of "isic/2016".

    `data_dir` holds the builds, `manual_dir` the official files, if there are any, and `folder` the
    images and masks of "paired_folder". The data set is built if there is no build, or if the build
    was made of other files. A record is {id: bytes, image: bytes, mask: bytes, height: int, width:
    int}; image and mask are encoded, as in their original files or as PNG. A UserError says that
    there is no such data set, split or folder, or that the data is faulty.
    """
    return _read(_open("data.dataset", dataset, data_dir, manual_dir, folder), split)


def load_training_source(dataset: str, extra: Sequence[str], *place: Any) -> Records:
    """The training split of `dataset`, and then the official training images of `extra`.

    An image of `extra` is left out if a split of `dataset` has its id, so that no image is both
    trained on and tested on: ISIC 2017 has images of the test set of ISIC 2016. If `dataset` has no
    test split, the ids of that split are unknown, and a warning says so. `place` is data_dir,
    manual_dir and folder; for these, the names and errors see `load_source`.
    """
    builder = _open("data.dataset", dataset, *place)
    source = _read(builder, "train")
    if not extra:
        return source
    if "test" not in builder.info.splits:
        print(
            f"warning: {dataset} has no test split here, so {', '.join(extra)} may hold images of "
            "it: do not report scores on it",
            flush=True,
        )
    known = {record["id"] for split in builder.info.splits for record in _read(builder, split)}
    records, parts = [(source, i) for i in range(len(source))], [source.fingerprint]
    for name in extra:
        more = _read(_open("data.extra_datasets", name, *place), "train+validation")
        ids = [record["id"] for record in more]
        new = [i for i, id in enumerate(ids) if id not in known]
        records += [(more, i) for i in new]
        parts += [more.fingerprint, new]
        known.update(ids)
    return Records(records, fingerprint(tuple(parts)), source.statistics)


def _open(
    field: str, dataset: str, data_dir: str, manual_dir: str = "", folder: Folder | None = None
) -> tfds.core.DatasetBuilder:
    """The builder of a data set, which `field` names, after it has built it; see `load_source`."""
    name, _, config = dataset.partition("/")
    builder_cls, folders = _builder_class(dataset, field), {"data.manual_dir": manual_dir}
    if name == "paired_folder":
        config = builder_cls.config_of(folder or Folder())
        folders = {"data.images": folder.images, "data.masks": folder.masks}
        manual_dir = folder.images
    configs = builder_cls.builder_configs
    if (config or configs) and (config or "default") not in configs:
        known = ", ".join(f"{name}/{known}" for known in configs) or name
        raise UserError(f"{field}={dataset!r} is unknown; there are {known}")
    options = {"config": config or None, "data_dir": data_dir, "file_format": "array_record"}
    make = functools.partial(builder_cls, **options)
    builder = make()
    for given, path in folders.items():
        if not path or Path(path).expanduser().is_dir():
            continue
        if not builder.data_path.exists():
            raise UserError(f"{given}={path!r} is not a folder")
        print(f"{path} is not there; reading {builder.data_path}, built before", flush=True)
        manual_dir = ""
    return builder if _is_current(builder, manual_dir) else _build(make, manual_dir)


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


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    skip = tfds.decode.SkipDecoding()
    try:
        source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
    except (ValueError, AssertionError) as error:  # TFDS: there is no such split or slice.
        raise UserError(f"split {split!r} of {builder.info.full_name}: {error}") from error
    stats = [(path.name, path.stat()) for path in sorted(Path(builder.data_path).iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    statistics = (builder.info.metadata or {}).get("statistics")
    records = [(source, i) for i in range(len(source))]
    return Records(records, fingerprint((builder.info.full_name, split, files)), statistics)


def _is_current(builder: tfds.core.DatasetBuilder, manual_dir: str) -> bool:
    """Whether there is a build, and manual_dir holds the files that it was made of, or none."""
    if not builder.info.initialized:  # No build was there when the builder was made.
        return False
    if not manual_dir or not hasattr(builder, "manual_sources"):
        return True
    return builder.manual_sources(manual_dir) in ({}, builder.info.metadata["sources"])


def _build(make: functools.partial, manual_dir: str) -> tfds.core.DatasetBuilder:
    """Builds the data set while no other process builds it."""
    builder = make()
    path, root = Path(builder.data_path), Path(builder.data_dir_root)
    with locked(root / f".{builder.info.full_name.replace('/', '_')}.lock", str(path)):
        builder = make()
        if _is_current(builder, manual_dir):  # Another process has built it in the meantime.
            return builder
        for left_over in path.parent.glob("incomplete.*"):
            shutil.rmtree(left_over)
        former = path.with_name("incomplete.former")
        if path.exists():
            print(f"{manual_dir} holds other files than {path} was built of: building again")
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
