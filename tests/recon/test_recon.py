"""Iterative methods against closed forms: least squares, shrinkage of total variation, ASTRA's SIRT."""

import astra
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from ctflow.datasets.phantoms import disc, thorax
from ctflow.errors import ProtocolError, UsageError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Convolution, Downsample, Mask, Radon
from ctflow.problem import InverseProblem, simulate
from ctflow.recon import CGLS, SIRT, TV
from ctflow.recon.tv import gradient, gradient_adjoint
from ctflow.solving import solve
from ctflow.units import MU_WATER
from tests.dense import Dense, random_problem


def positive_problem(rows=50, side=5, seed=0):
    """Non-negative weights and uneven noise, overdetermined and consistent with no x >= 0; float64."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(rows, side**2, generator=generator, dtype=torch.float64).square()
    y = matrix @ torch.rand(side**2, generator=generator, dtype=torch.float64)
    y += 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    W = 0.5 + torch.rand(rows, generator=generator, dtype=torch.float64)
    return InverseProblem(Dense(matrix, side), y[None, None], Gaussian(1.0), W[None, None]), matrix


def in_float32(problem):
    # The operator's norm is found in float32.
    A = Dense(problem.A.matrix.float(), problem.A.domain_shape[-1])
    return InverseProblem(A, problem.y.float(), problem.noise, problem.W.float())


def ct_problem(views=40, batch=()):
    A = Radon(VolumeGeometry((1, 64, 64), (3.0, 6.0, 6.0)), ParallelBeam(views))
    x = thorax().rasterise(A.volume).data
    return simulate(A, x.expand(*batch, *x.shape), Poisson(1e5)), x


def test_cgls_ends_in_weighted_least_squares():
    problem, matrix = positive_problem()
    w, y = problem.W.flatten(), problem.y.flatten()
    exact = torch.linalg.solve(matrix.T @ (w[:, None] * matrix), matrix.T @ (w * y))
    # As many steps as unknowns, and some for rounding.
    found = solve(problem, CGLS(60)).mean.flatten()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_cgls_reaches_the_middle_of_a_body_that_lets_few_photons_through():
    """Behind 400 mm of water 2000 times fewer photons are left than beside it."""
    grid = VolumeGeometry((1, 64, 64), (8.0, 8.0, 8.0))
    x = disc(200.0).rasterise(grid).data
    problem = simulate(Radon(grid, ParallelBeam(40)), x, Poisson(1e6))
    middle = solve(problem, CGLS(10)).mean[..., 28:36, 28:36].mean()
    assert float(middle) == pytest.approx(MU_WATER, rel=0.03)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_cgls_is_the_least_misfit_in_its_krylov_space(steps):
    problem, matrix = positive_problem()
    w, y = problem.W.flatten(), problem.y.flatten()
    normal = matrix.T @ (w[:, None] * matrix)
    scale = 1 / normal.sum(1)
    powers = [scale * (matrix.T @ (w * y))]
    for _ in range(steps - 1):
        powers.append(scale * (normal @ powers[-1]))
    basis = torch.linalg.qr(torch.stack(powers, 1)).Q
    root = w.sqrt()
    exact = basis @ torch.linalg.lstsq(root[:, None] * matrix @ basis, (root * y)[:, None]).solution[:, 0]
    found = solve(problem, CGLS(steps)).mean.flatten()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_cgls_of_a_difference_ends_as_the_normal_equations_say():
    """Rows of AᵀWA whose sum is zero give no scale."""
    generator = torch.Generator().manual_seed(0)
    A = Convolution((1, 6, 6), [[0.0, -1.0, 1.2]])
    y = A(torch.randn(1, 6, 6, generator=generator))
    problem = InverseProblem(A, y, Gaussian(1.0))
    assert float(problem.residual(solve(problem, CGLS(60)).mean)) < 1e-6


def test_cgls_solves_each_problem_of_a_batch_by_its_own_scale():
    problem, _ = ct_problem(batch=(2,))
    weights = torch.stack([1e-12 * problem.W[0], problem.W[1]])
    both = solve(InverseProblem(problem.A, problem.y, problem.noise, weights), CGLS(4)).mean
    torch.testing.assert_close(both, solve(problem, CGLS(4)).mean, atol=1e-5, rtol=0)


def test_cgls_stops_moving_when_it_is_done():
    problem, _ = random_problem(side=3, rows=12)
    torch.testing.assert_close(solve(problem, CGLS(2000)).x, solve(problem, CGLS(40)).x)


def test_sirt_never_increases_its_norm_and_ends_in_its_least_squares():
    problem, matrix = positive_problem()
    w, y = problem.W.flatten() / matrix.sum(1), problem.y.flatten()
    found = [solve(problem, SIRT(k, positivity=False)).mean.flatten() for k in (1, 2, 5, 10, 100, 4000)]
    misfit = [float((w * (matrix @ x - y) ** 2).sum()) for x in found]
    assert misfit == sorted(misfit, reverse=True)
    exact = torch.linalg.solve(matrix.T @ (w[:, None] * matrix), matrix.T @ (w * y))
    # The slowest of 25 eigendirections after 4000 steps.
    torch.testing.assert_close(found[-1], exact, rtol=1e-3, atol=1e-4)


def test_positive_sirt_ends_in_non_negative_least_squares():
    problem, matrix = positive_problem()
    root = (problem.W.flatten() / matrix.sum(1)).sqrt()
    exact, _ = nnls((root[:, None] * matrix).numpy(), (root * problem.y.flatten()).numpy())
    assert (exact == 0).any()  # otherwise the constraint would not be tried
    found = solve(problem, SIRT(4000)).mean.flatten()
    torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-3, atol=1e-4)


def test_sirt_is_astras_where_all_data_weigh_the_same():
    A = Radon(VolumeGeometry((1, 48, 48), (3.0, 2.0, 2.0)), ParallelBeam(20))
    y = A(disc(35.0).rasterise(A.volume).data)
    rays = astra.create_proj_geom("parallel", A.beam.pitch / 2.0, A.beam.bins, np.asarray(A.beam.views))
    grid = astra.create_vol_geom(48, 48)
    projector = astra.create_projector("linear", rays, grid)
    data, image = astra.data2d.create("-sino", rays, y[0].numpy()), astra.data2d.create("-vol", grid)
    table = {"ProjectorId": projector, "ProjectionDataId": data, "ReconstructionDataId": image}
    algorithm = astra.algorithm.create({"type": "SIRT", **table})
    astra.algorithm.run(algorithm, 30)
    theirs = torch.from_numpy(astra.data2d.get(image)) / 2.0  # per pixel of 2 mm
    astra.clear()
    ours = solve(InverseProblem(A, y, Gaussian(0.1)), SIRT(30, positivity=False)).mean[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.max()))  # float32


def test_sirt_refuses_negative_sums():
    A = -1.0 * Mask((1, 8, 8))
    with pytest.raises(UsageError, match="negative"):
        solve(InverseProblem(A, torch.zeros(A.range_shape), Gaussian(1.0)), SIRT(2))


def test_tv_shrinks_a_square_by_strength_times_perimeter_over_area():
    # Two halves stay constant: each moves by strength · length of the edge · sigma² / area of the half.
    image = torch.full((1, 16, 16), 1.0, dtype=torch.float64)
    image[..., 8:] = 3.0
    problem = InverseProblem(Mask((1, 16, 16), missing=0.0), image, Gaussian(0.5))
    found = solve(problem, TV(strength=4.0, iterations=2000, gap=0)).mean
    shift = 4.0 * 16 / (16 * 8) * 0.25
    exact = image + shift * (2.0 - image)
    # What 2000 steps leave; measured below 1e-6.
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_tv_below_a_maximum_takes_off_what_the_edge_would():
    """The bright half stands at the maximum, so that the edge pulls the dark one alone."""
    image = torch.full((1, 16, 16), 1.0, dtype=torch.float64)
    image[..., 8:] = 3.0
    problem = InverseProblem(Mask((1, 16, 16), missing=0.0), image, Gaussian(0.5))
    found = solve(problem, TV(strength=4.0, iterations=2000, gap=0, maximum=2.0)).mean
    exact = torch.full_like(image, 1.0 + 4.0 * 16 / (16 * 8) * 0.25)
    exact[..., 8:] = 2.0
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_strong_tv_leaves_the_mean():
    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = InverseProblem(Mask((1, 12, 12), missing=0.0), image, Gaussian(1.0))
    found = solve(problem, TV(strength=100.0, iterations=2000, gap=0)).mean
    # What 2000 steps leave of a standard deviation of 0.29.
    torch.testing.assert_close(found, torch.full_like(image, float(image.mean())), rtol=0, atol=1e-3)


def test_tv_closes_the_duality_gap():
    """With p and q feasible, the dual value bounds the optimum from below: ½|r|²_W + λ TV(x) - dual -> 0."""
    problem = in_float32(positive_problem()[0])
    gap = {}
    for iterations in (30, 1000):
        x = solve(problem, TV(strength=0.5, iterations=iterations, gap=0)).mean
        primal = float(problem.data_fit(x)) + 0.5 * float(gradient(x).square().sum(0).sqrt().sum())
        gap[iterations] = (primal - _dual_bound(problem, 0.5, x)) / primal
    # Rounding, and what the search for q leaves: 0.1 %; weak duality forbids a negative gap.
    assert -1e-4 < gap[1000] < 2e-3 < gap[30]


@pytest.mark.parametrize("gap", [0.3, 0.01])
def test_tv_ends_at_its_gap(gap):
    problem, seen = in_float32(positive_problem()[0]), []
    method = TV(strength=0.5, gap=gap)
    x = solve(problem, method, callback=lambda step, steps: seen.append(step)).mean
    primal = float(problem.data_fit(x)) + 0.5 * float(gradient(x).square().sum(0).sqrt().sum())
    # The bound here looks for the best duals, but allows solutions of twice the brightness.
    assert (primal - _dual_bound(problem, 0.5, x)) / primal <= gap + 2e-3
    assert seen[-1] < method.iterations


def _dual_bound(problem, strength, x):
    """Dual value at p = W (A x - y), with the best q that projected gradient steps find, in float64."""
    p = problem.W * (problem.A(x) - problem.y)
    target = problem.A.T(p).double()  # feasible: target + ∇ᵀq >= 0 (since x >= 0) and |q| <= strength
    slope = gradient(x.double())
    q = strength * slope / slope.square().sum(0).sqrt().clamp_min(1e-6)
    for _ in range(5000):
        q = q - gradient((target + gradient_adjoint(q)).clamp_max(0)) / 8
        q = q / (q.square().sum(0).sqrt() / strength).clamp_min(1)
    short = (target + gradient_adjoint(q)).clamp_max(0)
    # What is still infeasible costs at most its sum times the largest pixel of any solution: twice that of x.
    return float(-(p.square() / problem.W / 2 + p * problem.y).sum() + 2 * x.max() * short.sum())


def test_gradient_is_matched():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 9, generator=generator, dtype=torch.float64)
    q = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    assert float((gradient(x) * q).sum()) == pytest.approx(float((x * gradient_adjoint(q)).sum()))


@pytest.mark.parametrize("method", [CGLS(5), SIRT(5), TV(100.0, 5)])
def test_batch_is_loop(method):
    problem, _ = ct_problem(batch=(2, 1))
    y = problem.y * torch.tensor([1.0, 0.3]).reshape(2, 1, 1, 1, 1)
    problem = InverseProblem(problem.A, y, problem.noise)
    batch = solve(problem, method).mean
    for k in range(2):
        one = solve(InverseProblem(problem.A, problem.y[k, 0], problem.noise), method).mean
        # Float32 sums in another order.
        torch.testing.assert_close(batch[k, 0], one, rtol=0, atol=1e-4 * float(one.max()))


def test_iterations_beat_few_views():
    problem, x = ct_problem(views=20)
    errors = [float((solve(problem, method).mean - x).norm()) for method in (CGLS(8), SIRT(100), TV())]
    assert errors[2] < 0.7 * min(errors[:2])


@pytest.mark.parametrize("method", [CGLS(50), SIRT(100), TV(0.01, 300)])
def test_other_operators_are_solved(method):
    A = Downsample((1, 32, 32), factor=2, method="bicubic")
    x = disc(10.0, 1.0).rasterise(VolumeGeometry((1, 32, 32), (1.0, 1.0, 1.0))).data
    found = solve(InverseProblem(A, A(x), Gaussian(0.01)), method)
    assert found.stats["residual"] < 1.5  # 1 is the noise that was declared; the data have none
    assert float((found.mean - x).norm() / x.norm()) < 0.25


def test_methods_report_every_step():
    seen = []
    problem = in_float32(random_problem()[0])
    for method in (CGLS(3), TV(1.0, 3)):
        solve(problem, method, callback=lambda step, steps: seen.append((step, steps)))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_strength_must_be_positive():
    with pytest.raises(ProtocolError, match="positive"):
        TV(strength=0.0)
    with pytest.raises(ProtocolError, match="gap"):
        TV(gap=-0.1)
    with pytest.raises(ProtocolError, match="maximum 0"):
        TV(maximum=0.0)


def test_gradients_along_z_are_transposed_too():
    x, q = torch.rand(2, 4, 5, 6, dtype=torch.float64), torch.rand(3, 2, 4, 5, 6, dtype=torch.float64)
    left = float((gradient(x, 0.3) * q).sum())
    assert left == pytest.approx(float((x * gradient_adjoint(q, 0.3)).sum()))


def test_tv_along_z_of_columns_is_tv_along_y():
    """A volume that is constant in x, solved upright and lying: y and z change places."""
    noisy = torch.rand(6, 6, 1, generator=torch.Generator().manual_seed(0)).expand(6, 6, 6).contiguous()
    upright = denoised_by_tv(noisy, TV(strength=0.2, along_z=1.0, gap=0, iterations=3000))
    lying = denoised_by_tv(
        noisy.transpose(0, 1).contiguous(), TV(strength=0.2, along_z=1.0, gap=0, iterations=3000)
    )
    torch.testing.assert_close(upright, lying.transpose(0, 1), rtol=0, atol=1e-5)
    # Slices by themselves are another image.
    apart = denoised_by_tv(noisy, TV(strength=0.2, gap=0, iterations=3000))
    assert float((apart - upright).abs().max()) > 0.02


def denoised_by_tv(noisy, method):
    problem = InverseProblem(Mask(tuple(noisy.shape), missing=0.0), noisy, Gaussian(1.0))
    return method(problem, None, torch.Generator(), lambda step, steps: None)
