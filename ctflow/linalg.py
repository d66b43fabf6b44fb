"""Krylov methods on callables, with separate scalars for every sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ctflow.system.randomness import normal, seeded

Linear = Callable[[Tensor], Tensor]
Function = Callable[[Tensor], Tensor]
"""A scalar function, applied entry by entry to a tensor of eigenvalues, float64 on the CPU."""

_BASIS_BYTES = 2**31  # largest memory of a Lanczos basis


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Disable autocast on the device of `like`, (*batch, ...), within a block.

    Autocast rounds the products of float32 tensors to half precision, which networks tolerate and CG does
    not.
    """
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def inner(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Inner product over the last `dims` dimensions: (*batch, 1, ..., 1), so that it multiplies images."""
    return (a * b).sum(dim=tuple(range(-dims, 0)), keepdim=True)


def cg(
    A: Linear,
    b: Tensor,
    dims: int,
    iterations: int,
    tolerance: float,
    start: Tensor | None = None,
    preconditioner: Linear = lambda residual: residual,
) -> Tensor:
    """Solve A x = b for a symmetric positive definite A by conjugate gradients.

    Each sample of the batch stops by itself, so that a batch gives the same results as its samples one by
    one.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: right side; its last `dims` dimensions are one vector.
        dims: number of trailing dimensions of one sample.
        iterations: largest number of applications of A.
        tolerance: stop where |A x - b| <= tolerance |b|.
        start: first guess; zero by default.
        preconditioner: symmetric positive definite map, near the inverse of A; shaped as A.

    Returns:
        x, shaped like b.

    References:
        Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952); Saad, Iterative Methods for Sparse Linear
        Systems (2003), algorithm 9.1 (with a preconditioner).
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    residual = b.clone() if start is None else b - A(start)
    direction = preconditioner(residual)
    rho = inner(residual, direction, dims)
    goal = tolerance**2 * inner(b, b, dims)
    for _ in range(iterations):
        active = inner(residual, residual, dims) > goal
        if not bool(active.any()):
            break
        image = A(direction)
        curvature = inner(direction, image, dims)
        step = torch.where(active & (curvature > 0), rho / curvature.clamp_min(1e-38), 0.0)
        x = x + step * direction
        residual = residual - step * image
        conditioned = preconditioner(residual)
        rho_next = inner(residual, conditioned, dims)
        direction = conditioned + torch.where(active, rho_next / rho.clamp_min(1e-38), 0.0) * direction
        rho = torch.where(active, rho_next, rho)
    return x


def cg_dual(gram: Linear, b: Tensor, floor: float, dims: int, iterations: int, tolerance: float) -> Tensor:
    """Solve (KᵀK + floor) x = Kᵀ b by conjugate gradients on vectors u with x = Kᵀ u.

    The iterates are those of `cg` on x; only the inner products are taken as <u, K Kᵀ u>. (Conjugate
    gradients on (K Kᵀ + floor) u = b leave up to twice the error in x after the same number of steps.)

    Args:
        gram: K Kᵀ, (*batch, ...) to the same shape.
        b: right side before Kᵀ; its last `dims` dimensions are one vector.
        floor: not negative.
        dims: number of trailing dimensions of one sample.
        iterations: largest number of applications of `gram`.
        tolerance: stop where the residual of the system in x has shrunk by this factor.

    Returns:
        u, shaped like b.
    """
    u, residual = torch.zeros_like(b), b
    direction, image = torch.zeros_like(b), torch.zeros_like(b)
    rho = torch.zeros_like(inner(b, b, dims))
    goal = rho
    for iteration in range(iterations):
        seen = gram(residual)
        rho_next = inner(residual, seen, dims)
        goal = tolerance**2 * rho_next if iteration == 0 else goal
        active = rho_next > goal
        if not bool(active.any()):
            break
        share = torch.where(rho > 0, rho_next / rho.clamp_min(1e-38), 0.0)
        direction, image, rho = residual + share * direction, seen + share * image, rho_next
        shifted = image + floor * direction
        curvature = inner(image, shifted, dims)
        step = torch.where(active & (curvature > 0), rho / curvature.clamp_min(1e-38), 0.0)
        u = u + step * direction
        residual = residual - step * shifted
    return u


