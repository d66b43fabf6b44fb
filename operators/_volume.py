"""Line integrals through whole volumes on the CPU, with an exact transpose, for upright panels and any rays.

Joseph's method in three dimensions, ray by ray: a ray steps over the planes of the axis along which it
crosses most of them, and interpolates between four voxels of each. One kernel serves both directions, so that
their weights are identical. Forward, threads share the views; backward, slabs of image rows: every thread
follows all rays and writes only to its own slab, so that no two threads write to the same place and sums have
a fixed order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._indexed_rays import IndexedRays, index_rays
from ctflow.operators._joseph import plain
from ctflow.operators._simd import pieces
from ctflow.operators._upright import UprightProjector, upright
from ctflow.operators._upright_kernels import clip
from ctflow.system.compiled import compiled, in_threads

Array = NDArray[Any]
Point = tuple[float, float, float]
Voxel = tuple[int, int, int]


class JosephVolumeProjector:
    """Line integrals through a volume by the quicker of two ways, whose weights are the same to rounding.

    Under an upright panel one volume at a time, all rows of a bin at once; else, and where many volumes of
    few slices come together, ray by ray with all volumes at once.

    Shapes: (batch, Z, Y, X) in 1/mm <-> (batch, rows, views, bins), float32 or float64, on the CPU.

    Args:
        volume: grid of any spacing.
        beam: fitted beam.
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam) -> None:
        rays = index_rays(volume, beam.rays())
        self._ray_by_ray = AnyRayProjector(volume, rays)
        self._upright = UprightProjector(volume, rays) if upright(rays) else None
        # Volumes at once that take the same time either way, forward and adjoint together: by measurement
        # 1 to 2 of 3 slices, 5 to 6 of 16, and more than 14 of 64.
        self._most = 1 + volume.shape[0] // 4

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every volume, dimensionless."""
        return self._quicker(len(x)).forward(plain(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        return self._quicker(len(y)).adjoint(plain(y))

    def _quicker(self, batch: int) -> UprightProjector | AnyRayProjector:
        return self._upright if self._upright is not None and batch <= self._most else self._ray_by_ray


class AnyRayProjector:
    """Line integrals through a volume, with the same weights for the whole batch.

    The results do not depend on the number of threads.

    Shapes: (batch, Z, Y, X) in 1/mm <-> (batch, rows, views, bins), float32 or float64, on the CPU.

    Args:
        volume: grid of any spacing.
        rays: any rays.

    References:
        Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, rays: IndexedRays) -> None:
        self._rays, self.volume_shape = rays, volume.shape
        self.data_shape = (rays.rows, *rays.middle.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every volume, dimensionless."""
        image = _batch_last(x)
        data = x.new_zeros(*self.data_shape, len(x))
        slab = (0, self.volume_shape[1])
        in_threads(partial(self._follow, image, data, some, slab) for some in pieces(self.data_shape[1]))
        return data.movedim(-1, 0).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        data = _batch_last(y)
        image = y.new_zeros(*self.volume_shape, len(y))
        views = (0, self.data_shape[1])
        in_threads(
            partial(self._follow, image, data, views, slab, back=True)
            for slab in pieces(self.volume_shape[1])
        )
        return image.movedim(-1, 0).contiguous()

    def _follow(
        self, image: Tensor, data: Tensor, views: tuple[int, int], slab: tuple[int, int], back: bool = False
    ) -> None:
        rays, (Z, _, X) = self._rays, self.volume_shape
        low, high = (0, slab[0], 0), (Z, slab[1], X)
        lines = (rays.source, rays.middle, rays.step, rays.spacing, rays.parallel)
        _project(image.numpy(), data.numpy(), *lines, low, high, *views, back)


def _batch_last(x: Tensor) -> Tensor:
    """Move the batch to the last axis, so that neighbours in memory share a weight."""
    return x.movedim(0, -1).contiguous()


@compiled
def _project(
    image: Array,
    data: Array,
    source: Array,
    middle: Array,
    step: Array,
    spacing: Point,
    parallel: bool,
    low: Voxel,
    high: Voxel,
    first: int,
    last: int,
    back: bool,
) -> None:
    """Add the integrals of image (Z, Y, X, batch) to data (rows, views, bins, batch), or `back` the reverse.

    Only the voxels low <= index < high and the views first <= view < last are used.
    """
    rows, _, bins, _ = data.shape
    for row in range(rows):
        rise = row - (rows - 1) / 2
        for view in range(first, last):
            s, v = source[view], step[view]
            for k in range(bins):
                m = middle[view, k]
                point = (m[0] + rise * v[0], m[1] + rise * v[1], m[2] + rise * v[2])
                origin = (s[0], s[1], s[2])
                if parallel:
                    _line(image, data[row, view, k], point, origin, spacing, low, high, back)
                else:
                    ahead = (point[0] - s[0], point[1] - s[1], point[2] - s[2])
                    _line(image, data[row, view, k], origin, ahead, spacing, low, high, back)


@compiled
def _line(
    image: Array,
    value: Array,
    start: Point,
    ahead: Point,
    spacing: Point,
    low: Voxel,
    high: Voxel,
    back: bool,
) -> None:
    """Follow one ray, start + t ahead in voxel indices, with its value (batch)."""
    a = 0
    for axis in (1, 2):
        if abs(ahead[axis]) > abs(ahead[a]):
            a = axis
    b, c = (a + 1) % 3, (a + 2) % 3
    slope_b, slope_c = ahead[b] / ahead[a], ahead[c] / ahead[a]
    start_b, start_c = start[b] - start[a] * slope_b, start[c] - start[a] * slope_c
    length = math.sqrt(
        (ahead[0] * spacing[0]) ** 2 + (ahead[1] * spacing[1]) ** 2 + (ahead[2] * spacing[2]) ** 2
    )
    weight = length / abs(ahead[a])
    first, last = clip(low[a], high[a], start_b, slope_b, low[b], high[b])
    first, last = clip(first, last, start_c, slope_c, low[c], high[c])
    strides = (image.shape[1] * image.shape[2], image.shape[2], 1)
    voxels = image.reshape(-1, image.shape[3])
    for plane in range(first, last):
        at_b, at_c = start_b + plane * slope_b, start_c + plane * slope_c
        ib, ic = math.floor(at_b), math.floor(at_c)
        for jb in range(max(ib, low[b]), min(ib + 2, high[b])):
            share = weight * (1 - abs(at_b - jb))
            for jc in range(max(ic, low[c]), min(ic + 2, high[c])):
                w = share * (1 - abs(at_c - jc))
                voxel = voxels[plane * strides[a] + jb * strides[b] + jc * strides[c]]
                for k in range(len(value)):
                    if back:
                        voxel[k] += w * value[k]
                    else:
                        value[k] += w * voxel[k]
