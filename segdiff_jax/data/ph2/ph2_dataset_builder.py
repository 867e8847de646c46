"""PH2, as its archive unpacks."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from segdiff_jax.data import pairs
from segdiff_jax.data.splits import hashed_split

_IMAGES = "PH2 Dataset images"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Dermoscopic images with lesion masks."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Ask for the PH2 database at https://www.fc.up.pt/addi/ph2%20database.html and unpack it. Give as
    data.manual_dir the folder PH2Dataset, or one that holds it:
      PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp
      PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://www.fc.up.pt/addi/ph2%20database.html")

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names and sizes of the files."""
        return pairs.sources_under(_find(manual_dir), _IMAGES)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root, problems = pairs.required_root(self, dl_manager, _find), defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(root)
        splits = {"train": {}, "validation": {}, "test": {}}
        for folder in sorted(path for path in (root / _IMAGES).iterdir() if path.is_dir()):
            id = folder.name
            image = folder / f"{id}_Dermoscopic_Image" / f"{id}.bmp"
            mask = folder / f"{id}_lesion" / f"{id}_lesion.bmp"
            missing = [str(path) for path in (image, mask) if not path.is_file()]
            problems |= {"missing file": problems["missing file"] + missing} if missing else {}
            splits[hashed_split(id)][id] = pairs.pair_of_paths(image, mask, above=0)
        return pairs.checked_examples(self, splits, problems)

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _find(manual_dir: str | Path) -> Path | None:
    return pairs.find_root(manual_dir, _IMAGES)
