"""ISIC 2016, 2017 and 2018 lesion segmentation, from official archives."""

import contextlib
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import ClassVar, NamedTuple

import requests
import tensorflow_datasets as tfds
from absl import logging

from segdiff_jax.data import pairs
from segdiff_jax.data.builders.isic.archives import IMAGE, MASK, files_of, visible_files
from segdiff_jax.data.splits import is_validation
from segdiff_jax.runtime.errors import UserError

HOSTS = (  # They are tried in this order. An archive is at HOST/YEAR/NAME.zip.
    "https://isic-archive.s3.amazonaws.com/challenges",
    "https://isic-challenge-data.s3.amazonaws.com",
)
_NAMES = {  # of the archives of images and of masks, without `.zip`
    "2016": ("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth"),
    "2017": ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth"),
    "2018": ("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"),
}
_COUNTS = {  # Which archives there are, and the number of images that they officially hold.
    "2016": {"Training": 900, "Test": 379},
    "2017": {"Training": 2000, "Validation": 150, "Test_v2": 600},
    "2018": {"Training": 2594, "Validation": 100, "Test": 1000},
}


class Part(NamedTuple):
    """Two official archives, without `.zip`, and the number of images that they officially hold."""

    images: str
    masks: str
    official: int


def parts_of(year: str) -> dict[str, Part]:
    """{"training" or the name of a split: archives} of a challenge."""
    split_of = {"Training": "training", "Validation": "official_validation"}
    images, masks = _NAMES[year]
    return {
        split_of.get(word, "test"): Part(images.format(word), masks.format(word), count)
        for word, count in _COUNTS[year].items()
    }


class Builder(pairs.PairsBuilder):
    """Dermoscopic images and lesion masks, stored as the bytes of the original files."""

    HOMEPAGE = "https://challenge.isic-archive.com/data"
    IMAGE_FORMAT = "jpeg"
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=year, description=f"ISIC {year} segmentation.")
        for year in _NAMES
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Optional: manual_dir, or a folder in it, may hold the official archives of the challenge from
    https://challenge.isic-archive.com/data, or the folders into which they were unpacked, under
    their official names. If there are none, they are downloaded.
    """

    @property
    def _names(self) -> list[str]:
        return [name for part in parts_of(self.builder_config.name).values() for name in part[:2]]

    def manual_sources(self, manual_dir: str | Path) -> dict[str, int]:
        """{file name: bytes of an archive, or number of files in a folder} that a build reads."""
        return _sizes(self._find(Path(manual_dir)))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        sources = {}
        with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
            sources = self._find(Path(dl_manager.manual_dir))
        if not sources:
            logging.warning("%s: no archive in manual_dir; downloading.", self.info.full_name)
            sources = {n: self._download(dl_manager, n) for n in self._names}
        self.info.metadata["sources"] = _sizes(sources)

        problems, splits = defaultdict(list), {}
        for name, part in parts_of(self.builder_config.name).items():
            splits |= self._open_part(name, part, sources, problems)
        pairs.raise_problems(self, problems)
        return splits

    def _open_part(self, name: str, part: Part, sources: dict, problems: defaultdict) -> dict:
        """Checks the archives of a part -> {split: examples}."""
        absent = [archive for archive in part[:2] if archive not in sources]
        if len(absent) == 2:
            logging.warning("%s: no %s archives; skipped.", self.info.full_name, name)
            return {}
        if absent:
            (present,) = {part.images, part.masks} - set(absent)
            problems["missing archive"].append(f"{absent[0]}.zip (there is {present})")
            return {}
        images = files_of(part.images, sources[part.images], IMAGE, problems)
        masks = files_of(part.masks, sources[part.masks], MASK, problems)
        if not (images and masks):
            return {}
        found = pairs.match(images, masks, problems)
        sizes = pairs.check(found, problems, part.images)
        if len(found) < part.official:
            subset = "%s: %s: %d of %d images (a subset of the official archive)"
            logging.warning(subset, self.info.full_name, name, len(found), part.official)
        splits = {name: found}
        if name == "training":
            splits = {"train": {}, "validation": {}}
            for id, pair in found.items():
                splits["validation" if is_validation(id) else "train"][id] = pair
        for split, some in splits.items():
            if not some:
                problems["empty split"] += [f"{split} (of the {len(found)} ids of {part.images})"]
        return {split: self._generate_examples(some, sizes) for split, some in splits.items()}

    def _find(self, manual_dir: Path) -> dict[str, Path]:
        """{name: path} of the archives that lie in a folder, or else in the folders in it.

        An archive goes before the folder into which it was unpacked.
        """
        top = manual_dir.expanduser()
        folders = [*sorted(top.glob("*/")), top]
        entries = {path.name.lower(): path for folder in folders for path in folder.iterdir()}
        path_of = lambda name: entries.get(f"{name}.zip".lower(), entries.get(name.lower()))
        return {name: path_of(name) for name in self._names if path_of(name)}

    def _download(self, dl_manager: tfds.download.DownloadManager, name: str) -> Path:
        """Downloads an archive from the first host that has it."""
        failures = []
        for index, host in enumerate(HOSTS):
            url = f"{host}/{self.builder_config.name}/{name}.zip"
            folder = Path(dl_manager.download_dir) / self.name / name / str(index)
            resource = tfds.download.Resource(url=url, relative_download_dir=f"{name}/{index}")
            try:
                if not list(folder.glob("*.INFO")):  # Not downloaded before.
                    shutil.rmtree(folder, ignore_errors=True)
                    # Without a network, this fails in seconds; TFDS tries again for minutes.
                    requests.head(url, allow_redirects=True, timeout=30).raise_for_status()
                path = Path(dl_manager.download(resource))
                if not zipfile.is_zipfile(path):
                    raise zipfile.BadZipFile("not a zip file")
                return path
            except Exception as error:
                failures.append(f"  {url}: {error}")
                shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{name}.zip could not be downloaded:\n"
            + "\n".join(failures)
            + f"\nPut the archives of {self.name}/{self.builder_config.name} into a folder and set"
            " data.manual_dir to it:\n" + "\n".join(f"  {n}.zip" for n in self._names)
        )


def _sizes(sources: dict[str, Path]) -> dict[str, int]:
    """{file name: bytes of an archive, or number of files in a folder}; changes with the data."""
    archives = {f"{n}.zip": path.stat().st_size for n, path in sources.items() if path.is_file()}
    folders = {n: len(visible_files(path)) for n, path in sources.items() if path.is_dir()}
    return archives | folders
