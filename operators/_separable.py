"""Maps that act on the rows and on the columns of every slice by one matrix each."""

from __future__ import annotations

from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.operators._base import LinearOperator


def checked(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape (Z, Y, X) of a stack of slices, or a refusal.

    Raises:
        GeometryError: there are not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GeometryError(
            f"shape {tuple(shape)} must be three positive numbers (Z, Y, X); one slice has Z = 1"
        )
    z, y, x = shape
    return z, y, x


class Separable(LinearOperator):
    """y = R x Cᵀ for every slice x; the adjoint Rᵀ y C is exact because it uses the same two matrices.

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
