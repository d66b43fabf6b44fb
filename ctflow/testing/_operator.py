"""Laws of linear operators."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from ctflow.errors import GeometryError
from ctflow.operators import LinearOperator
from ctflow.testing._finding import Finding, Laws, check_laws, difference, white_noise

_ROUNDING = 1e-5  # of float32 sums in another order, relative to the largest value; measured 1e-6 and below


def check_operator(A: LinearOperator) -> list[Finding]:
    """Check the laws of an operator on which gradients, conjugate gradients and samplers rely.

    The adjoint is the transpose; the map is linear; a batch (*batch, *domain_shape) equals a loop; the
    derivatives are the operator; the norm is the largest singular value; `prox` is stationary and `pinv`
    recovers what the data determine; images may be strided and are never changed; the same image gives the
    same data; wrong shapes are refused; copies and pickles, if possible, are the same map. Finite differences
    are taken if the operator computes in float64. Give a small instance, of about 10³ pixels.

    Args:
        A: the operator; it is tested on its `device`.

    Returns:
        The figure of every law.

    Raises:
        CheckError: a law is broken.
    """
    return check_laws(type(A).__name__, _laws(A))


def _laws(A: LinearOperator) -> Laws:
    yield "adjoint gap", lambda: adjoint_gap(A), 1e-6
    yield "transposed twice", lambda: float(A.T.T is not A), 0.0
    for name, operator in (("forward", A), ("adjoint", A.T)):
        yield f"{name}: shape, type and device", partial(_kind_changes, operator), 0.0
        yield f"{name}: linear", partial(_nonlinearity, operator), _ROUNDING
        yield f"{name}: batch is loop", partial(_batch_against_loop, operator), _ROUNDING
        yield f"{name}: strided input", partial(_strided, operator), _ROUNDING
        yield f"{name}: input unchanged", partial(_mutation, operator), 0.0
        yield f"{name}: repeatable", partial(_spread, operator), 0.0
        yield f"{name}: gradient is adjoint", partial(_gradient, operator), _ROUNDING
        yield f"{name}: derivative is itself", partial(_jvp, operator), _ROUNDING
        yield f"{name}: vmap is batch", partial(_vmap, operator), _ROUNDING
        if _in_float64(operator):
            yield f"{name}: finite differences", partial(_finite_differences, operator), 0.0
        yield f"{name}: wrong shapes taken", partial(_wrong_shapes, operator), 0.0
        for way, remake in (("copied", copy.copy), ("copied deeply", copy.deepcopy), ("pickled", _pickled)):
            # A class inside a function, or a peer that holds modules or closures, refuses to be pickled.
            bound = _ROUNDING if _lets(operator, remake) else math.inf
            yield f"{name}: {way}", partial(_remade, operator, remake), bound
    # Conjugate gradients stop at a residual of 1e-6; what float32 adds to that grows with the condition, 1e2.
    yield "prox: gradient left", lambda: _prox_gradient(A), 1e-3
    # A hundred steps of conjugate gradients, and damping; rounding must not be amplified beyond either.
    yield "pinv: image not recovered", lambda: _not_recovered(A), 0.05
    # Thirty power iterations: two singular values that are close are told apart late, at little cost.
    yield "norm", lambda: _norm_error(A), 0.02


def _on(A: LinearOperator, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return white_noise(A.domain_shape, *batch, seed=seed, dtype=dtype).to(A.device)


def adjoint_gap(A: LinearOperator) -> float:
    """Largest |<A x, y> - <x, Aᵀ y>| / (|A x| |y|) of three random pairs, with inner products in float64.

    Args:
        A: operator from (*batch, *domain_shape) to (*batch, *range_shape).
    """
    x, y = _on(A, 3), _on(A.T, 3, seed=1)
    image, back = A(x).double(), A.T(y).double()
    left, right = (image * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    sizes = image.flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    return float(((left - right).abs() / sizes.clamp_min(1e-30)).max())


def _kind_changes(A: LinearOperator) -> float:
    x = _on(A, 2)
    y = A(x)
    return float((tuple(y.shape), y.dtype, y.device) != ((2, *A.range_shape), x.dtype, x.device))


def _nonlinearity(A: LinearOperator, dtype: torch.dtype = torch.float32) -> float:
    x, z = _on(A, dtype=dtype), _on(A, seed=1, dtype=dtype)
    return difference(A(2 * x - 3 * z), 2 * A(x) - 3 * A(z))


def _batch_against_loop(A: LinearOperator) -> float:
    batch = _on(A, 2, 3)
    loop = torch.stack([torch.stack([A(x) for x in row]) for row in batch])
    return difference(A(batch), loop)


def _strided(A: LinearOperator) -> float:
    """Column-major images, as arrays from MATLAB are, and every second pixel of a larger image."""
    x = _on(A, 2)
    wide = x.repeat_interleave(2, dim=-1)[..., ::2]
    turned = x.transpose(-1, 0).contiguous().transpose(-1, 0)
    return max(difference(A(strided), A(x)) for strided in (wide, turned))


def _mutation(A: LinearOperator) -> float:
    x = _on(A, 2)
    before = x.clone()
    A(x)
    return float((x != before).sum())


def _spread(A: LinearOperator) -> float:
    x = _on(A, 2)
    return float((A(x) != A(x)).sum())


def _gradient(A: LinearOperator) -> float:
    x, y = _on(A).requires_grad_(), _on(A.T, seed=1)
    (gradient,) = torch.autograd.grad((A(x) * y).sum(), x)
    return difference(gradient, A.T(y))


def _jvp(A: LinearOperator) -> float:
    x, tangent = _on(A), _on(A, seed=1)
    with warnings.catch_warnings(), dual_level():
        # PyTorch's own forward mode still goes through torch.jit.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        moved = unpack_dual(A(make_dual(x, tangent))).tangent  # type: ignore[no-untyped-call]
    return math.inf if moved is None else difference(moved, A(tangent))


def _vmap(A: LinearOperator) -> float:
    x = _on(A, 3)
    return difference(torch.vmap(A, in_dims=1)(x.movedim(0, 1)), A(x))


def _in_float64(A: LinearOperator) -> bool:
    """Whether sums have more digits than float32; some libraries compute in float32 only."""
    try:
        return _nonlinearity(A, torch.float64) < 1e-10
    except Exception:  # it does not accept float64
        return False


def _finite_differences(A: LinearOperator) -> float:
    x = _on(A, 1, dtype=torch.float64).requires_grad_()
    return float(not (gradcheck(A, (x,), fast_mode=True) and gradgradcheck(A, (x,), fast_mode=True)))


def _wrong_shapes(A: LinearOperator) -> float:
    taken = 0
    for wrong in ((*A.domain_shape[:-1], A.domain_shape[-1] + 1), A.domain_shape[1:]):
        try:
            A(torch.zeros(wrong, device=A.device))
        except GeometryError:
            continue
        taken += 1
    return float(taken)


def _remade(A: LinearOperator, remake: Callable[[LinearOperator], LinearOperator]) -> float:
    """Change by remaking an operator after first use, when it holds handles and caches."""
    x, y = _on(A, 2), _on(A.T, 2, seed=1)
    data, back = A(x), A.T(y)
    other = remake(A)
    return max(difference(other(x), data), difference(other.T(y), back))


def _lets(A: LinearOperator, remake: Callable[[LinearOperator], LinearOperator]) -> bool:
    try:
        remake(A)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _pickled(A: LinearOperator) -> LinearOperator:
    remade: LinearOperator = pickle.loads(pickle.dumps(A))
    return remade


def _prox_gradient(A: LinearOperator) -> float:
    """Gradient of the prox's objective at its result, relative to that at its start."""
    center, y = _on(A, 2), _on(A.T, 2, seed=1)
    weights = 0.5 + torch.rand(A.range_shape, generator=torch.Generator().manual_seed(2)).to(A.device)
    variance = 100 / A.norm() ** 2

    def gradient(x: Tensor) -> Tensor:
        return A.T(weights * (A(x) - y)) + (x - center) / variance

    found = A.prox(center, y, weights, variance, iterations=200)
    return float(gradient(found).norm() / gradient(center).norm())


def _not_recovered(A: LinearOperator) -> float:
    """Share of a smooth image, AᵀA x, that the pseudo-inverse does not recover from its exact data."""
    smooth = A.T(A(_on(A, 2)))
    return float((A.pinv(A(smooth)) - smooth).norm() / smooth.norm().clamp_min(1e-30))


def _norm_error(A: LinearOperator) -> float:
    """Relative error of the norms of A and its transpose, against 60 power iterations."""
    x = _on(A, seed=2)
    for _ in range(60):
        x = A.T(A(x))
        x = x / x.norm().clamp_min(1e-30)
    norm = float(A(x).norm())
    return max(abs(B.norm() / norm - 1) for B in (A, A.T))
