"""Images as they are segmented and scored: at their own size, and as the network sees them."""

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from segdiff_jax.config import changes, set_fields
from segdiff_jax.data.annotations import decode_annotations
from segdiff_jax.data.artefacts import ARTEFACTS, add_artefact
from segdiff_jax.data.colour import COLOUR_CONSTANCY
from segdiff_jax.data.decode import decode_image, decode_labels, naming_memory
from segdiff_jax.data.pipeline import record_id, resize_image
from segdiff_jax.data.prepare import load_source, load_training_source, where
from segdiff_jax.data.records import Records
from segdiff_jax.data.splits import has_training_images
from segdiff_jax.evaluation.conditions import measure_conditions
from segdiff_jax.inference.load import Model
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import NO_MATTER

OUT_OF_FOLD = "out_of_fold"  # a name of a split: each model segments the fold it was not trained on
# Fields in which the models of folds may differ.
OF_ONE_FOLD = "seed", "data.fold", "train.init_from", *NO_MATTER


def open_split(config: ConfigDict, split: str, places: Mapping[str, str] | None = None) -> Records:
    """A split of a run's data set, see `load_source`; `places` are fields such as "data.dir".

    A UserError says that the run's data are not where its config or `places` says.
    """
    data = _data_of(config, places)
    return load_source(data.dataset, split, *where(data))


def _data_of(config: ConfigDict, places: Mapping[str, str] | None) -> ConfigDict:
    config = config.copy_and_resolve_references()
    set_fields(config, places or {})
    data = config.data
    if not os.path.isdir(data.dir):
        files = "--config.data.manual_dir=FOLDER, of the official files"
        if data.dataset == "paired_folder":
            files = "--config.data.images=FOLDER and --config.data.masks=FOLDER"
        raise UserError(
            f"data.dir={data.dir} is not a folder: give --config.data.dir=FOLDER, of the built "
            f"data sets (and {files}), or --images=FOLDER"
        )
    return data


def open_parts(
    models: Sequence[Model], split: str, places: Mapping[str, str] | None = None
) -> list[tuple[Records, Model]]:
    """What each model segments of a split, see `open_split`; of `OUT_OF_FOLD`, its own fold.

    A UserError says that the models are not one of each fold or differ otherwise, or that a model
    was trained on images that it would segment.
    """
    members = [model.members or (model,) for model in models]
    folds = [{(m.config.data.folds, m.config.data.fold) for m in of} for of in members]
    if split == OUT_OF_FOLD:
        _check_folds(members, folds, places)
        split = "validation"
    elif has_training_images(split) and len(set.union(*folds)) > 1:
        raise UserError(
            f"--split={split}: some of the models were trained on images of it, because their "
            f"data.fold or data.folds differ; give --split={OUT_OF_FOLD}"
        )
    return [(open_split(model.config, split, places), model) for model in models]


def _check_folds(
    members: Sequence[Sequence[Model]],
    folds: Sequence[set[tuple[int, int]]],
    places: Mapping[str, str] | None,
) -> None:
    """As in `open_parts`; `members` and `folds` are of each model."""
    number = members[0][0].config.data.folds
    if not number or sorted(map(sorted, folds)) != [[(number, fold)] for fold in range(number)]:
        found = ", ".join(str(pair) for of in folds for pair in sorted(of))
        raise UserError(
            f"--split={OUT_OF_FOLD} needs a --workdir of each fold, trained with the same "
            f"data.folds and with data.fold=0, 1, ...; (folds, fold) are {found}"
        )
    for of, ((_, fold),) in zip(members, folds, strict=True):
        if len(of) != len(members[0]):
            raise UserError(f"fold {fold} has {len(of)} models, the first {len(members[0])}")
        for model, first in zip(of, members[0], strict=True):
            _check_fold(model, first, fold, places)


def _check_fold(model: Model, first: Model, fold: int, places: Mapping[str, str] | None) -> None:
    config = model.config
    if other := changes(first.config, config).keys() - {*OF_ONE_FOLD, *(places or ())}:
        raise UserError(
            f"the model of fold {fold} differs from the first in {', '.join(sorted(other))}"
        )
    data = _data_of(config, places)
    trained_on = load_training_source(data.dataset, data.extra_datasets, *where(data)).members
    if model.trained_on and model.trained_on != trained_on:
        raise UserError(
            f"the images of fold {fold} have changed since its model was trained, which may have "
            "seen some of them: train it again"
        )
    best = Path(model.settings.get("checkpoint", "")).parent.name == "best"
    if config.validation.every and best:
        print(
            f"warning: fold {fold} chose the checkpoint that it is scored with; train with "
            "--config.validation.every=0, or give WORKDIR/checkpoints/last",
            flush=True,
        )


