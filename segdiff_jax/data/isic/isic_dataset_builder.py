"""ISIC 2016, 2017 and 2018 lesion segmentation, from official archives."""

import contextlib
import dataclasses
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import requests
import tensorflow_datasets as tfds
from absl import logging

from segdiff_jax.data import pairs
from segdiff_jax.data.isic.archives import IMAGE, MASK, Archive, match_pairs, source_size
from segdiff_jax.data.splits import is_validation

_HOSTS = (
    "https://isic-archive.s3.amazonaws.com/challenges",
    "https://isic-challenge-data.s3.amazonaws.com",
)


class Part(NamedTuple):
    """An official pair of archives (names without `.zip`) and how many images it holds."""

    images: str
    masks: str
    official: int


@dataclasses.dataclass(eq=False, kw_only=True)
class IsicConfig(tfds.core.BuilderConfig):
    """One challenge.

    Attributes:
      parts: "training" or the name of a split -> its archives.
      hosts: base URLs, tried in order; an archive is at HOST/YEAR/NAME.zip.
    """

    parts: dict[str, Part]
    hosts: tuple[str, ...] = _HOSTS

    @property
    def names(self) -> list[str]:
        """The official archives."""
        return [name for part in self.parts.values() for name in (part.images, part.masks)]


def _config(year: str, images: str, masks: str, parts: dict[str, tuple[str, int]]) -> IsicConfig:
    """Config whose archive names follow a pattern, from split -> (word in the name, count)."""
    named = {k: Part(images.format(w), masks.format(w), n) for k, (w, n) in parts.items()}
    return IsicConfig(name=year, description=f"ISIC {year} segmentation.", parts=named)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Dermoscopic images with lesion masks, as original bytes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS: ClassVar = [
        _config(
            "2016",
            "ISBI2016_ISIC_Part1_{}_Data",
            "ISBI2016_ISIC_Part1_{}_GroundTruth",
            {"training": ("Training", 900), "test": ("Test", 379)},
        ),
        _config(
            "2017",
            "ISIC-2017_{}_Data",
            "ISIC-2017_{}_Part1_GroundTruth",
            {
                "training": ("Training", 2000),
                "official_validation": ("Validation", 150),
                "test": ("Test_v2", 600),
            },
        ),
        _config(
            "2018",
            "ISIC2018_Task1-2_{}_Input",
            "ISIC2018_Task1_{}_GroundTruth",
            {
                "training": ("Training", 2594),
                "official_validation": ("Validation", 100),
                "test": ("Test", 1000),
            },
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Optional: manual_dir may hold the official archives of the challenge, as downloaded from
    https://challenge.isic-archive.com/data, or the folders they were extracted to, under their
    official names, or a folder that holds them. Where it holds none, they are downloaded.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.describe(self, "https://challenge.isic-archive.com/data", "jpeg")

    def manual_sources(self, manual_dir: str | Path) -> dict[str, int]:
        """What a build would read: file name -> bytes of an archive, or files in a folder."""
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
        """Checks a pair of archives; its split name -> generator."""
        absent = [archive for archive in (part.images, part.masks) if archive not in sources]
        if len(absent) == 2:
            logging.warning("%s: no %s archives; skipped.", self.info.full_name, name)
            return {}
        if absent:
            (present,) = {part.images, part.masks} - set(absent)
            problems["missing archive"].append(f"{absent[0]}.zip (there is {present})")
            return {}
        images = Archive(part.images, sources[part.images], IMAGE, problems)
        masks = Archive(part.masks, sources[part.masks], MASK, problems)
        if not (images.files and masks.files):
            return {}
        found = match_pairs(images, masks, problems)
        sizes = pairs.check(found, problems, images.name)
        ids = list(found)
        if len(ids) < part.official:
            subset = "%s: %s: %d of %d images (a subset of the official archive)"
            logging.warning(subset, self.info.full_name, name, len(ids), part.official)
        splits = {name: ids}
        if name == "training":
            splits = {"train": [], "validation": []}
            for id in ids:
                splits["validation" if is_validation(id) else "train"].append(id)
        for split, members in splits.items():
            if not members:
                problems["empty split"].append(f"{split} (of the {len(ids)} ids of {part.images})")
        return {s: self._generate_examples(found, sizes, of) for s, of in splits.items()}

    def _generate_examples(self, found: dict, sizes: dict, ids: list[str]) -> Iterator[tuple]:
        yield from pairs.examples({id: found[id] for id in ids}, sizes)

    def _find(self, manual_dir: Path) -> dict[str, Path]:
        """Archives of the config in a folder, or else in the folders in it.

        Where both are there, the zip, not the extracted folder.
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
                    # Where there is no network, this fails in seconds; TFDS retries for minutes.
                    requests.head(url, allow_redirects=True, timeout=30).raise_for_status()
                path = Path(dl_manager.download(resource))
                if not zipfile.is_zipfile(path):
                    raise zipfile.BadZipFile("not a zip file")
                return path
            except Exception as error:
                failures.append(f"  {url}: {error}")
                shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(
            f"{name}.zip could not be downloaded:\n"
            + "\n".join(failures)
            + f"\nPut the archives of {self.name}/{self.builder_config.name} into a folder and give"
            " it as manual_dir:\n" + "\n".join(f"  {n}.zip" for n in self.builder_config.names)
        )


def _sizes(sources: dict[str, Path]) -> dict[str, int]:
    """File name -> bytes of an archive, or number of files in a folder."""
    ends = {name: "" if path.is_dir() else ".zip" for name, path in sources.items()}
    return {name + ends[name]: source_size(path) for name, path in sources.items()}