def largest_eigenvalue(A: Linear, start: Tensor, dims: int, iterations: int) -> Tensor:
    """Largest eigenvalue of a symmetric positive semidefinite A, from below, by Lanczos in three vectors.

    Args:
        A: the map, (*batch, ...) to the same shape.
        start: random vectors; the last `dims` dimensions are one vector.
        dims: number of trailing dimensions of one sample.
        iterations: applications of A.

    Returns:
        (*batch), float64.

    References:
        Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992): beats the power method.
    """
    current, before = start / inner(start, start, dims).sqrt(), torch.zeros_like(start)
    beta = torch.zeros_like(inner(start, start, dims))
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    for _ in range(iterations):
        image = A(current) - beta * before
        alpha = inner(image, current, dims)
        image = image - alpha * current
        beta = inner(image, image, dims).sqrt()
        diagonal.append(alpha.flatten().double())
        off.append(beta.flatten().double())
        # A spent Krylov space continues with zero vectors, whose eigenvalue 0 is never the largest.
        spent = beta <= 1e-6 * alpha.abs()
        before, current = current, torch.where(spent, 0.0, image / beta.clamp_min(1e-38))
    values: Tensor = torch.linalg.eigvalsh(_tridiagonal(diagonal, off[:-1]))[:, -1]
    return values.reshape(start.shape[: start.ndim - dims])


def functions_of(
    A: Linear, b: Tensor, functions: list[Function], dims: int, steps: int, tolerance: float
) -> list[Tensor]:
    """Apply several functions of a symmetric positive semidefinite A to b, within 2 GiB.

    Uses Lanczos where its basis fits, else Chebyshev polynomials, which need five vectors and up to four
    times as many applications of A.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: start vector; its last `dims` dimensions are one vector.
        functions: each maps eigenvalues (batch, k) to values (batch, k), finite at zero.
        dims: number of trailing dimensions of one sample.
        steps: largest number of applications of A by Lanczos.
        tolerance: target for the relative accuracy.

    Returns:
        One tensor like b for each function.
    """
    if (steps + 1) * b.numel() * b.element_size() <= _BASIS_BYTES:
        return lanczos_function(A, b, functions, dims, steps, tolerance)
    noise = normal(b.shape, seeded(0)).to(b)
    # Lanczos comes from below, and a Chebyshev polynomial explodes beyond its interval: 5 % of room.
    upper = 1.05 * float(largest_eigenvalue(A, noise, dims, 12).max())
    return chebyshev_function(A, b, functions, upper, 4 * steps, tolerance)


