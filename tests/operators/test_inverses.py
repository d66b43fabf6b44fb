"""Norm, pseudo-inverse, prox and functions of AᵀWA against dense linear algebra, on every path."""

import logging
import warnings

import pytest
import torch

from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.linalg import cg, cg_dual, chebyshev_function, functions_of, lanczos_function, largest_eigenvalue
from ctflow.noise import Gaussian
from ctflow.operators import Blur, Downsample, Mask, Radon
from ctflow.operators._spectrum import dual_spectrum
from ctflow.operators.convolution import Convolution
from ctflow.operators.motion_blur import MotionBlur
from ctflow.problem import InverseProblem

SHAPE = (2, 8, 12)
EVEN = [[0.0, 0.1, 0.0], [0.2, 0.4, 0.2], [0.0, 0.1, 0.0]]
LOPSIDED = [[0.0, 0.5, 0.0], [0.0, 0.4, 0.1], [0.0, 0.0, 0.0]]
# Operators whose spectrum is known for equal weights, and for any weights.
EQUAL = {
    **{f"blur {b}": Blur(SHAPE, 0.8, b) for b in ("reflect", "periodic", "zero")},
    "motion periodic": MotionBlur(SHAPE, 4, 30.0, "periodic"),
    "motion reflect along x": MotionBlur(SHAPE, 5),
    "even kernel reflect": Convolution(SHAPE, EVEN),
    "lopsided kernel periodic": Convolution(SHAPE, LOPSIDED, "periodic"),
    "bicubic 4": Downsample(SHAPE, 4, "bicubic"),
}
ANY = {
    **{f"{m} {f}": Downsample(SHAPE, f, m) for m in ("average", "strided") for f in (2, 4)},
    "mask": Mask(SHAPE, 0.4),
    "box": Mask(SHAPE, 0.3, "box"),
    "missing columns": Mask(SHAPE, 0.3, "columns"),
    "scaled mask": -0.3 * Mask(SHAPE, 0.4),
}
KRYLOV = {
    "radon": Radon(VolumeGeometry((1, 10, 10), (2.0, 2.0, 2.0)), ParallelBeam(5), backend="matrix"),
    "lopsided kernel reflect": Convolution(SHAPE, LOPSIDED),
    "motion zero": MotionBlur(SHAPE, 4, 30.0, "zero"),
}
KRYLOV["missing views"] = Mask(KRYLOV["radon"].range_shape, 0.4, "views") @ KRYLOV["radon"]
ALL = EQUAL | ANY | KRYLOV


