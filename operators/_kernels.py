"""Kernels of Joseph's method in Numba: projection, backprojection, and interleaving of images.

Images with lanes are (rows, (columns + 2) · n): a column of zeros on either side saves testing whether a ray
has two neighbours. `start` and `slope` say where a ray meets a row, counted from that column. All kernels
release the interpreter's lock and touch only the rows or runs that they are given, so that threads can share
a task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.operators._simd import gather, scatter
from ctflow.system.compiled import compiled

Array = NDArray[Any]
Lanes = tuple[int, ...]

_TILE = 16  # pixels a side whose lanes stay in the first cache while they are transposed
_ROWS = 8  # image rows for which the data of a view are read once
_RUNS = 8  # views for which a row of the image is read once


@compiled
def seen(start: Array, slope: Array, row: int, columns: int, first: int, last: int) -> tuple[int, int]:
    """Range of bins in first to last - 1 that meet the image in this row, where rays do not cross."""
    rising = start[last - 1] + row * slope[last - 1] > start[first] + row * slope[first]
    ends = (first, first)
    for limit in (0.0, columns + 1.0):
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            if (start[middle] + row * slope[middle] > limit) == rising:
                high = middle
            else:
                low = middle + 1
        ends = (ends[1], low)
    return ends if rising else (ends[1], ends[0])


@compiled
def weigh(
    start: Array, slope: Array, row: int, columns: int, stride: int, place: Array, left: Array, right: Array
) -> None:
    """Position where each bin meets the row, and the weights of the columns on either side."""
    one = right.dtype.type(1)
    for k in range(len(start)):
        column = start[k] + row * slope[k]
        # The search above may have rounded otherwise: never leave the row.
        whole: Any = max(0, min(np.int32(column), columns))
        place[k] = whole * stride
        right[k] = column - whole
        left[k] = one - right[k]


@compiled
def project(
    image: Array, start: Array, slope: Array, scale: Array, runs: Array, data: Array, lanes: Lanes
) -> None:
    """Line integrals of some runs of bins: (rows, (columns + 2) · n) -> (views, bins · n)."""
    n = len(lanes)
    columns, bins = image.shape[1] // n - 2, start.shape[1]
    place, left, right = np.empty(bins, np.int32), np.empty(bins, image.dtype), np.empty(bins, image.dtype)
    for block in range(0, len(runs), _RUNS):
        some = runs[block : block + _RUNS]
        for i in range(len(image)):
            row = image[i]
            for run in range(len(some)):
                view = some[run, 0]
                a, b = seen(start[view], slope[view], i, columns, some[run, 1], some[run, 2])
                weigh(start[view, a:b], slope[view, a:b], i, columns, n, place, left, right)
                line = data[view]
                # Starts at zero: for any other start Numba would test whether indices count from the end.
                for k in range(b - a):
                    gather(line, (a + k) * n, row, place[k], left[k], right[k], lanes)
        for run in range(len(some)):
            view = some[run, 0]
            for k in range(some[run, 1], some[run, 2]):
                for lane in range(n):
                    data[view, k * n + lane] *= scale[view, k]


@compiled
def project_back(
    image: Array,
    start: Array,
    slope: Array,
    runs: Array,
    data: Array,
    first_row: int,
    last_row: int,
    lanes: Lanes,
) -> None:
    """The transpose of `project`, without `scale`, for some rows of the image."""
    n = len(lanes)
    sums = np.empty((_ROWS, 2 * image.shape[1]), image.dtype)
    for block in range(first_row, last_row, _ROWS):
        last = min(block + _ROWS, last_row)
        add_rows(sums, start, slope, runs, data, block, last, lanes)
        for i in range(block, last):
            row = sums[i - block]
            for j in range(n, image.shape[1] - n, n):
                for lane in range(n):
                    image[i, j + lane] = row[2 * j + lane] + row[2 * j - n + lane]


@compiled
def project_back_onto(
    stack: Array,
    columns: Array,
    start: Array,
    slope: Array,
    runs: Array,
    data: Array,
    first_row: int,
    last_row: int,
    lanes: Lanes,
) -> None:
    """The same for images (batch, Y, X) without lanes, plus a transposed image (X, Y + 2, n)."""
    n, (batch, _, X) = len(lanes), stack.shape
    sums = np.empty((_ROWS, 2 * (X + 2) * n), stack.dtype)
    for block in range(first_row, last_row, _ROWS):
        last = min(block + _ROWS, last_row)
        add_rows(sums, start, slope, runs, data, block, last, lanes)
        for edge in range(0, X, _TILE):
            for b in range(batch):
                for i in range(block, last):
                    row = sums[i - block]
                    for j in range(edge, min(edge + _TILE, X)):
                        place = 2 * (j + 1) * n + b
                        stack[b, i, j] = row[place] + row[place - n] + columns[j, i + 1, b]


@compiled
def add_rows(
    sums: Array,
    start: Array,
    slope: Array,
    runs: Array,
    data: Array,
    first_row: int,
    last_row: int,
    lanes: Lanes,
) -> None:
    """Add data to a few rows, with the contributions of a pixel as left and as right neighbour kept apart.

    A bin then need not wait for the bin before. Pixel j, the column of zeros being 0, receives
    sums[2 j n : 2 j n + n] and sums[2 j n - n : 2 j n].
    """
    n, bins = len(lanes), start.shape[1]
    columns = sums.shape[1] // (2 * n) - 2
    place, left, right = np.empty(bins, np.int32), np.empty(bins, sums.dtype), np.empty(bins, sums.dtype)
    sums[:] = 0
    for run in range(len(runs)):
        view = runs[run, 0]
        line = data[view]
        for i in range(first_row, last_row):
            row = sums[i - first_row]
            a, b = seen(start[view], slope[view], i, columns, runs[run, 1], runs[run, 2])
            weigh(start[view, a:b], slope[view, a:b], i, columns, 2 * n, place, left, right)
            for k in range(b - a):
                scatter(row, place[k], line, (a + k) * n, left[k], right[k], lanes)


@compiled
def interleave(stack: Array, rows: Array, columns: Array, first: int, last: int) -> None:
    """Interleave some rows of a stack (batch, Y, X) to (Y, X + 2, n), and transposed to (X, Y + 2, n)."""
    batch, _, X = stack.shape
    for top in range(first, last, _TILE):
        for edge in range(0, X, _TILE):
            for i in range(top, min(top + _TILE, last)):
                for j in range(edge, min(edge + _TILE, X)):
                    for b in range(batch):
                        rows[i, j + 1, b] = stack[b, i, j]
                        columns[j, i + 1, b] = stack[b, i, j]
