"""Operators made from operators: transposes, products, multiples and sums."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from ctflow.errors import GeometryError, UsageError
from ctflow.operators._base import LinearOperator
from ctflow.operators._input_checks import refuse_not_finite
from ctflow.operators._spectrum import Spectrum
from ctflow.system.counters import clock, count


class Adjoint(LinearOperator):
    """The transpose of an operator; its own transpose is the operator itself."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape
        self.device, self._leaf = operator.device, False

    @property
    def _name(self) -> str:
        return f"{self.operator._name}.T"

    def _forward(self, y: Tensor) -> Tensor:
        if self.operator._leaf:
            count("adjoint", y.numel() // max(1, math.prod(self.domain_shape)))
            refuse_not_finite(y, self._name)
            with clock("operator"):
                return self.operator._adjoint(y)
        return self.operator._adjoint(y)

    @property
    def T(self) -> LinearOperator:
        """The operator that this one transposes."""
        return self.operator

    def norm(self, iterations: int = 30, like: Tensor | None = None) -> float:
        """Norm of the operator; the shape of `like` does not matter."""
        return self.operator.norm(iterations, like)


class Compose(LinearOperator):
    """First `right`, then `left`.

    Raises:
        GeometryError: the range of `right` is not the domain of `left`.
    """

    _leaf = False

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.domain_shape != right.range_shape:
            raise GeometryError(
                f"cannot compose: {type(right).__name__} gives {right.range_shape} and "
                f"{type(left).__name__} takes {left.domain_shape}"
            )
        self.left, self.right, self.device = left, right, right.device
        self.domain_shape, self.range_shape = right.domain_shape, left.range_shape

    @property
    def _name(self) -> str:
        return f"{self.left._name} @ {self.right._name}"

    def coarsened(self, pixel_mm: float) -> LinearOperator:
        """The same left operator after the right one on larger pixels, up to `pixel_mm`."""
        return self.left @ self.right.coarsened(pixel_mm)

    def _forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.right.T(self.left.T(y))


class Scaled(LinearOperator):
    """A real multiple of an operator.

    Raises:
        UsageError: the factor is not a real, finite number of Python, NumPy or a scalar tensor.
    """

    _leaf = False

    def __init__(self, factor: float | Tensor, operator: LinearOperator) -> None:
        if not _is_real(factor):
            raise UsageError(
                f"operators are multiplied by real, finite numbers and not by {factor!r}; give one number"
            )
        self.factor, self.operator, self.device = factor, operator, operator.device
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.T(y)

    def normal(self, x: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """factor² AᵀWA x, (*batch, *domain_shape), as the operator computes it."""
        return self.operator.normal(x, self.factor**2 * weights)

    def coarsened(self, pixel_mm: float) -> LinearOperator:
        """The same multiple of the operator on larger pixels, up to `pixel_mm`."""
        return self.factor * self.operator.coarsened(pixel_mm)

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Spectrum of the operator with weights factor² W, (*batch, *range_shape)."""
        return self.operator.spectrum(self.factor**2 * weights, dense)

    def norm(self, iterations: int = 30, like: Tensor | None = None) -> float:
        """|factor| times the norm of the operator; the shape of `like` does not matter."""
        return abs(float(self.factor)) * self.operator.norm(iterations, like)


def _is_real(factor: Any) -> bool:
    if isinstance(factor, Tensor):
        return factor.ndim == 0 and not factor.is_complex() and math.isfinite(factor.detach())
    return isinstance(factor, Real) and math.isfinite(factor)


class Sum(LinearOperator):
    """The sum of two operators of the same shapes.

    Raises:
        GeometryError: the shapes differ.
    """

    _leaf = False

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if (first.domain_shape, first.range_shape) != (second.domain_shape, second.range_shape):
            raise GeometryError(
                f"cannot add {type(first).__name__} and {type(second).__name__}: their shapes differ"
            )
        self.first, self.second, self.device = first, second, first.device
        self.domain_shape, self.range_shape = first.domain_shape, first.range_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.first.T(y) + self.second.T(y)
