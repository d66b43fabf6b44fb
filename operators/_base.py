"""Linear operators: two methods make one, and it is differentiable, composable and solvable."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.linalg import cg, power_iteration
from ctflow.operators._metatensor import plain
from ctflow.tally import count


class LinearOperator:
    """A linear map between tensors, without noise, units or network range.

    A subclass sets the two shapes and writes `_forward` and `_adjoint`; the adjoint must be the exact
    transpose, since gradients, conjugate gradients and Lanczos all stand on it.

    Shapes: (*batch, *domain_shape) -> (*batch, *range_shape).
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]
    device = torch.device("cpu")  # of the arrays that come from libraries without devices
    _leaf = True  # composites are not counted: what they are made of is

    def _forward(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _forward")

    def _adjoint(self, y: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _adjoint")

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator; differentiable, and its gradient is the adjoint.

        Raises:
            GeometryError: the trailing dimensions are not `domain_shape`.
        """
        x, shape = plain(x, self), self.domain_shape
        if tuple(x.shape[x.ndim - len(shape) :]) != shape:
            raise GeometryError(
                f"{type(self).__name__} expects (*batch, {', '.join(map(str, shape))}) "
                f"and was given {tuple(x.shape)}"
            )
        result: Tensor = _Apply.apply(x, self)  # type: ignore[no-untyped-call]
        return result

    def _counted(self, x: Tensor) -> Tensor:
        if self._leaf:
            count("forward", x.numel() // max(1, _size(self.domain_shape)))
        return self._forward(x)

    @property
    def T(self) -> LinearOperator:
        """The adjoint, as an operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Compose(self, other)

    def __rmul__(self, factor: float) -> LinearOperator:
        return Scaled(factor, self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def norm(self, iterations: int = 30) -> float:
        """Largest singular value, by power iteration from a fixed start."""
        return math.sqrt(power_iteration(lambda x: self.T(self(x)), self.domain_shape, iterations))

    def pinv(self, y: Tensor, damping: float = 1e-4, iterations: int = 100) -> Tensor:
        """Damped least squares argmin |A x - y|² + (damping |A|)² |x|², by conjugate gradients.

        Args:
            y: data, (*batch, *range_shape).
            damping: relative to the operator's norm.
            iterations: at most so many.

        Returns:
            (*batch, *domain_shape).
        """
        floor = (damping * self.norm()) ** 2
        return cg(lambda x: self.T(self(x)) + floor * x, self.T(y), len(self.domain_shape), iterations, 1e-6)

    def to(self, device: str | torch.device) -> Self:
        """The same operator with the tensors that it stores on a device.

        Work is done where the data are, whatever this says; stored tensors that lie there already need no
        copy at every call. Arrays from SciPy and PyLops are computed on this device.
        """
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | LinearOperator):
                setattr(moved, name, value.to(device))
        moved.device = torch.device(device)
        return moved

    def to_scipy(self, dtype: torch.dtype = torch.float32) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flattened arrays, computed in `dtype`."""
        from ctflow.operators import _interop

        return _interop.to_scipy(self, dtype)

    def to_pylops(self, dtype: torch.dtype = torch.float32) -> Any:
        """A `pylops.LinearOperator` with `dims` and `dimsd`, computed in `dtype`."""
        from ctflow.operators import _interop

        return _interop.to_pylops(self, dtype)

    def to_deepinv(self) -> Any:
        """A `deepinv.physics.LinearPhysics`: (B, Z, Y, X) -> (B, rows, views, bins), not normalised."""
        from ctflow.operators import _interop

        return _interop.to_deepinv(self)

    @classmethod
    def example(cls) -> LinearOperator:
        """A small instance; the laws in the tests run on it."""
        raise TypeError(f"{cls.__name__} defines no example")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


class _Apply(torch.autograd.Function):
    """One function serves every operator: its derivative is itself, its backward pass the adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator) -> Tensor:
        return operator._counted(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LinearOperator], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.T(gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        result: Tensor = ctx.operator(tangent)
        return result

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], x: Tensor, operator: LinearOperator
    ) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        return operator(x.movedim(in_dims[0], 0)), 0


class Adjoint(LinearOperator):
    """The transpose of an operator; its own transpose is the operator itself."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape
        self._leaf = False

    def _forward(self, y: Tensor) -> Tensor:
        if self.operator._leaf:
            count("adjoint", y.numel() // max(1, _size(self.domain_shape)))
        return self.operator._adjoint(y)

    @property
    def T(self) -> LinearOperator:
        """The operator that this one transposes."""
        return self.operator


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
        self.left, self.right = left, right
        self.domain_shape, self.range_shape = right.domain_shape, left.range_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.right.T(self.left.T(y))


class Scaled(LinearOperator):
    """A multiple of an operator."""

    _leaf = False

    def __init__(self, factor: float, operator: LinearOperator) -> None:
        self.factor, self.operator = factor, operator
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.T(y)


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
        self.first, self.second = first, second
        self.domain_shape, self.range_shape = first.domain_shape, first.range_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.first.T(y) + self.second.T(y)
