"""The images and masks in two folders of a user."""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.decode import decode_labels, decode_mask, of_two_values
from segdiff_jax.data.folder import Folder, files_by_name
from segdiff_jax.data.groups import NO_GROUPS, Groups
from segdiff_jax.data.splits import hold_out
from segdiff_jax.runtime.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Two folders. Their paths are absolute."""

    folder: Folder


class Builder(pairs.PairsBuilder):
    """Images with masks, paired by their names."""

    @classmethod
    def config_of(cls, folder: Folder, groups: Groups = NO_GROUPS) -> str:
        """A name that is the same for equal arguments; UserError if a path is not given."""
        for field in ("images", "masks"):
            if not getattr(folder, field):
                raise UserError(
                    f"data.{field} is not given: data.dataset='paired_folder' needs data.images "
                    "and data.masks, two folders of images and of masks with the same names"
                )
        images, masks = (str(Path(path).resolve()) for path in folder[:2])
        endings, classes = tuple(folder.mask_endings), folder.classes
        what = (
            images,
            masks,
            endings,
            *([classes] if classes.several else []),
            *(["several annotators"] if folder.several_annotators else []),
            *filter(None, groups),
        )
        digest = sources.fingerprint(what)[:8]
        words = re.sub("[^A-Za-z0-9]+", "_", Path(images).parent.name)
        name = f"{words.strip('_')}_{digest}".strip("_")
        folder = folder._replace(images=images, masks=masks, mask_endings=endings)
        config = FolderConfig(name=name, folder=folder)
        cls.builder_configs.setdefault(name, config)  # TFDS warns of configs it does not know.
        return name

    @property
    def class_names(self) -> Sequence[str]:
        classes = self.builder_config.folder.classes
        return classes.names if classes.several else ()

    @property
    def several_annotators(self) -> bool:
        return self.builder_config.folder.several_annotators

    def _find(self, manual_dir: Path | None) -> dict[str, Path]:
        """Both folders, which the config names; `manual_dir` is not read."""
        images, masks = self.builder_config.folder[:2]
        return {"images": Path(images), "masks": Path(masks)}

    def _root(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        return self._find(None)

    def _sources(self, folders: dict[str, Path]) -> dict:
        other = {"images": str(folders["masks"]), "masks": None}
        found = {name: files_by_name(str(path), other[name]) for name, path in folders.items()}
        return {
            name: sources.sources(folders[name], itertools.chain(*some.files.values()))
            for name, some in found.items()
        }

    def _pairs(self, folders: dict[str, Path], problems: defaultdict) -> dict[str, matching.Pairs]:
        self._foreground: dict[str, int] = {}  # The value of each mask of two classes.
        return {"all": matching.match_folders(self.builder_config.folder, problems)}

    def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
        return hold_out(ids)

    def _labels(self, data: bytes, name: str) -> np.ndarray:
        classes = self.builder_config.folder.classes
        if classes.several:
            return decode_labels(data, name, classes)
        values = of_two_values(decode_mask(data, name), name, any_value=True)
        if values.any():
            self._foreground[name] = int(values.max())
        return np.uint8(values > 0)

    def _stored(self, data: bytes, name: str) -> bytes:
        classes = self.builder_config.folder.classes
        return pairs.encode_png(classes.file_values(self._labels(data, name)))

    def _compare(self, checked: Mapping, problems: defaultdict) -> None:
        # The foreground of a mask may be another class if its value is not the most common one.
        common = Counter(self._foreground.values()).most_common(1)
        kind = "mask of another value than most; to use several classes, name them in data.classes"
        for mask, value in self._foreground.items():
            if value != common[0][0]:
                problems[kind].append(f"{mask}: {value}, not {common[0][0]}")
        if len(checked["all"]) < 2 and not problems:
            few = "too few pairs, one to train on and one to validate on are needed"
            problems[few] += checked["all"]
