"""An inverse problem: an operator, data, and the weight of each datum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.linalg import Function, functions_of
from ctflow.noise import Noise
from ctflow.operators import LinearOperator, Radon
from ctflow.system.randomness import seeded
from ctflow.system.state import Copyable
from ctflow.volume import Volume

if TYPE_CHECKING:
    from ctflow.operators._spectrum import Spectrum

_HU = -100.0  # no attenuation in 1/mm is so far below that of air


@dataclass(frozen=True, eq=False, repr=False)
class InverseProblem(Copyable):
    """y = A x + noise, as the negative log-likelihood ½ (A x - y)ᵀ W (A x - y).

    Shapes: x (*batch, *A.domain_shape), y (*batch, *A.range_shape).

    Args:
        A: linear operator.
        y: data.
        noise: noise model; it gives the weights W = 1 / variance.
        W: weights, if they are known already.

    Raises:
        GeometryError: y does not have the operator's range shape, or W does not broadcast to it.
        UsageError: y or W are not tensors, hold values that are not finite, or W holds negative ones.
        BackendError: y or W are not dense float32 or float64, or lie on different devices.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 32, 32), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> A = ct.Radon(grid, ct.ParallelBeam(angles=30))
        >>> y = A(torch.full((1, 32, 32), 0.02))  # yours are measured: line integrals, (rows, views, bins)
        >>> problem = ct.InverseProblem(A, y, ct.Gaussian(sigma=0.01))
        >>> problem
        <InverseProblem of Radon, (1, 32, 32) from (1, 30, 47) on cpu, Gaussian(sigma=0.01)>
        >>> float(problem.residual(torch.full((1, 32, 32), 0.02)))  # per datum, 1 where noise is left
        0.0
    """

    A: LinearOperator
    y: Tensor
    noise: Noise
    W: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = self.A.range_shape
        _refuse_other_kinds("data", self.y)
        if tuple(self.y.shape[self.y.ndim - len(shape) :]) != shape:
            raise GeometryError(f"data {tuple(self.y.shape)} do not end in the operator's range {shape}")
        if self.W is None:
            object.__setattr__(self, "W", self.noise.precision(self.y))
        _refuse_other_kinds("weights", self.W)
        self._refuse_apart()
        for name, values in (("data", self.y), ("weights", self.W)):
            if not bool(torch.isfinite(values).all()):
                raise UsageError(
                    f"the {name} of a problem must be finite and some are NaN or infinite; "
                    "set unmeasured data to the value 0 and the weight 0"
                )
        if bool((self.W < 0).any()):
            raise UsageError(
                "the weights of a problem are 1 / variance and some are negative; clamp them at 0"
            )

    def _refuse_apart(self) -> None:
        y, W = self.y, self.W
        if W.device != y.device:
            raise BackendError(f"the data are on {y.device}, the weights on {W.device}; give W.to(y.device)")
        sides = zip(W.shape[::-1], y.shape[::-1], strict=False)
        if W.ndim > y.ndim or any(w not in (1, n) for w, n in sides):
            raise GeometryError(
                f"weights {tuple(W.shape)} do not broadcast to data {tuple(y.shape)}; "
                "give W shaped like y, or with sides of 1 where one weight serves all"
            )

    def __repr__(self) -> str:
        sizes = f"{self.A.domain_shape} from {tuple(self.y.shape)}"
        return f"<InverseProblem of {self.A._name}, {sizes} on {self.y.device}, {self.noise}>"

    @property
    def dims(self) -> int:
        """Number of dimensions of one image."""
        return len(self.A.domain_shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the data."""
        return tuple(self.y.shape[: self.y.ndim - len(self.A.range_shape)])

    def data_fit(self, x: Tensor) -> Tensor:
        """½ |A x - y|²_W for every sample, (*batch)."""
        return 0.5 * (self.W * self._misfit(x) ** 2).flatten(len(self.batch_shape)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Aᵀ W (A x - y), shaped like x."""
        return self.A.T(self.W * self._misfit(x))

    def normal(self, x: Tensor) -> Tensor:
        """Aᵀ W A x, shaped like x."""
        return self.A.normal(x, self.W)

    def _misfit(self, x: Tensor) -> Tensor:
        """A x - y, shaped like y.

        Raises:
            BackendError: x lies on another device than y.
        """
        if x.device != self.y.device:
            raise BackendError(
                f"the data are on {self.y.device} and the image on {x.device}; give x.to(y.device)"
            )
        return self.A(x) - self.y

    def residual(self, x: Tensor) -> Tensor:
        """|A x - y|²_W per datum for every sample: about 1 for the true image, (*batch)."""
        data = self.y[(0,) * len(self.batch_shape)].numel()
        return 2 * self.data_fit(x) / data

    def prox(
        self,
        center: Tensor,
        variance: float,
        iterations: int = 20,
        tolerance: float = 1e-6,
        start: Tensor | None = None,
    ) -> Tensor:
        """argmin_x ½ |A x - y|²_W + |x - center|² / (2 variance), exact where A knows its spectrum.

        Args:
            center: (*batch, *domain_shape).
            variance: how far x may be from the centre, in the unit of x squared.
            iterations: largest number of applications of AᵀWA by conjugate gradients.
            tolerance: relative residual of the linear system.
            start: first guess for conjugate gradients; the centre by default.

        Returns:
            Shaped like `center`.
        """
        return self.A.prox(center, self.y, self.W, variance, iterations, tolerance, start)

    def functions_of_normal(
        self, b: Tensor, functions: list[Function], steps: int = 24, tolerance: float = 1e-2
    ) -> list[Tensor]:
        """f(AᵀWA) b for every f: exact where the spectrum is known or small enough, else by Krylov methods.

        Blur, downsampling and masks are exact, as is any operator with few data, by the eigenvectors of its
        dual Gram matrix W½AAᵀW½. Otherwise Lanczos, or Chebyshev polynomials where its basis takes too much
        memory.

        Args:
            b: (*batch, *domain_shape).
            functions: each maps eigenvalues, float64 on the CPU, entry by entry; finite at zero.
            steps: largest number of Lanczos steps.
            tolerance: relative change at which Lanczos stops.

        Returns:
            One tensor like b for each function.
        """
        if self.spectrum is not None:
            return self.spectrum.apply(b, functions)
        return functions_of(self.normal, b, functions, self.dims, steps, tolerance)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """Eigenvalues and modes of AᵀWA where they are known or the data are few enough, else None."""
        return self.A.spectrum(self.W, dense=True)

    def rescaled(self, scale: float, shift: float) -> InverseProblem:
        """The same problem for z with x = scale · z + shift, as from 1/mm to network range."""
        constant = torch.full(self.A.domain_shape, shift, dtype=self.y.dtype, device=self.y.device)
        return replace(self, A=scale * self.A, y=self.y - self.A(constant), W=self.W)

    def coarsened(self, pixel_mm: float) -> InverseProblem:
        """The same data for images with larger pixels, up to `pixel_mm`; see `Radon.coarsened`.

        Raises:
            UsageError: the operator is no projection.
        """
        return replace(self, A=self.A.coarsened(pixel_mm))

    def part(self, kept: slice) -> InverseProblem:
        """Some of the problems of a batch, y (batch, *range_shape), with their weights."""
        # A side of 1 serves every problem.
        W = self.W[kept] if self.W.ndim == self.y.ndim and len(self.W) > 1 else self.W
        return replace(self, y=self.y[kept], W=W)

    def samples(self, number: int) -> InverseProblem:
        """`number` copies side by side along a new first dimension."""
        W = self.W.expand(number, *self.W.shape) if self.W.ndim else self.W
        return replace(self, y=self.y.expand(number, *self.y.shape), W=W)


def _refuse_other_kinds(name: str, values: object) -> None:
    if not isinstance(values, Tensor):
        raise UsageError(
            f"the {name} of a problem must be a tensor, not a {type(values).__name__}; give torch.as_tensor"
        )
    kinds = values.dtype in (torch.float32, torch.float64) and values.layout == torch.strided
    if not kinds or values.is_meta:
        raise BackendError(
            f"the {name} of a problem must be dense float32 or float64, not {values.dtype}, {values.layout}, "
            f"on {values.device}; convert them first, as by .float(), .to_dense() or .cpu()"
        )


def simulate(A: LinearOperator, image: Volume | Tensor, noise: Noise, seed: int = 0) -> InverseProblem:
    """Simulate the measurement of an image: y = A x + noise.

    Shapes: image (*batch, *A.domain_shape) -> y (*batch, *A.range_shape).

    Args:
        A: operator, for CT on attenuation in 1/mm.
        image: the true image; a `Volume` is converted to attenuation.
        noise: noise model.
        seed: seed of the noise.

    Returns:
        The problem of recovering the image.

    Raises:
        UsageError: the values are HU, and projections are of attenuation.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 64, 64), (6.0, 6.0, 6.0))  # (Z, Y, X), mm
        >>> mu = torch.full((1, 64, 64), 0.0192)  # water, 1/mm; a Volume is taken too
        >>> ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=30)), mu, ct.Gaussian(sigma=0.01))
        <InverseProblem of Radon, (1, 64, 64) from (1, 30, 92) on cpu, Gaussian(sigma=0.01)>
    """
    x = image.to_attenuation().data if isinstance(image, Volume) else image
    if isinstance(A, Radon) and x.numel() and float(x.min()) < _HU:
        raise UsageError(
            f"values down to {float(x.min()):.0f} are HU, and projections are of attenuation in 1/mm; give "
            "the Volume, or units.hu_to_attenuation of the tensor"
        )
    with torch.no_grad():
        y = noise.sample(A(x), seeded(seed))
    return InverseProblem(A, y, noise)
