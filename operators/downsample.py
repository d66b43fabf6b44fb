"""Reduction of the matrix size: the operator of super-resolution."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ctflow.errors import GeometryError, ProtocolError
from ctflow.operators._separable import Separable, check_shape
from ctflow.operators._spectrum import Spectrum, orthogonal_rows
from ctflow.tables import Whole

__all__ = ["Downsample"]

_METHODS = ("average", "bicubic", "strided")


class Downsample(Separable):
    """Reduction of slices to `factor` times fewer pixels along y and x.

    "average" takes the mean of every block of factor × factor pixels, as larger detector bins would; then
    A Aᵀ = I / factor². "bicubic" weights with Keys' cubic, widened by `factor` against aliasing; weights
    beyond the edge are dropped and the rest rescaled to sum to one. "strided" keeps the first pixel of every
    block, with all aliasing; then A Aᵀ = I. Prox, pseudo-inverse and functions of AᵀWA are exact: for any
    weights if A Aᵀ is a multiple of I, otherwise for equal ones.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, Y / factor, X / factor), in the unit of x.

    Args:
        shape: (Z, Y, X); Y and X are multiples of the factor.
        factor: pixels that become one, along each axis.
        method: "average", "bicubic" or "strided".

    Raises:
        ProtocolError: the factor is not a positive whole number, or the method is unknown.
        GeometryError: the shape is not (Z, Y, X), or not a multiple of the factor.

    References:
        Keys, IEEE Trans. Acoust. Speech Signal Process. 29 (1981), eq. 15 (the cubic, a = -1/2).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> A = ct.Downsample((1, 4, 4), factor=2)
        >>> A(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """

    def __init__(
        self, shape: tuple[int, int, int], factor: Annotated[int, Whole(1, 1024)] = 4, method: str = "average"
    ) -> None:
        if not isinstance(factor, int) or factor < 1:
            raise ProtocolError(f"factor {factor} must be a positive whole number; 4 makes 64² of 256²")
        if method not in _METHODS:
            raise ProtocolError(f"method '{method}' is unknown; choose from {', '.join(_METHODS)}")
        z, y, x = check_shape(shape)
        if y % factor or x % factor:
            raise GeometryError(
                f"a slice of {y} × {x} pixels is not a multiple of factor {factor}; choose a divisor"
            )
        self.factor, self.method = factor, method
        matrix = {"average": _average, "bicubic": _bicubic, "strided": _strided}[method]
        super().__init__(z, matrix(y, factor), matrix(x, factor))

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Closed form for "average" and "strided", for any weights (*batch, Z, Y / factor, X / factor)."""
        if self.method == "bicubic":
            return super().spectrum(weights, dense)
        return orthogonal_rows(self, 1.0 if self.method == "strided" else self.factor**-2, weights)

    @classmethod
    def example(cls) -> Downsample:
        """Two slices of 8 × 12 pixels to 4 × 6, bicubic."""
        return cls((2, 8, 12), factor=2, method="bicubic")


def _average(n: int, factor: int) -> Tensor:
    return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor


def _strided(n: int, factor: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[::factor].contiguous()


def _bicubic(n: int, factor: int) -> Tensor:
    centres = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    weights = _keys((torch.arange(n) - centres[:, None]).abs() / factor)
    return weights / weights.sum(1, keepdim=True)


def _keys(s: Tensor) -> Tensor:
    near = (1.5 * s - 2.5) * s**2 + 1
    far = ((-0.5 * s + 2.5) * s - 4) * s + 2
    return torch.where(s < 1, near, torch.where(s < 2, far, 0.0))
