"""How near single masks are to annotators whose ways are known: python -m tools.annotators.

--workdir is a run on synthetic_lesions/annotators; several are compared. It prints, over the test
images: the generalised energy distance of samples of the network, and of level sets and pixels of
its probability; the floor, which 16 masks drawn like the truth have; and at which share of the
level sets' distance above the floor the samples are. Of the pictures where either of two patches is
the lesion, it prints the share of masks with the first, the second, both or none, and how far apart
the shares of the two are in one picture, on average. Of a network that knows annotators, it prints
for how many images samples "like k" are nearest to masks of annotator k. Intervals are over images,
95%.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

import segdiff_jax
from segdiff_jax.data.builders.synthetic_lesions.annotators import ANNOTATORS, draw_annotated
from segdiff_jax.data.builders.synthetic_lesions.synthetic_lesions_dataset_builder import Builder
from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.evaluation.distributions import score_samples
from segdiff_jax.evaluation.examples import NativeExamples, open_split
from segdiff_jax.evaluation.metrics import bootstrap_interval
from segdiff_jax.inference.combine import iou_distances
from segdiff_jax.inference.load import Model
from segdiff_jax.runtime.command import argument_parser, run_simple
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute

DATASET, SAMPLES = "synthetic_lesions/annotators", 16
TEST = 2  # the split's part of a picture's seed
FLOOR, NETWORK, LEVELS = "truth, drawn again (the floor)", "samples of the network", "level sets"


def single_masks(
    models: Sequence[Model], examples: Sequence[dict], name: str
) -> list[list[np.ndarray]]:
    """The single masks bool[16, H, W] of each example, for each of some models of one network.

    The network samples once, and each model draws from that. Shows progress with a name.
    """
    found, count = [[] for _ in models], models[0].batch_size
    batches = padded_batches(iter(examples), count)
    for group, valid in tqdm(batches, name, total=-(-len(examples) // count), leave=False):
        ids = [example["id"] for example in group]
        made = models[0].sample(np.stack([example["input"] for example in group]), ids)
        for i in np.flatnonzero(valid):
            size = group[i]["image"].shape[:2]
            for of_model, model in zip(found, models, strict=True):
                of_model.append(model.segment(made[:, i], size, ids[i]).samples > 0)
    return found


def redrawn(number: int, size: int, names: Sequence[str]) -> tuple[np.ndarray, str, np.ndarray]:
    """Other masks of a test picture, by annotators of these names; its scene and its patches."""
    seed = Builder.builder_configs["annotators"].seed, TEST, number
    _, masks, scene, patches = draw_annotated(seed, size, names, hand=1)
    return masks > 0, scene, patches


def masks_of_each(places: list[tuple[int, int]]) -> dict[str, list[np.ndarray]]:
    """16 masks by each annotator of each picture, of which `places` has number and size."""
    return {name: [redrawn(*place, [name] * SAMPLES)[0] for place in places] for name in ANNOTATORS}


def like(
    annotator: str, masks: list[np.ndarray], of_each: dict[str, list[np.ndarray]]
) -> list[bool]:
    """Whether each picture's masks "like an annotator" are nearest to those of that one."""
    nearest = []
    for i, of_picture in enumerate(masks):
        far = {name: iou_distances(of_picture, own[i]).mean() for name, own in of_each.items()}
        nearest.append(min(far, key=far.get) == annotator)
    return nearest


def show_distances(
    kinds: dict[str, list[np.ndarray]], truths: list[np.ndarray], draws: bool
) -> None:
    """Prints the mean energy distance of each kind of masks.

    `draws` says of the samples of the network what it says in `score_samples`.
    """
    found = {}
    for name, masks in kinds.items():
        pairs, drawn = zip(masks, truths, strict=True), draws or name != NETWORK
        found[name] = [score_samples(*pair, draws=drawn)["ged"] for pair in pairs]
        low, high = bootstrap_interval(found[name])
        print(f"{name}: energy distance {np.mean(found[name]):.4f} ({low:.4f} to {high:.4f})")
    share = lambda floor, own, sets, axis: (own - floor).mean(axis) / (sets - floor).mean(axis)
    options = {"method": "percentile", "paired": True, "rng": 0}
    of_share = np.array([found[name] for name in (FLOOR, NETWORK, LEVELS)])
    low, high = stats.bootstrap(of_share, share, **options).confidence_interval
    mean = share(*of_share, axis=0)
    print(f"samples above the floor, of level sets: {mean:.0%} ({low:.0%} to {high:.0%})")


def show_shares(name: str, masks: list[np.ndarray], known: list[tuple]) -> None:
    """Prints how often samples have which of two patches; one is there if a tenth of it is."""
    taken = [
        (of[:, None] & patches).sum((2, 3)) > 0.1 * patches.sum((1, 2))
        for of, (_, scene, patches) in zip(masks, known, strict=True)
        if scene == "either"
    ]
    first, second = np.concatenate(taken).T
    kinds = first & ~second, second & ~first, first & second, ~first & ~second
    shares = ", ".join(f"{kind.mean():.0%}" for kind in kinds)
    apart = np.mean([abs(np.diff(of.mean(axis=0))) for of in taken])
    print(f"{name}: first patch, second, both, none: {shares} ({len(taken)} images)")
    print(f"  in one image, those with the first and with the second are {apart:.0%} apart")


def evaluate(workdir: Path, data_dir: Path | None) -> None:
    """Prints all of it for one run."""
    model = segdiff_jax.load(workdir, samples=SAMPLES, samples_from="network")
    data, moved = model.config.data, {"data.dir": str(data_dir)} if data_dir else {}
    if data.dataset != DATASET:
        raise UserError(f"{workdir} was trained on {data.dataset}, not on {DATASET}")
    examples = list(NativeExamples(open_split(model.config, "test", moved), model))
    truths = [example["truths"] > 0 for example in examples]
    # TFDS shuffles the pictures; an id ends with a picture's number.
    places = [(int(example["id"][-5:]), example["truths"].shape[1]) for example in examples]
    anyone = lambda number: np.random.default_rng(number).choice([*ANNOTATORS], SAMPLES)
    known = [redrawn(*place, anyone(place[0])) for place in places]
    kinds = {FLOOR: [masks for masks, _, _ in known]}
    drawing = [model, *(model.with_fields(samples_from=way) for way in ("levels", "pixels"))]
    drawn = single_masks(drawing, examples, "sampling")
    kinds |= zip((NETWORK, LEVELS, "pixels"), drawn, strict=True)
    print(f"{workdir}, {len(truths)} test images")
    show_distances(kinds, truths, model.draws)
    for name, masks in kinds.items():
        show_shares(name, masks, known)
    if data.annotators:
        found, of_each = {}, masks_of_each(places)
        for annotator in data.annotators:
            told = model.with_fields(annotator=annotator)
            (masks,) = single_masks([told], examples, annotator)
            found[annotator] = like(annotator, masks, of_each)
        of_images = np.mean([*found.values()], axis=0)
        mean, (low, high) = of_images.mean(), bootstrap_interval(of_images)
        each = ", ".join(f"{name} {np.mean(of):.0%}" for name, of in found.items())
        print(f"like k: nearest to masks of k for {mean:.0%} ({low:.0%} to {high:.0%}) of images")
        print(f"of each annotator: {each}")


def options_of() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--workdir", type=absolute, required=True, action="append")
    parser.add_argument("--data_dir", type=absolute, help="where the built data set lies now")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    run_simple(lambda: [evaluate(path, options.data_dir) for path in options.workdir])


if __name__ == "__main__":
    main()
