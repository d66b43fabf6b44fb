"""Projections: what an X-ray beam measures of a volume."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from torch import Tensor

from ctflow.errors import BackendError, GeometryError
from ctflow.geometry import Beam, ParallelBeam, VolumeGeometry
from ctflow.operators import _astra, _joseph, _matrix, _torch, _volume
from ctflow.operators._base import LinearOperator

__all__ = ["Radon"]

_BACKENDS = ("auto", "matrix", "astra", "joseph", "torch")


class Projector(Protocol):
    """What computes the line integrals: images (n, *image) in 1/mm <-> data (n, *data), dimensionless."""

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every image."""

    def adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `forward`, or nearly."""


class Radon(LinearOperator):
    """X-ray transform: line integrals of the attenuation along every ray of `beam`.

    Parallel and fan beams measure every slice on its own; a cone beam measures the volume. The adjoint is the
    exact transpose but for ASTRA on CUDA, whose pairs are close.

    Shapes: (*batch, Z, Y, X) in 1/mm -> (*batch, rows, views, bins), dimensionless; rows = Z unless cone.

    Args:
        volume: grid of the image, square pixels.
        beam: parallel, fan or cone beam; absent bins and pitches are chosen to cover the volume.
        backend: "matrix" stores all weights (fastest, slices only); "joseph" (on the CPU), "astra" (volumes:
            on CUDA only) and "torch" (exact on any device) compute them on the fly. "auto" takes, for slices,
            matrices where they fit in 1 GiB, else ASTRA; for volumes Joseph on the CPU, ASTRA on CUDA.

    Raises:
        GeometryError: pixels are not square, or the detector does not cover the field of view.
        BackendError: the backend is unknown or cannot serve the beam.

    References:
        Radon, Ber. Verh. Sächs. Akad. Wiss. 69 (1917); van Aarle et al., Opt. Express 24 (2016).
    """

    def __init__(self, volume: VolumeGeometry, beam: Beam, backend: str = "auto") -> None:
        _, dy, dx = volume.spacing
        if abs(dy - dx) > 1e-4 * dx:
            raise GeometryError(
                f"projections need square pixels and these are {dy:.4g} × {dx:.4g} mm (y, x); "
                "resample the slices to one pixel size first"
            )
        if backend not in _BACKENDS or (backend == "matrix" and not beam.flat):
            raise BackendError(
                f"backend '{backend}' cannot project a {type(beam).__name__}; "
                f"there are {', '.join(_BACKENDS)}, and 'matrix' serves beams that measure slice by slice"
            )
        self.volume, self.beam = volume, beam.fitted(volume)
        self.backend = backend if backend != "auto" else self._fastest()
        self._follows_device = backend == "auto" and not self.beam.flat
        self._skip = int(beam.flat)  # flat beams join the slices to the batch
        self.domain_shape = volume.shape
        self.range_shape = self.beam.data_shape(volume)

    def _fastest(self) -> str:
        if not self.beam.flat:
            return "joseph"
        return "matrix" if _matrix.fits(self.volume, self.beam) else "astra"

    def _forward(self, x: Tensor) -> Tensor:
        y = self._projector(x).forward(x.reshape(-1, *self.domain_shape[self._skip :]))
        return y.reshape(*x.shape[:-3], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        x = self._projector(y).adjoint(y.reshape(-1, *self.range_shape[self._skip :]))
        return x.reshape(*y.shape[:-3], *self.domain_shape)

    def _projector(self, x: Tensor) -> Projector:
        if self._follows_device and x.is_cuda:
            return self._astra_volume
        if self.backend == "astra":
            return (self._cuda if x.is_cuda else self._cpu) if self.beam.flat else self._astra_volume
        if self.backend == "matrix":
            return self._sparse
        return self._torch if self.backend == "torch" else self._joseph

    # Built on first use: an operator can be made, printed and refused without a projector.
    @cached_property
    def _sparse(self) -> _matrix.SparseProjector:
        return _matrix.sparse_projector(self.volume, self.beam)

    @cached_property
    def _cpu(self) -> _astra.FlatProjector:
        return _astra.FlatProjector(self.volume, self.beam)

    @cached_property
    def _cuda(self) -> _astra.FlatProjector:
        return _astra.FlatProjector(self.volume, self.beam, cuda=True)

    @cached_property
    def _astra_volume(self) -> _astra.VolumeProjector:
        return _astra.VolumeProjector(self.volume, self.beam)

    @cached_property
    def _joseph(self) -> _joseph.JosephProjector | _volume.VolumeProjector:
        made = _joseph.JosephProjector if self.beam.flat else _volume.VolumeProjector
        return made(self.volume, self.beam)

    @cached_property
    def _torch(self) -> _torch.TorchProjector:
        return _torch.TorchProjector(self.volume, self.beam)

    @classmethod
    def example(cls) -> Radon:
        """Two slices of 12 × 10 pixels, seven views."""
        return cls(VolumeGeometry((2, 12, 10), (3.0, 2.0, 2.0)), ParallelBeam(7))
