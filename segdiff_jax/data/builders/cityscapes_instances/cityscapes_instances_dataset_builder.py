"""Single objects of Cityscapes, cut out by their bounding boxes, with PolyRNN++'s splits."""

import functools
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segdiff_jax.data import matching, pairs, sources

CLASSES = ("bicycle", "bus", "car", "motorcycle", "person", "rider", "train", "truck")
_SPLITS = {"train": "train", "validation": "train_val", "test": "val"}
EXPANSION = 0.15  # of a box if the config's name ends in "_expanded", see `crop`
_FILE, _IMAGES = "all_classes_instances.json", "all_images.hdf5"


class Builder(pairs.PairsBuilder):
    """Pictures of single objects, each with the mask of the object."""

    HOMEPAGE = "https://www.cityscapes-dataset.com"
    IMAGE_FORMAT = "png"
    FOLDS = False  # Objects of one photo.
    BUILDER_CONFIGS: ClassVar = [
        *(tfds.core.BuilderConfig(name=label) for label in CLASSES),
        *(tfds.core.BuilderConfig(name=f"{label}_expanded") for label in CLASSES),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get leftImg8bit of https://www.cityscapes-dataset.com and the annotations cityscapes_final_v5 of
    PolyRNN++ (http://www.cs.toronto.edu/polyrnn/code_signup/), and prepare them as
    https://github.com/shirgur/ACDRNet says. Set data.manual_dir to the folder that holds
      train/all_classes_instances.json, train_val/all_classes_instances.json,
      val/all_classes_instances.json  ({"data": {CLASS: [{segmentation, bbox, img}]}})
      all_images.hdf5                 (images u8[H, W, 3] by their file_name)
    """

    def _find(self, manual_dir: Path) -> Path | None:
        return sources.find_root(manual_dir, f"train/{_FILE}", _IMAGES)

    def _files(self, root: Path) -> list[Path]:
        return [root / _IMAGES, *(root / part / _FILE for part in _SPLITS.values())]

    def _pairs(self, root: Path, problems: defaultdict) -> dict[str, matching.Pairs]:
        h5py = sources.imported("h5py", self.info.full_name)
        sources.imported("pycocotools.mask", self.info.full_name)  # For `mask_of`.
        label = self.builder_config.name.partition("_")[0]
        images, splits = h5py.File(root / _IMAGES), {}  # Stays open as long as pairs read from it.
        for split, part in _SPLITS.items():
            path, objects = root / part / _FILE, []
            try:
                objects = json.loads(path.read_text())["data"].get(label, [])
            except (OSError, ValueError, KeyError) as error:
                problems["missing or broken file of objects"].append(f"{path}: {error}")
            splits[split] = self._objects(objects, images, path, problems)
        return splits

    def _objects(self, objects: list, images: Mapping, path: Path, problems: defaultdict) -> dict:
        """{id: pair} of one class and split; objects with an empty box are only printed."""
        found, empty = {}, []
        label, _, expanded = self.builder_config.name.partition("_")
        for number, item in enumerate(objects):
            file, size = item["img"]["file_name"], (item["img"]["height"], item["img"]["width"])
            name = f"{path.parent.name}, {label} {number} of {file}"
            box = crop(item["bbox"], *size, EXPANSION if expanded else 0)
            if file not in images:
                problems[f"image not in {_IMAGES}"].append(name)
            elif images[file].shape != (*size, 3):
                problems["image of another size than annotated"].append(name)
            elif any(part.stop <= part.start for part in box):
                empty.append(name)
            else:
                mask = functools.partial(mask_of, item["segmentation"], *size)
                found[f"{Path(file).stem}_{number:05d}"] = _pair(name, images[file], mask, box)
        if empty:
            some = "; ".join(empty[:5]) + "; ..." * (len(empty) > 5)
            print(f"{len(empty)} objects have an empty box and are left out: {some}", flush=True)
        return found


def crop(bbox: Sequence[float], height: int, width: int, expansion: float) -> tuple[slice, slice]:
    """The rows and columns of a box in an image of this height and width.

    `bbox` is x, y, width and height in pixels, which are rounded down, or 0 if negative. The box
    grows by the share `expansion` of its sides, half of it at each end, but stays in the image.
    """
    x, y, across, down = (max(0, int(value)) for value in bbox)
    both = []
    for start, length, most in ((y, down, height), (x, across, width)):
        more = length * expansion / 2
        both.append(slice(round(max(start - more, 0)), round(min(start + length + more, most))))
    return both[0], both[1]


def mask_of(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """COCO's polygons or run lengths, compressed or not -> mask u8[height, width], 0 or 255."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2 warns of pycocotools.
        return np.where(mask.decode(runs), 255, 0).astype(np.uint8)


def _pair(name: str, image: Any, mask: Callable[[], np.ndarray], box: tuple) -> matching.Pair:
    return matching.Pair(
        matching.File(name, lambda: pairs.encode_png(image[box])),
        [matching.File(f"mask of {name}", lambda: pairs.encode_png(mask()[box]))],
    )