class NativeExamples(Sequence):
    """Decoded records for `model` to segment; `failures` is file -> why there is no record of it.

    An example is {"id" str, "image" u8[H, W, 3], "input" u8[S, S, 3], what the network sees,
    "truth", labels u8[H, W] or None, "truths", the labels u8[M, H, W] of several annotators or
    None, and "conditions", see `measure_conditions`, or None}. "truth" is the majority of "truths".
    Conditions are measured before an artefact is added. An example that cannot be read raises a
    UserError or OSError that names it.
    """

    def __init__(
        self, records: Sequence[dict], model: Model, artefact: str | None = None, workers: int = 2
    ):
        """Reads nothing yet.

        Records have "id", "image" and, where the truth is known, "mask" (encoded bytes) and perhaps
        the fields of annotations.py. The model says how images are prepared, and which classes
        masks have. An artefact, one of `ARTEFACTS` or a UserError, is added to every image; the
        image's id decides how. The workers are threads that read and decode.
        """
        if artefact and artefact not in ARTEFACTS:
            raise UserError(f"artefact {artefact!r} is unknown; there are {', '.join(ARTEFACTS)}")
        self._records, self.model = records, model
        self._correct = COLOUR_CONSTANCY[model.config.data.colour_constancy]
        self._artefact, self._workers = artefact, workers
        self.failures = dict(getattr(records, "failures", ()))

    def fingerprint(self) -> str:
        """Differs if the number of images does or, in a folder, one of their names."""
        return f"{len(self)} images {zlib.crc32(repr(getattr(self._records, 'ids', '')).encode())}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._decode(self._records[index])

    def read(
        self, indices: Sequence[int], is_done: Callable[[str, int], bool]
    ) -> Iterator[dict[str, Any]]:
        """Decodes the examples of these indices ahead, in order.

        Yields an example, with the checksum of its files as "content"; or {"id", "done"}, if
        `is_done` says so by id and checksum; or {"id", "failure"}: why it cannot be read. An
        `OutOfMemory` names an image for which there is too little memory.
        """
        ids = getattr(self._records, "ids", range(len(self)))

        def read(index):
            try:
                with naming_memory(f"image {ids[index]}"):
                    record = self._records[index]
            except (OSError, UserError) as error:  # Of a file in a folder.
                return {"id": ids[index], "failure": str(error)}
            id = record_id(record)
            files = record["image"], record.get("mask", b"none"), record.get("annotations", b"")
            content = functools.reduce(lambda crc, file: zlib.crc32(file, crc), files, 0)
            if is_done(id, content):
                return {"id": id, "done": True}
            try:
                with naming_memory(id):
                    return self._decode(record) | {"content": content}
            except UserError as error:
                return {"id": id, "failure": str(error)}

        # Images may be 20 MB each: few are read ahead.
        ahead = 2 * self._workers
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=ahead)
        return iter(grain.MapDataset.source(list(indices)).map(read).to_iter_dataset(options))

    def _decode(self, record: dict[str, Any]) -> dict[str, Any]:
        id, truth, truths, conditions = record_id(record), None, None, None
        image = decode_image(record["image"], id)
        if "mask" in record:
            truth = decode_labels(record["mask"], f"mask of {id}", self.model.classes, True)
            if truth.shape != image.shape[:2]:
                size = image.shape[:2]
                raise UserError(f"{id}: the image is {size} but its mask {truth.shape} pixels")
            conditions = measure_conditions(image, truth > 0)
        if "annotations" in record:
            truths = decode_annotations(record)
        if self._artefact:
            key = jax.random.key(zlib.crc32(id.encode()))
            changed = add_artefact(self._artefact, key, np.float32(image) / 255)
            image = np.rint(255 * np.asarray(changed)).astype(np.uint8)
        seen = self._correct(resize_image(image, self.model.input_size))
        example = {"id": id, "image": image, "input": seen, "truth": truth, "truths": truths}
        return example | {"conditions": conditions}
