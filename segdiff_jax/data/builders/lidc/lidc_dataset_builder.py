"""Crops of lung nodules of LIDC-IDRI, each with the masks of four radiologists."""

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.folder import all_files
from segdiff_jax.data.groups import Keys
from segdiff_jax.runtime.errors import UserError

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_HDF5, _PICKLE = "data_lidc.hdf5", "data_lidc.pickle"


class Builder(pairs.PairsBuilder):
    """CT crops, with the masks of radiologists whose names are not known."""

    several_annotators = True
    HOMEPAGE = "https://www.cancerimagingarchive.net/collection/lidc-idri/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get the crops of the Hierarchical Probabilistic U-Net, three archives, from
    https://console.cloud.google.com/storage/browser/hpunet-data/lidc_crops/ and unpack them. Set
    data.manual_dir to the folder that holds
      train/images/PATIENT/SLICE.png, train/gt/PATIENT/SLICE_l0.png, SLICE_l1.png, ...
      and val and test with the same folders (or lidc_crops_train, ...)
    or to the folder that holds data_lidc.hdf5, which the code of PHiSeg makes
      (train, val and test with images [N, H, W], labels [N, H, W, 4] and uids [N])
    """

    def _find(self, manual_dir: Path) -> Path | None:
        root = sources.find_root(manual_dir, "*train/images", "*train/gt")
        return root or sources.find_root(manual_dir, _HDF5)

    def _get(self, dl_manager: tfds.download.DownloadManager) -> None:
        with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
            if root := sources.find_root(Path(dl_manager.manual_dir), _PICKLE):
                raise UserError(
                    f"{root / _PICKLE} is not read, because a pickle may run any code: make "
                    f"{_HDF5} of it with the code of PHiSeg, on a computer that may run what is in "
                    "it, or get the crops as PNGs (docs/data.md)"
                )
        super()._get(dl_manager)

    def _files(self, root: Path) -> list[Path]:
        if (root / _HDF5).is_file():
            return [root / _HDF5]
        return [path for top in self._tops(root).values() for path in all_files(top)]

    def _tops(self, root: Path) -> dict[str, Path]:
        """{split: its folder with the folders images and gt}."""
        found = {split: sorted(root.glob(f"*{part}/images")) for split, part in _SPLITS.items()}
        return {split: paths[0].parent for split, paths in found.items() if paths}

    def _pairs(self, root: Path, problems: defaultdict) -> dict[str, matching.Pairs]:
        if (root / _HDF5).is_file():
            return _hdf5_pairs(root / _HDF5, problems)
        tops = self._tops(root)
        for split in sorted(_SPLITS.keys() - tops.keys()):
            problems["missing folder"].append(f"{root}/{_SPLITS[split]}/images")
        return {split: _png_pairs(top, problems) for split, top in tops.items()}

    def _keys(self, checked: Mapping[str, Mapping[str, pairs.Checked]]) -> dict[str, Keys]:
        """Crops of a patient belong together."""
        return {
            part: {id: [*keys, f"patient {id.partition('/')[0]}"] for id, keys in of_part.items()}
            for part, of_part in super()._keys(checked).items()
        }


def _png_pairs(top: Path, problems: defaultdict) -> matching.Pairs:
    """{PATIENT/SLICE: pair} of the folders images and gt in `top`."""
    files = {
        kind: [path for path in all_files(top / kind) if path.suffix.lower() == ".png"]
        for kind in ("images", "gt")
    }
    name = lambda path, kind: path.relative_to(top / kind).with_suffix("").as_posix()
    images = {name(path, "images"): matching.file_of(path) for path in files["images"]}
    masks = defaultdict(list)
    for path in files["gt"]:
        masks[name(path, "gt").rpartition("_l")[0]].append(matching.file_of(path))
    first = {id: of_image[0] for id, of_image in masks.items()}
    found = matching.match(images, first, problems)
    return {id: pair._replace(masks=masks[id]) for id, pair in found.items()}


def _hdf5_pairs(path: Path, problems: defaultdict) -> dict[str, matching.Pairs]:
    """{split: {UID/NUMBER: pair}} of the HDF5 file of PHiSeg."""
    h5py, parts = sources.imported("h5py", str(path)), {}
    try:
        file = h5py.File(path)  # Stays open as long as pairs read from it.
        for split, part in _SPLITS.items():
            images, labels, uids = (file[part][name] for name in ("images", "labels", "uids"))
            if (
                labels.ndim != 4
                or labels.shape[:3] != images.shape
                or uids.shape != images.shape[:1]
            ):
                raise ValueError(f"the shapes in {part} are {images.shape}, {labels.shape}")
            # PHiSeg's images have values from -0.5 to 0.5; others, from 0 to 1.
            shift = 0.5 if any(image.min() < 0 for image in images) else 0.0
            parts[split] = {
                f"{abs(int(uid))}/{number:05d}": _hdf5_pair(images, labels, number, shift)
                for number, uid in enumerate(uids)
            }
    except (OSError, KeyError, ValueError) as error:
        problems["no HDF5 file of the expected groups"].append(f"{path}: {error}")
    return parts


def _hdf5_pair(images, labels, number: int, shift: float) -> matching.Pair:
    """Crop `number` of images [N, H, W] and labels [N, H, W, M]; `shift` is added to the former."""
    name = f"{images.file.filename}{images.name}[{number}]"

    def image() -> bytes:
        values = images[number] + shift
        if not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
            raise UserError(f"{name}: its values are not within {-shift} to {1 - shift}")
        return pairs.encode_png(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8))

    def mask(reader: int) -> bytes:
        return pairs.encode_png(255 * (labels[number, ..., reader] > 0).astype(np.uint8))

    masks = [
        matching.File(f"mask {reader} of {name}", lambda reader=reader: mask(reader))
        for reader in range(labels.shape[3])
    ]
    return matching.Pair(matching.File(name, image), masks)
