"""Plain data sets: images and masks that are files in folders. Each is one entry of `SETS`.

TFDS reads README.md, CITATIONS.bib and TAGS.txt from a folder here with the name of an entry.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from segdiff_jax.data import matching, pairs, sources
from segdiff_jax.data.decode import decode_blurred_mask, decode_labels, decode_mask
from segdiff_jax.data.folder import Folder, all_files, is_foreign
from segdiff_jax.data.splits import by_hash, hold_out


class PlainSet(NamedTuple):
    """Where the files of a data set lie, and how they are split.

    `images` and `masks` are folders. If each file lies in a folder of its own, they are paths of a
    file, in which "{id}" stands for the name of that folder.
    """

    homepage: str
    instructions: str  # How to get it and where its files must lie: a message shows this.
    images: str
    masks: str
    split: Callable[[Collection[str]], dict[str, list[str]]]  # ids -> {split: ids}
    # What reads a mask, (encoded bytes, name) -> [H, W]; pixels above 0 are foreground.
    decode: Callable[[bytes, str], np.ndarray] = functools.partial(decode_labels, any_value=True)
    test: tuple[str, str] | tuple[()] = ()  # The same for a test split, which may be absent.
    folds: bool = True  # Images may be split at random.
    outside: str = "file of no split"  # The kind of problem if `split` leaves an id out.


def _by_frame(ids: Collection[str]) -> dict[str, list[str]]:
    """Splits numbers of frames into stretches, because neighbouring frames look the same."""
    frames = {"train": range(1, 448), "validation": range(448, 504), "test": range(504, 613)}
    number = lambda id: int(id) if id.isdecimal() else 0
    return {split: [id for id in ids if number(id) in frames[split]] for split in frames}


SETS = {
    "cvc_clinicdb": PlainSet(
        homepage="https://polyp.grand-challenge.org/CVCClinicDB/",
        instructions="""\
        Get CVC-ClinicDB from https://polyp.grand-challenge.org/CVCClinicDB/ and unpack it. Set
        data.manual_dir to the folder CVC-ClinicDB, or to one that holds it:
          CVC-ClinicDB/Original/1.tif       (or .png)
          CVC-ClinicDB/Ground Truth/1.tif   (or .png)
        """,
        images="Original",
        masks="Ground Truth",
        split=_by_frame,
        decode=decode_blurred_mask,
        folds=False,
        outside="not the number of a frame, 1 to 612",
    ),
    "kvasir_seg": PlainSet(
        homepage="https://datasets.simula.no/kvasir-seg/",
        instructions="""\
        Get kvasir-seg.zip from https://datasets.simula.no/kvasir-seg/ and unpack it. Set
        data.manual_dir to the folder Kvasir-SEG, or to one that holds it:
          Kvasir-SEG/images/NAME.jpg
          Kvasir-SEG/masks/NAME.jpg
        """,
        images="images",
        masks="masks",
        split=by_hash,
        decode=decode_blurred_mask,
    ),
    "monuseg": PlainSet(
        homepage="https://monuseg.grand-challenge.org",
        instructions="""\
        Get the training and test data from https://monuseg.grand-challenge.org/Data/ and draw the
        outlines of their XML files as masks. Set data.manual_dir to the folder that holds
          Training/img/NAME.tif   (or .png, .jpg)
          Training/mask/NAME.png  (above 0 on nuclei)
          Test/img/NAME.tif
          Test/mask/NAME.png
        """,
        images="Training/img",
        masks="Training/mask",
        test=("Test/img", "Test/mask"),
        split=hold_out,
        decode=decode_mask,  # Nuclei may be numbered.
    ),
    "ph2": PlainSet(
        homepage="https://www.fc.up.pt/addi/ph2%20database.html",
        instructions="""\
        Ask for the PH2 database at https://www.fc.up.pt/addi/ph2%20database.html and unpack it. Set
        data.manual_dir to the folder PH2Dataset, or to one that holds it:
          PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp
          PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp
        """,
        images="PH2 Dataset images/{id}/{id}_Dermoscopic_Image/{id}.bmp",
        masks="PH2 Dataset images/{id}/{id}_lesion/{id}_lesion.bmp",
        split=by_hash,
    ),
}


@functools.cache
def builder_of(dataset: str) -> type[pairs.PairsBuilder]:
    """The TFDS builder of an entry of `SETS`; KeyError if there is none."""
    plain, folder = SETS[dataset], Path(__file__).parent / dataset

    class Builder(pairs.PairsBuilder):
        name = dataset
        pkg_dir_path = folder if folder.is_dir() else folder.parent  # Where README.md lies.
        HOMEPAGE = plain.homepage
        FOLDS = plain.folds
        MANUAL_DOWNLOAD_INSTRUCTIONS = plain.instructions

        def _find(self, manual_dir: Path) -> Path | None:
            folders = (where.partition("/{id}")[0] for where in (plain.images, plain.masks))
            return sources.find_root(manual_dir, *folders)

        def _files(self, root: Path) -> Iterator[Path]:
            places = plain.images, plain.masks, *plain.test
            for top in {root / place.partition("/")[0] for place in places}:
                yield from all_files(top) if top.is_dir() else ()

        def _labels(self, data: bytes, name: str) -> np.ndarray:
            return np.uint8(plain.decode(data, name) > 0)

        def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
            return plain.split(ids) if part == "all" else super()._split(part, ids)

        def _pairs(self, root: Path, problems: defaultdict) -> dict[str, matching.Pairs]:
            found = _match(root, plain.images, plain.masks, problems)
            parts, splits = {"all": found}, plain.split(found)
            for id in found:
                if not any(id in some for some in splits.values()):
                    problems[plain.outside].append(found[id].image.name)
            if plain.test:
                top = plain.test[0].partition("/")[0]
                if (root / top).is_dir():
                    parts["test"] = _match(root, *plain.test, problems)
                else:
                    logging.warning("%s: no %s in %s; skipped.", self.info.full_name, top, root)
            return parts

    return Builder


def _match(root: Path, images: str, masks: str, problems: defaultdict) -> matching.Pairs:
    """{id: pair}, sorted, of images and masks that lie as `PlainSet` says."""
    if "{id}" not in images:
        return matching.match_folders(Folder(str(root / images), str(root / masks), [""]), problems)
    names = (path.name for path in (root / images.partition("/{id}")[0]).glob("*/"))
    ids = sorted(name for name in names if not is_foreign(name))
    found = {id: [root / where.format(id=id) for where in (images, masks)] for id in ids}
    for path in itertools.chain(*found.values()):
        if not (path.is_file() or path.is_symlink()):
            problems["missing file"].append(str(path))
    files = {id: [*map(matching.file_of, paths)] for id, paths in found.items()}
    return {id: matching.Pair(image, [mask]) for id, (image, mask) in files.items()}
