"""Scores an output folder by the ISIC challenge's own scorer: python -m tools.official_score.

It must say what metrics.json says, to 1e-6; else the exit status is 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from segdiff_jax.runtime.files import absolute

TOLERANCE = 1e-6
NAMES = {  # The scorer's, and ours.
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "jaccard": "iou",
    "threshold_jaccard": "thresholded_jaccard",
    "dice": "dice",
}


def official_scores(truth: Path, masks: Path) -> dict[str, float]:
    """The scorer's macro averages.

    Args:
        truth: folder of the true masks, or the official archive of them.
        masks: folder of ours.
    Raises:
        ValueError: with what the scorer says.
    """
    with tempfile.TemporaryDirectory() as folder:
        if truth.is_file():
            with zipfile.ZipFile(truth) as archive:
                for member in archive.namelist():
                    if member.lower().endswith("_segmentation.png"):
                        (Path(folder) / Path(member).name).write_bytes(archive.read(member))
            truth = Path(folder)
        command = [sys.executable, "-m", "isic_challenge_scoring", "--output=json"]
        command += ["segmentation", str(truth), str(masks)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip() or "the scorer failed").splitlines()[-1])
    return json.loads(done.stdout)["macro_average"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, type=absolute, help="folder that sample.py wrote")
    parser.add_argument(
        "--truth", required=True, type=absolute, help="true masks: folder or zip file"
    )
    options = parser.parse_args()
    try:
        ours = json.loads((options.out / "metrics.json").read_bytes())
        if "classes" in ours:
            raise ValueError(
                f"{options.out} is of data.classes={list(ours['classes'])} and a background: the "
                "challenge's scorer is for masks of two classes"
            )
        print(f"scoring {ours['num_images']} masks of {options.out} ...", flush=True)
        official = official_scores(options.truth, options.out / "masks")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'':<20}{'official':>12}{'ours':>12}")
    worst = 0.0
    for name, own in NAMES.items():
        print(f"{name:<20}{official[name]:>12.6f}{ours['mean'][own]:>12.6f}")
        worst = max(worst, abs(official[name] - ours["mean"][own]))
    print(f"largest difference {worst:.1e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
