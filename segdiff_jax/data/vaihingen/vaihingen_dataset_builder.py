"""Buildings of Vaihingen, from the original SegDiff's HDF5 files or the folder they are made of."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from segdiff_jax.data import pairs
from segdiff_jax.data.splits import hold_out

_HDF5 = {"training": "full_training_vaih.hdf5", "test": "full_test_vaih.hdf5"}
_RAW = "building_[0-9]*.tif"
_TRAINING = 100  # The first so many by name, in the order of strings.


class Builder(tfds.core.GeneratorBasedBuilder):
    """Aerial images, each with the mask of one building."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The README of https://github.com/tomeramit/SegDiff links the folder "buildings" and has the
    script that makes HDF5 files of it. Give as data.manual_dir the folder that holds either
      full_training_vaih.hdf5, full_test_vaih.hdf5  (groups imgs and mask_single)
    or
      building_N.tif, building_mask_N.tif  (above 0 on the building)
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://github.com/tomeramit/SegDiff")

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names and sizes of the files."""
        root = _find(manual_dir)
        if root is None:
            return {}
        files = [root / name for name in _HDF5.values() if (root / name).is_file()]
        return pairs.sources(root, files or root.glob("building_*.tif"))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root, problems = pairs.required_root(self, dl_manager, _find), defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(root)
        if (root / _HDF5["training"]).is_file():
            parts = {
                part: _hdf5_pairs(root / name, problems)
                for part, name in _HDF5.items()
                if (root / name).is_file()
            }
        else:
            parts = _raw_parts(root, problems)
        training = parts["training"]
        splits = {s: {id: training[id] for id in ids} for s, ids in hold_out(training).items()}
        if parts.get("test"):
            splits["test"] = parts["test"]
        else:
            logging.warning("%s: no test images in %s; skipped.", self.info.full_name, root)
        return pairs.checked_examples(self, splits, problems)

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _find(manual_dir: str | Path) -> Path | None:
    return pairs.find_root(manual_dir, _HDF5["training"]) or pairs.find_root(manual_dir, _RAW)


def _match(images: dict[str, Any], masks: dict[str, Any], where: Path, problems: defaultdict):
    """(N, image, mask) of building_N and building_mask_N, in the order of the names' strings."""
    masks = {name.replace("_mask_", "_"): mask for name, mask in masks.items()}
    for kind, names in (
        ("image without mask", images.keys() - masks.keys()),
        ("mask without image", masks.keys() - images.keys()),
    ):
        for name in sorted(names):
            problems[kind].append(f"{where}: {name}")
    return [(name, images[name], masks[name]) for name in sorted(images.keys() & masks.keys())]


def _raw_parts(root: Path, problems: defaultdict) -> dict[str, dict[str, pairs.Pair]]:
    named = lambda pattern: {path.stem: path for path in root.glob(pattern)}
    matched = _match(named(_RAW), named("building_mask_[0-9]*.tif"), root, problems)
    found = {id: pairs.pair_of_paths(*paths, above=0) for id, *paths in matched}
    ids = sorted(found, key="{}.tif".format)
    parts = {"training": ids[:_TRAINING], "test": ids[_TRAINING:]}
    return {part: {id: found[id] for id in ids} for part, ids in parts.items()}


def _hdf5_pairs(path: Path, problems: defaultdict) -> dict[str, pairs.Pair]:
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path} needs h5py: pip install -r requirements-data.txt") from error
    try:
        file = h5py.File(path)  # Open as long as something is read of it.
        groups = dict(file["imgs"]), dict(file["mask_single"])
    except (OSError, KeyError) as error:
        problems["no HDF5 file of the expected groups"].append(f"{path}: {error}")
        return {}
    return {
        id: pairs.Pair(
            pairs.File(f"{path}/imgs/{id}", functools.partial(_png, image, lambda x: x)),
            pairs.File(f"{path}/mask_single/{id}", functools.partial(_png, mask, _binary)),
        )
        for id, image, mask in _match(*groups, path, problems)
    }


def _png(data: Any, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    return pairs.encode_png(change(np.asarray(data[()])))


def _binary(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0, 255, 0).astype(np.uint8)
