"""MoNuSeg, in the layout of the original SegDiff."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds
from absl import logging

from segdiff_jax.data import pairs
from segdiff_jax.data.splits import hold_out


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tissue with masks of its nuclei."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get the training and test data from https://monuseg.grand-challenge.org/Data/ and draw the
    outlines of their XML files as masks. Give as data.manual_dir the folder that holds
      Training/img/NAME.tif   (or .png, .jpg)
      Training/mask/NAME.png  (above 0 on nuclei)
      Test/img/NAME.tif
      Test/mask/NAME.png
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://monuseg.grand-challenge.org")

    def manual_sources(self, manual_dir: str) -> dict:
        """What a build would read: number, names and sizes of the files."""
        return pairs.sources_under(_find(manual_dir), "Training", "Test")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root, problems = pairs.required_root(self, dl_manager, _find), defaultdict(list)
        self.info.metadata["sources"] = self.manual_sources(root)
        match = lambda part: pairs.match_folders(part / "img", part / "mask", 0, problems)
        training = match(root / "Training")
        splits = {s: {id: training[id] for id in ids} for s, ids in hold_out(training).items()}
        if (root / "Test").is_dir():
            splits["test"] = match(root / "Test")
        else:
            logging.warning("%s: no Test in %s; skipped.", self.info.full_name, root)
        return pairs.checked_examples(self, splits, problems)

    def _generate_examples(self, found: dict, sizes: dict) -> Iterator[tuple]:
        yield from pairs.examples(found, sizes)


def _find(manual_dir: str | Path) -> Path | None:
    return pairs.find_root(manual_dir, "Training/img", "Training/mask")
