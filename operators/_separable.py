"""Operators that act on the rows and the columns of every slice by one matrix each."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.operators._base import LinearOperator
from ctflow.operators._spectrum import Spectrum, separable_spectrum, uniform


def check_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape (Z, Y, X) of a stack of slices, or refuse it.

    Raises:
        GeometryError: it is not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GeometryError(
            f"shape {tuple(shape)} must be three positive numbers (Z, Y, X); one slice has Z = 1"
        )
    z, y, x = shape
    return z, y, x


class Separable(LinearOperator):
    """y = R x Cᵀ for every slice x; the adjoint Rᵀ y C is exact because it uses the same two matrices.

    The singular vectors of R and C are those of the operator: cosines for a reflecting blur, Fourier modes
    for a periodic one.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, rows of R, rows of C), in the unit of x.

    Args:
        slices: number of slices Z.
        R: acts along y, (rows out, Y), float64.
        C: acts along x, (columns out, X), float64.
    """

    def __init__(self, slices: int, R: Tensor, C: Tensor) -> None:
        self.R, self.C = R, C
        self.domain_shape = (slices, R.shape[1], C.shape[1])
        self.range_shape = (slices, R.shape[0], C.shape[0])

    def _forward(self, x: Tensor) -> Tensor:
        return self.R.to(x) @ x @ self.C.to(x).mT

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.R.to(y).mT @ y @ self.C.to(y)

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """From the singular values of R and C, for one weight in every sample, (*batch, 1, 1, 1)."""
        one = uniform(weights, 3)
        if one is None:
            return super().spectrum(weights, dense)
        (s, V), (t, W) = self._bases
        return separable_spectrum(one * (s[:, None] * t) ** 2, V, W)

    @cached_property
    def _bases(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return _right_singular(self.R), _right_singular(self.C)


def _right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, as many as columns, and right singular vectors, as columns."""
    _, values, vectors = torch.linalg.svd(matrix)
    return torch.nn.functional.pad(values, (0, matrix.shape[1] - len(values))), vectors.mT


def boundary_indices(n: int, radius: int, boundary: str) -> Tensor:
    """Pixel index (0 … n - 1) at each of the positions -radius … n + radius - 1 of a continued line.

    Args:
        n: pixels of the line.
        radius: number of pixels beyond its ends.
        boundary: "reflect" (mirror image, the last pixel twice), "periodic", or "zero", where the index n
            stands for a zero.

    Returns:
        Whole numbers of shape (n + 2 radius,).
    """
    position = torch.arange(-radius, n + radius)
    if boundary == "zero":
        return torch.where((position >= 0) & (position < n), position, n)
    if boundary == "periodic":
        return position % n
    position = position % (2 * n)
    return torch.minimum(position, 2 * n - 1 - position)
