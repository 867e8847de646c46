"""IoU against seconds an image, by sampling steps and samples, of a trained model.

python -m benchmarks.quality --workdir=runs/isic --plot=docs/quality.svg

Scores the validation split, sampled as the run's config says apart from steps and samples. The
first samples of an image are the same however many follow, so each number of steps is sampled once.
Then times all in turn, on one image at a time, beside naive sampling with the most steps and
samples, which encodes the image at every step and for every sample.
"""

import argparse
import functools
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from benchmarks.networks import random_batch
from benchmarks.sampling import naive_row
from benchmarks.timing import Row, figures_of, finish, parser, time_rows
from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.inference.combine import resize_samples
from segdiff_jax.inference.load import Model, load
from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.command import run_simple
from segdiff_jax.runtime.files import absolute
from tools.runs import table


def ious(model: Model, counts: list[int], examples: list[dict]) -> dict[int, float]:
    """Mean IoU at native size, by the number of samples."""
    scores = {count: [] for count in counts}
    batch_size = parallel.batch_size(model.batch_size, len(examples))
    for group, valid in padded_batches(iter(examples), batch_size):
        images = np.stack([example["input"] for example in group])
        samples = model.sample(images, [example["id"] for example in group])
        for i in np.flatnonzero(valid):
            truth = group[i]["truth"] > 0
            native = resize_samples(samples[:, i], truth.shape)
            for count in counts:
                mask = model.segment(native[:count]).mask
                scores[count].append(segmentation_scores(mask, truth, ["iou"])["iou"])
    return {count: float(np.mean(of)) for count, of in scores.items()}


def timed_row(workdir: str, steps: int, samples: int) -> Row:
    """One image of noise on each device, as sample.py samples it."""
    model = load(workdir, steps=steps, samples=samples)
    images = random_batch(jax.local_device_count(), model.config.data.image_size)["image"]
    run = functools.partial(model.sample, images, [str(i) for i in range(len(images))])
    run()
    return Row(f"{steps} steps x {samples} samples", run, images=len(images))


def draw(rows: dict[tuple[int, int], Row], scores: dict[tuple[int, int], float], path: str) -> None:
    """A line for each number of samples, a point for each number of steps, with its number."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    counts = sorted({count for _, count in rows})
    for count in counts:
        of_count = sorted(key for key in rows if key[1] == count)
        x = [1000 * rows[key].median / rows[key].images for key in of_count]
        y = [scores[key] for key in of_count]
        axis.plot(x, y, "o-", label=f"{count} samples" if count > 1 else "1 sample")
        if count in (counts[0], counts[-1]):  # Those between would hide the lines.
            above = count == counts[0]
            for place, (steps, _) in zip(zip(x, y, strict=True), of_count, strict=True):
                offset = (0, 7) if above else (0, -15)
                axis.annotate(str(steps), place, offset, textcoords="offset points", ha="center")
    axis.set(xscale="log", xlabel="milliseconds an image", ylabel="mean IoU, validation")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(min(scores.values()) - 0.01, max(scores.values()) + 0.01)
    axis.grid(alpha=0.3)
    axis.legend(title="number at a point: steps")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, None)
    options.add_argument("--workdir", type=absolute, required=True, help="of train.py")
    options.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 25, 100])
    options.add_argument("--samples", type=int, nargs="+", default=[1, 3, 9])
    options.add_argument("--limit", type=int, help="only the first ones")
    options.add_argument("--plot", type=absolute, help="file for the picture")
    options = options.parse_args()
    most = max(options.samples)
    model = load(options.workdir, steps=max(options.steps), samples=most)
    data = model.config.data
    if data.classes:
        raise SystemExit(f"data.classes={tuple(data.classes)}: this measures two classes")
    records = load_source(data.dataset, "validation", *where(data))
    examples = NativeExamples(records, model)
    # Without the image, which may be 20 MB.
    examples = [
        {name: example[name] for name in ("id", "input", "truth")}
        for example in tqdm(itertools.islice(examples, options.limit), desc="reading")
    ]
    scores = {}
    for steps in tqdm(options.steps, desc="scoring", unit="number of steps"):
        of_samples = ious(
            load(options.workdir, steps=steps, samples=most), options.samples, examples
        )
        scores |= {(steps, samples): iou for samples, iou in of_samples.items()}
    rows = {key: timed_row(options.workdir, *key) for key in tqdm(scores, desc="compiling")}
    naive = naive_of(options, max(options.steps), most)
    time_rows([naive, *rows.values()], options.repeats)
    lines = [[naive.name, "", f"{1000 * naive.median:.4g}", "1.0"]]
    for key, row in rows.items():
        seconds = row.median / row.images
        iou, faster = f"{scores[key]:.4f}", f"{naive.median / seconds:.3g}"
        lines.append([row.name, iou, f"{1000 * seconds:.4g}", faster])
    if options.plot:
        draw(rows, scores, options.plot)
    figures = {"images": f"{len(examples)} of {data.dataset}, validation"}
    figures |= {"rows": figures_of([naive, *rows.values()]), "iou": list(scores.values())}
    head = " | IoU | milliseconds an image | times as fast as naive"
    finish(options, table(head, lines), figures)


def naive_of(options: argparse.Namespace, steps: int, samples: int) -> Row:
    """Naive sampling by the run's network."""
    model = load(options.workdir, steps=steps, samples=samples)
    label = f"naive, {steps} steps x {samples} samples"
    return naive_row(label, model.config, model.driver.method, model.variables)


if __name__ == "__main__":
    run_simple(main)
