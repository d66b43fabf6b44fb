"""Pixel-driven backprojection in Numba: every pixel sums what its rays measured, for FBP and FDK.

A view is a `path`: pixel (i, j) lies across = path[0] · (1, i, j) beside the central ray and
ahead = path[1] · (1, i, j) in front of the source, mm. All kernels release the interpreter's lock and write
only to the rows of the image that they are given, so that threads can share a task.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ctflow.operators._simd import gather
from ctflow.system.compiled import compiled

Array = NDArray[np.float64]  # or float32
Places = NDArray[np.int32]
Lanes = tuple[int, ...]

PARALLEL, FLAT, CURVED = 0, 1, 2
"""Kinds of detector."""

_ROWS = 8  # image rows for which the data of a view are read once
_TILE = 16  # pixels a side whose lanes stay in the first cache while they are transposed


@compiled
def see(kind: int, path: Array, i: int, scale: float, middle: float, place: Array, weight: Array) -> None:
    """Where row i is seen, scale · (across, its tangent or its angle) + middle, and what its pixels weigh.

    Weights are 1 (parallel), 1 / ahead² (flat) and 1 / distance² (curved), 1/mm².
    """
    a, b = path[0, 0] + i * path[0, 1], path[0, 2]
    c, d = path[1, 0] + i * path[1, 1], path[1, 2]
    if kind == PARALLEL:
        for j in range(len(place)):
            place[j] = (a + j * b) * scale + middle
            weight[j] = 1
    elif kind == FLAT:
        for j in range(len(place)):
            inverse = 1 / (c + j * d)
            place[j] = (a + j * b) * inverse * scale + middle
            weight[j] = inverse * inverse
    else:
        # LLVM has no vectors of arc tangents: the angle is four times that of t, whose series is right to
        # 1e-11 up to 45°. Constants in float64 would halve the lanes of a vector.
        number = place.dtype.type
        one, step, centre = number(1), number(4 * scale), number(middle)
        for j in range(len(place)):
            across, ahead = number(a + j * b), number(c + j * d)
            square = across * across + ahead * ahead
            half = across / (ahead + np.sqrt(square))
            t = half / (one + np.sqrt(one + half * half))
            s = t * t
            tail = number(1 / 7) - s * (number(1 / 9) - s * (number(1 / 11) - s * number(1 / 13)))
            place[j] = step * t * (one - s * (number(1 / 3) - s * (number(1 / 5) - s * tail))) + centre
            weight[j] = one / square


@compiled
def split(at: Array, weight: Array, last: int, stride: int, place: Places, left: Array, right: Array) -> None:
    """Left neighbours, 0 to `last`, of fractional bins, and the weights of both; the outer bins continue."""
    number = at.dtype.type
    zero, one, end = number(0), number(1), number(last + 1)
    for j in range(len(at)):
        bin = min(max(at[j], zero), end)
        whole = min(np.int32(bin), np.int32(last))
        share = bin - number(whole)
        place[j] = whole * np.int32(stride)
        right[j] = share * weight[j]
        left[j] = (one - share) * weight[j]


@compiled
def spread(
    stack: Array,
    data: Array,
    kind: int,
    paths: Array,
    scale: float,
    middle: float,
    first_row: int,
    last_row: int,
    lanes: Lanes,
) -> None:
    """Write some rows of images (batch, Y, X), of data with zeros at both ends, (views, (bins + 2) · n)."""
    n, (batch, _, X) = len(lanes), stack.shape
    last_bin = data.shape[1] // n - 2
    sums, place, at = np.empty((_ROWS, X * n), data.dtype), np.empty(X, np.int32), np.empty(X, data.dtype)
    weight, left, right = np.empty(X, data.dtype), np.empty(X, data.dtype), np.empty(X, data.dtype)
    for block in range(first_row, last_row, _ROWS):
        last = min(block + _ROWS, last_row)
        sums[:] = 0
        for view in range(len(data)):
            line = data[view]
            for i in range(block, last):
                see(kind, paths[view], i, scale, middle + 1, at, weight)
                split(at, weight, last_bin, n, place, left, right)
                row = sums[i - block]
                for j in range(X):
                    gather(row, j * n, line, place[j], left[j], right[j], lanes)
        for edge in range(0, X, _TILE):
            for b in range(batch):
                for i in range(block, last):
                    for j in range(edge, min(edge + _TILE, X)):
                        stack[b, i, j] = sums[i - block, j * n + b]


@compiled
def spread_cone(
    volume: Array,
    data: Array,
    kind: int,
    paths: Array,
    scale: float,
    middle: float,
    slope: float,
    start: float,
    first_row: int,
    last_row: int,
) -> None:
    """Add to some rows of a volume (Y, X, Z), given data (views, bins + 1, rows + 1), the last ones repeated.

    Slice k is seen growth · (start + k slope) rows above the middle row; growth is the root of the weight.
    """
    (_, X, Z), (views, columns, lines) = volume.shape, data.shape
    place, at, weight = np.empty(X, np.int32), np.empty(X, data.dtype), np.empty(X, data.dtype)
    left, right, line = np.empty(X, data.dtype), np.empty(X, data.dtype), np.empty(lines, data.dtype)
    ones, heights, under = np.ones(Z, data.dtype), np.empty(Z, data.dtype), np.empty(Z, np.int32)
    low, high = np.empty(Z, data.dtype), np.empty(Z, data.dtype)
    for i in range(first_row, last_row):
        for view in range(views):
            see(kind, paths[view], i, scale, middle, at, weight)
            split(at, weight, columns - 2, 1, place, left, right)
            for j in range(X):
                growth = math.sqrt(weight[j])
                a, b = growth * start + (lines - 2) / 2, growth * slope
                for k in range(Z):
                    heights[k] = a + k * b
                split(heights, ones, lines - 2, 1, under, low, high)
                bottom, top = under[0], under[Z - 1] + 2
                here, there = data[view, place[j], bottom:top], data[view, place[j] + 1, bottom:top]
                # Starts at zero: for any other start Numba would test whether indices count from the end.
                for r in range(top - bottom):
                    line[r] = left[j] * here[r] + right[j] * there[r]
                column = volume[i, j]
                for k in range(Z):
                    gather(column, k, line, under[k] - bottom, low[k], high[k], (0,))
