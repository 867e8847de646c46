"""TFDS builder of the drawn dermoscopy-like data set; needs no download and no TensorFlow."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segdiff_jax.data import pairs
from segdiff_jax.data.annotations import encode_annotations, majority
from segdiff_jax.data.builders.synthetic_lesions import annotators, drawing
from segdiff_jax.data.statistics import Statistics

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class SyntheticLesionsConfig(tfds.core.BuilderConfig):
    """What to draw. Give every setting a `name` of its own: TFDS reuses a data set by its name."""

    size: int = 128  # pixels a side, at least 16
    num_train: int = 2400  # pictures in this split, at least 1
    num_validation: int = 60
    num_test: int = 60
    seed: int = 0  # at least 0
    # Masks of a test picture, each by a known annotator who is drawn by chance; in the other splits
    # each annotator draws one. 0: one exact mask, and no annotators.
    test_masks: int = 0

    def __post_init__(self):
        smallest = {"size": 16, "num_train": 1, "num_validation": 1, "num_test": 1}
        smallest |= {"seed": 0, "test_masks": 0}
        for field, least in smallest.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be {least} or more, got {getattr(self, field)}.")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Drawn skin lesions with exact masks and the nuisances of real pictures."""

    VERSION = tfds.core.Version("2.3.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "First version.",
        "1.1.0": "2400 training pictures instead of 600; the others are the same.",
        "2.0.0": "Hair, rulers and dark corners are drawn as in augmentation.",
        "2.1.0": "The annotators differ as dermatologists do; the other data sets are the same.",
        "2.2.0": "With annotators: 2400 training pictures, 4 masks in validation, fades that show.",
        "2.3.0": "Three annotators, who draw the masks of a test picture by chance.",
    }
    BUILDER_CONFIGS: ClassVar = [
        SyntheticLesionsConfig(name="default", description="128 pixels a side, 2400 to train on."),
        SyntheticLesionsConfig(
            name="small",
            description="64 pixels a side, 400 to train on, drawn in seconds.",
            size=64,
            num_train=400,
            num_validation=30,
            num_test=30,
        ),
        SyntheticLesionsConfig(
            name="annotators",
            description="64 pixels a side, 2400 to train on; three known annotators differ.",
            size=64,
            num_train=2400,
            num_validation=30,
            num_test=60,
            test_masks=16,
        ),
    ]

    def _info(self):
        png = functools.partial(tfds.features.Image, encoding_format="png")
        features = {
            "id": tfds.features.Text(doc="Such as synthetic_train_00012."),
            "image": png(shape=(None, None, 3)),
            "mask": png(shape=(None, None, 1), doc="255 on the lesion, or 0."),
            "height": np.int32,
            "width": np.int32,
            "conditions": tfds.features.Sequence(
                tfds.features.Text(), doc="Sorted nuisances; see drawing.CONDITIONS."
            ),
        }
        if self.builder_config.test_masks:
            masks = png(shape=(None, None, 1), doc="See segdiff_jax/data/annotations.py.")
            annotators = tfds.features.Sequence(tfds.features.Text())
            features |= {"annotations": masks, "annotators": annotators}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "mask"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        statistics = Statistics()
        return {split: self._generate_examples(split, statistics) for split in _SPLITS}

    def _generate_examples(self, split, statistics):
        config, several = self.builder_config, self.builder_config.test_masks > 0
        for index in range(getattr(config, f"num_{split}")):
            seed, names = (config.seed, _SPLITS.index(split), index), ()
            id = f"synthetic_{split}_{index:05d}"
            if several:
                names = [*annotators.ANNOTATORS]
                if split == "test":
                    chance = np.random.default_rng([*seed, config.test_masks])
                    names = [str(name) for name in chance.choice(names, config.test_masks)]
                image, masks, scene, _ = annotators.draw_annotated(seed, config.size, names)
                labels, conditions = np.uint8(masks > 0), (scene,)
                mask, fields = majority(labels), encode_annotations(labels, names)
            else:
                image, mask, conditions = drawing.draw(seed, config.size)
                fields = {"mask": pairs.encode_png(mask)}
            statistics.add(id, image, mask, names)
            example = {"id": id, "image": pairs.encode_png(image), **fields}
            size = {"height": config.size, "width": config.size}
            yield id, example | size | {"conditions": list(conditions)}
        # After the last split, of all.
        self.info.metadata["statistics"] = summary = statistics.summary()
        if several:
            known = sorted(summary["annotators"])
            self.info.metadata["most_masks"] = len(known)  # Only the test has more.
            self.info.metadata["split_annotators"] = dict.fromkeys(_SPLITS, known)
