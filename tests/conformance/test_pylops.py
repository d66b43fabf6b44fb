"""PyLops' dot test on every operator of ours, and its operators as ours."""

import numpy as np
import pytest
import torch

from ctflow.operators import wrap
from ctflow.testing import check_operator
from tests.discovery import OPERATORS

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(params=OPERATORS)
def ours(request):
    return OPERATORS[request.param].example()


def test_dottest(pylops, ours):
    # Inner products of some hundred float32 values, relative to a result that may be near zero.
    assert pylops.utils.dottest(ours.to_pylops(), rtol=1e-3, atol=1e-4)


def test_arrays_keep_their_shape(pylops, ours):
    P = ours.to_pylops()
    x = torch.randn(ours.domain_shape, generator=torch.Generator().manual_seed(0))
    assert (P.dims, P.dimsd) == (ours.domain_shape, ours.range_shape)
    np.testing.assert_array_equal(P @ x.numpy(), ours(x).numpy())
    np.testing.assert_array_equal(P.H @ ours(x).numpy(), ours.T(ours(x)).numpy())


def test_complex_arrays_are_mapped_by_their_parts(ours, pylops):
    P = ours.to_pylops()
    x, z = torch.randn(2, *ours.domain_shape, generator=torch.Generator().manual_seed(0))
    # Linearity, and the rounding of one product of a real and a complex number.
    np.testing.assert_allclose(P @ (x + 1j * z).numpy(), (ours(x) + 1j * ours(z)).numpy(), rtol=0, atol=1e-6)
    back = P.H @ (P @ (x + 1j * z).numpy())
    wanted = ours.T(ours(x)) + 1j * ours.T(ours(z))
    np.testing.assert_allclose(back, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_its_least_squares_agree_with_a_dense_solver(pylops, ours):
    P = ours.to_pylops(torch.float32)
    y = ours(torch.randn(ours.domain_shape, generator=torch.Generator().manual_seed(0)))
    found = pylops.optimization.basic.cgls(P, y.numpy(), niter=12, damp=ours.norm(), tol=1e-10)[0]
    dense = np.stack([P.matvec(unit) for unit in np.eye(P.shape[1], dtype=np.float32)], 1).astype(np.float64)
    gram = dense.T @ dense + ours.norm() ** 2 * np.eye(P.shape[1])
    exact = np.linalg.solve(gram, dense.T @ y.numpy().ravel())
    # Damping by the norm leaves a condition of 2: twelve steps end at float32 rounding, and many more would
    # divide by what has underflowed.
    np.testing.assert_allclose(found.ravel(), exact, rtol=0, atol=1e-5 * abs(exact).max())


def market(pylops):
    """Operators of PyLops."""
    taps = np.array([0.25, 0.5, 0.25])
    return {
        "matrix": pylops.MatrixMult(np.random.default_rng(0).standard_normal((7, 12))),
        "derivative": pylops.FirstDerivative((8, 6), axis=0, dtype="float32"),
        "smoothing": pylops.Smoothing2D((3, 3), (8, 6)),
        "convolution": pylops.signalprocessing.Convolve1D((8, 6), taps, offset=1, axis=-1),
        "restriction": pylops.Restriction((8, 6), [0, 3, 5], axis=0),
        "composition": pylops.Restriction((8, 6), [0, 3], axis=0) @ pylops.Smoothing2D((3, 3), (8, 6)),
        "ours and back": OPERATORS["Radon"].example().to_pylops(torch.float64),
    }


@pytest.mark.parametrize(
    "name",
    ["matrix", "derivative", "smoothing", "convolution", "restriction", "composition", "ours and back"],
)
def test_its_operators_become_ours(pylops, name):
    P = market(pylops)[name]
    A = wrap(P)
    assert (A.domain_shape, A.range_shape) == (tuple(P.dims), tuple(P.dimsd))
    x = torch.randn(A.domain_shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(A(x).numpy().ravel(), P @ x.numpy().ravel(), rtol=1e-5, atol=1e-5)
    check_operator(A)
