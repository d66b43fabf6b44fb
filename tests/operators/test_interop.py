"""Operators in other libraries' interfaces and theirs in ours; what any of them refuses."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from scipy.sparse.linalg import lsqr, svds

from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.linalg import cg
from ctflow.noise import Gaussian
from ctflow.operators import Blur, LinearOperator, Radon, _interop, wrap
from ctflow.problem import simulate
from ctflow.samplers import ConjugateIntegrator, MSFlow
from ctflow.solving import solve
from ctflow.testing import check_operator
from ctflow.testing._gaussian import gaussian_case
from tests.discovery import OPERATORS


def random(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_scipy_sees_the_same_map(name):
    A = OPERATORS[name].example()
    S = A.to_scipy()
    X, Y = random((3, *A.domain_shape)), random((3, *A.range_shape), 1)
    np.testing.assert_array_equal(S @ X[0].numpy().ravel(), A(X[0]).numpy().ravel())
    np.testing.assert_array_equal(S.H @ Y[0].numpy().ravel(), A.T(Y[0]).numpy().ravel())
    # A matrix's columns are a batch; the order of summation may differ between one and many.
    np.testing.assert_allclose(
        S @ X.flatten(1).numpy().T, A(X).flatten(1).numpy().T, atol=1e-5 * float(A(X).abs().max())
    )
    assert (S @ X[0].numpy().reshape(-1, 1)).shape == (S.shape[0], 1)
    assert (S.dtype, (S @ X[0].numpy().ravel()).dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_lsqr_agrees_with_a_dense_solver(name):
    A = OPERATORS[name].example()
    S, damp = A.to_scipy(), A.norm()
    y = A(random(A.domain_shape)).numpy().ravel()
    found = lsqr(S, y, damp=damp, atol=1e-9, btol=1e-9, iter_lim=200)[0]
    dense = (S @ np.eye(S.shape[1], dtype=np.float32)).astype(np.float64)
    exact = np.linalg.solve(dense.T @ dense + damp**2 * np.eye(S.shape[1]), dense.T @ y)
    # Damping by the norm leaves a condition of 2; what remains is the rounding of float32 products.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * abs(exact).max())


def test_norm_is_the_largest_singular_value_of_scipy():
    A = Radon.example()
    # Power iteration and Lanczos both end at float32 rounding here.
    assert A.norm() == pytest.approx(float(svds(A.to_scipy(), k=1)[1][0]), rel=1e-4)


def test_float64_where_it_is_asked_for():
    S = Radon(VolumeGeometry((1, 8, 8), (1.0, 1.0, 1.0)), ParallelBeam(5), backend="matrix").to_scipy(
        torch.float64
    )
    x, y = (
        np.random.default_rng(0).standard_normal(S.shape[1]),
        np.random.default_rng(1).standard_normal(S.shape[0]),
    )
    # Rounding of float64 sums.
    assert (S @ x) @ y == pytest.approx(x @ (S.H @ y), rel=1e-12)


MATRIX = np.random.default_rng(0).standard_normal((7, 12))
MATRICES = {
    "array": MATRIX,
    "float32 array": MATRIX.astype(np.float32),
    "sparse matrix": scipy.sparse.csr_matrix(MATRIX * (MATRIX > 0)),
    "sparse array": scipy.sparse.csc_array(MATRIX * (MATRIX > 0)),
    "integers": (MATRIX > 0).astype(int),
    "operator": SciPyOperator(
        (7, 12), matvec=lambda x: MATRIX @ x, rmatvec=lambda y: MATRIX.T @ y, dtype=float
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_become_operators(name):
    A = wrap(MATRICES[name], domain_shape=(1, 3, 4), range_shape=(1, 1, 7))
    assert (A.domain_shape, A.range_shape) == ((1, 3, 4), (1, 1, 7))
    x = random((2, 1, 3, 4), dtype=torch.float64)
    expected = np.stack([MATRICES[name] @ one.ravel() for one in x.numpy()])
    np.testing.assert_allclose(A(x).numpy().reshape(2, 7), expected, rtol=1e-5, atol=1e-5)
    check_operator(A)


def test_without_shapes_images_are_vectors():
    assert (wrap(MATRIX).domain_shape, wrap(MATRIX).range_shape) == ((12,), (7,))


def test_a_wrapped_operator_serves_autograd_cg_prox_and_composition():
    A = Radon(VolumeGeometry((1, 8, 8), (1.0, 1.0, 1.0)), ParallelBeam(5), backend="matrix")
    W = wrap(A.to_scipy(torch.float64), A.domain_shape, A.range_shape)
    x, y = random(A.domain_shape, dtype=torch.float64), random(A.range_shape, 1, torch.float64)
    tracked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * ((W(tracked) - y) ** 2).sum(), tracked)
    close = {"rtol": 1e-10, "atol": 1e-10}  # the same products in float64
    torch.testing.assert_close(gradient, A.T(A(x) - y), **close)
    solved = [cg(lambda v, B=B: B.T(B(v)) + v, B.T(y), 3, 200, 1e-13) for B in (A, W)]
    torch.testing.assert_close(solved[1], solved[0], **close)
    proxes = [simulate(B, x, Gaussian(0.1)).prox(y.new_zeros(A.domain_shape), 0.1, 50) for B in (A, W)]
    torch.testing.assert_close(proxes[1], proxes[0], **close)
    torch.testing.assert_close((2.0 * W @ W.T)(y), (2.0 * A @ A.T)(y), **close)


@pytest.mark.parametrize("method", [MSFlow(3), ConjugateIntegrator(steps=2)], ids=lambda m: type(m).__name__)
def test_a_wrapped_operator_serves_samplers(method):
    case = gaussian_case()
    A = case.problem.A
    W = wrap(A.to_scipy(torch.float64), A.domain_shape, A.range_shape)
    wrapped = type(case.problem)(W, case.problem.y, case.problem.noise)
    ours, theirs = (solve(problem, method, case.prior).mean for problem in (case.problem, wrapped))
    # The same arithmetic up to the order of sums; conjugate gradients amplify it a little.
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-9)


UNMATCHED = SciPyOperator(
    (7, 12), matvec=lambda x: MATRIX @ x, rmatvec=lambda y: 1.01 * (MATRIX.T @ y), dtype=float
)
REFUSED = {
    "no operator": (object(), {}, "neither an operator of deepinv, PyLops, ODL or SciPy"),
    "complex": (MATRIX * 1j, {}, "complex128"),
    "wrong size": (MATRIX, {"domain_shape": (3, 5)}, r"has 12 values and domain_shape=\(3, 5\) has 15"),
    "unmatched": (UNMATCHED, {}, "misses its transpose by 1 %"),
    "tensor": (torch.zeros(3, 4), {}, "neither an operator of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_wrapped_is_refused(name):
    foreign, shapes, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        wrap(foreign, **shapes)


@pytest.mark.parametrize("name", ["to_pylops", "to_deepinv"])
def test_a_missing_peer_says_what_to_install(name, monkeypatch):
    _interop._physics.cache_clear()
    for peer in ("pylops", "deepinv"):
        monkeypatch.setitem(sys.modules, peer, None)
    with pytest.raises(BackendError, match=r'pip install "ctflow\[conformance\]"'):
        getattr(Radon.example(), name)()


def test_no_peer_is_imported_before_it_is_asked_for():
    code = (
        "import sys, ctflow.operators; "
        "print([n for n in ('deepinv', 'pylops', 'odl', 'monai', 'torchvision') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_to_moves_what_is_stored_and_leaves_the_original(monkeypatch):
    monkeypatch.setattr("ctflow.operators._base.available_device", torch.device)  # "meta" stands for a GPU

    class Scaling(LinearOperator):
        domain_shape = range_shape = (2,)

        def __init__(self):
            self.factors = torch.tensor([1.0, 2.0])

        def _forward(self, x):
            return self.factors * x

    A = 3.0 * (Scaling() @ Scaling())
    moved = A.to("meta")
    stored = [part.factors.device.type for part in (moved.operator.left, moved.operator.right)]
    assert (stored, moved.device.type, moved.T.device.type) == (["meta", "meta"], "meta", "meta")
    with pytest.raises(BackendError, match="'meta' hold none; move the tensor and the operator"):
        moved(torch.ones(2))
    assert A.operator.left.factors.device.type == "cpu"
    assert torch.equal(A(torch.ones(2)), torch.tensor([3.0, 12.0]))


class Tagged(torch.Tensor):
    """What MONAI's MetaTensor is to an operator: a tensor with an affine, mm, in RAS order."""

    affine: torch.Tensor

    def as_tensor(self):
        return self.as_subclass(torch.Tensor)


