"""Builds a data set where needed and opens one of its splits; the pipeline starts here."""

import functools
import hashlib
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from segdiff_jax.data.classes import classes_of
from segdiff_jax.data.folder import Folder
from segdiff_jax.lock import locked


class Records(Sequence):
    """Records of one or several sources as one sequence.

    Attributes:
      fingerprint: another one where the records are others.
      statistics: of the whole data set, see `statistics.Statistics`, if they were measured.
    """

    def __init__(
        self,
        records: list[tuple[Sequence[dict], int]],
        fingerprint: str,
        statistics: dict | None = None,
    ):
        self._records, self.fingerprint, self.statistics = records, fingerprint, statistics

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        source, i = self._records[index]
        return source[i]


_BUILDERS = {
    "isic": "segdiff_jax.data.isic",
    "synthetic_lesions": "segdiff_jax.data.synthetic_lesions",
    "monuseg": "segdiff_jax.data.monuseg",
    "vaihingen": "segdiff_jax.data.vaihingen",
    "cityscapes_instances": "segdiff_jax.data.cityscapes_instances",
    "ph2": "segdiff_jax.data.ph2",
    "kvasir_seg": "segdiff_jax.data.kvasir_seg",
    "cvc_clinicdb": "segdiff_jax.data.cvc_clinicdb",
    "paired_folder": "segdiff_jax.data.paired_folder",
}


def where(data: ConfigDict) -> tuple[str, str, Folder]:
    """The last arguments of `load_source` and `load_training_source`, of a config's section."""
    folder = Folder(data.images, data.masks, data.mask_endings, classes_of(data))
    return data.dir, data.manual_dir, folder


def load_source(
    dataset: str,
    split: str,
    data_dir: str,
    manual_dir: str | None = None,
    folder: Folder | None = None,
) -> Records:
    """A split, for reading in any order; the data set is built first if it is not there.

    Args:
      dataset: "isic/2016", "synthetic_lesions": the builder and, optionally, its config.
      split: "train", or a slice of it: "train[:16]", "train[90%:]".
      data_dir: where built data sets are kept.
      manual_dir: folder of official archives; None or "": there is none. Where they differ
        from those of the existing build, the data set is built again.
      folder: what "paired_folder" is built of, likewise.
    Returns:
      Records {id: bytes, image: bytes, mask: bytes, height: int, width: int}, the image and the
      mask as encoded in their original files, or as PNG.
    Raises:
      ValueError: if the data set, the split or the folder does not exist, or the data is faulty.
    """
    return _read(_open(dataset, data_dir, manual_dir, folder), split)


def load_training_source(
    dataset: str,
    extra: Sequence[str],
    data_dir: str,
    manual_dir: str | None = None,
    folder: Folder | None = None,
) -> Records:
    """The training split of `dataset`, then the official training images of the `extra` ones.

    An extra image whose id is in any split of `dataset` is left out, so that nothing that is
    validated or tested on is trained on: ISIC 2017 holds images of ISIC 2016's test set. Where the
    test archives are absent, their ids are not known; a warning says so.

    Args and errors are those of `load_source`.
    """
    builder = _open(dataset, data_dir, manual_dir, folder)
    source = _read(builder, "train")
    if not extra:
        return source
    if "test" not in builder.info.splits:
        print(
            f"warning: {dataset} has no test split here, so images of it may be among those of "
            f"{', '.join(extra)}: do not report scores on it",
            flush=True,
        )
    known = {record["id"] for split in builder.info.splits for record in _read(builder, split)}
    records, parts = [(source, i) for i in range(len(source))], [source.fingerprint]
    for name in extra:
        more = _read(
            _open(name, data_dir, manual_dir, folder, "data.extra_datasets"), "train+validation"
        )
        ids = [record["id"] for record in more]
        new = [i for i, id in enumerate(ids) if id not in known]
        records += [(more, i) for i in new]
        parts += [more.fingerprint, new]
        known.update(ids)
    return Records(records, _fingerprint(*parts), source.statistics)


def _open(
    dataset: str,
    data_dir: str,
    manual_dir: str | None,
    folder: Folder | None,
    field: str = "data.dataset",
) -> tfds.core.DatasetBuilder:
    """The builder of a data set that is built, see `load_source`."""
    manual_dir = manual_dir or None
    name, _, config = dataset.partition("/")
    if name not in _BUILDERS:
        raise ValueError(f"{field}={dataset!r} is unknown; there are {', '.join(_BUILDERS)}")
    module, folders = importlib.import_module(_BUILDERS[name]), {"data.manual_dir": manual_dir}
    if name == "paired_folder":
        config = module.config_of(folder or Folder("", ""))
        folders = {"data.images": folder.images, "data.masks": folder.masks}
        manual_dir = folder.images
    builder_cls = module.Builder
    configs = builder_cls.builder_configs
    if (config or configs) and (config or "default") not in configs:
        known = ", ".join(f"{name}/{known}" for known in configs)
        raise ValueError(f"{field}={dataset!r} is unknown; there are {known}")
    make = functools.partial(
        builder_cls, config=config or None, data_dir=data_dir, file_format="array_record"
    )
    builder = make()
    for given, path in folders.items():
        if path is None or Path(path).expanduser().is_dir():
            continue
        if not builder.data_path.exists():
            raise ValueError(f"{given}={path!r} is not a folder")
        print(f"{path} is not there; reading {builder.data_path}, built before", flush=True)
        manual_dir = None
    if not _is_current(builder, manual_dir):
        builder = _build(make, manual_dir)
    return builder


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    skip = tfds.decode.SkipDecoding()
    source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
    stats = [(path.name, path.stat()) for path in sorted(Path(builder.data_path).iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    fingerprint = _fingerprint(builder.info.full_name, split, files)
    statistics = (builder.info.metadata or {}).get("statistics")
    return Records([(source, i) for i in range(len(source))], fingerprint, statistics)


def _fingerprint(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _is_current(builder: tfds.core.DatasetBuilder, manual_dir: str | None) -> bool:
    """Whether a build exists and was made of what manual_dir holds now, if it holds anything."""
    if not builder.info.initialized:  # No build was there when the builder was made.
        return False
    if manual_dir is None or not hasattr(builder, "manual_sources"):
        return True
    return builder.manual_sources(manual_dir) in ({}, builder.info.metadata["sources"])


def _build(make: functools.partial, manual_dir: str | None) -> tfds.core.DatasetBuilder:
    """Builds, one process at a time; the lock of a killed process is released by the system."""
    builder = make()
    path, root = Path(builder.data_path), Path(builder.data_dir_root)
    with locked(root / f".{builder.info.full_name.replace('/', '_')}.lock", str(path)):
        builder = make()
        if _is_current(builder, manual_dir):  # Another process has built it meanwhile.
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
