"""The numbers of a checkout, to compare two revisions of the code.

    python -m tools.fingerprint record --out=/tmp/before --isic=FOLDER --golden=tests/golden
    python -m tools.fingerprint compare /tmp/before /tmp/after

Each run trains 20 steps, samples 4 images and evaluates them, in float32, by train.py and sample.py
of the folder in which the command is given. `compare` prints the largest difference of every run.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from segdiff_jax.runtime.files import absolute

STEPS = 20
COMMON = {
    "train.num_steps": STEPS,
    "train.max_minutes": 0.0,
    "train.log_every": 1,
    "train.checkpoint_every": STEPS,
    "train.trackers": "()",
    "train.batch_size": 4,
    "validation.every": STEPS,
    "validation.num_images": 4,
    "validation.steps": 2,
    "sampler.steps": 3,
    "data.num_threads": 1,
}
PAPER = {"sampler.name": "ddpm", "data.image_size": 32}
# Name -> config, fields.
RUNS = {
    "segdiff": ("compare.py:segdiff", {}),
    "medsegdiff": ("compare.py:medsegdiff", {}),
    "unet": ("compare.py:unet", {}),
    "ssn": ("compare.py:ssn", {}),
    "medt": ("compare.py:medt", {}),
    "medt_gated": ("compare.py:medt", {"model.variant": "gated"}),
    "paper": ("isic2016_64_paper.py", PAPER),
    "classes": (
        "folder.py",
        {
            "data.classes": "('skin','lesion','core')",
            "model.out_channels": 3,
            "sampler.name": "ddpm",
        },
    ),
    "windows": ("isic2016_64.py", {"data.image_size": 32, "data.full_size": 64}),
    "golden": ("saved.py", {"train.learning_rate": 1e-4, "sampler.name": "ddpm"}),
}


def run(*command: str) -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
    subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment
    )


def draw_classes(folder: Path) -> None:
    """Twelve images with masks of three classes: discs with a core."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(12):
        row, column, radius = rng.uniform(20, 44), rng.uniform(20, 44), rng.uniform(8, 18)
        distance = np.hypot(y - row, x - column)
        labels = np.uint8(distance < radius) + np.uint8(distance < radius / 2)
        image = 200 - 60 * labels[..., None] + rng.normal(0, 12, (64, 64, 3))
        Image.fromarray(np.uint8(np.clip(image, 0, 255))).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{i}.png")


def import_golden(golden: Path, workdir: Path) -> None:
    """Network A of the golden files as a workdir."""
    try:
        from segdiff_jax.original.import_torch import import_state_dict
    except ImportError:  # Before the package was laid out in layers.
        from segdiff_jax.import_torch import import_state_dict

    args = {
        "image_size": 64, "num_channels": 32, "num_res_blocks": 2, "num_heads": 4,
        "attention_resolutions": "16,8", "rrdb_blocks": 2, "deeper_net": False,
        "use_scale_shift_norm": False, "learn_sigma": False, "diffusion_steps": 100,
        "clip_denoised": True, "rescale_timesteps": False, "timestep_respacing": "10",
        "lr": 1e-4, "batch_size": 2, "ema_rate": "0.9999",
    }  # fmt: skip
    recipe = json.loads((golden / "model_A.json").read_text())["params"]
    arrays = {}
    for name, (shape, scale, offset) in recipe.items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        arrays[name] = np.float32(offset + scale * noise)
    import_state_dict(arrays, args, workdir, "")


