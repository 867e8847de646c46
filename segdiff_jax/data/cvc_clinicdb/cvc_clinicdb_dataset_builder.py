"""CVC-ClinicDB, as its archive unpacks, split into stretches of the videos."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from segdiff_jax.data import pairs

LAST = {"train": 447, "validation": 503, "test": 612}  # Number of each split's last frame.


class Builder(tfds.core.GeneratorBasedBuilder):
    """Frames of colonoscopy videos with masks of polyps."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get CVC-ClinicDB from https://polyp.grand-challenge.org/CVCClinicDB/ and unpack it. Give as
    data.manual_dir the folder CVC-ClinicDB, or one that holds it:
      CVC-ClinicDB/Original/1.tif       (or .png)
      CVC-ClinicDB/Ground Truth/1.tif   (or .png)
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://polyp.grand-challenge.org/CVCClinicDB/")

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names and sizes of the files."""
        return pairs.sources_under(_find(manual_dir), "Original", "Ground Truth")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root, problems = pairs.required_root(self, dl_manager, _find), defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(root)
        splits = {split: {} for split in LAST}
        found = pairs.match_folders(root / "Original", root / "Ground Truth", 127, problems)
        for id, pair in found.items():
            split = next((s for s, n in LAST.items() if id.isdecimal() and int(id) <= n), None)
            if split is None:
                problems["not the number of a frame, 1 to 612"].append(pair.image.name)
            else:
                splits[split][id] = pair
        return pairs.checked_examples(self, splits, problems)

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _find(manual_dir: str | Path) -> Path | None:
    return pairs.find_root(manual_dir, "Original", "Ground Truth")
