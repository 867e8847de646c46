"""Kvasir-SEG, as its archive unpacks."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from segdiff_jax.data import pairs
from segdiff_jax.data.splits import hashed_split


class Builder(tfds.core.GeneratorBasedBuilder):
    """Endoscopic images with masks of polyps."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get kvasir-seg.zip from https://datasets.simula.no/kvasir-seg/ and unpack it. Give as
    data.manual_dir the folder Kvasir-SEG, or one that holds it:
      Kvasir-SEG/images/NAME.jpg
      Kvasir-SEG/masks/NAME.jpg
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://datasets.simula.no/kvasir-seg/")

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names and sizes of the files."""
        return pairs.sources_under(_find(manual_dir), "images", "masks")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root, problems = pairs.required_root(self, dl_manager, _find), defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(root)
        splits = {"train": {}, "validation": {}, "test": {}}
        found = pairs.match_folders(root / "images", root / "masks", 127, problems)
        for id, pair in found.items():
            splits[hashed_split(id)][id] = pair
        return pairs.checked_examples(self, splits, problems)

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _find(manual_dir: str | Path) -> Path | None:
    return pairs.find_root(manual_dir, "images", "masks")
