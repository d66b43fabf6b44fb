"""Gaussian blur of slices: the operator of deblurring."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.operators._separable import Separable, checked

__all__ = ["Blur"]

_TRUNCATE = 4.0  # standard deviations: the tail left out weighs 6e-5; the default of scipy.ndimage
_BOUNDARIES = ("reflect", "periodic", "zero")


class Blur(Separable):
    """Gaussian blur of every slice with standard deviation `sigma`, cut at four of them.

    With "reflect" (the slice continues as its mirror image) and "periodic" the operator is its own adjoint,
    keeps the mean, has norm 1 and is diagonal in the cosine (DCT-II) or Fourier basis.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, Y, X), in the unit of x.

    Args:
        shape: (Z, Y, X).
        sigma: standard deviation, pixels.
        boundary: "reflect", "periodic" or "zero".

    Raises:
        ProtocolError: sigma is not positive, or the boundary is unknown.
        GeometryError: the shape is not (Z, Y, X).
    """

    def __init__(self, shape: tuple[int, int, int], sigma: float = 2.0, boundary: str = "reflect") -> None:
        if not sigma > 0:
            raise ProtocolError(
                f"sigma {sigma} must be positive; give the standard deviation of the blur in pixels"
            )
        if boundary not in _BOUNDARIES:
            raise ProtocolError(f"boundary '{boundary}' is unknown; choose from {', '.join(_BOUNDARIES)}")
        z, y, x = checked(shape)
        super().__init__(z, _gaussian(y, sigma, boundary), _gaussian(x, sigma, boundary))

    @classmethod
    def example(cls) -> Blur:
        """Two slices of 9 × 12 pixels, blurred wider than the shorter side."""
        return cls((2, 9, 12), sigma=1.5)


def _gaussian(n: int, sigma: float, boundary: str) -> Tensor:
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights = weights / weights.sum()
    source = torch.arange(n)[:, None] + offsets  # pixel that each weight falls on, (n, 2 radius + 1)
    inside = (source >= 0) & (source < n) if boundary == "zero" else torch.ones_like(source, dtype=torch.bool)
    if boundary == "reflect":
        source = source % (2 * n)
        source = torch.minimum(source, 2 * n - 1 - source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source % n, weights * inside)
