"""The 2-D tasks of QUBIQ 2021: MRI and CT slices, each with the masks of three to seven experts."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.splits import hold_out
from segdiff_jax.runtime.errors import UserError

_TASKS = {"brain-growth": 1, "brain-tumor": 3, "kidney": 1, "prostate": 2}  # number of each
PERCENTILES = 0.5, 99.5  # of a channel's values: what is below is black, what is above white
CHANNELS = 0, 2, 3  # of the four of brain-tumor: what is red, green and blue


class Builder(pairs.PairsBuilder):
    """Slices, each with masks that are named by their files, as "seg01"."""

    several_annotators = True
    HOMEPAGE = "https://qubiq21.grand-challenge.org"
    IMAGE_FORMAT = "png"
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=f"{organ}-{task}" if number > 1 else organ)
        for organ, number in _TASKS.items()
        for task in range(1, number + 1)
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Get the training and the validation data from https://qubiq21.grand-challenge.org and unpack
    them. Set data.manual_dir to the folder that holds, for each organ,
      brain-growth/Training/case01/image.nii.gz, task01_seg01.nii.gz, task01_seg02.nii.gz, ...
      brain-growth/Validation/case35/image.nii.gz, ...
    """

    def _find(self, manual_dir: Path) -> dict[str, Path]:
        """{"Training": folder of its cases, "Validation": the same}, whichever there are."""
        organ = self._task()[0]
        roots = {
            part: sources.find_root(manual_dir, f"{organ}/{part}")
            for part in ("Training", "Validation")
        }
        return {part: root / organ / part for part, root in roots.items() if root}

    def _task(self) -> tuple[str, str]:
        """The organ and how the names of the masks' files begin."""
        name = self.builder_config.name
        organ = name if name in _TASKS else name.rpartition("-")[0]
        return organ, f"task0{name.removeprefix(organ).strip('-') or 1}_seg"

    def _cases(self, root: Path) -> list[Path]:
        return sorted(path for path in root.glob("case*/") if path.is_dir())

    def _masks(self, case: Path) -> list[Path]:
        return sorted(case.glob(f"{self._task()[1]}*.nii.gz"))

    def _sources(self, roots: dict[str, Path]) -> dict:
        files = lambda case: [case / "image.nii.gz", *self._masks(case)]
        return {
            part: sources.sources(
                root, (p for case in self._cases(root) for p in files(case) if p.is_file())
            )
            for part, root in roots.items()
        }

    def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
        return hold_out(ids) if part == "Training" else {"test": list(ids)}

    def _pairs(self, roots: dict[str, Path], problems: defaultdict) -> dict[str, matching.Pairs]:
        sources.imported("nibabel", self.info.full_name)
        if "Training" not in roots:
            problems["missing folder"].append(f"{self._task()[0]}/Training")
        parts = {part: self._pairs_of(root, problems) for part, root in roots.items()}
        return {part: found for part, found in parts.items() if found}

    def _pairs_of(self, root: Path, problems: defaultdict) -> matching.Pairs:
        found = {}
        for case in self._cases(root):
            masks = [
                _file(path, _mask, path.name.partition(".")[0].rpartition("_")[2])
                for path in self._masks(case)
            ]
            if not (case / "image.nii.gz").is_file():
                problems["missing file"].append(f"{case}/image.nii.gz")
            elif not masks:
                problems["missing file"].append(f"{case}/{self._task()[1]}01.nii.gz")
            else:
                found[case.name] = matching.Pair(_file(case / "image.nii.gz", to_rgb), masks)
        return found


def to_rgb(values: np.ndarray) -> np.ndarray:
    """Intensities [H, W] or [H, W, K] of any range -> u8[H, W, 3].

    Each channel is scaled by its own `PERCENTILES`. Of four channels, `CHANNELS` are taken. A
    UserError says that there is another number than one, three or four.
    """
    channels = values.reshape(*values.shape[:2], -1)
    number = channels.shape[2]
    if number not in (1, 3, 4):
        raise UserError(f"the image has {number} channels, not 1, 3 or 4")
    channels = channels[..., CHANNELS] if number == 4 else channels.repeat(3 // number, axis=2)
    low, high = np.percentile(channels, PERCENTILES, axis=(0, 1))
    scaled = (channels - low) / np.maximum(high - low, 1e-6)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _mask(values: np.ndarray) -> np.ndarray:
    """Labels [H, W] or [H, W, 1] of any type -> u8[H, W]; a UserError names other values."""
    values = values.reshape(values.shape[:2]) if values[0, 0].size == 1 else values
    if values.ndim != 2 or not np.isin(values, range(256)).all():
        raise UserError(f"the mask is no slice of whole numbers from 0 to 255: {values.shape}")
    return values.astype(np.uint8)


def _file(path: Path, convert: Callable, annotator: str = "") -> matching.File:
    """A NIfTI file as a PNG; x grows to the right and y downwards."""

    def read() -> bytes:
        import nibabel

        values = np.asarray(nibabel.load(path).dataobj)
        if values.ndim < 2 or not np.isfinite(values).all():
            raise UserError(f"{path}: it is no slice of finite numbers: {values.shape}")
        if values.ndim == 3 and values.shape[0] == 1:
            values = values[0]
        return pairs.encode_png(convert(np.swapaxes(values, 0, 1)))

    return matching.File(str(path), read, annotator)
