"""Krylov methods on callables, with scalars of its own for every sample of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


def inner(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Inner product over the last `dims` dimensions: (*batch, 1, ..., 1), so that it multiplies images."""
    return (a * b).sum(dim=tuple(range(-dims, 0)), keepdim=True)


def cg(
    A: Linear, b: Tensor, dims: int, iterations: int, tolerance: float, start: Tensor | None = None
) -> Tensor:
    """Solve A x = b for a symmetric positive definite A by conjugate gradients.

    Each sample of the batch stops by itself, so a batch gives what its samples give one by one.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: right side; its last `dims` dimensions are one vector.
        dims: number of trailing dimensions of one sample.
        iterations: at most so many applications of A.
        tolerance: stop where |A x - b| <= tolerance |b|.
        start: first guess; zero by default.

    Returns:
        x, shaped like b.

    References:
        Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952).
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    residual = b.clone() if start is None else b - A(start)
    direction = residual.clone()
    rho = inner(residual, residual, dims)
    goal = tolerance**2 * inner(b, b, dims)
    for _ in range(iterations):
        active = rho > goal
        if not bool(active.any()):
            break
        image = A(direction)
        curvature = inner(direction, image, dims)
        step = torch.where(active & (curvature > 0), rho / curvature.clamp_min(1e-38), 0.0)
        x = x + step * direction
        residual = residual - step * image
        rho_next = inner(residual, residual, dims)
        direction = residual + torch.where(active, rho_next / rho.clamp_min(1e-38), 0.0) * direction
        rho = torch.where(active, rho_next, rho)
    return x


def power_iteration(A: Linear, shape: tuple[int, ...], iterations: int) -> float:
    """Largest eigenvalue of a symmetric positive A on tensors of `shape`, from a fixed random start."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    value = 0.0
    for _ in range(iterations):
        x = A(x / x.norm())
        value = float(x.norm())
    return value


def lanczos_function(
    A: Linear, b: Tensor, functions: list[Callable[[Tensor], Tensor]], dims: int, steps: int, tolerance: float
) -> list[Tensor]:
    """Apply several functions of a symmetric positive semidefinite A to b in one Krylov space.

    f(A) b ≈ |b| Q f(T) e1 with the Lanczos basis Q, fully reorthogonalised (without it float32 needs twice
    the steps). The basis is shared by all functions; the first decides when to stop.

    Args:
        A: the map, (*batch, ...) to the same shape.
        b: start vector; its last `dims` dimensions are one vector.
        functions: each maps eigenvalues (batch, k) to values (batch, k), finite at zero.
        dims: number of trailing dimensions of one sample.
        steps: at most so many applications of A.
        tolerance: stop when four more steps change the first result by less, relatively.

    Returns:
        One tensor like b for each function.

    References:
        Golub and Meurant, Matrices, Moments and Quadrature (2010), chapter 4.
    """
    shape = b.shape
    flat = b.reshape(-1, shape[len(shape) - dims :].numel())
    length = flat.norm(dim=1, keepdim=True)
    basis = [flat / length.clamp_min(1e-38)]
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    previous: Tensor | None = None
    coefficients: list[Tensor] = []
    for step in range(1, steps + 1):
        image = A(basis[-1].reshape(shape)).reshape(flat.shape)
        diagonal.append((image * basis[-1]).sum(1).double())
        Q = torch.stack(basis, 1)
        for _ in range(2):
            image = image - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", Q, image), Q)
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
        basis.append(torch.where(beta > 1e-6 * length.clamp_min(1e-38), image / beta.clamp_min(1e-38), 0.0))
    Q = torch.stack(basis[: coefficients[0].shape[1]], 1)
    return [(length * torch.einsum("bk,bkn->bn", c.to(Q), Q)).reshape(shape) for c in coefficients]


def _functions_of_tridiagonal(
    diagonal: list[Tensor], off: list[Tensor], functions: list[Callable[[Tensor], Tensor]]
) -> list[Tensor]:
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if off:
        side = torch.diag_embed(torch.stack(off, 1), offset=1)
        T = T + side + side.mT
    values, vectors = torch.linalg.eigh(T)
    first = vectors[:, 0, :]
    return [torch.einsum("bik,bk->bi", vectors, f(values.clamp_min(0)) * first) for f in functions]