def draw(shape, *batch, seed=0):
    return torch.randn(*batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(A) -> torch.Tensor:
    """The operator as a matrix, (data, pixels)."""
    size = torch.Size(A.domain_shape).numel()
    columns = A(torch.eye(size, dtype=torch.float64).reshape(size, *A.domain_shape))
    return columns.reshape(size, -1).T


def weights_of(A, kind: str) -> torch.Tensor:
    """One weight; one per sample of two; or one per datum, some zero."""
    if kind == "one":
        return torch.tensor(3.0, dtype=torch.float64)
    if kind == "per sample":
        return torch.tensor([3.0, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    return draw(A.range_shape, 2, seed=9).clamp_min(-0.5) + 0.5


def exact(A, weights, f, b) -> torch.Tensor:
    """f(AᵀWA) b for a batch of two, by dense eigenvectors."""
    matrix, result = dense(A), []
    for sample in range(2):
        W = weights.expand(2, *A.range_shape)[sample].flatten()
        values, vectors = torch.linalg.eigh(matrix.T @ (W[:, None] * matrix))
        result.append(vectors @ (f(values.clamp_min(0)) * (vectors.T @ b[sample].flatten())))
    return torch.stack(result).reshape(b.shape)


def close(got, wanted, tolerance):
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


FUNCTIONS = [lambda v: 1 / (v + 0.05), lambda v: torch.exp(-2 * v), torch.sqrt]


@pytest.mark.parametrize("name", ALL)
def test_norm_is_the_largest_singular_value(name):
    A = ALL[name]
    wanted = float(torch.linalg.matrix_norm(dense(A), 2))
    # Lanczos of 30 steps on spectra of at most 200 values; float32 rounding by default.
    assert A.norm(like=torch.zeros((), dtype=torch.float64)) == pytest.approx(wanted, rel=1e-6)
    assert A.norm() == pytest.approx(wanted, rel=1e-5)
    assert A.T.norm() == A.norm()


@pytest.mark.parametrize("kind", ["one", "per sample", "per datum"])
@pytest.mark.parametrize("name", ALL)
def test_prox_is_the_dense_solution(name, kind):
    A = ALL[name]
    W, center, y = weights_of(A, kind), draw(A.domain_shape, 2), draw(A.range_shape, 2, seed=1)
    step = exact(A, W, lambda v: 1 / (v + 1 / 0.7), A.T(W * (y - A(center))))
    # Conjugate gradients to a relative residual of 1e-12; closed forms to rounding.
    close(A.prox(center, y, W, 0.7, 400, 1e-12), center + step, 1e-9)
    warm = A.prox(center, y, W, 0.7, 400, 1e-12, start=center + 0.9 * step)
    close(warm, center + step, 1e-9)


@pytest.mark.parametrize("kind", ["one", "per datum"])
@pytest.mark.parametrize("name", ["blur zero", "average 2", "mask", "radon", "lopsided kernel reflect"])
def test_prox_has_the_gradient_of_the_dense_solution(name, kind):
    A, each = ALL[name], torch.tensor([0.3, 2.0], dtype=torch.float64)
    given = draw(A.domain_shape, 2), draw(A.range_shape, 2, seed=1), weights_of(A, kind), each
    center, y, W, variance = (part.clone().requires_grad_() for part in given)
    matrix, eye = dense(A), torch.eye(center[0].numel(), dtype=torch.float64)
    wanted = torch.stack(
        [
            torch.linalg.solve(matrix.T @ (w[:, None] * matrix) + eye / v, matrix.T @ (w * d) + c / v)
            for c, d, w, v in zip(
                center.flatten(1), y.flatten(1), W.expand(y.shape).flatten(1), variance, strict=True
            )
        ]
    )
    found = A.prox(center, y, W, variance, 400, 1e-13)
    close(found.detach().flatten(1), wanted.detach(), 1e-9)
    pull = draw(A.domain_shape, 2, seed=5)
    inputs = center, y, W, variance
    gradients = torch.autograd.grad((found * pull).sum(), inputs)
    for got, right in zip(
        gradients, torch.autograd.grad((wanted * pull.flatten(1)).sum(), inputs), strict=True
    ):
        close(got, right, 1e-7)


@pytest.mark.parametrize("name", ["blur zero", "mask", "lopsided kernel reflect"])
def test_prox_is_differentiable_twice_forwards_and_under_vmap(name):
    A = ALL[name]
    each = torch.tensor([0.3, 2.0], dtype=torch.float64)
    y, W = draw(A.range_shape, 2, seed=1), weights_of(A, "one")
    inputs = tuple(part.requires_grad_() for part in (draw(A.domain_shape, 2), y, W, each))

    def prox(*parts):
        return A.prox(*parts, 400, 1e-13)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # PyTorch's own forward mode
        assert torch.autograd.gradcheck(prox, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(prox, inputs, fast_mode=True)
    stacked = [torch.stack([part.detach(), 2 * part.detach()]) for part in inputs]
    loop = torch.stack([prox(*(part[k] for part in stacked)) for k in (0, 1)])
    close(torch.vmap(prox)(*stacked), loop, 1e-9)


def test_a_pseudo_inverse_has_a_gradient_in_its_weights():
    A, y = ALL["blur zero"], draw(SHAPE)
    W = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(A.pinv(y, damping=0.5, weights=W).sum(), W)
    step = 1e-6
    matrix = dense(A)
    floor = (0.5 * A.norm(like=y)) ** 2 * 2.0

    def image(w):
        eye = torch.eye(y.numel(), dtype=torch.float64)
        return torch.linalg.solve(matrix.T @ matrix * w + floor * eye, w * matrix.T @ y.flatten()).sum()

    assert float(gradient) == pytest.approx(float((image(2 + step) - image(2 - step)) / (2 * step)), rel=1e-6)


@pytest.mark.parametrize("name", EQUAL | ANY)
def test_closed_forms_need_no_iterations(name):
    A, center = ALL[name], draw(SHAPE, 2)
    y, W = draw(A.range_shape, 2, seed=1), weights_of(A, "per datum" if name in ANY else "one")
    # Nothing is iterated, so nothing is left to iterations; of the others this many would not solve.
    close(A.prox(center, y, W, 0.7, iterations=0), A.prox(center, y, W, 0.7, 400, 1e-12), 1e-12)


@pytest.mark.parametrize("kind", ["one", "per sample", "per datum"])
@pytest.mark.parametrize("name", ALL)
def test_functions_of_the_normal_operator_are_the_dense_ones(name, kind):
    A = ALL[name]
    W, b = weights_of(A, kind), draw(A.domain_shape, 2)
    problem = InverseProblem(A, draw(A.range_shape, 2, seed=1), Gaussian(1.0), W)
    for f, got in zip(FUNCTIONS, problem.functions_of_normal(b, FUNCTIONS), strict=True):
        # By eigenvectors; the square root makes 1e-8 of the rounding 1e-16 of an eigenvalue that is zero.
        close(got, exact(A, W, f, b), 1e-7)


@pytest.mark.parametrize("kind", ["one", "per datum"])
def test_all_paths_to_a_function_agree(kind):
    A = KRYLOV["radon"]
    W, b = weights_of(A, kind), draw(A.domain_shape, 2)
    functions, dims = FUNCTIONS[:2], 3

    def normal(x):
        return A.normal(x, W)

    upper = 1.01 * float(largest_eigenvalue(normal, b, dims, 30).max())
    scaled = [lambda v, f=f: f(v / upper) for f in functions]  # the eigenvalues reach 10³
    paths = {
        "dual": dual_spectrum(A, W).apply(b, scaled),
        "lanczos": lanczos_function(normal, b, scaled, dims, 60, 1e-12),
        "chebyshev": chebyshev_function(normal, b, scaled, upper, 200, 1e-12),
    }
    for number, f in enumerate(scaled):
        wanted = exact(A, W, f, b)
        for results in paths.values():
            close(results[number], wanted, 1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize(("name", "square"), [("average 2", 0.25), ("mask", 1.0)])
def test_what_lies_in_the_row_space_is_spared_the_value_at_zero(name, square, dtype, tolerance):
    # f(0) is 10⁶ f(λ): what falls outside the row space by rounding must not be multiplied by it.
    A, W = ALL[name], torch.tensor(1e6 / square, dtype=dtype)
    b = A.T(draw(A.range_shape).to(dtype))
    (got,) = A.spectrum(W).apply(b, [lambda v: 1 / (v + 1)])
    close(got, b / (1e6 + 1), tolerance)


def test_chebyshev_takes_over_where_a_basis_does_not_fit(monkeypatch):
    A = Blur((1, 12, 12), sigma=1.0)
    b = draw(A.domain_shape, 2)
    monkeypatch.setattr("ctflow.linalg._BASIS_BYTES", 1)
    monkeypatch.setattr("ctflow.linalg.lanczos_function", None)
    (got,) = functions_of(A.normal, b, FUNCTIONS[1:2], 3, 20, 1e-10)
    close(got, exact(A, torch.ones((), dtype=torch.float64), FUNCTIONS[1], b), 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_pinv_is_the_damped_dense_one(name):
    A, y = ALL[name], draw(ALL[name].range_shape, 2)
    U, s, Vh = torch.linalg.svd(dense(A), full_matrices=False)
    damped = s / (s**2 + (1e-2 * s[0]) ** 2)
    wanted = ((y.flatten(1) @ U) * damped) @ Vh
    # Conjugate gradients to a residual of 1e-6 at a condition of 10⁴; closed forms to rounding.
    close(A.pinv(y, 1e-2, 400), wanted.reshape(2, *A.domain_shape), 1e-3 if name in KRYLOV else 1e-9)


@pytest.mark.parametrize("name", EQUAL | ANY)
def test_without_damping_it_is_the_moore_penrose_inverse(name):
    A, x = ALL[name], draw(SHAPE, 2)
    y = A(x)
    # Wide kernels have singular values down to 1e-3 of the largest: a thousand times the rounding.
    close(A(A.pinv(y, 0.0)), y, 1e-9)
    wanted = (torch.linalg.pinv(dense(A), rtol=1e-13) @ y.flatten(1).T).T.reshape(x.shape)
    close(A.pinv(y, 0.0), wanted, 1e-6)


def test_weighted_pinv_fits_the_data_that_count():
    A, x = KRYLOV["radon"], draw(KRYLOV["radon"].domain_shape)
    y, W = A(x), torch.ones(A.range_shape, dtype=torch.float64)
    y[..., 2, :] += 10  # a view that is wrong, and known to be
    W[..., 2, :] = 0
    misfit = A(A.pinv(y, 1e-4, 500, weights=W)) - A(x)
    assert (W * misfit).norm() < 1e-3 * y.norm()  # the damping's bias


@pytest.mark.parametrize("name", ["average 4", "radon", "bicubic 4", "missing columns"])
def test_row_and_null_space_are_orthogonal_projections(name):
    A, x = ALL[name], draw(ALL[name].domain_shape, 2)
    row, null = A.row_space(x, iterations=500), A.null_space(x, iterations=500)
    _, s, Vh = torch.linalg.svd(dense(A), full_matrices=False)
    share = s**2 / (s**2 + (1e-4 * s[0]) ** 2)  # 1 but for what projections nearly miss
    wanted = (x.flatten(1) @ Vh.T * share @ Vh).reshape(x.shape)
    # Conjugate gradients to a residual of 1e-6, where single modes are damped at 1e-8.
    close(row, wanted, 2e-3)
    close(row + null, x, 1e-15)
    assert A(null).norm() < 1e-3 * A(x).norm()


def test_both_spaces_have_the_same_iterates():
    A = KRYLOV["radon"]
    W, r = weights_of(A, "per datum"), draw(A.range_shape, 2)
    root = W.sqrt()
    for iterations in (1, 2, 5, 10):
        primal = cg(lambda x: A.normal(x, W) + 3 * x, A.T(W * r), 3, iterations, 0.0)
        dual = cg_dual(lambda u: root * A(A.T(root * u)), root * r, 3.0, 3, iterations, 0.0)
        # Rounding grows from step to step as Ritz values converge.
        close(A.T(root * dual), primal, 1e-9)


def test_samples_with_weights_of_their_own_stop_by_themselves():
    A = KRYLOV["radon"]
    W, y = weights_of(A, "per datum"), draw(A.range_shape, 2)
    together = A.prox(torch.zeros(2, *A.domain_shape, dtype=torch.float64), y, W, 0.01, 30, 1e-3)
    for sample in range(2):
        alone = A.prox(torch.zeros(A.domain_shape, dtype=torch.float64), y[sample], W[sample], 0.01, 30, 1e-3)
        close(together[sample], alone, 1e-10)


def test_gram_matrix_of_a_geometry_is_decomposed_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CTFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("ctflow.operators._spectrum._SIDE_KEPT", 10)

    def operator(views=5):
        return Radon(VolumeGeometry((1, 10, 10), (2.0, 2.0, 2.0)), ParallelBeam(views))

    assert operator().fingerprint == operator().fingerprint != operator(6).fingerprint
    one, b = torch.ones((), dtype=torch.float64), draw((1, 10, 10))
    with caplog.at_level(logging.WARNING):
        first = dual_spectrum(operator(), one).apply(b, FUNCTIONS)
        assert "computed, once" in caplog.text
        caplog.clear()
        second = dual_spectrum(operator(), one).apply(b, FUNCTIONS)
        assert not caplog.text  # read from the disk
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:-50])
        third = dual_spectrum(operator(), one).apply(b, FUNCTIONS)
        assert "damaged" in caplog.text
    for f, g, h in zip(first, second, third, strict=True):
        assert torch.equal(f, g)
        assert torch.equal(f, h)


def test_large_gram_matrices_are_left_alone():
    A = Radon(VolumeGeometry((1, 128, 128), (2.0, 2.0, 2.0)), ParallelBeam(60))  # of 183 bins
    assert A.spectrum(torch.ones(()), dense=True) is None
    many = torch.rand(10**5, *KRYLOV["radon"].range_shape)  # 75 data, 10⁵ different weightings
    assert KRYLOV["radon"].spectrum(many, dense=True) is None
    small = KRYLOV["radon"]
    assert small.spectrum(torch.ones(())) is None  # not asked for


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["one", "per datum"])
@pytest.mark.parametrize("name", [name for name in ALL if "radon" not in name and "views" not in name])
def test_the_gpu_computes_the_same(name, kind):
    A, W = ALL[name], weights_of(ALL[name], kind)
    center, y = draw(A.domain_shape, 2), draw(A.range_shape, 2, seed=1)
    here = InverseProblem(A, y, Gaussian(1.0), W)
    there = InverseProblem(A, y.cuda(), Gaussian(1.0), W.cuda())
    close(there.prox(center.cuda(), 0.7, 400, 1e-12).cpu(), here.prox(center, 0.7, 400, 1e-12), 1e-9)
    pairs = zip(
        there.functions_of_normal(center.cuda(), FUNCTIONS),
        here.functions_of_normal(center, FUNCTIONS),
        strict=True,
    )
    for got, wanted in pairs:
        close(got.cpu(), wanted, 1e-7)
    assert A.norm(like=y.cuda()) == pytest.approx(A.norm(like=y), rel=1e-9)
