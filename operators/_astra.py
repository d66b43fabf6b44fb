"""Projectors of the ASTRA toolbox, which no other module imports."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import astra
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ctflow.errors import BackendError
from ctflow.geometry import Beam, Rays, VolumeGeometry
from ctflow.geometry._astra_dictionaries import astra_grid, bulges_as_astra, spatial_dictionary
from ctflow.geometry._rays import Array


class AstraSliceProjector:
    """Line integrals in one slice at a time: Joseph's method (parallel), exact line lengths (fan).

    ASTRA has no curved detector in a slice; there every ray becomes a view of one bin.

    Shapes: (slices, Y, X) in 1/mm <-> (slices, views, bins), float32, on the CPU, or on the GPU `gpu`.

    Args:
        volume: grid with square pixels.
        beam: fitted beam that measures every slice separately.
        gpu: number of the GPU, where the adjoint is only close to the transpose; None for the CPU.

    References:
        van Aarle et al., Opt. Express 24 (2016); Joseph, IEEE Trans. Med. Imaging 1 (1982).
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam, gpu: int | None = None) -> None:
        if gpu is not None:
            require_cuda("projections on CUDA tensors")
        self._given, rays = (volume, beam, gpu), beam.rays()
        self.image_shape, self.data_shape = volume.shape[1:], (len(beam.views), rays.bins)
        # ASTRA counts lengths in pixels: its answer is scaled by their size, in mm.
        self.pixel = volume.spacing[2]
        bins, table = (1, _single_bins(rays)) if rays.radius else (rays.bins, _vectors(rays))
        kind = "parallel_vec" if rays.parallel else "fanflat_vec"
        if not rays.parallel:
            table[:, :2] /= self.pixel
        table[:, 2:] /= self.pixel
        self._views = (len(table), bins)
        model = "cuda" if gpu is not None else "linear" if rays.parallel else "line_fanflat"
        geometries = astra.create_proj_geom(kind, bins, table), astra.create_vol_geom(*self.image_shape)
        self.projector = astra.create_projector(model, *geometries, _options(gpu))
        weakref.finalize(self, astra.projector.delete, self.projector)

    def __reduce__(self) -> tuple[type[Self], tuple[VolumeGeometry, Beam, int | None]]:
        # ASTRA's number means nothing in another process, and may name another projector once this one is
        # gone.
        return type(self), self._given

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every slice, dimensionless."""
        x = _plain(x)
        y = x.new_empty((len(x), *self.data_shape))
        with _between_streams(x):
            for image, data in zip(x, y, strict=True):
                astra.projector.direct_FP(self.projector, image, out=data.view(self._views))
        return y.mul_(self.pixel)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`."""
        y = _plain(y)
        x = y.new_empty((len(y), *self.image_shape))
        with _between_streams(y):
            for data, image in zip(y, x, strict=True):
                astra.projector.direct_BP(self.projector, data.view(self._views), out=image)
        return x.mul_(self.pixel)

    def matrix(self) -> csr_matrix:
        """All weights, (views · bins, Y · X), in mm."""
        identity = astra.projector.matrix(self.projector)
        weights = astra.matrix.get(identity)
        astra.matrix.delete(identity)
        weights.sort_indices()
        return weights * self.pixel


class AstraVolumeProjector:
    """Line integrals through a whole volume, on the GPU: parallel, cone and helix, flat and curved panels.

    The adjoint (voxels onto an interpolated detector) is only close to the transpose of the forward
    projection (rays through interpolated voxels).

    Shapes: (batch, Z, Y, X) in 1/mm <-> (batch, rows, views, bins), float32, on the CPU or the GPU `gpu`.

    Args:
        volume: grid with square pixels and any slice distance.
        beam: fitted beam that measures the volume as a whole.
        gpu: number of the GPU of the tensors; None for tensors on the CPU, which ASTRA takes to its first.

    Raises:
        BackendError: there is no CUDA device.
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam, gpu: int | None = None) -> None:
        require_cuda(f"a {type(beam).__name__}")
        self._given = volume, beam, gpu
        self.volume_shape, self.data_shape = volume.shape, beam.data_shape(volume)
        rays = beam.rays()
        # A curved detector that bulges the other way is ASTRA's, with its rows from bottom to top.
        self._turned = rays.radius > 0 and not bulges_as_astra(rays)
        rays = replace(rays, v=-rays.v) if self._turned else rays
        grid = astra_grid(volume, flat=False)
        self.projector = astra.create_projector("cuda3d", spatial_dictionary(rays), grid, _options(gpu))
        weakref.finalize(self, astra.projector3d.delete, self.projector)

    def __reduce__(self) -> tuple[type[Self], tuple[VolumeGeometry, Beam, int | None]]:
        return type(self), self._given  # as in a slice

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every volume, dimensionless."""
        x = _plain(x)
        y = x.new_empty((len(x), *self.data_shape))
        with _between_streams(x):
            for image, data in zip(x, y, strict=True):
                astra.projector3d.direct_FP(self.projector, image, out=data)
        return y.flip(-3) if self._turned else y

    def adjoint(self, y: Tensor) -> Tensor:
        """Approximate transpose of `forward`."""
        y = _plain(y.flip(-3) if self._turned else y)
        x = y.new_empty((len(y), *self.volume_shape))
        with _between_streams(y):
            for data, image in zip(y, x, strict=True):
                astra.projector3d.direct_BP(self.projector, data, out=image)
        return x


def _vectors(rays: Rays) -> Array:
    """ASTRA's table of views in a slice: source or direction, middle of the detector, step; (views, 6)."""
    return np.concatenate([a[:, :2] for a in (rays.source, rays.centre, rays.u)], 1)


def _single_bins(rays: Rays) -> Array:
    """The same table with every ray as a view of one bin, (views · bins, 6)."""
    table = np.repeat(_vectors(rays), rays.bins, 0)
    table[:, 2:4] = np.concatenate([rays.points(view)[0, :, :2] for view in range(len(rays.u))])
    # Across the ray, as wide as the bin.
    ray = table[:, 2:4] - table[:, :2]
    pitch = np.linalg.norm(table[:, 4:], axis=1) / np.linalg.norm(ray, axis=1)
    table[:, 4], table[:, 5] = ray[:, 1] * pitch, -ray[:, 0] * pitch
    return table


def _options(gpu: int | None) -> dict[str, int] | None:
    """ASTRA's word for which GPU; without it, it takes the first."""
    return None if gpu is None else {"GPUindex": gpu}


@contextmanager
def _between_streams(x: Tensor) -> Iterator[None]:
    """Let torch's work on x end first, and ASTRA's before torch goes on: it asks DLPack for no stream."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    yield
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def require_cuda(what: str) -> None:
    """Refuse to continue where ASTRA finds no GPU; otherwise it would fail in the first projection.

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
