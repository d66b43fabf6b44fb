"""Regularised least squares: exact where the operator knows its spectrum, else by conjugate gradients.

Derivatives are those of the minimiser, not of the steps that led to it, and cost one more solve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.linalg import cg, cg_dual, full_precision

if TYPE_CHECKING:
    from ctflow.operators._base import LinearOperator


def regularised(
    A: LinearOperator,
    residual: Tensor,
    weights: Tensor,
    floor: float,
    iterations: int,
    tolerance: float,
    start: Tensor | None = None,
) -> Tensor:
    """Compute (AᵀWA + floor)⁻¹ AᵀW residual, the minimiser of |A x - residual|²_W + floor |x|².

    Conjugate gradients run in the smaller of the two spaces, with the same iterates: on images x, or on data
    u with x = AᵀW½ u. A first guess is an image, and with one they run on images. Differentiable any number
    of times, in the residual and in the weights.

    Args:
        A: operator.
        residual: (*batch, *range_shape).
        weights: W, not negative, broadcast to the residual.
        floor: not negative; at 0 singular values below rounding count as zero.
        iterations: largest number of applications of AᵀWA.
        tolerance: relative residual of the linear system.
        start: first guess, (*batch, *domain_shape).

    Returns:
        (*batch, *domain_shape).

    Raises:
        UsageError: a weight is negative or NaN.
    """
    return _solved(residual, weights, _System(A, floor, iterations, tolerance, start))


def _solved(b: Tensor, weights: Tensor, system: _System) -> Tensor:
    found: Tensor = _Solve.apply(b, weights, system)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, eq=False)
class _System:
    """H = AᵀWA + floor, and what it is solved for: H x = AᵀW b with data b, or H x = b with an image b."""

    A: LinearOperator
    floor: float
    iterations: int
    tolerance: float
    start: Tensor | None
    of_data: bool = True

    def solve(self, b: Tensor, weights: Tensor) -> Tensor:
        if not bool((weights >= 0).all()):
            raise UsageError(
                "weights, and the variances that multiply them, must not be negative or NaN and some are; "
                "clamp them at 0"
            )
        A, floor, how = self.A, self.floor, (self.iterations, self.tolerance)
        spectrum = A.spectrum(weights.double())
        if spectrum is not None:
            rounding = 100 * torch.finfo(b.dtype).eps ** 2 * float(spectrum.values.max())

            def reciprocal(values: Tensor) -> Tensor:
                shifted = values + floor
                return torch.where(shifted > rounding, 1 / shifted.clamp_min(1e-300), 0.0)

            # In float32 the rounding of AᵀW b, 1e-7, would be divided by a floor of 1e-8.
            back = A.T((weights * b).double()) if self.of_data else b.double()
            return spectrum.apply(back, [reciprocal])[0].to(b)
        if self.of_data and self.start is None and prod(A.range_shape) < prod(A.domain_shape):
            root = weights.sqrt()
            u = cg_dual(lambda u: root * A(A.T(root * u)), root * b, floor, len(A.range_shape), *how)
            return A.T(root * u)
        back = A.T(weights * b) if self.of_data else b
        return cg(lambda d: A.normal(d, weights) + floor * d, back, len(A.domain_shape), *how, self.start)

    def inverse(self, image: Tensor, weights: Tensor) -> Tensor:
        return _solved(image, weights, replace(self, of_data=False, start=None))

    def misfit(self, b: Tensor, x: Tensor) -> Tensor:
        """Derivative of the system by the weights, before Aᵀ."""
        return (b if self.of_data else 0) - self.A(x)


class _Solve(torch.autograd.Function):
    """x of a system; dx = H⁻¹ (Aᵀ (dW misfit + W db)), or H⁻¹ (Aᵀ dW misfit + db) where b is an image."""

    @staticmethod
    def forward(b: Tensor, weights: Tensor, system: _System) -> Tensor:
        with full_precision(b):
            return system.solve(b, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _System], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)
        ctx.save_for_forward(*inputs[:2], output)
        ctx.system = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (b, weights, x), system = ctx.saved_tensors, ctx.system
        pulled = system.inverse(gradients[0], weights)
        seen = system.A(pulled)
        left = (weights * seen).sum_to_size(b.shape) if system.of_data else pulled
        return left, (seen * system.misfit(b, x)).sum_to_size(weights.shape), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (b, weights, x), system, (db, dW, _) = ctx.saved_tensors, ctx.system, tangents
        data = dW * system.misfit(b, x) + (weights * db if system.of_data else 0)
        moved: Tensor = system.inverse(system.A.T(data) + (0 if system.of_data else db), weights)
        return moved

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride] (torch gives what forward takes)
        info: Any, in_dims: tuple[int | None, int | None, None], b: Tensor, weights: Tensor, system: _System
    ) -> tuple[Tensor, int]:
        b = b.expand(info.batch_size, *b.shape) if in_dims[0] is None else b.movedim(in_dims[0], 0)
        if in_dims[1] is not None:
            A, size = system.A, info.batch_size
            batch = b.ndim - len(A.range_shape if system.of_data else A.domain_shape)
            weights = weights.movedim(in_dims[1], 0)
            ones = [1] * (batch + len(A.range_shape) - weights.ndim)
            weights = weights.reshape(size, *ones, *weights.shape[1:])
        return _solved(b, weights, system), 0
