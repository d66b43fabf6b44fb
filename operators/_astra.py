"""The ASTRA toolbox behind two calls, forward and adjoint; nothing else imports it."""

from __future__ import annotations

import weakref
from typing import Any

import astra
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, ConeBeam, FanBeam, VolumeGeometry


class FlatProjector:
    """Line integrals in one slice at a time: Joseph's method (parallel), exact line lengths (fan).

    Shapes: (slices, Y, X) in 1/mm <-> (slices, views, bins), float32, on the CPU, or on the GPU with `cuda`.

    Args:
        volume: grid with square pixels.
        beam: fitted parallel or fan beam.
        cuda: project on the GPU; there forward and adjoint are close, not an exact pair.

    References:
        van Aarle et al., Opt. Express 24 (2016); Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam, cuda: bool = False) -> None:
        if cuda:
            require_cuda("projections on CUDA tensors")
        assert beam.bins is not None  # the beam is fitted
        assert beam.pitch is not None
        _, Y, X = volume.shape
        self.pixel = volume.spacing[2]  # ASTRA counts lengths in pixels: its answer is scaled by this, in mm
        self.image_shape, self.data_shape = (Y, X), (len(beam.views), beam.bins)
        angles, bins, pitch = np.asarray(beam.views), beam.bins, beam.pitch / self.pixel
        if isinstance(beam, FanBeam):
            source, detector = beam.source_axis, beam.source_detector - beam.source_axis
            rays = astra.create_proj_geom(
                "fanflat", pitch, bins, angles, source / self.pixel, detector / self.pixel
            )
        else:
            rays = astra.create_proj_geom("parallel", pitch, bins, angles)
        model = "cuda" if cuda else "line_fanflat" if isinstance(beam, FanBeam) else "linear"
        self.projector = astra.create_projector(model, rays, astra.create_vol_geom(Y, X))
        weakref.finalize(self, astra.projector.delete, self.projector)

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every slice, dimensionless."""
        return self._each(astra.projector.direct_FP, x, self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        return self._each(astra.projector.direct_BP, y, self.image_shape)

    def _each(self, apply: Any, stack: Tensor, shape: tuple[int, ...]) -> Tensor:
        stack = _plain(stack)
        out = stack.new_empty((len(stack), *shape))
        for given, wanted in zip(stack, out, strict=True):
            apply(self.projector, given, out=wanted)
        return out.mul_(self.pixel)

    def matrix(self) -> csr_matrix:
        """All weights, (views · bins, Y · X), in mm."""
        identity = astra.projector.matrix(self.projector)
        weights = astra.matrix.get(identity)
        astra.matrix.delete(identity)
        weights.sort_indices()
        return weights * self.pixel


class ConeProjector:
    """Line integrals through a whole volume, on the GPU.

    Forward (rays through interpolated voxels) and adjoint (voxels onto interpolated detector) are close, not
    an exact pair.

    Shapes: (batch, Z, Y, X) in 1/mm <-> (batch, rows, views, bins), float32, on the CPU or the GPU.

    Args:
        volume: grid with square pixels and any slice distance.
        beam: fitted cone beam.

    Raises:
        BackendError: there is no CUDA device.
    """

    def __init__(self, volume: VolumeGeometry, beam: ConeBeam) -> None:
        require_cuda("a cone beam")
        assert beam.bins is not None  # the beam is fitted
        assert beam.pitch is not None
        assert beam.rows is not None
        (Z, Y, X), (z, y, x) = volume.shape, (extent / 2 for extent in volume.extent)
        self.volume_shape, self.data_shape = volume.shape, (beam.rows, len(beam.views), beam.bins)
        sine, cosine = np.sin(beam.views), np.cos(beam.views)
        vectors = np.zeros((len(beam.views), 12))
        # In three dimensions ASTRA's y grows with the row (cuda/3d/cone_bp.cu), in two against it: negate y.
        vectors[:, 0], vectors[:, 1] = beam.source_axis * sine, beam.source_axis * cosine
        behind = beam.source_detector - beam.source_axis
        vectors[:, 3], vectors[:, 4] = -behind * sine, -behind * cosine
        vectors[:, 6], vectors[:, 7] = beam.pitch * cosine, -beam.pitch * sine
        vectors[:, 11] = beam.row_pitch
        rays = astra.create_proj_geom("cone_vec", beam.rows, beam.bins, vectors)
        grid = astra.create_vol_geom(Y, X, Z, -x, x, -y, y, -z, z)
        self.projector = astra.create_projector("cuda3d", rays, grid)
        weakref.finalize(self, astra.projector3d.delete, self.projector)

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every volume, dimensionless."""
        x = _plain(x)
        out = x.new_empty((len(x), *self.data_shape))
        for given, wanted in zip(x, out, strict=True):
            astra.projector3d.direct_FP(self.projector, given, out=wanted)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`, nearly."""
        y = _plain(y)
        out = y.new_empty((len(y), *self.volume_shape))
        for given, wanted in zip(y, out, strict=True):
            astra.projector3d.direct_BP(self.projector, given, out=wanted)
        return out


def require_cuda(what: str) -> None:
    """Refuse where ASTRA finds no GPU; it would create a projector and fail in the first projection.

    Raises:
        BackendError: there is no CUDA device.
    """
    if not astra.use_cuda():
        raise BackendError(
            f"{what} need ASTRA with a CUDA device and none was found; "
            "use a parallel or fan beam on CPU tensors, or run where `nvidia-smi` lists a GPU"
        )


def _plain(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise BackendError(
            f"the astra backend computes in float32 and was given {x.dtype}; "
            "pass x.float(), or Radon(..., backend='matrix') for float64"
        )
    return x.detach().contiguous()
