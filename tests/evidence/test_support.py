"""Support, residual and whiteness against dense linear algebra and the laws of noise."""

import math

import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import thorax
from ctflow.errors import GeometryError, UsageError
from ctflow.evidence.support import determined, split, support_map
from ctflow.evidence.whiteness import residual, whiteness
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Radon
from ctflow.operators.mask import Mask
from ctflow.problem import InverseProblem, simulate
from ctflow.units import MU_WATER

GRID = VolumeGeometry((1, 16, 16), (1.0, 8.0, 8.0))
BIG = VolumeGeometry((1, 64, 64), (1.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def few_views():
    """A parallel beam of 6 views on 16² pixels, and its matrix."""
    A = Radon(GRID, ParallelBeam(6))
    basis = torch.eye(256).reshape(256, 1, 16, 16)
    return A, A(basis).reshape(256, -1).T.double()


def test_the_split_is_the_pseudo_inverses(few_views):
    A, matrix = few_views
    image = thorax(0).rasterise(GRID).data
    _, values, modes = torch.linalg.svd(matrix, full_matrices=False)
    modes = modes[values > 1e-3 * values.max()]
    measured = (modes.T @ (modes @ image.double().flatten())).reshape(1, 16, 16) * 1000 / MU_WATER
    found = split(A, image)
    # Singular values between the damping and rounding are given up in part.
    assert float((found.measured - measured).norm() / measured.norm()) < 5e-3
    total = 1000 / MU_WATER * image
    assert torch.allclose(found.measured + found.filled, total, atol=1e-2)  # HU in float32
    expected = float(((total - measured) ** 2).sum() / (total.double() ** 2).sum())
    assert float(found.filled_share) == pytest.approx(expected, rel=0.02)


def test_a_mask_supports_what_it_shows():
    """Seen pixels: 1 / (1 + sigma² / prior²); unseen: 0. Exact, since the normal operator is diagonal."""
    A = Mask((1, 16, 16), missing=0.4)
    seen = A.mask.float()
    problem = simulate(A, torch.ones(1, 16, 16), Gaussian(0.5))
    assert torch.allclose(support_map(problem, 1.0, probes=1), seen / 1.25, atol=1e-5)
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(determined(problem, x, 1.0), seen * x / 1.25, atol=1e-5)
    with pytest.raises(UsageError):
        determined(problem, x, 0.0)


def test_the_support_map_is_one_minus_the_posteriors_share_of_variance(few_views):
    A, matrix = few_views
    problem = simulate(A, thorax(0).rasterise(GRID), Gaussian(0.05))
    prior_sd = 0.3 * MU_WATER
    precision = matrix.T @ matrix / 0.05**2 + torch.eye(256) / prior_sd**2
    posterior = torch.linalg.inv(precision).diagonal().reshape(1, 16, 16)
    expected = 1 - posterior / prior_sd**2
    found = support_map(problem, prior_sd, probes=64)
    error = (found - expected).numpy()
    # Bekas et al.: the variance of a voxel is 2 Σ_{j≠i} S_ij² / probes, at most ¼ · 2 / 64; tails of five.
    assert np.abs(error).max() < 5 * math.sqrt(0.5 / 64)
    assert abs(error.mean()) < 5 * math.sqrt(0.5 / 64 / 256)
    assert float(expected.min()) < 0.5 * float(expected.max())  # the map is not flat, so it could be wrong


def measured(noise, seed=0):
    truth = thorax(0).rasterise(BIG)
    return simulate(Radon(BIG, ParallelBeam(60)), truth, noise, seed), truth.data


@pytest.mark.parametrize("noise", [Gaussian(0.02), Poisson(2e5)])
def test_the_true_image_leaves_chi_square_and_white_noise(noise):
    problem, truth = measured(noise)
    found = residual(problem, truth)
    assert found.standard_error == pytest.approx(math.sqrt(2 / problem.y.numel()))
    assert abs(found.z) < 4  # four standard errors
    white = whiteness(problem, truth)
    # 60 views at 5 %: binomial with standard deviation 2.8 %; four of them.
    assert white.rejected < 0.05 + 4 * 0.028
    assert np.abs(white.autocorrelation).max() < 4 / math.sqrt(problem.y.numel())


def test_noise_that_is_taken_for_larger_shows():
    problem, truth = measured(Gaussian(0.02))
    wrong = InverseProblem(problem.A, problem.y, Gaussian(0.02 * 1.1))
    assert residual(wrong, truth).mean == pytest.approx(1 / 1.21, rel=0.05)
    assert residual(wrong, truth).z < -5


def test_structure_left_in_the_data_shows():
    problem, truth = measured(Gaussian(0.02))
    blurred = torch.nn.functional.avg_pool2d(truth, 5, 1, 2)
    assert residual(problem, blurred).z > 5
    assert whiteness(problem, blurred).rejected > 0.5


def test_data_without_weight_are_no_data():
    """Half of the views count for nothing: the rest has its own mean, and silent views no autocorrelation."""
    problem, truth = measured(Gaussian(0.02))
    W = problem.W.expand_as(problem.y).clone()
    W[:, ::2] = 0
    y = problem.y.clone()
    y[:, ::2] = 1e3
    half = InverseProblem(problem.A, y, Gaussian(0.02), W)
    found = residual(half, truth)
    assert found.standard_error == pytest.approx(math.sqrt(4 / problem.y.numel()))
    assert abs(found.z) < 4
    white = whiteness(half, truth)
    assert len(white.p) == 30
    assert np.isfinite(white.statistic).all()


def test_the_split_of_a_batch_is_that_of_each(few_views):
    A, _ = few_views
    images = torch.stack([thorax(seed).rasterise(GRID).data for seed in (0, 1)])
    both = split(A, images).filled_share
    assert both.shape == (2,)
    each = [float(split(A, image).filled_share) for image in images]
    assert both.tolist() == pytest.approx(each, rel=1e-3)  # conjugate gradients, float32
    assert abs(each[0] - each[1]) > 0.01 * each[0]


def test_ljung_box_is_statsmodels():
    diagnostic = pytest.importorskip("statsmodels.stats.diagnostic", reason="statsmodels is the peer")
    problem, truth = measured(Gaussian(0.02))
    found = whiteness(problem, truth, lags=7)
    noise = (problem.W.sqrt() * (problem.A(truth) - problem.y))[0].double().numpy()
    for view in (0, 17, 59):
        # Its mean is taken away first, as ours.
        expected = diagnostic.acorr_ljungbox(noise[view] - noise[view].mean(), lags=[7])
        assert found.statistic[view] == pytest.approx(float(expected["lb_stat"].iloc[0]), rel=1e-5)
        assert found.p[view] == pytest.approx(float(expected["lb_pvalue"].iloc[0]), rel=1e-5)
    with pytest.raises(GeometryError):
        whiteness(problem, truth, lags=500)
