"""Eigendecomposition of AᵀWA, with which prox, pseudo-inverse and functions of it are exact."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctflow.linalg import Function, Linear
from ctflow.system.cache import Arrays, cached

if TYPE_CHECKING:
    from ctflow.operators._base import LinearOperator

logger = logging.getLogger(__name__)

# Largest side of a Gram matrix that is decomposed: for a geometry, once and for all, since it is kept on disk
# (two minutes); for an operator without a fingerprint (seconds); for the weights of one measurement.
_SIDE_ON_DISK, _SIDE_KEPT, _SIDE_ONCE = 8000, 2000, 1000


@dataclass(frozen=True)
class Spectrum:
    """M = S diag(values) Sᵀ for a symmetric M, where S has orthonormal columns.

    Shapes: images (*batch, *domain_shape); modes (*batch, *mode_shape), complex for Fourier modes.

    Args:
        values: eigenvalues, float64, shaped to multiply modes.
        analyse: Sᵀ, image to modes.
        synthesise: S, modes to image.
        complete: whether S is square; otherwise M vanishes on the complement of its columns.
    """

    values: Tensor
    analyse: Linear
    synthesise: Linear
    complete: bool

    def apply(self, b: Tensor, functions: list[Function]) -> list[Tensor]:
        """Apply f(M) to b for every f; each result is shaped like b."""
        modes = self.analyse(b)
        values = self.values.detach().double().cpu()
        images = [self.synthesise(f(values).to(b) * modes) for f in functions]
        if self.complete:
            return images
        rest = b - self.synthesise(modes)
        # For b in the span, rest is rounding, and f(0) may be a million times f(λ): so it is projected twice.
        rest = rest - self.synthesise(self.analyse(rest))
        zero = torch.zeros((), dtype=torch.float64)
        return [image + float(f(zero)) * rest for image, f in zip(images, functions, strict=True)]


def uniform(weights: Tensor, dims: int) -> Tensor | None:
    """Reduce weights that are equal within every sample to (*batch, 1, ..., 1) or (); None if they differ.

    Returns:
        Weights in float64 on the CPU, like eigenvalues.
    """
    weights = _unexpanded(weights.detach())
    if weights.numel() == 1:
        return weights.double().cpu().reshape(())
    return weights.double().cpu() if prod(weights.shape[max(0, weights.ndim - dims) :]) == 1 else None


def _unexpanded(weights: Tensor) -> Tensor:
    for d in range(weights.ndim):
        weights = weights.narrow(d, 0, 1) if weights.stride(d) == 0 else weights
    return weights


def orthogonal_rows(A: LinearOperator, square: float, weights: Tensor) -> Spectrum:
    """Spectrum of AᵀWA for an operator with A Aᵀ = square · I, for any weights (*batch, *range_shape)."""
    root = square**0.5
    return Spectrum(square * weights, lambda x: A(x) / root, lambda c: A.T(c) / root, complete=False)


def separable_spectrum(values: Tensor, V: Tensor, W: Tensor) -> Spectrum:
    """The spectrum whose eigenvectors are outer products of the columns of V (Y, Y) and W (X, X)."""
    return Spectrum(
        values,
        lambda x: V.to(x).mT @ x @ W.to(x),
        lambda modes: V.to(modes) @ modes @ W.to(modes).mT,
        complete=True,
    )


def fourier_spectrum(values: Tensor, shape: tuple[int, int]) -> Spectrum:
    """The spectrum of a periodic convolution of slices of `shape` (Y, X); values (Y, X // 2 + 1)."""
    return Spectrum(
        values,
        lambda x: torch.fft.rfft2(x, norm="ortho"),
        lambda modes: torch.fft.irfft2(modes, s=shape, norm="ortho"),
        complete=True,
    )


def dual_spectrum(A: LinearOperator, weights: Tensor) -> Spectrum | None:
    """Spectrum of AᵀWA by the eigenvectors of its dual W½ A Aᵀ W½, or None where that is too large.

    With a single weight the eigenvectors depend on the operator alone: they are kept with it, and on disk if
    it has a fingerprint. With many weights they depend on the measurement.

    Args:
        A: operator.
        weights: (*batch, *range_shape) or fewer dimensions, not negative; their type is that of the data.
    """
    dims, side = len(A.range_shape), prod(A.range_shape)
    one = uniform(weights, dims)
    if one is not None:
        if side > (_SIDE_KEPT if A.fingerprint is None else _SIDE_ON_DISK):
            return None
        values, vectors = _kept(A, weights)
        scale = one.reshape(*one.shape[: one.ndim - dims], 1) if one.ndim else one
        return _dual(A, scale * values, vectors, scale.sqrt(), weights.dtype)
    weights = _unexpanded(weights.detach())
    rows = (weights * weights.new_ones(A.range_shape)).flatten(-dims).sqrt()
    if side * (rows.numel() // side) ** (1 / 3) > _SIDE_ONCE:
        return None
    rows = rows.double().cpu()
    gram = rows[..., :, None] * _gram(A, weights) * rows[..., None, :]
    return _dual(A, *_eigh(gram), rows, weights.dtype)


def _dual(A: LinearOperator, values: Tensor, vectors: Tensor, root: Tensor, dtype: torch.dtype) -> Spectrum:
    """Spectrum with columns AᵀW½ u / √λ for eigenpairs (λ, u) of the dual above rounding, `root` = √W."""
    strong = values > 10 * torch.finfo(dtype).eps * values.amax(-1, keepdim=True)
    scale = torch.where(strong, values.clamp_min(1e-300) ** -0.5, 0.0)
    dims = len(A.range_shape)

    def analyse(x: Tensor) -> Tensor:
        y = root.to(x) * A(x).flatten(-dims)
        return scale.to(x) * _times(y, vectors.to(x))

    def synthesise(modes: Tensor) -> Tensor:
        y = root.to(modes) * _times(scale.to(modes) * modes, vectors.to(modes).mT)
        return A.T(y.reshape(*y.shape[:-1], *A.range_shape))

    return Spectrum(values.clamp_min(0), analyse, synthesise, complete=False)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    return (rows[..., None, :] @ matrix).squeeze(-2)


def _kept(A: LinearOperator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, float64, and eigenvectors of A Aᵀ, computed in the type of `like` and kept with A."""
    kept = A._dual_eigh
    if like.dtype not in kept:
        side = prod(A.range_shape)

        def compute() -> Arrays:
            if side > _SIDE_KEPT:
                logger.warning("eigenvectors of a %d × %d Gram matrix are computed, once", side, side)
            values, vectors = _eigh(_gram(A, like))
            return {"values": values.numpy(), "vectors": vectors.to(like.dtype).numpy()}

        if A.fingerprint is None or side <= _SIDE_KEPT:
            arrays = compute()
        else:
            arrays = cached("gram", f"{like.dtype} {A.fingerprint}", compute)
        kept[like.dtype] = torch.from_numpy(arrays["values"]), torch.from_numpy(arrays["vectors"])
    return kept[like.dtype]


def _gram(A: LinearOperator, like: Tensor) -> Tensor:
    """A Aᵀ, (side, side), float64 on the CPU; applied in the type and on the device of `like`."""
    side = prod(A.range_shape)
    rows = []
    for start in range(0, side, 64):
        units = torch.eye(min(64, side - start), side - start).to(like)
        units = torch.nn.functional.pad(units, (start, 0)).reshape(-1, *A.range_shape)
        rows.append(A(A.T(units)).reshape(len(units), side).double().cpu())
    gram = torch.cat(rows)
    return (gram + gram.mT) / 2


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0), vectors