def tagged(x, affine):
    result = x.as_subclass(Tagged)
    result.affine = affine
    return result


def affine(*columns):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor(columns, dtype=torch.float64).T
    return matrix


# Of a volume of 3 mm slices and 2 mm pixels whose (Z, Y, X) run towards superior, posterior, left.
SPL = affine((0, 0, 3), (0, -2, 0), (-2, 0, 0))
WRONG = {
    "MONAI's own order": affine((-2, 0, 0), (0, -2, 0), (0, 0, 3)),
    "mirrored": affine((0, 0, 3), (0, -2, 0), (2, 0, 0)),
    "spacing": affine((0, 0, 1), (0, -2, 0), (-2, 0, 0)),
}
RADON = Radon.example()
OPERATORS_ON_A_GRID = {
    "projection": RADON,
    "multiple": 2.0 * RADON,
    "normal": RADON.T @ RADON,
    "sum": RADON + RADON,
}


@pytest.mark.parametrize("name", OPERATORS_ON_A_GRID)
def test_a_metatensor_goes_in_and_a_plain_tensor_comes_out(name):
    A = OPERATORS_ON_A_GRID[name]
    x = random((2, *A.domain_shape))
    for known in (SPL, torch.eye(4, dtype=torch.float64)):  # the identity says nothing
        y = A(tagged(x, known))
        assert type(y) is torch.Tensor
        torch.testing.assert_close(y, A(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS_ON_A_GRID)
@pytest.mark.parametrize("fault", WRONG)
def test_a_metatensor_with_other_axes_is_refused(fault, name):
    A = OPERATORS_ON_A_GRID[name]
    with pytest.raises(GeometryError, match=r"towards SPL at 3 × 2 × 2 mm; .*axcodes=\"SPL\""):
        A(tagged(random(A.domain_shape), WRONG[fault]))
    assert type(A(tagged(random(A.domain_shape), WRONG[fault]).as_tensor())) is torch.Tensor


def test_two_dimensional_affines_are_read_too():
    A = Radon.example()
    turned = torch.diag(torch.tensor([-2.0, -2.0, 1.0], dtype=torch.float64))
    with pytest.raises(GeometryError, match="towards LP at 2 × 2 mm"):
        A(tagged(random(A.domain_shape), turned))


def test_gradients_flow_through_a_metatensor():
    A = Radon.example()
    x = random(A.domain_shape).requires_grad_()
    (gradient,) = torch.autograd.grad(A(tagged(x, SPL)).sum(), x)
    torch.testing.assert_close(gradient, A.T(torch.ones(A.range_shape)), rtol=0, atol=0)


@pytest.mark.filterwarnings("default")
def test_monai_itself():
    data = pytest.importorskip("monai.data", reason='monai is not here; pip install "ctflow[conformance]"')
    from monai.transforms import Orientation

    A = Radon.example()
    x = random(A.domain_shape)
    ours = data.MetaTensor(x[None], affine=SPL)
    y = A(ours)
    assert type(y) is torch.Tensor
    torch.testing.assert_close(y[0], A(x))
    as_monai_loads_it = Orientation(axcodes="RAS")(ours)  # (1, X, Y, Z)
    with pytest.raises(GeometryError):
        A(as_monai_loads_it)
    back = Orientation(axcodes="SPL")(as_monai_loads_it)  # the advice of the error
    torch.testing.assert_close(A(back)[0], A(x))


@pytest.mark.parametrize("name", OPERATORS)
def test_complex_arrays_are_mapped_by_their_parts(name):
    A = OPERATORS[name].example()
    S, (x, z) = A.to_scipy(), random((2, *A.domain_shape))
    y = S @ (x + 1j * z).numpy().ravel()
    assert y.dtype == np.complex64
    np.testing.assert_array_equal(y, (A(x) + 1j * A(z)).numpy().ravel())
    np.testing.assert_array_equal(S.H @ y, (A.T(A(x)) + 1j * A.T(A(z))).numpy().ravel())


def test_arrays_of_any_kind_are_taken_and_left_alone():
    A = Radon.example()
    S, x = A.to_scipy(), random(A.domain_shape).numpy().ravel()
    frozen = x.copy()
    frozen.setflags(write=False)
    for same in (x.astype(">f4"), x.astype(object), x.astype(float), frozen, x[::-1].copy()[::-1]):
        np.testing.assert_allclose(S @ same, S @ x, rtol=0, atol=0)
    np.testing.assert_array_equal(S @ np.arange(len(x)), S @ np.arange(len(x), dtype=np.float32))
    assert (S @ np.zeros((len(x), 0), np.float32)).shape == (S.shape[0], 0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(S)) @ x, S @ x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int32])
def test_a_type_that_operators_do_not_compute_in_is_refused_at_once(dtype):
    with pytest.raises(BackendError, match=f"float32 or float64, not in {dtype}; give torch.float32"):
        Radon.example().to_scipy(dtype)


def test_a_peer_that_calls_itself_real_and_answers_complex_is_refused():
    peer = SciPyOperator((3, 3), matvec=lambda x: 1j * x, rmatvec=lambda y: -1j * y, dtype=float)
    with pytest.raises(UsageError, match=r"answers a real array in torch\.complex128; wrap its real"):
        wrap(peer)


def test_a_peer_whose_own_imports_are_damaged_is_named(monkeypatch, tmp_path):
    (tmp_path / "deepinv.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    _interop._physics.cache_clear()
    monkeypatch.delitem(sys.modules, "deepinv", raising=False)
    with pytest.raises(
        BackendError, match=r"fails to import \(RuntimeError: operator torchvision::nms .*one index"
    ):
        Blur.example().to_deepinv()
    assert Blur.example()(torch.ones(2, 9, 12)).shape == (2, 9, 12)
