"""IoU against seconds an image, by sampling steps and votes, of a trained model.

python -m benchmarks.quality --workdir=runs/isic --plot=docs/quality.svg

Scores the validation split, sampled as the run's config says but for steps and votes; the first
votes of an image are the same however many follow, so each number of steps is sampled once. Then
times all in turn, on one image at a time, beside naive sampling with the most steps and votes,
which encodes the image at every step and for every vote.
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
from segdiff_jax.command import keep_compiled_programs
from segdiff_jax.data.pipeline import padded_batches
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.diffusion.process import make_process
from segdiff_jax.evaluation.ensemble import resize_samples
from segdiff_jax.evaluation.evaluate import batch_size
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.metrics import segmentation_scores
from segdiff_jax.models import make_model
from segdiff_jax.trained import Trained, load
from tools.runs import table


def ious(trained: Trained, votes: list[int], examples: list[dict]) -> dict[int, float]:
    """Mean IoU at native size, by the number of votes."""
    predictor, scores = trained.predictor, {count: [] for count in votes}
    for group, valid in padded_batches(iter(examples), batch_size(predictor, len(examples))):
        images = np.stack([example["input"] for example in group])
        samples = predictor(trained.variables, images, [example["id"] for example in group])
        for i in np.flatnonzero(valid):
            truth = group[i]["truth"]
            native = resize_samples(samples[:, i], truth.shape)
            for count in votes:
                mask = predictor.combine(native[:count]).mask
                scores[count].append(segmentation_scores(mask, truth)["iou"])
    return {count: float(np.mean(of)) for count, of in scores.items()}


def timed_row(workdir: str, steps: int, votes: int) -> Row:
    """One image of noise on each device, as sample.py samples it."""
    trained = load(workdir, steps=steps, votes=votes)
    images = random_batch(jax.local_device_count(), trained.config.data.image_size)["image"]
    ids = [str(i) for i in range(len(images))]
    run = functools.partial(trained.predictor, trained.variables, images, ids)
    run()
    return Row(f"{steps} steps x {votes} votes", run, images=len(images))


def draw(rows: dict[tuple[int, int], Row], scores: dict[tuple[int, int], float], path: str) -> None:
    """A line for each number of votes, a point for each number of steps, which is written at it."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    all_votes = sorted({votes for _, votes in rows})
    for votes in all_votes:
        of_votes = sorted(key for key in rows if key[1] == votes)
        x = [1000 * rows[key].median / rows[key].images for key in of_votes]
        y = [scores[key] for key in of_votes]
        axis.plot(x, y, "o-", label=f"{votes} votes" if votes > 1 else "1 vote")
        if votes in (all_votes[0], all_votes[-1]):  # Those between would hide the lines.
            above = votes == all_votes[0]
            for place, (steps, _) in zip(zip(x, y, strict=True), of_votes, strict=True):
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
    options.add_argument("--workdir", required=True, help="of train.py")
    options.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 25, 100])
    options.add_argument("--votes", type=int, nargs="+", default=[1, 3, 9])
    options.add_argument("--limit", type=int, help="only so many images")
    options.add_argument("--plot", help="file for the picture")
    options = options.parse_args()
    keep_compiled_programs()
    most = max(options.votes)
    trained = load(options.workdir, max(options.steps), most)
    data = trained.config.data
    if data.classes:
        raise SystemExit(f"data.classes={tuple(data.classes)}: this measures two classes")
    records = load_source(data.dataset, "validation", *where(data))
    examples = NativeExamples(records, trained.input_size, data.colour_constancy)
    # Without the image, which may be 20 MB.
    examples = [
        {name: example[name] for name in ("id", "input", "truth")}
        for example in tqdm(itertools.islice(examples, options.limit), desc="reading")
    ]
    scores = {}
    for steps in tqdm(options.steps, desc="scoring", unit="number of steps"):
        of_votes = ious(load(options.workdir, steps, most), options.votes, examples)
        scores |= {(steps, votes): iou for votes, iou in of_votes.items()}
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


def naive_of(options: argparse.Namespace, steps: int, votes: int) -> Row:
    """Naive sampling by the run's network."""
    trained = load(options.workdir, steps, votes)
    config = trained.config
    args = config, make_model(config.model), make_process(config.diffusion), trained.variables
    return naive_row(f"naive, {steps} steps x {votes} votes", *args)


if __name__ == "__main__":
    main()