def lanczos_function(
    A: Linear, b: Tensor, functions: list[Function], dims: int, steps: int, tolerance: float
) -> list[Tensor]:
    """Apply several functions of a symmetric positive semidefinite A to b in one Krylov space.

    f(A) b ≈ |b| Q f(T) e1 with the Lanczos basis Q, fully reorthogonalised (without it float32 needs twice
    the steps). The basis is shared by all functions; the first decides when to stop.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: start vector; its last `dims` dimensions are one vector.
        functions: each maps eigenvalues (batch, k) to values (batch, k), finite at zero.
        dims: number of trailing dimensions of one sample.
        steps: largest number of applications of A.
        tolerance: stop when four more steps change the first result by less, relatively.

    Returns:
        One tensor like b for each function.

    References:
        Golub and Meurant, Matrices, Moments and Quadrature (2010), chapter 4.
    """
    shape = b.shape
    flat = b.reshape(-1, shape[len(shape) - dims :].numel())
    length = flat.norm(dim=1, keepdim=True)
    basis = flat.new_zeros(len(flat), steps + 1, flat.shape[1])
    basis[:, 0] = flat / length.clamp_min(1e-38)
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    previous: Tensor | None = None
    coefficients: list[Tensor] = []
    for step in range(1, steps + 1):
        image = A(basis[:, step - 1].reshape(shape)).reshape(flat.shape)
        diagonal.append((image * basis[:, step - 1]).sum(1).double())
        Q = basis[:, :step]
        for _ in range(2):
            image = image - ((image[:, None] @ Q.mT) @ Q)[:, 0]
        beta = image.norm(dim=1, keepdim=True)
        if step % 4 == 0 or step == steps:
            coefficients = _functions_of_tridiagonal(diagonal, off, functions)
            if previous is not None:
                change = coefficients[0] - torch.nn.functional.pad(previous, (0, step - previous.shape[1]))
                if bool((change.norm(dim=1) <= tolerance * coefficients[0].norm(dim=1)).all()):
                    break
            previous = coefficients[0]
        off.append(beta[:, 0].double())
        # A spent Krylov space (beta = 0) continues with zero vectors, which contribute nothing.
        spent = beta <= 1e-6 * diagonal[0].abs().to(beta)[:, None]
        basis[:, step] = torch.where(spent, 0.0, image / beta.clamp_min(1e-38))
    Q = basis[:, : coefficients[0].shape[1]]
    return [(length * (c.to(Q)[:, None] @ Q)[:, 0]).reshape(shape) for c in coefficients]


def chebyshev_function(
    A: Linear, b: Tensor, functions: list[Function], upper: float, degree: int, tolerance: float
) -> list[Tensor]:
    """Apply several functions of a symmetric positive semidefinite A to b by one Chebyshev recurrence.

    f(A) b ≈ Σ c_k T_k(2 A / upper - 1) b. No inner products and no basis: five vectors, whatever the degree.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: start vector, (*batch, ...).
        functions: each maps eigenvalues (1, k) to values (1, k), finite at zero.
        upper: no eigenvalue of A is larger.
        degree: largest number of applications of A.
        tolerance: the series stops where the sum of its other coefficients is below this share of max |f|.

    Returns:
        One tensor like b for each function.

    References:
        Trefethen, Approximation Theory and Approximation Practice (2013), chapters 3 and 4.
    """
    nodes = 2 * (degree + 1)
    angles = torch.pi * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    values = torch.cat([f((upper / 2 * (1 + angles.cos()))[None]).double() for f in functions])
    series = 2 / nodes * values @ torch.cos(angles[:, None] * torch.arange(degree + 1))
    series[:, 0] /= 2
    tails = series.abs().flip(1).cumsum(1).flip(1)  # Σ |c_j|, j >= k
    needed = max(2, int((tails > tolerance * values.abs().amax(1, keepdim=True)).sum(1).max()))
    before, current = b, 2 / upper * A(b) - b
    sums = [float(c[0]) * before + float(c[1]) * current for c in series]
    for k in range(2, needed):
        before, current = current, 2 * (2 / upper * A(current) - current) - before
        sums = [total + float(c[k]) * current for total, c in zip(sums, series, strict=True)]
    return sums


def _functions_of_tridiagonal(
    diagonal: list[Tensor], off: list[Tensor], functions: list[Function]
) -> list[Tensor]:
    values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, off))
    first = vectors[:, 0, :]
    return [torch.einsum("bik,bk->bi", vectors, f(values.clamp_min(0)) * first) for f in functions]


def _tridiagonal(diagonal: list[Tensor], off: list[Tensor]) -> Tensor:
    T = torch.diag_embed(torch.stack(diagonal, 1).cpu())
    if not off:
        return T
    side = torch.diag_embed(torch.stack(off, 1).cpu(), offset=1)
    return T + side + side.mT
