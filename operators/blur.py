"""Gaussian blur of slices: the operator of deblurring."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.operators._separable import Separable, boundary_indices, check_shape
from ctflow.operators._spectrum import Spectrum, fourier_spectrum, uniform
from ctflow.tables import Real

__all__ = ["Blur"]

_TRUNCATE = 4.0  # standard deviations: the tail left out weighs 6e-5; the default of scipy.ndimage
BOUNDARIES = ("reflect", "periodic", "zero")


class Blur(Separable):
    """Gaussian blur of every slice with standard deviation `sigma`, cut at four of them.

    With "reflect" (the slice continues as its mirror image) and "periodic" the operator is its own adjoint,
    preserves the mean, has norm 1 and is diagonal in the cosine (DCT-II) or Fourier basis. Prox,
    pseudo-inverse and functions of AᵀA are exact with every boundary.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, Y, X), in the unit of x.

    Args:
        shape: (Z, Y, X).
        sigma: standard deviation, pixels.
        boundary: "reflect", "periodic" or "zero".

    Raises:
        ProtocolError: sigma is not positive, or the boundary is unknown.
        GeometryError: the shape is not (Z, Y, X).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> point = torch.zeros(1, 9, 9)
        >>> point[0, 4, 4] = 1.0
        >>> blurred = ct.Blur((1, 9, 9), sigma=1.0)(point)
        >>> f"{blurred.max():.2f} at the centre, {blurred.sum():.1f} in all"
        '0.16 at the centre, 1.0 in all'
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        sigma: Annotated[float, Real(0, 1000)] = 2.0,
        boundary: str = "reflect",
    ) -> None:
        if not 0 < sigma < math.inf:
            raise ProtocolError(
                f"sigma {sigma} must be positive; give the standard deviation of the blur in pixels"
            )
        check_boundary(boundary)
        z, y, x = check_shape(shape)
        super().__init__(z, _gaussian(y, sigma, boundary), _gaussian(x, sigma, boundary))
        self.boundary = boundary

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Fourier modes with a periodic boundary, for one weight in every sample, (*batch, 1, 1, 1)."""
        one = uniform(weights, 3)
        if one is None or self.boundary != "periodic":
            return super().spectrum(weights, dense)
        rows, columns = torch.fft.fft(self.R[:, 0].cpu()).abs(), torch.fft.rfft(self.C[:, 0].cpu()).abs()
        return fourier_spectrum(one * (rows[:, None] * columns) ** 2, (len(self.R), len(self.C)))

    @classmethod
    def example(cls) -> Blur:
        """Two slices of 9 × 12 pixels, blurred wider than the shorter side."""
        return cls((2, 9, 12), sigma=1.5)


def check_boundary(boundary: str) -> None:
    """Refuse an unknown boundary.

    Raises:
        ProtocolError: there is no such boundary.
    """
    if boundary not in BOUNDARIES:
        raise ProtocolError(f"boundary '{boundary}' is unknown; choose from {', '.join(BOUNDARIES)}")


def _gaussian(n: int, sigma: float, boundary: str) -> Tensor:
    radius = int(_TRUNCATE * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma) ** 2)
    weights = weights / weights.sum()
    seen = boundary_indices(n, radius, boundary).unfold(
        0, 2 * radius + 1, 1
    )  # pixels under the kernel, one row each
    matrix = torch.zeros(n, n + 1, dtype=torch.float64)  # the last column gathers what lies outside
    return matrix.scatter_add_(1, seen, weights.expand(n, -1))[:, :n].contiguous()
