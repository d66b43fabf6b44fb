"""ODL's operator tests on every operator of ours, and its operators as ours, whatever their inner product."""

import numpy as np
import pytest
import torch

from ctflow.errors import UsageError
from ctflow.operators import wrap
from ctflow.testing import check_operator
from tests.discovery import OPERATORS

pytestmark = pytest.mark.filterwarnings("default")


def as_odl(odl, A):
    """One of ours in ODL's interface, between spaces without weights."""

    class Ours(odl.Operator):
        def __init__(self, A):
            self.A = A
            shapes = (A.domain_shape, A.range_shape)
            super().__init__(*(odl.rn(shape, dtype="float32") for shape in shapes), linear=True)

        def _call(self, x):
            return self.A(torch.from_numpy(np.array(x.asarray()))).numpy()

        @property
        def adjoint(self):
            return Ours(self.A.T)

    return Ours(A)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("law", ["linear", "adjoint", "derivative"])
def test_operator_test(odl, capsys, name, law):
    tests = odl.diagnostics.OperatorTest(as_odl(odl, OPERATORS[name].example()), tol=1e-3)
    getattr(tests, law)()  # it prints its failures
    printed = capsys.readouterr().out
    assert "Verifying" in printed or "Testing" in printed
    assert "FAILED" not in printed
    assert "*** ERROR" not in printed


def market(odl):
    """Operators of ODL on weighted spaces: cells of 1/8 by 3/8."""
    space = odl.uniform_discr([0, 0], [1, 3], (8, 8), dtype="float32")
    square = odl.uniform_discr([-1, -1], [1, 1], (16, 16), dtype="float32")
    matrix = np.random.default_rng(0).standard_normal((5, 12))
    tomo = odl.applications.tomo
    return {
        "matrix": odl.MatrixOperator(matrix),
        "derivative": odl.PartialDerivative(space, 0, pad_mode="constant"),
        "laplacian": odl.Laplacian(space, pad_mode="constant"),
        "resizing": odl.ResizingOperator(space, ran_shp=(10, 12), pad_mode="constant"),
        "multiple": 3 * odl.IdentityOperator(space),
        "ray transform": tomo.RayTransform(square, tomo.parallel_beam_geometry(square, 10), impl="astra_cpu"),
    }


@pytest.mark.parametrize(
    "name", ["matrix", "derivative", "laplacian", "resizing", "multiple", "ray transform"]
)
def test_its_operators_become_ours(odl, name):
    op = market(odl)[name]
    A = wrap(op)
    assert (A.domain_shape, A.range_shape) == (tuple(op.domain.shape), tuple(op.range.shape))
    x = torch.randn(A.domain_shape, generator=torch.Generator().manual_seed(0))
    theirs = op(op.domain.element(x.numpy().astype(op.domain.dtype_identifier))).asarray()
    np.testing.assert_allclose(A(x).numpy(), theirs, rtol=1e-6, atol=1e-6)
    check_operator(A)


def test_what_is_not_a_map_between_arrays_is_refused(odl):
    space = odl.uniform_discr([0, 0], [1, 3], (8, 8))
    with pytest.raises(UsageError, match="single spaces"):
        wrap(odl.Gradient(space))
    with pytest.raises(UsageError, match="not linear"):
        wrap(odl.ConstantOperator(space.one()))
