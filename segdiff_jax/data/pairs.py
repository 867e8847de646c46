"""What the builders share: how pairs of images and masks are checked, split and stored."""

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from segdiff_jax.data.annotations import encode_annotations, encode_png, majority
from segdiff_jax.data.decode import decode_image, decode_labels, doubt
from segdiff_jax.data.groups import (
    NO_GROUPS,
    Keys,
    check_groups,
    first_of_each,
    groups_of,
    leave_out_copies,
    split_by_group,
)
from segdiff_jax.data.matching import Pair, Pairs
from segdiff_jax.data.sources import digest, fingerprint, sources
from segdiff_jax.data.statistics import Statistics
from segdiff_jax.runtime.errors import UserError, some

_LISTED = 20  # files that a message names for each kind of problem


class Checked(NamedTuple):
    """What is known of a good pair: its size, a hash of its image's bytes, whether it is empty."""

    size: tuple[int, int]  # height and width
    digest: str
    foreground: bool  # Some pixel of a mask is.


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A base class; define `_find`, `_pairs` and `_files`, or override what calls them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    FORMAT = 2  # of how masks are read; older builds are not read
    FOLDS = True  # Images may be split at random, if those of a group stay together.
    HOMEPAGE: ClassVar[str | None] = None
    IMAGE_FORMAT: ClassVar[str | None] = None  # "jpeg" or "png" if all images have this format
    class_names: Sequence[str] = ()  # of several classes
    several_annotators = False  # Records have the fields of annotations.py.
    groups = NO_GROUPS  # Set it before a build.

    def _find(self, manual_dir: Path) -> Any:
        """The root: the folder in `manual_dir` that holds the data set; None or empty if absent.

        Or a dict of several paths.
        """

    def _root(self, dl_manager: tfds.download.DownloadManager) -> Any:
        """The root of a build."""
        with contextlib.suppress(AssertionError):  # TFDS: manual_dir is absent or empty.
            if root := self._find(Path(dl_manager.manual_dir)):
                return root
        return self._get(dl_manager)

    def _get(self, dl_manager: tfds.download.DownloadManager) -> Any:
        """The root if `_find` does not find one."""
        raise UserError(
            f"{self.info.full_name} cannot be built: data.manual_dir is not given or does not "
            "hold the data set, which you have to download yourself.\n"
            + inspect.cleandoc(self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        )

    def _files(self, root: Path) -> Iterable[Path]:
        """The files that a build reads; those that do not exist do not count."""

    def _pairs(self, root: Any, problems: defaultdict) -> dict[str, Pairs]:
        """The pairs of each part of the data; adds faults to `problems`, {kind: files}.

        Parts that `_split` does not split are splits. The last part is most worth keeping whole.
        """

    def _split(self, part: str, ids: Sequence[str]) -> dict[str, list[str]]:
        """{split: ids} of a part."""
        return {part: list(ids)}

    def _labels(self, data: bytes, name: str) -> np.ndarray:
        """The labels u8[H, W] of a mask's file; UserError as of `decode_labels`."""
        return decode_labels(data, name, any_value=True)

    def _stored(self, data: bytes, name: str) -> bytes:
        """What a record keeps of a mask's file: a PNG of 0 and 255."""
        return encode_png(255 * self._labels(data, name))

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format=self.IMAGE_FORMAT)
        mask = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        features = {"id": tfds.features.Text(), "image": image, "mask": mask}
        features |= {"height": np.int32, "width": np.int32}
        if self.several_annotators:
            texts = tfds.features.Sequence(tfds.features.Text())
            features |= {"annotations": mask, "annotators": texts}
        features, metadata = tfds.features.FeaturesDict(features), tfds.core.MetadataDict()
        return self.dataset_info_from_configs(
            features=features, homepage=self.HOMEPAGE, metadata=metadata
        )

    def manual_sources(self, manual_dir: str | Path) -> dict:
        """The `sources` of a build; {} if `manual_dir` does not hold the data set."""
        root = self._find(Path(manual_dir))
        return self._sources(root) if root else {}

    def notes(self, manual_dir: str | Path) -> list[str]:
        """Lines on files in `manual_dir` that are not read."""
        return []

    def _sources(self, root: Any) -> dict:
        return sources(root, filter(Path.is_file, self._files(root)))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root = self._root(dl_manager)
        places = root.values() if isinstance(root, dict) else [root]
        print(f"{self.info.full_name} is built from", *places, sep="\n  ", flush=True)
        metadata = self.info.metadata
        metadata |= {"sources": self._sources(root), "format": self.FORMAT}
        metadata["groups"] = self.groups.fingerprint()
        problems, doubts = defaultdict(list), defaultdict(list)
        statistics = Statistics(self.class_names)
        parts = self._pairs(root, problems)
        checked = {
            part: self._check(part, pairs, statistics, problems, doubts)
            for part, pairs in parts.items()
        }
        self._compare(checked, problems)
        self._raise(problems)
        for kind, names in doubts.items():
            print(f"warning: {kind} ({len(names)}): {some(names)}", flush=True)
        examples, empty, metadata["members"] = {}, [], {}
        keys = self._keys(checked)
        first = first_of_each({id: of for of_part in keys.values() for id, of in of_part.items()})
        # Of images that belong together, all but the first by name: {id: the first's id}.
        metadata["joined"] = {id: other for id, other in first.items() if id != other}
        splits, names = defaultdict(dict), {}
        for part, of_part in self._split_parts(keys).items():
            for split, ids in of_part.items():
                splits[split] |= {id: (parts[part][id], checked[part][id]) for id in ids}
        for split, pairs in splits.items():
            if not pairs:
                total = sum(map(len, parts.values()))
                problems["empty split"].append(
                    f"{split} (there are {total} images; copies and groups share a split)"
                )
            if not any(known.foreground for _, known in pairs.values()):
                empty.append(split)
            metadata["members"][split] = fingerprint(sorted(pairs))
            texts = {mask.annotator for pair, _ in pairs.values() for mask in pair.masks}
            names[split] = sorted({*" ".join(texts).split()})
            examples[split] = self._generate_examples(pairs)
        self._raise(problems)
        metadata["statistics"] = statistics.summary() | {"empty_splits": empty}
        if self.several_annotators:  # The latter is {split: names}.
            metadata["most_masks"] = metadata["statistics"]["masks"][1]
            metadata["split_annotators"] = names
        return examples

    def _compare(self, checked: Mapping[str, Mapping[str, Checked]], problems: defaultdict) -> None:
        """Adds faults that show when all files have been read to `problems`."""

    def _keys(self, checked: Mapping[str, Mapping[str, Checked]]) -> dict[str, Keys]:
        """{part: {id: a hash of its bytes and, if it has one, its group}}."""
        ids = {id for pairs in checked.values() for id in pairs}
        groups = groups_of(ids, self.groups)
        check_groups(ids, groups, self.groups)
        group = lambda id: [f"group {groups[id]}"] if id in groups else []
        return {
            part: {id: [one.digest, *group(id)] for id, one in pairs.items()}
            for part, pairs in checked.items()
        }

    def _split_parts(self, keys: Mapping[str, Keys]) -> dict[str, dict[str, list[str]]]:
        """{part: {split: ids}}; copies, and images of a group, share a split."""
        return {
            part: split_by_group(of_part, functools.partial(self._split, part))
            for part, of_part in leave_out_copies(keys).items()
        }

    def _check(
        self,
        part: str,
        pairs: Pairs,
        statistics: Statistics,
        problems: defaultdict,
        doubts: defaultdict,
    ) -> dict[str, Checked]:
        """Decodes every image and mask -> what is known of the good pairs, by id.

        In a good pair all files can be read and have one size. Others are added to `problems`, and
        what cannot be decided to `doubts`, {kind: files}.
        """
        found, name = {}, f"{self.name}, {part}"
        for id, pair in tqdm(pairs.items(), desc=f"Checking {name}", unit=" images", leave=False):
            encoded, decoded = [], []
            masks = ((mask, self._labels) for mask in pair.masks)
            for file, decode in ((pair.image, decode_image), *masks):
                try:
                    encoded.append(file.read())
                    decoded.append(decode(encoded[-1], file.name))
                except MemoryError:
                    raise
                except Exception as error:  # zipfile raises RuntimeError, zlib.error and others.
                    reason = str(error).removeprefix(f"{file.name}: ")
                    problems["unreadable file"].append(f"{file.name}: {reason}")
            if len(decoded) < 1 + len(pair.masks):
                continue
            (image, *labels), size = decoded, decoded[0].shape[:2]
            for mask, of_mask in zip(pair.masks, labels, strict=True):
                if of_mask.shape != size:
                    what = "mask" if len(labels) == 1 else mask.name
                    sides = "image {} x {}, {} {} x {}".format(*size, what, *of_mask.shape)
                    kind = "image and mask of different sizes"
                    problems[kind].append(f"{pair.image.name}: {sides}")
            if any(of_mask.shape != size for of_mask in labels):
                continue
            for mask, data in zip(pair.masks, encoded[1:], strict=True):
                if kind := doubt(encoded[0], data):
                    doubts[kind].append(mask.name)
            names = [mask.annotator for mask in pair.masks] if self.several_annotators else ()
            # The majority of one mask of several classes is that mask.
            main = labels[0] if len(labels) == 1 else majority(np.stack(labels))
            statistics.add(id, image, main, names)
            foreground = any(of_mask.any() for of_mask in labels)
            found[id] = Checked(size, digest(encoded[0]), foreground)
        return found

    def _raise(self, problems: Mapping[str, list[str]]) -> None:
        """Raises a UserError if there are problems; it lists the first files of each kind."""
        lines = []
        for kind, files in problems.items():
            lines += [f"{kind} ({len(files)}):", *(f"  {file}" for file in files[:_LISTED])]
            if len(files) > _LISTED:
                lines.append(f"  and {len(files) - _LISTED} more")
        if lines:
            raise UserError("\n".join([f"{self.info.full_name} cannot be built.", *lines]))

    def _generate_examples(
        self, pairs: Mapping[str, tuple[Pair, Checked]]
    ) -> Iterator[tuple[str, dict]]:
        for id, ((image, masks), known) in pairs.items():
            if self.several_annotators:
                labels = np.stack([self._labels(mask.read(), mask.name) for mask in masks])
                fields = encode_annotations(labels, [mask.annotator for mask in masks])
            else:
                fields = {"mask": self._stored(masks[0].read(), masks[0].name)}
            height, width = known.size
            sizes = {"height": height, "width": width}
            yield id, {"id": id, "image": image.read(), **fields, **sizes}
