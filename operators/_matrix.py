"""A projector as two sparse matrices: every weight is computed once, stored, and kept on disk."""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._joseph import Lines, lines
from ctflow.system.cache import Arrays, cached

Array = NDArray[Any]
Shape = tuple[int, int]

_BYTES = 8  # of one entry: float32 weight and int32 index
_FEWEST = 4  # average number of entries of a ray; a real one has hundreds
_DISK_ENTRIES = 5_000_000  # smaller matrices are computed sooner than read
_COLUMNS = {"forward": 8, "adjoint": 16}  # at once: more exceed the second cache, forward sooner


class SparseProjector:
    """Line integrals in a slice, as a matrix and its transpose, both compressed by rows.

    Shapes: (slices, Y, X) in 1/mm <-> (slices, views, bins), float32 or float64, on any device.

    Args:
        stored: weights, pixels and starts of the matrix, compressed by rows.
        image_shape: (Y, X).
        data_shape: (views, bins).
    """

    def __init__(self, stored: Arrays, image_shape: Shape, data_shape: Shape) -> None:
        self.image_shape, self.data_shape = image_shape, data_shape
        shape = math.prod(data_shape), math.prod(image_shape)
        weights = csr_matrix((stored["weights"], stored["pixels"], stored["starts"]), shape)
        self._matrices = {
            ("forward", torch.device("cpu"), torch.float32): _torch(weights),
            ("adjoint", torch.device("cpu"), torch.float32): _torch(weights.T.tocsr()),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every slice, dimensionless."""
        return self._apply("forward", x, self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        return self._apply("adjoint", y, self.image_shape)

    def _apply(self, order: str, stack: Tensor, shape: tuple[int, ...]) -> Tensor:
        matrix = self._at(order, stack.device, stack.dtype)
        parts = [_product(matrix, part.detach().flatten(1)) for part in torch.split(stack, _COLUMNS[order])]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.reshape(len(stack), *shape)

    def _at(self, order: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        if dtype not in (torch.float32, torch.float64):
            raise BackendError(f"projections need float32 or float64 and were given {dtype}; pass x.float()")
        key = order, device, dtype
        if key not in self._matrices:
            stored = self._matrices[order, torch.device("cpu"), torch.float32]
            self._matrices[key] = stored.to(device, dtype)
        return self._matrices[key]


def _product(matrix: Tensor, rows: Tensor) -> Tensor:
    """Multiply the matrix with every row; a vector takes half the time of a matrix of one column."""
    if len(rows) == 1:
        return (matrix @ rows[0])[None]
    return (matrix @ rows.t().contiguous()).t()


# A matrix lives as long as any operator that uses it; operators of equal rays share it.
_shared: WeakValueDictionary[str, SparseProjector] = WeakValueDictionary()


def sparse_projector(volume: VolumeGeometry, beam: Beam) -> SparseProjector:
    """Return the matrices of a geometry: those in use, those on disk, or new ones.

    Args:
        volume: grid with square pixels; its slices are alike, so their positions do not matter.
        beam: fitted beam that measures every slice in its own plane.
    """
    rays, image_shape = lines(volume, beam), volume.shape[1:]
    key = _key(rays, image_shape)
    projector = _shared.get(key)
    if projector is None:
        large = _entries(rays, image_shape) > _DISK_ENTRIES
        stored = (
            cached("matrix", key, lambda: _weights(rays, image_shape))
            if large
            else _weights(rays, image_shape)
        )
        projector = _shared[key] = SparseProjector(stored, image_shape, rays.start.shape)
    return projector


def require_memory(volume: VolumeGeometry, beam: Beam, max_bytes: int) -> None:
    """Refuse matrices that are too large.

    Raises:
        BackendError: the matrix and its transpose take more than `max_bytes`.
    """
    needed = needed_bytes(volume, beam)
    if needed > max_bytes:
        raise BackendError(
            f"the matrices of this geometry take {needed / 2**30:.2f} GiB and max_matrix_bytes allows "
            f"{max_bytes / 2**30:.2f} GiB; raise max_matrix_bytes, or use backend='joseph', which stores none"
        )


def fits(volume: VolumeGeometry, beam: Beam, max_bytes: int) -> bool:
    """Whether the matrix and its transpose take at most `max_bytes`."""
    rays = len(beam.views) * (beam.bins or 0)
    return rays * 2 * _BYTES * _FEWEST <= max_bytes and needed_bytes(volume, beam) <= max_bytes


def needed_bytes(volume: VolumeGeometry, beam: Beam) -> float:
    """Size of the matrix and its transpose together, bytes."""
    return 2 * _BYTES * _entries(lines(volume, beam), volume.shape[1:])


def _entries(rays: Lines, image_shape: Shape) -> float:
    """Weights of all rays: two for every row (column) that a ray crosses inside the image."""
    along, across = (np.where(rays.steep, *sizes) for sizes in (image_shape, image_shape[::-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([-1 - rays.start, across - rays.start]) / rays.slope
    enter, leave = (np.clip(np.nan_to_num(end), 0, along) for end in (ends.min(0), ends.max(0)))
    return 2 * float((leave - enter).sum())


def _key(rays: Lines, image_shape: Shape) -> str:
    tables = hashlib.sha256()
    for table in (rays.start, rays.slope, rays.scale, rays.steep):
        tables.update(np.ascontiguousarray(table).tobytes())
    return f"Joseph, {image_shape} pixels, {rays.start.shape} rays, {tables.hexdigest()}"


def _weights(rays: Lines, image_shape: Shape) -> Arrays:
    """The matrix, compressed by rays; written independently of the kernels of `_joseph`, which it checks."""
    parts = [
        _view(*tables, image_shape)
        for tables in zip(rays.start, rays.slope, rays.scale, rays.steep, strict=True)
    ]
    weights, pixels, numbers = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    starts = np.concatenate([[0], np.cumsum(numbers)]).astype(np.int32)
    return {"weights": weights, "pixels": pixels, "starts": starts}


def _view(
    start: Array, slope: Array, scale: Array, steep: Array, image_shape: Shape
) -> tuple[Array, Array, Array]:
    """Weights, pixels and their number for every ray of a view; rays lie along the first axis."""
    start, slope, scale, steep = (table[:, None, None] for table in (start, slope, scale, steep))
    along, across = (np.where(steep, *sizes) for sizes in (image_shape, image_shape[::-1]))
    step = np.arange(max(image_shape))[:, None]
    at = start + step * slope
    place = np.floor(at).astype(np.int64) + np.arange(2)
    weight = scale * (1 - np.abs(at - place))
    used = (step < along) & (place >= 0) & (place < across) & (weight > 0)
    pixel = np.where(steep, step * image_shape[1] + place, place * image_shape[1] + step)
    return weight[used].astype(np.float32), pixel[used].astype(np.int32), used.sum((1, 2))


def _torch(weights: csr_matrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")
        return torch.sparse_csr_tensor(
            torch.from_numpy(weights.indptr.astype(np.int32, copy=False)),
            torch.from_numpy(weights.indices.astype(np.int32, copy=False)),
            torch.from_numpy(weights.data.astype(np.float32, copy=False)),
            weights.shape,
        )
