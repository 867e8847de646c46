"""ISIC MultiAnnot++ (IMA++): masks by up to five annotators of images of the ISIC archive."""

import re
from collections import defaultdict
from pathlib import Path

from segdiff_jax.data.builders.isic.archives import IMAGE, files_of
from segdiff_jax.data.folder import is_foreign
from segdiff_jax.data.matching import File, Pair, Pairs
from segdiff_jax.runtime.errors import some

MASKS = "segs"  # The archive of masks, without `.zip`, or the folder of its files.
# Image, annotator, tool, skill and a number. The consensus masks, _ST_ and _MV_, are left out.
MASK = re.compile(r"(ISIC_\d+_A\d+_T\d+_S\d+_\w+)\.png", re.IGNORECASE)
TEST_IMAGES = "ISBI2016_ISIC_Part1_Test_Data"  # They are never trained on.


def find(manual_dir: Path) -> dict[str, Path]:
    """{"segs": the masks, name: each other zip file or folder beside them}; {} without masks.

    They lie in `manual_dir` or in a folder of it.
    """
    for folder in (manual_dir, *sorted(manual_dir.glob("*/"))):
        paths = [p for p in folder.iterdir() if p.is_dir() or p.suffix.lower() == ".zip"]
        found = {path.name: path for path in sorted(paths) if not is_foreign(path.name)}
        masks = [found.pop(name) for name in (f"{MASKS}.zip", MASKS) if name in found]
        if masks:
            return {MASKS: masks[0]} | found
    return {}


def pairs_of(places: dict[str, Path], problems: defaultdict) -> dict[str, Pairs]:
    """{"all": pairs, "test": those of ISIC 2016's test images, if its archive is there}.

    `places` are those of `find`. Prints how many masks have no image; nobody has all images.
    """
    images: dict[str, File] = {}
    test: set[str] = set()
    for name, path in places.items():
        if name == MASKS:
            continue
        found = files_of(path.stem, path, IMAGE, problems, may_be_empty=True)
        images = found | images
        if path.stem.lower() == TEST_IMAGES.lower():
            test |= found.keys()
    masks = defaultdict(list)
    for name, file in sorted(files_of(MASKS, places[MASKS], MASK, problems).items()):
        number, annotator, tool, skill = name.upper().split("_")[1:5]
        masks[f"ISIC_{number}"].append(file._replace(annotator=f"{annotator} {skill} {tool}"))
    if absent := sorted(masks.keys() - images.keys()):
        count = sum(len(masks.pop(id)) for id in absent)
        print(
            f"left out: {count} masks of {len(absent)} images that are not there: {some(absent)}",
            flush=True,
        )
    if absent and not masks:
        problems["no image of any mask, in the zip files and folders beside the masks"].append(
            str(places[MASKS].parent)
        )
    parts = {"all": {}, "test": {}}
    for id in sorted(masks):
        parts["test" if id in test else "all"][id] = Pair(images[id], masks[id])
    return {part: pairs for part, pairs in parts.items() if pairs or part == "all"}
