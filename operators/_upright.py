"""Line integrals through whole volumes on the CPU for upright panels, whose columns are parallel to z.

The rays of one view and bin share their path within the slices and differ in height alone. In every plane a
line along z is interpolated once between two columns of voxels, and all rows of the panel sample it: the
weights of Joseph's method, by which each ray alone interpolates between four voxels. Forward, threads share
the views; backward, the image rows. Both directions compute the same weights: they are exact transposes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctflow.geometry import VolumeGeometry
from ctflow.operators._indexed_rays import IndexedRays
from ctflow.operators._joseph import runs_of
from ctflow.operators._simd import pieces
from ctflow.operators._upright_kernels import project, project_back
from ctflow.system.compiled import in_threads

Array = NDArray[Any]


def upright(rays: IndexedRays) -> bool:
    """Whether rows rise along z alone, and every ray crosses more planes within the slices than slices."""
    ahead, _ = _middle_row(rays)
    steepest = np.abs(ahead[..., 0])
    if not rays.parallel:
        steepest = steepest + (rays.rows - 1) / 2 * np.abs(rays.step[:, :1])
    return not rays.step[:, 1:].any() and bool((steepest < np.abs(ahead[..., 1:]).max(-1)).all())


def _middle_row(rays: IndexedRays) -> tuple[Array, Array]:
    """Direction and a point of every ray of the middle row, (views, bins, 3), indices."""
    source = np.broadcast_to(rays.source[:, None], rays.middle.shape)
    return (source, rays.middle) if rays.parallel else (rays.middle - source, source)


def _paths(rays: IndexedRays) -> tuple[Array, Array]:
    """Paths as the kernels take them, (views, bins, 7), and which step over image rows, (views, bins)."""
    ahead, through = _middle_row(rays)
    steep = np.abs(ahead[..., 1]) >= np.abs(ahead[..., 2])
    (leading, across), (at, beside) = (
        (np.where(steep, x[..., 1], x[..., 2]), np.where(steep, x[..., 2], x[..., 1]))
        for x in (ahead, through)
    )
    slope, climb = across / leading, ahead[..., 0] / leading
    _, dy, dx = rays.spacing
    length = np.hypot(np.where(steep, dy, dx), slope * np.where(steep, dx, dy))
    rise = np.broadcast_to(rays.step[:, :1], slope.shape)
    # From a source the rows spread with the distance; parallel ones keep it.
    spread = 0 * slope if rays.parallel else rise / leading
    gap = rise if rays.parallel else -at * spread
    middle = (rays.rows - 1) / 2
    height = through[..., 0] - at * climb - middle * gap
    path = (beside - at * slope, slope, length, height, climb - middle * spread, gap, spread)
    return np.stack(path, -1), steep


class UprightProjector:
    """Line integrals through a volume.

    The results do not depend on the number of threads.

    Shapes: (batch, Z, Y, X) in 1/mm <-> (batch, rows, views, bins), float32 or float64, on the CPU.

    Args:
        volume: grid of any spacing.
        rays: rays for which `upright` holds.

    References:
        Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, rays: IndexedRays) -> None:
        self.volume_shape, self._spacing = volume.shape, volume.spacing[0]
        self._paths, steep = _paths(rays)
        self._runs = (True, runs_of(steep)), (False, runs_of(~steep))
        self.data_shape = (rays.rows, *steep.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every volume, dimensionless."""
        out = x.new_empty(len(x), *self.data_shape)
        for volume, data in zip(x, out, strict=True):
            image, y = self._padded(volume), x.new_empty(*self.data_shape[1:], self.data_shape[0])
            image[1:-1, 1:-1, 1:-1] = volume.movedim(0, -1)
            in_threads(
                partial(project, image.numpy(), y.numpy(), self._paths, runs[a:b], steep, self._spacing)
                for steep, runs in self._runs
                for a, b in pieces(len(runs))
            )
            data.copy_(y.movedim(-1, 0))
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        out = y.new_empty(len(y), *self.volume_shape)
        for data, volume in zip(y, out, strict=True):
            image, sides = self._padded(volume), data.movedim(0, -1).contiguous()
            for steep, runs in self._runs:
                fixed = image.numpy(), sides.numpy(), self._paths, runs, steep, self._spacing
                in_threads(partial(project_back, *fixed, a, b) for a, b in pieces(self.volume_shape[1]))
            volume.copy_(image[1:-1, 1:-1, 1:-1].movedim(-1, 0))
        return out

    def _padded(self, like: Tensor) -> Tensor:
        """Zeros with slices innermost and a margin around."""
        Z, Y, X = self.volume_shape
        return like.new_zeros(Y + 2, X + 2, Z + 2)
