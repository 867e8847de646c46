"""The images and masks in two folders of a user."""

import dataclasses
import re
from collections import Counter, defaultdict
from pathlib import Path

import tensorflow_datasets as tfds

from segdiff_jax.data import pairs
from segdiff_jax.data.classes import Classes
from segdiff_jax.data.decode import decode_labels, decode_mask, of_two_values
from segdiff_jax.data.folder import Folder, files_by_name
from segdiff_jax.data.splits import hold_out
from segdiff_jax.data.statistics import Statistics
from segdiff_jax.runtime.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Two folders. Their paths are absolute."""

    folder: Folder


class Builder(pairs.PairsBuilder):
    """Images with masks, paired by their names."""

    @classmethod
    def config_of(cls, folder: Folder) -> str:
        """A name that is the same for an equal `folder`; UserError if a path is not given."""
        for field in ("images", "masks"):
            if not getattr(folder, field):
                raise UserError(
                    f"data.{field} is not given: data.dataset='paired_folder' needs data.images "
                    "and data.masks, two folders of images and of masks with the same names"
                )
        images, masks = (str(Path(path).expanduser().resolve()) for path in folder[:2])
        endings, classes = tuple(folder.mask_endings), folder.classes
        what = (images, masks, endings, *([classes] if classes.several else []))
        digest = pairs.fingerprint(what)[:8]
        words = re.sub("[^A-Za-z0-9]+", "_", Path(images).parent.name)
        name = f"{words.strip('_')}_{digest}".strip("_")
        config = FolderConfig(name=name, folder=Folder(images, masks, endings, classes))
        cls.builder_configs.setdefault(name, config)  # TFDS warns of configs it does not know.
        return name

    def manual_sources(self, manual_dir: str) -> dict:
        """The `sources` of both folders, which the config names; `manual_dir` is not read."""
        images, masks = self.builder_config.folder[:2]
        paths = lambda named: [path for paths in named.values() for path in paths]
        return {
            "images": pairs.sources(Path(images), paths(files_by_name(images, masks)), times=True),
            "masks": pairs.sources(Path(masks), paths(files_by_name(masks)), times=True),
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        folder, problems = self.builder_config.folder, defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(folder.images)
        files = pairs.match_folders(*folder[:3], problems)
        classes, foreground = folder.classes, {}
        statistics = Statistics(classes.names if classes.several else ())
        found = {id: _pair(*paths, foreground, classes) for id, paths in files.items()}
        sizes = pairs.check(found, problems, folder.images, statistics.add, classes)
        # The foreground of a mask may be another class if its value is not the most common one.
        common = Counter(foreground.values()).most_common(1)
        kind = "mask of another value than most; to use several classes, name them in data.classes"
        for mask, value in foreground.items():
            if value != common[0][0]:
                problems[kind].append(f"{mask}: {value}, not {common[0][0]}")
        if len(found) < 2 and not problems:
            problems["too few pairs, one to train on and one to validate on are needed"] += found
        pairs.raise_problems(self, problems)
        self.info.metadata["statistics"] = statistics.summary()
        splits = pairs.by_split(found, hold_out(found))
        return {split: self._generate_examples(some, sizes) for split, some in splits.items()}


def _pair(image: Path, mask: Path, foreground: dict[str, int], classes: Classes) -> pairs.Pair:
    """Reading a mask of two classes sets `foreground[its name]` to its value, if it has one."""
    name = str(mask)

    def read() -> bytes:
        data = mask.read_bytes()
        if classes.several:
            return pairs.encode_png(classes.file_values(decode_labels(data, name, classes)))
        values = of_two_values(decode_mask(data, name), name, any_value=True)
        if values.any():
            foreground[name] = int(values.max())
        return pairs.binary_png(values)

    return pairs.Pair(pairs.File(str(image), image.read_bytes), pairs.File(name, read))
