"""Images and masks of two folders."""

import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from segdiff_jax.data import pairs
from segdiff_jax.data.classes import Classes
from segdiff_jax.data.decode import decode_grey, decode_labels, decode_mask, of_two_values
from segdiff_jax.data.folder import MASK_ENDINGS, Folder, FolderSource, files_by_name
from segdiff_jax.data.splits import hold_out
from segdiff_jax.data.statistics import Statistics


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Two folders; see `Folder`."""

    images: str
    masks: str
    mask_endings: Sequence[str] = MASK_ENDINGS
    classes: Classes | None = None


def config_of(folder: Folder) -> str:
    """Name of the builder's config for two folders, the same for the same paths and classes.

    Raises:
      ValueError: if one is not given.
    """
    for field in ("images", "masks"):
        if not getattr(folder, field):
            raise ValueError(
                f"data.{field} is not given: data.dataset='paired_folder' needs data.images and "
                "data.masks, two folders of images and of masks with the same names"
            )
    paths = [Path(path).expanduser().resolve() for path in folder[:2]]
    endings, classes = tuple(folder.mask_endings), folder.classes
    what = (*map(str, paths), endings, *([classes] if classes else []))
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:8]
    name = f"{re.sub('[^A-Za-z0-9]+', '_', paths[0].parent.name).strip('_')}_{digest}".strip("_")
    images, masks = map(str, paths)
    config = FolderConfig(
        name=name, images=images, masks=masks, mask_endings=endings, classes=classes
    )
    Builder.builder_configs.setdefault(name, config)  # TFDS warns of configs it does not know.
    return name


class Builder(tfds.core.GeneratorBasedBuilder):
    """Images with masks, paired by their names."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self)

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names, sizes and times of the files."""
        del manual_dir  # The config has both folders.
        images, masks = self.builder_config.images, self.builder_config.masks
        paths = lambda named: [path for paths in named.values() for path in paths]
        return {
            "images": pairs.sources(Path(images), paths(files_by_name(images, masks)), times=True),
            "masks": pairs.sources(Path(masks), paths(files_by_name(masks)), times=True),
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        config, problems = self.builder_config, defaultdict(list)
        sources = self.manual_sources(config.images)
        source = FolderSource(config.images, config.masks, config.mask_endings)
        for file, reason in source.failures.items():
            problems["image without a mask of its own"].append(f"{file}: {reason}")
        problems |= {"mask without image": list(map(str, source.unused))} if source.unused else {}

        classes, foreground = config.classes, {}
        statistics = Statistics(classes.names if classes else ())
        found = {id: _pair(*source.paths(id), foreground, classes) for id in source.ids}
        decode = functools.partial(decode_labels, classes=classes) if classes else decode_mask
        sizes = pairs.check(found, problems, config.images, statistics.add, decode)
        _check_classes(foreground, problems)
        if len(found) < 2 and not problems:
            problems["too few pairs, one to train on and one to validate on are needed"] += found
        pairs.raise_problems(self, problems)
        self.info.metadata["sources"] = sources
        self.info.metadata["statistics"] = statistics.summary()
        return {
            split: self._generate_examples({id: found[id] for id in ids}, sizes)
            for split, ids in hold_out(found).items()
        }

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _pair(
    image: Path, mask: Path, foreground: dict[str, int], classes: Classes | None
) -> pairs.Pair:
    """Image and mask; when a mask of two classes is read, `foreground` gets its value, if any."""

    def read() -> bytes:
        if classes:
            labels = decode_labels(mask.read_bytes(), str(mask), classes)
            return pairs.encode_png(classes.file_values(labels))
        name = str(mask)
        labels = decode_grey(mask.read_bytes(), name)
        binary = of_two_values(labels, name)
        if binary.any():
            foreground[name] = int(labels.max())
        return pairs.encode_png(binary)

    return pairs.Pair(pairs.File(str(image), image.read_bytes), pairs.File(str(mask), read))


def _check_classes(foreground: dict[str, int], problems: defaultdict) -> None:
    """Adds masks whose foreground has another value than most masks': it may be another class."""
    common = Counter(foreground.values()).most_common(1)
    kind = "mask of another value than most; several classes are named in data.classes"
    for mask, value in foreground.items():
        if value != common[0][0]:
            problems[kind].append(f"{mask}: {value}, not {common[0][0]}")
