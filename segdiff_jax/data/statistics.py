"""What a data set looks like in numbers, to be read before training."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from segdiff_jax.runtime.errors import some


class Statistics:
    """Sizes, colours and foreground of masks and images; `classes` are the names if several."""

    def __init__(self, classes: Sequence[str] = ()):
        self._sizes, self._ids, self._shares = [], [], []
        self._classes, self._class_shares = classes, []
        self._annotators = []  # Of each image, the texts of its masks, see annotations.py.
        self._colours = np.zeros((3, 256), np.int64)  # How many pixels have each value.

    def add(
        self, id: str, image: np.ndarray, mask: np.ndarray, annotators: Sequence[str] = ()
    ) -> None:
        """Counts one image u8[H, W, 3] with its labels u8[H, W]: of the majority, if several."""
        self._annotators.append(annotators)
        self._sizes.append(mask.shape)
        self._ids.append(id)
        self._shares.append(float((mask > 0).mean()))
        if self._classes:
            counts = np.bincount(mask.ravel(), minlength=len(self._classes))
            self._class_shares.append(counts / mask.size)
        for channel, counts in enumerate(self._colours):
            counts += np.bincount(image[..., channel].ravel(), minlength=256)

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON, by name.

        "pairs": their number; "height", "width": [least, median, greatest] in pixels; "foreground":
        the same for its share of a mask, "mean_foreground": the mean; "without_foreground": ids;
        "colour_mean", "colour_std": of all pixels, R, G and B, 0 to 255; with several classes,
        "classes": {name: {"share": of a mask, on average, "images": how many have it}}; with
        several annotators, "masks": [least, greatest number of an image], "annotators": {name:
        number of masks} and "people": the number of names that are those of annotators.
        """
        heights, widths = zip(*self._sizes, strict=True)
        shares, values, pixels = self._shares, np.arange(256), self._colours.sum(axis=1)
        mean = self._colours @ values / pixels
        std = np.sqrt(np.maximum(self._colours @ values**2 / pixels - mean**2, 0))
        by_class = np.array(self._class_shares).T
        classes = {
            name: {"share": float(row.mean()), "images": int(np.count_nonzero(row))}
            for name, row in zip(self._classes, by_class, strict=True)
        }
        texts = list(itertools.chain(*self._annotators))
        numbers = [len(of_image) for of_image in self._annotators]
        names = Counter(name for text in texts for name in {*text.split()})
        several = {
            "masks": [min(numbers), max(numbers)],
            "annotators": dict(sorted(names.items())),
            "people": len({text.split()[0] for text in texts if text}),
        }
        return {
            "pairs": len(shares),
            "height": _quantiles(heights),
            "width": _quantiles(widths),
            "foreground": _quantiles(shares),
            "mean_foreground": float(np.mean(shares)),
            "without_foreground": [
                id for id, share in zip(self._ids, shares, strict=True) if not share
            ],
            "colour_mean": mean.tolist(),
            "colour_std": std.tolist(),
            **({"classes": classes} if classes else {}),
            **(several if texts else {}),
        }


def _quantiles(values) -> list[float]:
    return [float(np.quantile(values, q, method="closest_observation")) for q in (0, 0.5, 1)]


def format_statistics(summary: dict[str, Any]) -> str:
    """`Statistics.summary` as lines for a terminal."""
    three = lambda name, form: "{} / {} / {}".format(*(form.format(v) for v in summary[name]))
    empty, colours = summary["without_foreground"], ("colour_mean", "colour_std")
    mean, std = (" ".join(f"{v:.0f}" for v in summary[name]) for name in colours)
    ids = f" ({some(empty)})" if empty else ""
    classes = [
        f"  {name}: {row['share']:.1%} of the mask on average, in {row['images']} of them"
        for name, row in summary.get("classes", {}).items()
    ]
    pairs = f"{summary['pairs']} pairs of image and mask"
    if "masks" in summary:
        number = " to ".join(map(str, sorted({*summary["masks"]})))
        people = f" of {summary['people']} annotators" if summary["people"] else ""
        pairs = f"{summary['pairs']} images with {number} masks{people}"
    lines = [
        f"{pairs} (least / median / greatest)",
        f"  height {three('height', '{:.0f}')}, width {three('width', '{:.0f}')} pixels",
        f"  foreground {three('foreground', '{:.1%}')} of the mask, "
        f"{summary['mean_foreground']:.1%} on average",
        f"  without foreground: {len(empty)} of {summary['pairs']}{ids}",
        *classes,
        f"  colour (red, green, blue, 0 to 255): mean {mean}, standard deviation {std}",
    ]
    return "\n".join(lines)
