"""Random fields over the unit frame: the raw material of every drawn texture.

`rng` is a numpy Generator, and `size` is in pixels a side. Frequencies are in cells per frame side,
never in pixels, so that a seed draws the same scene at every size (per-pixel sensor noise apart).
"""

import functools

import numpy as np

# Mean over t of the sum of squared cubic B-spline weights: the variance that interpolation leaves
# along one axis, hence the standard deviation that it leaves in two dimensions.
_BSPLINE_STD = 151 / 315


def frame(size):
    """The pixel centres (y, x), each f32[size, size] in (0, 1)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(centres, centres, indexing="ij")


@functools.lru_cache(maxsize=256)
def _bspline_weights(cells, size):
    """Uniform cubic B-spline basis, f32[size, cells + 3]: control points to pixel centres."""
    position = (np.arange(size) + 0.5) / size * cells
    cell = np.floor(position).astype(int)
    t = position - cell
    basis = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    weights = np.zeros((size, cells + 3), np.float32)
    for offset, value in enumerate(basis):
        weights[np.arange(size), cell + offset] = value / 6
    weights.setflags(write=False)
    return weights


def smooth_noise(rng, size, cells):
    """A cubic B-spline over normal points: f32[size, size] of mean 0 and variance 1 over draws."""
    points = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    weights = _bspline_weights(cells, size)
    return weights @ points @ weights.T / np.float32(_BSPLINE_STD)


def cell_distances(rng, size, cells, jitter, warp=0.0):
    """Distances to the two nearest of a jittered grid of points (Worley 1996, F1 and F2).

    `jitter` 0 is a square grid, and 1 is anywhere in the cell. Smooth noise displaces the frame by
    `warp` cells. Returns (f1, f2), each f32[size, size], in cells. `f2 - f1` is small on the
    honeycomb of borders; `f1` is small at the points.
    """
    grid = cells + 4
    points = rng.uniform(0.5 - jitter / 2, 0.5 + jitter / 2, (2, grid, grid)).astype(np.float32)
    offsets = np.arange(-2, cells + 2, dtype=np.float32)
    point_y = (points[0] + offsets[:, None]).ravel()
    point_x = (points[1] + offsets).ravel()
    y, x = (axis * np.float32(cells) for axis in frame(size))
    coarse = max(2, cells // 4)
    y = np.clip(y + np.float32(warp) * smooth_noise(rng, size, coarse), -0.99, cells + 0.99)
    x = np.clip(x + np.float32(warp) * smooth_noise(rng, size, coarse), -0.99, cells + 0.99)
    nearest = (np.floor(y).astype(np.int32) + 2) * grid + np.floor(x).astype(np.int32) + 2
    f1 = np.full((size, size), np.inf, np.float32)
    f2 = f1.copy()
    for row in (-grid, 0, grid):
        for column in (-1, 0, 1):
            point = nearest + (row + column)
            distance = (point_y.take(point) - y) ** 2 + (point_x.take(point) - x) ** 2
            np.minimum(f2, np.maximum(f1, distance), out=f2)
            np.minimum(f1, distance, out=f1)
    return np.sqrt(f1), np.sqrt(f2)


def sigmoid(value):
    """Logistic function, written with tanh so that it never overflows."""
    return 0.5 * (1 + np.tanh(0.5 * value))
