"""ISIC 2016, 2017 and 2018 lesion segmentation, and MultiAnnot++, from official archives."""

import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import requests
import tensorflow_datasets as tfds
from absl import logging

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.builders.isic import multiannot
from segdiff_jax.data.builders.isic.archives import IMAGE, MASK, files_of
from segdiff_jax.data.decode import decode_labels
from segdiff_jax.data.folder import all_files
from segdiff_jax.data.splits import by_hash, is_validation
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

    FORMAT = 1  # Its masks are kept as they are.
    HOMEPAGE = "https://challenge.isic-archive.com/data"
    IMAGE_FORMAT = "jpeg"
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=year, description=f"ISIC {year} segmentation.")
        for year in _NAMES
    ] + [tfds.core.BuilderConfig(name="multiannot", description="ISIC MultiAnnot++ (IMA++).")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    multiannot: get segs.zip from https://doi.org/10.5281/zenodo.14201692 and the images from
    https://www.isic-archive.com (collection 482) or of the challenges. Set data.manual_dir to the
    folder that holds
      segs.zip or segs/  (ISIC_0000004_A04_T1_S2_545d08aabae47821f8802550.png, ...)
      zip files or folders of images, of any name  (ISIC_0000004.JPG, ...)

    2016, 2017 and 2018 need no folder. If manual_dir, or a folder in it, holds the official
    archives of https://challenge.isic-archive.com/data, or the folders into which they were
    unpacked, under their official names, these are read. If there are none, they are downloaded.
    """

    @property
    def several_annotators(self) -> bool:
        return self.builder_config.name == "multiannot"

    @property
    def _names(self) -> list[str]:
        return [name for part in parts_of(self.builder_config.name).values() for name in part[:2]]

    def _find(self, manual_dir: Path) -> dict[str, Path]:
        """{name: path} of the archives in a folder, or else in its folders; zip files go first."""
        if self.several_annotators:
            return multiannot.find(manual_dir)
        return {name: paths[0] for name, paths in self._all(manual_dir).items()}

    def _all(self, manual_dir: Path) -> dict[str, list[Path]]:
        """{name: its zip file, its folder}, whichever there are."""
        folders = [*sorted(manual_dir.glob("*/")), manual_dir]
        entries = {path.name.lower(): path for folder in folders for path in folder.iterdir()}
        found = {
            name: [entries[n] for n in (f"{name}.zip".lower(), name.lower()) if n in entries]
            for name in self._names
        }
        return {name: paths for name, paths in found.items() if paths}

    def notes(self, manual_dir: str | Path) -> list[str]:
        """A line for each archive whose folder is there, too."""
        if self.several_annotators:
            return []
        both = [paths for paths in self._all(Path(manual_dir)).values() if len(paths) > 1]
        return [
            f"{archive} is read, and not the folder {folder}: remove the one that you do not want"
            for archive, folder in both
        ]

    def _get(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        if self.several_annotators:
            return super()._get(dl_manager)
        logging.warning("%s: no archive in manual_dir; downloading.", self.info.full_name)
        return {name: self._download(dl_manager, name) for name in self._names}

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

    def _sources(self, archives: dict[str, Path]) -> dict[str, dict]:
        """{name of an archive: its `sources`}; a folder and its zip file differ."""
        return {
            name: sources.sources(path.parent, all_files(path) if path.is_dir() else [path])
            for name, path in archives.items()
        }

    def _labels(self, data: bytes, name: str) -> np.ndarray:
        return decode_labels(data, name, any_value=self.several_annotators)

    def _stored(self, data: bytes, name: str) -> bytes:
        return data

    def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
        if part == "all":
            return by_hash(ids)
        if part != "training":
            return super()._split(part, ids)
        held = [id for id in ids if is_validation(id)]
        return {"train": [id for id in ids if id not in held], "validation": held}

    def _pairs(self, archives: dict[str, Path], problems: defaultdict) -> dict[str, matching.Pairs]:
        if self.several_annotators:
            return multiannot.pairs_of(archives, problems)
        parts = {}
        for name, part in parts_of(self.builder_config.name).items():
            absent = [archive for archive in part[:2] if archive not in archives]
            if len(absent) == 2:
                logging.warning("%s: no %s archives; skipped.", self.info.full_name, name)
                continue
            if absent:
                (present,) = {part.images, part.masks} - set(absent)
                problems["missing archive"].append(f"{absent[0]}.zip (there is {present})")
                continue
            images = files_of(part.images, archives[part.images], IMAGE, problems)
            masks = files_of(part.masks, archives[part.masks], MASK, problems)
            if not (images and masks):
                continue
            found = matching.match(images, masks, problems)
            if len(found) < part.official:
                subset = "%s: %s: %d of %d images (a subset of the official archive)"
                logging.warning(subset, self.info.full_name, name, len(found), part.official)
            parts[name] = found
        return parts