def record(out: Path, isic: Path, golden: Path, names: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        config, fields = RUNS[name]
        config, fields = f"configs/{config}", COMMON | fields
        fields |= {"data.manual_dir": isic, "data.dir": str(out / "data")}
        if name == "classes":
            draw_classes(out / "drawn")
            fields |= {"data.images": out / "drawn/images", "data.masks": out / "drawn/masks"}
            del fields["data.manual_dir"]
        if name == "golden":
            code = "import tools.fingerprint as f, pathlib as p; f.import_golden("
            run("-c", f"{code}p.Path({str(golden)!r}), p.Path({str(out / 'imported')!r}))")
            config += f":{out / 'imported'}"
        workdir = out / name
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        run("train.py", f"--config={config}", f"--workdir={workdir}", "--num_processes=1", *flags)
        split = "--split=train[:4]" if name == "classes" else "--split=test[:4]"
        run("sample.py", f"--workdir={workdir}", split, f"--out={out / name / 'scored'}")
        code = f"import tools.fingerprint as f; f.predict({str(workdir)!r}, {name!r})"
        run("-c", code)
        print(name, "recorded", flush=True)


def predict(workdir: str, name: str) -> None:
    """Writes the probability and the deviation of four images that are made of noise."""
    import segdiff_jax

    rng, images = np.random.default_rng(1), []
    for size in ((48, 40), (64, 64), (30, 90), (64, 64)):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        images.append(np.asarray(small.resize(size[::-1], Image.Resampling.BILINEAR)))
    arrays = {}
    for i, p in enumerate(segdiff_jax.load(workdir).predict(images, key=7)):
        deviation = getattr(p, "deviation", None)
        deviation = getattr(p, "standard_deviation", deviation)
        arrays[f"probability{i}"] = np.squeeze(p.probability)
        arrays[f"deviation{i}"] = np.zeros(1) if deviation is None else np.squeeze(deviation)
    np.savez(Path(workdir) / "predictions.npz", **arrays)


def numbers(workdir: Path) -> dict[str, np.ndarray]:
    """All that was recorded of a run."""
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    norms = [float(row["grad_norm"]) for row in rows if row["grad_norm"]]
    validation = [float(row["validation_iou"]) for row in rows if row["validation_iou"]]
    mean = json.loads((workdir / "scored" / "metrics.json").read_text())["mean"]
    predictions = np.load(workdir / "predictions.npz")
    masks = hashlib.sha256()
    for path in sorted((workdir / "scored").glob("*/*.png")):
        masks.update(np.asarray(Image.open(path)).tobytes())
    return {
        "losses": np.array(losses),
        "gradient norms": np.array(norms),
        "validation": np.array(validation),
        "metrics": np.array([mean[score] for score in sorted(mean)]),
        "predictions": np.concatenate([predictions[n].ravel() for n in sorted(predictions)]),
        "files": np.frombuffer(masks.digest()[:6], np.uint8).astype(float),
    }


def compare(before: Path, after: Path) -> None:
    for name in RUNS:
        if not (before / name / "predictions.npz").exists():
            continue
        if not (after / name / "predictions.npz").exists():
            print(f"{name:<12}not recorded")
            continue
        old, new = numbers(before / name), numbers(after / name)
        words = []
        for what, value in old.items():
            if value.shape != new[what].shape:
                words.append(f"{what} {value.shape} {new[what].shape}")
                continue
            worst = np.abs(value - new[what]).max(initial=0)
            scale = np.abs(value).max(initial=0) or 1
            words.append(f"{what} " + ("equal" if not worst else f"{worst / scale:.1e}"))
        print(f"{name:<12}{', '.join(words)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    recorder = commands.add_parser("record")
    recorder.add_argument("--out", type=absolute, required=True)
    recorder.add_argument(
        "--isic", type=absolute, required=True, help="folder of ISIC 2016 archives"
    )
    recorder.add_argument("--golden", type=absolute, default="tests/golden")
    recorder.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS)
    comparer = commands.add_parser("compare")
    comparer.add_argument("before", type=absolute)
    comparer.add_argument("after", type=absolute)
    options = parser.parse_args()
    if options.command == "record":
        record(options.out, options.isic, options.golden, options.runs)
    else:
        compare(options.before, options.after)


if __name__ == "__main__":
    main()
