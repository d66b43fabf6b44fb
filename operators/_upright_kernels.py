"""Kernels of Joseph's method in Numba for volumes under upright panels: all rows of a bin at once.

Volumes are (Y + 2, X + 2, Z + 2) with zeros around, data (views, bins, rows). A path is (start, slope,
length, height, climb, gap, spread), all but the length in voxels: in plane p the ray is at start + p slope in
the other direction of the slice, and row r at the height (height + p climb) + r (gap + p spread); from plane
to plane it is `length` mm within the slices. All kernels release the interpreter's lock and touch only the
runs or rows that they are given, so that threads can share a task.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.operators._simd import gather, scatter
from ctflow.system.compiled import compiled

Array = NDArray[Any]

_BINS = 16  # whose rays pass a plane close together: their columns of voxels stay in the first cache
_ONE = (0,)  # lane


@compiled
def clip(first: int, last: int, start: float, slope: float, low: int, high: int) -> tuple[int, int]:
    """Planes in first <= plane < last with low - 1 <= start + plane slope <= high, or a few more."""
    if slope == 0:
        return (first, last) if low - 1 <= start <= high else (first, first)
    one, other = (low - 1 - start) / slope, (high - start) / slope
    # Clamped before they become whole numbers: a ray nearly in the plane crosses it far away.
    enter, leave = max(min(one, other), first - 1.0), min(max(one, other), last + 1.0)
    if enter > leave:
        return first, first
    return max(first, math.floor(enter)), min(last, math.ceil(leave) + 1)


@compiled
def rows_between(height: float, gap: float, rows: int, top: float) -> tuple[int, int]:
    """Rows in first <= r < last with 0 <= height + r gap <= top."""
    if gap == 0:
        return (0, rows) if 0 <= height <= top else (0, 0)
    one, other = -height / gap, (top - height) / gap
    first, last = max(min(one, other), 0.0), min(max(one, other), rows - 1.0)
    if first > last:
        return 0, 0
    return math.ceil(first), math.floor(last) + 1


@compiled
def weigh(
    path: Array, plane: int, slices: int, stride: int, place: Array, left: Array, right: Array
) -> tuple[int, int, int, int]:
    """Where the rows of a bin meet a plane, and the weights of the slices on either side.

    Returns first and last + 1 of the rows inside the volume, and of the slices that they need; places count
    from the first of these, in steps of `stride`.
    """
    height, gap = path[3] + plane * path[4] + 1, path[5] + plane * path[6]
    first, last = rows_between(height, gap, len(place), slices + 1.0)
    if first >= last:
        return 0, 0, 0, 2
    height += first * gap
    end = height + (last - 1 - first) * gap
    bottom, top = int(max(0.0, min(height, end))), int(min(max(height, end), slices)) + 2
    height, number = height - bottom, right.dtype.type
    for k in range(last - first):
        at = height + k * gap
        # The search above may have rounded otherwise: never leave the slices.
        whole: Any = max(0, min(np.int32(at), top - bottom - 2))
        place[k] = whole * stride
        right[k] = at - whole
        left[k] = number(1) - right[k]
    return first, last, bottom, top


@compiled
def scale(data: Array, paths: Array, spacing: float, out: Array) -> None:
    """Multiply the rows of some bins with the length of their rays from one plane to the next, mm."""
    for k in range(len(data)):
        path = paths[k]
        for r in range(data.shape[1]):
            out[k, r] = data[k, r] * math.sqrt(path[2] ** 2 + (spacing * (path[4] + r * path[6])) ** 2)


@compiled
def enter(paths: Array, first: int, last: int, low: int, high: int, ends: Array) -> tuple[int, int]:
    """Planes first <= plane < last in which each of some bins meets columns low to high - 1, and any."""
    for k in range(len(paths)):
        ends[k, 0], ends[k, 1] = clip(first, last, paths[k, 0], paths[k, 1], low, high)
    return ends[: len(paths), 0].min(), ends[: len(paths), 1].max()


@compiled
def column(path: Array, plane: int, across: int) -> tuple[int, float]:
    """Left column, 0 to `across`, where a bin meets a plane, and the weight of the one beside it."""
    # Where a few planes too many were found: zeros.
    at = min(max(path[0] + plane * path[1] + 1, 0.0), across + 1.0)
    left = min(int(at), across)
    return left, at - left


@compiled
def project(image: Array, data: Array, paths: Array, runs: Array, steep: bool, spacing: float) -> None:
    """Line integrals of some runs of bins, which step over rows of the image (`steep`) or over columns."""
    (Y, X, Z), rows, number = image.shape, data.shape[2], image.dtype.type
    planes, across, along, beside = (Y - 2, X - 2, X, 1) if steep else (X - 2, Y - 2, 1, X)
    voxels, line = image.reshape(-1, Z), np.empty(Z, image.dtype)
    sums, ends = np.empty((_BINS, rows), image.dtype), np.empty((_BINS, 2), np.int64)
    place, left, right = np.empty(rows, np.int32), np.empty(rows, image.dtype), np.empty(rows, image.dtype)
    for run in range(len(runs)):
        view, begin, end = runs[run]
        for block in range(begin, end, _BINS):
            some = paths[view, block : min(block + _BINS, end)]
            sums[:] = 0
            for plane in range(*enter(some, 0, planes, 0, across, ends)):
                for k in range(len(some)):
                    if not ends[k, 0] <= plane < ends[k, 1]:
                        continue
                    first, last, bottom, top = weigh(some[k], plane, Z - 2, 1, place, left, right)
                    i, share = column(some[k], plane, across)
                    one, other = number(1 - share), number(share)
                    corner = (plane + 1) * along + i * beside
                    here, there = voxels[corner, bottom:top], voxels[corner + beside, bottom:top]
                    for z in range(top - bottom):
                        line[z] = one * here[z] + other * there[z]
                    out = sums[k, first:]
                    for r in range(last - first):
                        gather(out, r, line, place[r], left[r], right[r], _ONE)
            scale(sums[: len(some)], some, spacing, data[view, block:])


@compiled
def project_back(
    image: Array,
    data: Array,
    paths: Array,
    runs: Array,
    steep: bool,
    spacing: float,
    first_row: int,
    last_row: int,
) -> None:
    """Add the transpose of `project` to some rows of the image, all runs in their order."""
    (Y, X, Z), rows, number = image.shape, data.shape[2], image.dtype.type
    if steep:
        across, along, beside, within, (low, high) = X - 2, X, 1, (first_row, last_row), (0, X - 2)
    else:
        across, along, beside, within, (low, high) = Y - 2, 1, X, (0, X - 2), (first_row, last_row)
    voxels, line = image.reshape(-1, Z), np.empty(2 * Z, image.dtype)
    scaled, ends = np.empty((_BINS, rows), image.dtype), np.empty((_BINS, 2), np.int64)
    place, left, right = np.empty(rows, np.int32), np.empty(rows, image.dtype), np.empty(rows, image.dtype)
    for run in range(len(runs)):
        view, begin, end = runs[run]
        for block in range(begin, end, _BINS):
            some = paths[view, block : min(block + _BINS, end)]
            scale(data[view, block : block + len(some)], some, spacing, scaled)
            for plane in range(*enter(some, *within, low, high, ends)):
                for k in range(len(some)):
                    if not ends[k, 0] <= plane < ends[k, 1]:
                        continue
                    # A row need not wait for the one before: left and right neighbours are kept apart.
                    first, last, bottom, top = weigh(some[k], plane, Z - 2, 2, place, left, right)
                    line[: 2 * (top - bottom)] = 0
                    source = scaled[k, first:]
                    for r in range(last - first):
                        scatter(line, place[r], source, r, left[r], right[r], _ONE)
                    i, share = column(some[k], plane, across)
                    corner = (plane + 1) * along + i * beside
                    if low < i <= high:
                        fold(line, number(1 - share), voxels[corner, bottom:top])
                    if low <= i < high:
                        fold(line, number(share), voxels[corner + beside, bottom:top])


@compiled
def fold(line: Array, part: float, to: Array) -> None:
    """Add both contributions of every slice: entries 2 z as left and 2 z - 1 as right neighbour."""
    to[0] += part * line[0]
    for z in range(1, len(to)):
        to[z] += part * (line[2 * z] + line[2 * z - 1])
