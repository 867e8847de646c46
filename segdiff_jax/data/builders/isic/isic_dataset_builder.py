"""ISIC 2016, 2017 and 2018 lesion segmentation, from official archives."""

import contextlib
import dataclasses
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

_HOSTS = (
    "https://isic-archive.s3.amazonaws.com/challenges",
    "https://isic-challenge-data.s3.amazonaws.com",
)


class Part(NamedTuple):
    """Two official archives, without `.zip`, and the number of images that they officially hold."""

    images: str
    masks: str
    official: int


@dataclasses.dataclass(eq=False, kw_only=True)
class IsicConfig(tfds.core.BuilderConfig):
    """One challenge.

    Attributes:
      parts: {"training" or the name of a split: archives}.
      hosts: URLs that are tried in this order; an archive is at HOST/YEAR/NAME.zip.
    """

    parts: dict[str, Part]
    hosts: tuple[str, ...] = _HOSTS

    @property
    def names(self) -> list[str]:
        """The names of all archives."""
        return [name for part in self.parts.values() for name in (part.images, part.masks)]


def _config(year: str, images: str, masks: str, counts: dict[str, int]) -> IsicConfig:
    """The config of a year from the patterns of its names and {word in the names: images}."""
    split_of = {"Training": "training", "Validation": "official_validation"}
    parts = {
        split_of.get(word, "test"): Part(images.format(word), masks.format(word), count)
        for word, count in counts.items()
    }
    return IsicConfig(name=year, description=f"ISIC {year} segmentation.", parts=parts)


class Builder(pairs.PairsBuilder):
    """Dermoscopic images and lesion masks, stored as the bytes of the original files."""

    HOMEPAGE = "https://challenge.isic-archive.com/data"
    IMAGE_FORMAT = "jpeg"
    BUILDER_CONFIGS: ClassVar = [
        _config(
            "2016",
            "ISBI2016_ISIC_Part1_{}_Data",
            "ISBI2016_ISIC_Part1_{}_GroundTruth",
            {"Training": 900, "Test": 379},
        ),
        _config(
            "2017",
            "ISIC-2017_{}_Data",
            "ISIC-2017_{}_Part1_GroundTruth",
            {"Training": 2000, "Validation": 150, "Test_v2": 600},
        ),
        _config(
            "2018",
            "ISIC2018_Task1-2_{}_Input",
            "ISIC2018_Task1_{}_GroundTruth",
            {"Training": 2594, "Validation": 100, "Test": 1000},
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Optional: manual_dir, or a folder in it, may hold the official archives of the challenge from
    https://challenge.isic-archive.com/data, or the folders into which they were unpacked, under
    their official names. If there are none, they are downloaded.
    """

    def manual_sources(self, manual_dir: str | Path) -> dict[str, int]:
        """{file name: bytes of an archive, or number of files in a folder} that a build reads."""
        return _sizes(self._find(Path(manual_dir)))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        sources = {}
        with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
            sources = self._find(Path(dl_manager.manual_dir))
        if not sources:
            logging.warning("%s: no archive in manual_dir; downloading.", self.info.full_name)
            sources = {n: self._download(dl_manager, n) for n in self.builder_config.names}
        self.info.metadata["sources"] = _sizes(sources)

        problems, splits = defaultdict(list), {}
        for name, part in self.builder_config.parts.items():
            splits |= self._open_part(name, part, sources, problems)
        pairs.raise_problems(self, problems)
        return splits

    def _open_part(self, name: str, part: Part, sources: dict, problems: defaultdict) -> dict:
        """Checks the archives of a part -> {split: examples}."""
        absent = [archive for archive in (part.images, part.masks) if archive not in sources]
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
        ids = list(found)
        if len(ids) < part.official:
            subset = "%s: %s: %d of %d images (a subset of the official archive)"
            logging.warning(subset, self.info.full_name, name, len(ids), part.official)
        splits = {name: ids}
        if name == "training":
            held = list(filter(is_validation, ids))
            splits = {"train": sorted(set(ids) - set(held)), "validation": held}
        for split, members in splits.items():
            if not members:
                problems["empty split"].append(f"{split} (of the {len(ids)} ids of {part.images})")
        splits = pairs.by_split(found, splits)
        return {split: self._generate_examples(some, sizes) for split, some in splits.items()}

    def _find(self, manual_dir: Path) -> dict[str, Path]:
        """{name: path} of the archives that lie in a folder, or else in the folders in it.

        If there is both an archive and its unpacked folder, it is the archive.
        """
        manual_dir = manual_dir.expanduser()
        inner = sorted(path for path in manual_dir.iterdir() if path.is_dir())
        entries = {
            path.name.lower(): path for folder in (*inner, manual_dir) for path in folder.iterdir()
        }
        found = {
            name: entries.get(f"{name}.zip".lower(), entries.get(name.lower()))
            for name in self.builder_config.names
        }
        return {name: path for name, path in found.items() if path}

    def _download(self, dl_manager: tfds.download.DownloadManager, name: str) -> Path:
        """Downloads an archive from the first host that has it."""
        failures = []
        for index, host in enumerate(self.builder_config.hosts):
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
            " data.manual_dir to it:\n" + "\n".join(f"  {n}.zip" for n in self.builder_config.names)
        )


def _sizes(sources: dict[str, Path]) -> dict[str, int]:
    """{file name: bytes of an archive, or number of files in a folder}; changes with the data."""
    archives = {f"{n}.zip": path.stat().st_size for n, path in sources.items() if path.is_file()}
    folders = {n: len(visible_files(path)) for n, path in sources.items() if path.is_dir()}
    return archives | folders
