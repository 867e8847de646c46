"""Buildings of Vaihingen, from the HDF5 files of the original SegDiff or from the TIFF files."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.decode import decode_mask
from segdiff_jax.data.splits import hold_out

_HDF5 = {"training": "full_training_vaih.hdf5", "test": "full_test_vaih.hdf5"}
_RAW, _RAW_MASKS = "building_[0-9]*.tif", "building_mask_[0-9]*.tif"
_TRAINING = 100  # This number of images, sorted by name as strings, is for training.


class Builder(pairs.PairsBuilder):
    """Aerial images, each with the mask of one building."""

    HOMEPAGE = "https://github.com/tomeramit/SegDiff"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The README of https://github.com/tomeramit/SegDiff links the folder "buildings" and has the
    script that makes HDF5 files of it. Set data.manual_dir to the folder that holds either
      full_training_vaih.hdf5, full_test_vaih.hdf5  (groups imgs and mask_single)
    or
      building_N.tif, building_mask_N.tif  (above 0 on the building)
    """

    def _find(self, manual_dir: Path) -> Path | None:
        root = sources.find_root(manual_dir, _HDF5["training"])
        return root or sources.find_root(manual_dir, _RAW)

    def _files(self, root: Path) -> list[Path]:
        files = [root / name for name in _HDF5.values() if (root / name).is_file()]
        return files or list(root.glob("building_*.tif"))

    def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
        return hold_out(ids) if part == "training" else super()._split(part, ids)

    def _labels(self, data: bytes, name: str) -> np.ndarray:
        return np.uint8(decode_mask(data, name) > 0)

    def _pairs(self, root: Path, problems: defaultdict) -> dict[str, matching.Pairs]:
        files = {part: root / name for part, name in _HDF5.items() if (root / name).is_file()}
        if "training" in files:
            parts = {part: _hdf5_pairs(path, problems) for part, path in files.items()}
        else:
            images = {path.stem: matching.file_of(path) for path in root.glob(_RAW)}
            masks = {_id(path.stem): matching.file_of(path) for path in root.glob(_RAW_MASKS)}
            found = matching.match(images, masks, problems)
            ids = sorted(found, key="{}.tif".format)
            ids = {"training": ids[:_TRAINING], "test": ids[_TRAINING:]}
            parts = {part: {id: found[id] for id in of_part} for part, of_part in ids.items()}
        if not parts.get("test"):
            parts.pop("test", None)
            logging.warning("%s: no test images in %s; skipped.", self.info.full_name, root)
        return parts


def _id(name: str) -> str:
    """The name building_N of an image or of its mask building_mask_N."""
    return name.replace("_mask_", "_")


def _hdf5_pairs(path: Path, problems: defaultdict) -> dict[str, matching.Pair]:
    """{id: pair} of an HDF5 file."""
    h5py = sources.imported("h5py", str(path))
    try:
        file = h5py.File(path)  # Stays open as long as pairs read from it.
        images = {_id(name): _file(data, pairs.encode_png) for name, data in file["imgs"].items()}
        masks = {_id(name): _file(data, _mask) for name, data in file["mask_single"].items()}
    except (OSError, KeyError) as error:
        problems["no HDF5 file of the expected groups"].append(f"{path}: {error}")
        return {}
    return matching.match(images, masks, problems)


def _mask(array: np.ndarray) -> bytes:
    return pairs.encode_png(np.where(array > 0, 255, 0).astype(np.uint8))


def _file(data: Any, encode: Callable[[np.ndarray], bytes]) -> matching.File:
    """A dataset of an HDF5 file, as a file of its own."""
    return matching.File(f"{data.file.filename}{data.name}", lambda: encode(data[()]))
