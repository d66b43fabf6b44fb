"""X-ray projections of a volume."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ctflow.errors import BackendError, GeometryError
from ctflow.geometry import Beam, ParallelBeam, VolumeGeometry
from ctflow.operators import _astra, _joseph, _matrix, _torch, _volume
from ctflow.operators._base import LinearOperator
from ctflow.system.optional import installed, optional_library

__all__ = ["Radon"]

_BACKENDS = ("auto", "joseph", "matrix", "astra", "torch", "warp")
_GATHERED = (
    400_000  # numbers, 1.6 MB: a product with stored weights gathers from all of them, kernels from a row
)


class Projector(Protocol):
    """Backend that computes line integrals: images (n, *image) in 1/mm <-> data (n, *data), dimensionless."""

    def forward(self, x: Tensor) -> Tensor:
        """Line integrals of every image."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose of `forward`, exact or approximate."""
        ...


class Radon(LinearOperator):
    """X-ray transform: line integrals of the attenuation along every ray of `beam`.

    Parallel and fan beams measure every slice separately; a cone beam measures the volume. The adjoint is the
    exact transpose, except with ASTRA on CUDA, where it is only close to it.

    Shapes: (*batch, Z, Y, X) in 1/mm -> (*batch, rows, views, bins), dimensionless; rows = Z unless cone.

    Args:
        volume: grid of the image, square pixels.
        beam: parallel, fan or cone beam; missing bins and pitches are chosen to cover the volume.
        backend: method of computation:
            "joseph": compiled kernels that store no weights, on the CPU;
            "matrix": stored weights, for slices, on any device; kept on disk for the next time;
            "astra": the ASTRA toolbox, slices on the CPU, everything on CUDA;
            "torch": tensor operations, exact on any device;
            "warp": kernels of NVIDIA's Warp, exact on CUDA and the CPU; needs the extra `gpu`;
            "auto": on CUDA "warp", or "torch" without Warp or under torch.use_deterministic_algorithms; on
            the CPU the quicker of "matrix", for a few small slices or their data, where it fits, and
            "joseph". Both have the weights of Joseph's method, to the rounding of float32, so that each is
            the transpose of either. At 512² and 60 views the first single slice costs 2.5 s for the weights,
            1 s once they are on disk, and every projection with its adjoint saves 13 ms: for fewer than two
            hundred, ask for "joseph".
        max_matrix_bytes: largest memory of "matrix" for the weights and their transpose.

    Raises:
        GeometryError: pixels are not square, the detector does not cover the field of view, or there are more
            rays than fit into memory.
        BackendError: the backend is unknown, does not support the beam, or would take too much memory.

    References:
        Radon, Ber. Verh. Sächs. Akad. Wiss. 69 (1917); van Aarle et al., Opt. Express 24 (2016).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 32, 32), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> A = ct.Radon(grid, ct.ParallelBeam(angles=4))
        >>> y = A(torch.full((1, 32, 32), 0.02))  # 1/mm
        >>> y.shape, A.T(y).shape
        (torch.Size([1, 4, 47]), torch.Size([1, 32, 32]))
        >>> round(float(y[0, 0].max()), 2)  # 32 pixels of 3 mm at 0.02 / mm
        1.92
    """

    def __init__(
        self, volume: VolumeGeometry, beam: Beam, backend: str = "auto", max_matrix_bytes: int = 2**30
    ) -> None:
        _, dy, dx = volume.spacing
        if abs(dy - dx) > 1e-4 * dx:
            raise GeometryError(
                f"projections need square pixels and these are {dy:.4g} × {dx:.4g} mm (y, x); "
                "resample the slices to one pixel size first"
            )
        if backend not in _BACKENDS or (backend == "matrix" and not beam.flat):
            raise BackendError(
                f"backend '{backend}' cannot project a {type(beam).__name__}; "
                f"there are {', '.join(_BACKENDS)}, and 'matrix' supports beams that measure slice by slice"
            )
        self._volume, self._beam = volume, beam.fitted(volume)
        if backend == "matrix":
            _matrix.require_memory(volume, self.beam, max_matrix_bytes)
        self._backend, self._max_matrix_bytes = backend, max_matrix_bytes
        self._fits = beam.flat and _matrix.fits(volume, self.beam, max_matrix_bytes)
        self.fingerprint = f"{backend} {volume.shape} {volume.spacing} {self.beam!r}"
        self._skip = int(beam.flat)  # with flat beams slices belong to the batch
        self.domain_shape = volume.shape
        self.range_shape = self.beam.data_shape(volume)

    @property
    def volume(self) -> VolumeGeometry:
        """Grid of the image, mm; read-only, since weights and shapes depend on it."""
        return self._volume

    @property
    def beam(self) -> Beam:
        """The beam, fitted to the volume; read-only likewise."""
        return self._beam

    @property
    def backend(self) -> str:
        """Backend for one image on the operator's device; see `to`."""
        return self._backend_for(self.device, math.prod(self.domain_shape))

    def _backend_for(self, device: torch.device, numbers: int) -> str:
        if self._backend != "auto":
            return self._backend
        if device.type == "cuda":
            return _on_cuda()
        return "matrix" if self._fits and numbers <= _GATHERED else "joseph"

    def __repr__(self) -> str:
        return f"<Radon {self.domain_shape} -> {self.range_shape}: {self.beam}>"

    def _forward(self, x: Tensor) -> Tensor:
        y = self._projector(x).forward(x.reshape(-1, *self.domain_shape[self._skip :]))
        return y.reshape(*x.shape[:-3], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        x = self._projector(y).adjoint(y.reshape(-1, *self.range_shape[self._skip :]))
        return x.reshape(*y.shape[:-3], *self.domain_shape)

    @cached_property
    def _projectors(self) -> dict[tuple[str, int | None], Projector]:
        # Built on first use: an operator can be made, printed, copied and refused without a projector.
        return {}

    def _projector(self, x: Tensor) -> Projector:
        key = self._backend_for(x.device, x.numel()), x.device.index if x.is_cuda else None
        if key not in self._projectors:
            self._projectors[key] = self._built(*key)
        return self._projectors[key]

    def _built(self, backend: str, gpu: int | None) -> Projector:
        geometry, flat = (self.volume, self.beam), self.beam.flat
        if backend == "matrix":
            return _matrix.sparse_projector(*geometry)
        if backend == "torch":
            return _torch.TorchProjector(*geometry)
        if backend == "warp":
            with optional_library("warp-lang", "pip install 'ctflow[gpu]', or choose backend='torch'"):
                from ctflow.operators import _warp
            return _warp.WarpProjector(*geometry)
        if backend == "astra":
            return (_astra.AstraSliceProjector if flat else _astra.AstraVolumeProjector)(*geometry, gpu)
        return _joseph.JosephSliceProjector(*geometry) if flat else _volume.JosephVolumeProjector(*geometry)

    def coarsened(self, pixel_mm: float) -> Radon:
        """The same rays through the largest pixels, up to `pixel_mm`, that hold a whole number of its own.

        Itself where these are no larger: rows and columns (Y, X) are multiples of their factor.
        """
        _, Y, X = self.domain_shape
        most = int(pixel_mm / self.volume.spacing[2] + 1e-6)
        factor = max(n for n in range(1, max(1, most) + 1) if Y % n == X % n == 0)
        if factor == 1:
            return self
        if factor not in self._coarser:
            coarser = Radon(self.volume.coarsened(factor), self.beam, self._backend, self._max_matrix_bytes)
            self._coarser[factor] = coarser.to(self.device)
        return self._coarser[factor]

    @cached_property
    def _coarser(self) -> dict[int, Radon]:
        return {}  # made once for all slices of a series

    @classmethod
    def example(cls) -> Radon:
        """Two slices of 12 × 10 pixels, seven views."""
        return cls(VolumeGeometry((2, 12, 10), (3.0, 2.0, 2.0)), ParallelBeam(7))


def _on_cuda() -> str:
    """The quickest backend on CUDA whose adjoint is the transpose, which CG and Lanczos need: not ASTRA."""
    quick = installed("warp") and not torch.are_deterministic_algorithms_enabled()
    return "warp" if quick else "torch"
