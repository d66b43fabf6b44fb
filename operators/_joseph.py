"""Line integrals in a slice on the CPU, with weights computed on the fly and no memory beyond the arrays.

Joseph's method: a steep ray steps over the rows of the image and interpolates between two columns, a flat one
over the columns of the transposed image. Forward, threads share the views; backward, the image rows. No two
threads write to the same place, and both directions compute the same weights: they are exact transposes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._kernels import Lanes, interleave, project, project_back, project_back_onto
from ctflow.operators._simd import pieces, widths
from ctflow.system.compiled import in_threads

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Lines:
    """Rays of a beam in pixel coordinates, steep ones as column(row), flat ones as row(column).

    Args:
        start: column where a ray meets row 0 (row where it meets column 0), (views, bins), pixels.
        slope: columns per row (rows per column), at most 1 in magnitude, (views, bins).
        scale: length of the ray in one row (column), (views, bins), mm.
        steep: whether a ray steps over rows, (views, bins).

    References:
        Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    start: Array
    slope: Array
    scale: Array
    steep: Array


def runs_of(chosen: Array) -> Array:
    """Neighbouring chosen bins, (views, bins), as (view, first bin, last bin + 1), (runs, 3)."""
    found = [
        (view, int(first), int(last)) for view, row in enumerate(chosen) for first, last in _intervals(row)
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _intervals(chosen: Array) -> Array:
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return np.asarray(edges.reshape(-1, 2))


def lines(volume: VolumeGeometry, beam: Beam) -> Lines:
    """Express the rays of a fitted flat beam in the pixels of a slice.

    Args:
        volume: grid with square pixels.
        beam: fitted beam that measures every slice in its own plane.
    """
    rays, pixel, (_, Y, X) = beam.rays(), volume.spacing[2], volume.shape
    points = np.stack([rays.points(view)[0] for view in range(len(rays.source))])
    ahead = np.broadcast_to(rays.source[:, None], points.shape)
    if not rays.parallel:
        ahead = points - ahead
    column, row = points[..., 0] / pixel + (X - 1) / 2, (Y - 1) / 2 - points[..., 1] / pixel
    across, down = ahead[..., 0], -ahead[..., 1]
    steep = np.abs(down) >= np.abs(across)
    slope = np.where(steep, across, down) / np.where(steep, down, across)
    start = np.where(steep, column - row * slope, row - column * slope)
    return Lines(start, slope, pixel * np.hypot(1, slope), steep)


class JosephSliceProjector:
    """Line integrals in single slices, with the same weights for the whole batch.

    Shapes: (slices, Y, X) in 1/mm <-> (slices, views, bins), float32 or float64, on the CPU.

    Args:
        volume: grid with square pixels.
        beam: fitted beam that measures every slice in its own plane.
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam) -> None:
        rays = lines(volume, beam)
        self._runs = runs_of(rays.steep), runs_of(~rays.steep)
        self._path, self._scale = (rays.start + 1, rays.slope), rays.scale  # from the column of zeros
        self.image_shape, self.data_shape = volume.shape[1:], rays.start.shape

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every slice, dimensionless."""
        return self._by_lanes(self._project, x, self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        return self._by_lanes(self._project_back, y, self.image_shape)

    def _by_lanes(self, apply: Callable[..., None], stack: Tensor, shape: tuple[int, ...]) -> Tensor:
        stack = plain(stack)
        out, done = stack.new_empty((len(stack), *shape)), 0
        for n in widths(len(stack)):
            apply(stack[done : done + n], out[done : done + n], (0,) * n)
            done += n
        return out

    def _project(self, x: Tensor, y: Tensor, lanes: Lanes) -> None:
        views, bins = self.data_shape
        Y, X = self.image_shape
        rows, columns = _padded(x, Y, X, len(lanes)), _padded(x, X, Y, len(lanes))
        in_threads(partial(interleave, x.numpy(), rows, columns, a, b) for a, b in pieces(len(rows)))
        data = x.new_zeros(views, bins * len(lanes))
        in_threads(
            partial(project, _flat(image), *self._path, self._scale, runs[a:b], data.numpy(), lanes)
            for image, runs in zip((rows, columns), self._runs, strict=True)
            for a, b in pieces(len(runs))
        )
        y.copy_(data.view(views, bins, -1).permute(2, 0, 1)[: len(y)])

    def _project_back(self, y: Tensor, x: Tensor, lanes: Lanes) -> None:
        (Y, X), (views, bins) = self.image_shape, self.data_shape
        data = y.new_zeros(views, bins, len(lanes))
        data[..., : len(y)] = y.permute(1, 2, 0) * torch.from_numpy(self._scale)[..., None].to(y)
        lined, (steep, gentle) = data.view(views, -1).numpy(), self._runs
        columns = _padded(x, X, Y, len(lanes))
        in_threads(
            partial(project_back, _flat(columns), *self._path, gentle, lined, a, b, lanes)
            for a, b in pieces(X)
        )
        in_threads(
            partial(project_back_onto, x.numpy(), columns, *self._path, steep, lined, a, b, lanes)
            for a, b in pieces(Y)
        )


def _padded(like: Tensor, rows: int, columns: int, lanes: int) -> Array:
    """Allocate an image with lanes; zeros in the columns on either side and in lanes without an image."""
    image = like.new_empty(rows, columns + 2, lanes).numpy()
    image[:, 0], image[:, -1], image[..., len(like) :] = 0, 0, 0
    return image


def _flat(image: Array) -> Array:
    return image.reshape(len(image), -1)


def plain(x: Tensor) -> Tensor:
    """The numbers as the kernels read them, any shape and unit.

    Raises:
        BackendError: they are not on the CPU, or neither float32 nor float64.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        raise BackendError(
            f"the joseph backend computes float32 and float64 on the CPU and was given {x.dtype} on "
            f"{x.device}; pass x.float().cpu(), or choose another backend"
        )
    return x.detach().contiguous()
