"""Regularised least squares: exact where the operator knows its spectrum, else conjugate gradients."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctflow.linalg import cg, cg_dual

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
    """(AᵀWA + floor)⁻¹ AᵀW residual, the minimiser of |A x - residual|²_W + floor |x|².

    Conjugate gradients run in the smaller of the two spaces, with the same iterates: on images x, or on data
    u with x = AᵀW½ u. A first guess is an image, so with one they run there.

    Args:
        A: operator.
        residual: (*batch, *range_shape).
        weights: W, not negative, broadcast to the residual.
        floor: not negative; at 0 singular values below rounding count as zero.
        iterations: at most so many applications of AᵀWA.
        tolerance: relative residual of the linear system.
        start: first guess, (*batch, *domain_shape).

    Returns:
        (*batch, *domain_shape).
    """
    spectrum = A.spectrum(weights.double())
    if spectrum is not None:
        rounding = 100 * torch.finfo(residual.dtype).eps ** 2 * float(spectrum.values.max())

        def reciprocal(values: Tensor) -> Tensor:
            shifted = values + floor
            return torch.where(shifted > rounding, 1 / shifted.clamp_min(1e-300), 0.0)

        # In float32 the rounding of AᵀW residual, 1e-7, would be divided by a floor of 1e-8.
        back = A.T((weights * residual).double())
        return spectrum.apply(back, [reciprocal])[0].to(residual)
    if start is None and prod(A.range_shape) < prod(A.domain_shape):
        root = weights.sqrt()
        data = len(A.range_shape)
        u = cg_dual(lambda u: root * A(A.T(root * u)), root * residual, floor, data, iterations, tolerance)
        return A.T(root * u)
    return cg(
        lambda d: A.normal(d, weights) + floor * d,
        A.T(weights * residual),
        len(A.domain_shape),
        iterations,
        tolerance,
        start,
    )
