"""A projector as two sparse matrices: every weight is read once and used for the whole batch."""

from __future__ import annotations

import warnings
from weakref import WeakValueDictionary

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.operators._astra import FlatProjector

_BYTES = 8  # of one entry: float32 weight and int32 index
_LIMIT = 2**30


class SparseProjector:
    """Line integrals in a slice, as a matrix and its transpose, both compressed by rows.

    Shapes: (slices, Y, X) in 1/mm <-> (slices, views, bins), float32 or float64, on any device.

    Args:
        volume: grid with square pixels.
        beam: fitted parallel or fan beam.
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam) -> None:
        flat = FlatProjector(volume, beam)
        self.image_shape, self.data_shape = flat.image_shape, flat.data_shape
        weights = flat.matrix()
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
        columns = stack.detach().flatten(1).t()
        # One column as a vector takes half the time of one column as a matrix.
        result = matrix @ columns[:, 0].contiguous() if len(stack) == 1 else matrix @ columns.contiguous()
        return result.reshape(shape[0] * shape[1], len(stack)).t().reshape(len(stack), *shape)

    def _at(self, order: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        if dtype not in (torch.float32, torch.float64):
            raise BackendError(f"projections need float32 or float64 and were given {dtype}; pass x.float()")
        key = order, device, dtype
        if key not in self._matrices:
            stored = self._matrices[order, torch.device("cpu"), torch.float32]
            self._matrices[key] = stored.to(device, dtype)
        return self._matrices[key]


# A matrix lives as long as any operator that uses it.
_shared: WeakValueDictionary[tuple[VolumeGeometry, Beam], SparseProjector] = WeakValueDictionary()


def sparse_projector(volume: VolumeGeometry, beam: Beam) -> SparseProjector:
    """The matrices of a geometry; operators of equal slices and beams share them.

    Args:
        volume: grid with square pixels; its slices are alike, so where they lie does not matter.
        beam: fitted parallel or fan beam.
    """
    pixel = volume.spacing[2]
    key = VolumeGeometry((1, *volume.shape[1:]), (pixel, pixel, pixel)), beam
    projector = _shared.get(key) or SparseProjector(*key)
    _shared[key] = projector
    return projector


def fits(volume: VolumeGeometry, beam: Beam) -> bool:
    """Whether both matrices stay below 1 GiB together.

    A view meets every pixel at most twice per pixel width on the detector (Joseph; line lengths fewer).
    """
    assert beam.pitch is not None  # the beam is fitted
    _, Y, X = volume.shape
    rays_per_pixel = volume.spacing[2] * beam.magnification() / beam.pitch
    return 2 * _BYTES * 2 * Y * X * len(beam.views) * rays_per_pixel <= _LIMIT


def _torch(weights: csr_matrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")
        return torch.sparse_csr_tensor(
            torch.from_numpy(weights.indptr.astype(np.int32)),
            torch.from_numpy(weights.indices.astype(np.int32)),
            torch.from_numpy(weights.data.astype(np.float32)),
            weights.shape,
        )
