"""Kernel of Joseph's method in Warp: one source for the GPU and the CPU, for projection and its transpose.

A thread follows one ray, over the planes of the axis along which it crosses most of them, and interpolates
between four voxels of each. Places are float64, as in the other backends: on 512 pixels float32 is 2e-5 off.
"""

from __future__ import annotations

from typing import Any

import warp as wp

wp.config.log_level = wp.LOG_WARNING  # it would greet on standard output
wp.init()


@wp.func
def _planes(start: wp.float64, slope: wp.float64, size: int, planes: int) -> wp.vec2i:
    """First plane and last + 1 with -1 <= start + plane slope <= size, or a few more."""
    nowhere, end = wp.float64(-1.0), wp.float64(planes)
    low, high = wp.float64(0.0), end
    if slope == wp.float64(0.0):
        if start < nowhere or start > wp.float64(size):
            high = nowhere
    else:
        one, other = (nowhere - start) / slope, (wp.float64(size) - start) / slope
        # Clamped before they become whole numbers: a ray nearly in the plane crosses it far away.
        low = wp.clamp(wp.min(one, other), wp.float64(0.0), end)
        high = wp.clamp(wp.max(one, other), nowhere, end)
    return wp.vec2i(int(wp.floor(low)), wp.min(int(wp.ceil(high)) + 1, planes))


@wp.func
def _voxel(axis: int, plane: int, jb: int, jc: int) -> wp.vec3i:
    """Index (z, y, x) of a voxel in a plane of an axis, by its places along the next two axes."""
    if axis == 0:
        return wp.vec3i(plane, jb, jc)
    if axis == 1:
        return wp.vec3i(jc, plane, jb)
    return wp.vec3i(jb, jc, plane)


@wp.kernel(enable_backward=False)
def project(
    image: wp.array3d[Any],
    data: wp.array3d[Any],
    source: wp.array[wp.vec3d],
    middle: wp.array2d[wp.vec3d],
    step: wp.array[wp.vec3d],
    middle_row: wp.float64,
    follows: wp.float64,
    spacing: wp.vec3d,
    parallel: bool,
    back: bool,
) -> None:
    """Write the integral of image (Z, Y, X) along one ray to data (rows, views, bins), or add it `back`.

    The rays are those of `IndexedRays`: row `middle_row` is `middle`, the others follow by `step`. The source
    stays where it is (`follows` = 0) or steps with the row (1).
    """
    row, view, k = wp.tid()
    lift = (wp.float64(row) - middle_row) * step[view]
    point, origin = middle[view, k] + lift, source[view] + follows * lift
    start, ahead = wp.where(parallel, point, origin), wp.where(parallel, source[view], point - origin)
    a = wp.where(wp.abs(ahead[1]) > wp.abs(ahead[0]), 1, 0)
    a = wp.where(wp.abs(ahead[2]) > wp.abs(ahead[a]), 2, a)
    b, c = (a + 1) % 3, (a + 2) % 3
    slope_b, slope_c = ahead[b] / ahead[a], ahead[c] / ahead[a]
    start_b, start_c = start[b] - start[a] * slope_b, start[c] - start[a] * slope_c
    by_b = _planes(start_b, slope_b, image.shape[b], image.shape[a])
    by_c = _planes(start_c, slope_c, image.shape[c], image.shape[a])
    length = image.dtype(wp.length(wp.cw_mul(ahead, spacing)) / wp.abs(ahead[a]))
    value = image.dtype(0.0)
    if back:
        value = length * data[row, view, k]
    for plane in range(wp.max(by_b[0], by_c[0]), wp.min(by_b[1], by_c[1])):
        at_b, at_c = start_b + wp.float64(plane) * slope_b, start_c + wp.float64(plane) * slope_c
        ib, ic = int(wp.floor(at_b)), int(wp.floor(at_c))
        for jb in range(wp.max(ib, 0), wp.min(ib + 2, image.shape[b])):
            share = image.dtype(1.0) - image.dtype(wp.abs(at_b - wp.float64(jb)))
            for jc in range(wp.max(ic, 0), wp.min(ic + 2, image.shape[c])):
                weight = share * (image.dtype(1.0) - image.dtype(wp.abs(at_c - wp.float64(jc))))
                # A slice beside this one has no weight: what is not a number there stays there.
                if weight != image.dtype(0.0):
                    v = _voxel(a, plane, jb, jc)
                    if back:
                        wp.atomic_add(image, v[0], v[1], v[2], weight * value)
                    else:
                        value += weight * image[v[0], v[1], v[2]]
    if not back:
        data[row, view, k] = length * value


for _kind in (wp.float32, wp.float64):  # compiled together, once
    wp.overload(project, {"image": wp.array3d[_kind], "data": wp.array3d[_kind]})
