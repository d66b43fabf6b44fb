"""Laws that hold for every linear operator; a new operator is tested by giving it an `example`."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from ctflow.errors import GeometryError
from ctflow.operators import LinearOperator


def draw(shape: tuple[int, ...], *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def adjoint_gap(A: LinearOperator) -> float:
    """|<A x, y> - <x, Aᵀ y>| over |A x| |y|, inner products in float64, worst of three random pairs."""
    x, y = draw(A.domain_shape, 3), draw(A.range_shape, 3, seed=1)
    image, back = A(x).double(), A.T(y).double()
    left, right = (image * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    sizes = image.flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    return float(((left - right).abs() / sizes).max())


def check_adjoint(A: LinearOperator) -> None:
    # Float32 rounding of sums of a few hundred terms; measured 1e-8 and below.
    assert adjoint_gap(A) <= 1e-6


def check_transpose_is_an_involution(A: LinearOperator) -> None:
    assert A.T.T is A
    assert A.T.domain_shape == A.range_shape


def check_linearity(A: LinearOperator) -> None:
    x, z = draw(A.domain_shape), draw(A.domain_shape, seed=1)
    # Float32 rounding, relative to the largest value.
    torch.testing.assert_close(
        A(2 * x - 3 * z), 2 * A(x) - 3 * A(z), rtol=0, atol=1e-5 * float(A(x).abs().max())
    )


def check_batch_is_loop(A: LinearOperator) -> None:
    for operator in (A, A.T):
        batch = draw(operator.domain_shape, 2, 3)
        loop = torch.stack([torch.stack([operator(x) for x in row]) for row in batch])
        assert loop.shape == (2, 3, *operator.range_shape)
        # The order of summation may differ between one and many.
        torch.testing.assert_close(operator(batch), loop, rtol=0, atol=1e-5 * float(loop.abs().max()))


def check_derivatives(A: LinearOperator) -> None:
    for operator in (A, A.T):
        x = draw(operator.domain_shape, 1, dtype=torch.float64).requires_grad_()
        assert gradcheck(operator, (x,), fast_mode=True)
        assert gradgradcheck(operator, (x,), fast_mode=True)


def check_gradient_is_adjoint(A: LinearOperator) -> None:
    x, y = draw(A.domain_shape).requires_grad_(), draw(A.range_shape, seed=1)
    (gradient,) = torch.autograd.grad((A(x) * y).sum(), x)
    torch.testing.assert_close(gradient, A.T(y), rtol=0, atol=0)


def check_jvp(A: LinearOperator) -> None:
    x, tangent = draw(A.domain_shape), draw(A.domain_shape, seed=1)
    with warnings.catch_warnings(), dual_level():
        # PyTorch's own forward mode still goes through torch.jit.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        moved = unpack_dual(A(make_dual(x, tangent))).tangent
    torch.testing.assert_close(moved, A(tangent), rtol=0, atol=0)


def check_vmap(A: LinearOperator) -> None:
    x = draw(A.domain_shape, 3).movedim(0, 1)
    mapped = torch.vmap(A, in_dims=1)(x)
    torch.testing.assert_close(mapped, A(x.movedim(1, 0)), rtol=0, atol=0)


def check_wrong_shape_is_refused(A: LinearOperator) -> None:
    wrong = (*A.domain_shape[:-1], A.domain_shape[-1] + 1)
    with pytest.raises(GeometryError, match="expects"):
        A(torch.zeros(wrong))
    with pytest.raises(GeometryError, match="expects"):
        A(torch.zeros(A.domain_shape[1:]))


LAWS = [law for name, law in sorted(globals().items()) if name.startswith("check_")]
