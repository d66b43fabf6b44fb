"""Samples of moment matching are draws of the posterior where it has a closed form."""

import pytest
import torch

from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.linalg import cg
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.priors import FlowPrior, GaussianPrior, MixturePrior
from ctflow.problem import InverseProblem
from ctflow.samplers import MomentMatching
from ctflow.samplers.moment_matching import _local_variance
from ctflow.solving import solve
from tests.dense import posterior, stationary_prior

SIDE, VIEWS, SAMPLES, SIGMA = 12, 5, 600, 0.2


@pytest.fixture(scope="module")
def ct():
    """A parallel beam of few views, and its matrix."""
    A = Radon(VolumeGeometry((1, SIDE, SIDE), (1.0, 1.0, 1.0)), ParallelBeam(VIEWS), backend="matrix")
    basis = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, *A.domain_shape)
    return A, A(basis).flatten(1).T


def measured(A, image, seed):
    clean = A(image)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return InverseProblem(A, clean + SIGMA * noise, Gaussian(SIGMA))


def compared(problem, prior, method, mean, variance):
    """SD of the samples over the posterior's, and how far their mean is off in its SDs, rms over pixels."""
    x = solve(problem, method, prior, samples=SAMPLES).x.flatten(1)
    ratio = float((x.var(0).mean() / variance.mean()).sqrt())
    distance = float(((x.mean(0) - mean).square().mean() / variance.mean()).sqrt())
    print(f"SD ratio {ratio:.3f}, mean off by {distance:.3f} SD")
    return ratio, distance


@pytest.mark.parametrize("steps", [4, 16])
def test_gaussian_posterior_of_ct(ct, steps):
    """However few the levels: at 4 as at 16."""
    A, matrix = ct
    prior, values, vectors = stationary_prior(SIDE)
    white = torch.randn(SIDE**2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = 0.3 + (vectors * values.clamp_min(0).sqrt()) @ white
    problem = measured(A, truth.reshape(A.domain_shape), 2)
    mean, covariance = posterior(matrix, problem.y, SIGMA, (vectors * values) @ vectors.T, 0.3)
    method = MomentMatching(steps=steps, first_noise=20.0, last_noise=0.02, iterations=80)
    ratio, distance = compared(problem, prior, method, mean, covariance.diagonal())
    assert 0.95 < ratio < 1.05
    # The mean of n exact draws is off by 1 / √n = 0.04; the local variances are estimates, hence the rest.
    assert distance < 0.1


def test_mixture_posterior_of_ct(ct):
    """Two components fit the data: the draws are of both, in their proportions."""
    A, matrix = ct
    generator = torch.Generator().manual_seed(5)
    means = 0.1 * torch.randn(2, *A.domain_shape, generator=generator, dtype=torch.float64)
    variances = torch.tensor([0.1, 0.15], dtype=torch.float64)
    prior = MixturePrior(means, variances)
    prior.scale, prior.shift = 1.0, 0.0
    fresh = torch.randn(A.domain_shape, generator=generator, dtype=torch.float64)
    problem = measured(A, means.mean(0) + 0.12**0.5 * fresh, 5)
    moments, evidence = [], []
    for m, v in zip(means, variances, strict=True):
        S = v * matrix @ matrix.T + SIGMA**2 * torch.eye(len(matrix), dtype=torch.float64)
        misfit = problem.y.flatten() - matrix @ m.flatten()
        evidence.append(-0.5 * misfit @ torch.linalg.solve(S, misfit) - 0.5 * torch.logdet(S))
        covariance = v * torch.eye(SIDE**2, dtype=torch.float64)
        moments.append(posterior(matrix, problem.y, SIGMA, covariance, m.flatten()))
    shares = torch.stack(evidence).softmax(0)
    print("shares", shares)
    assert shares.min() > 0.1  # else it is a Gaussian
    mean = sum(p * m for p, (m, _) in zip(shares, moments, strict=True))
    variance = sum(p * (C.diagonal() + (m - mean) ** 2) for p, (m, C) in zip(shares, moments, strict=True))
    method = MomentMatching(steps=40, first_noise=20.0, last_noise=0.02, iterations=80)
    ratio, distance = compared(problem, prior, method, mean, variance)
    assert 0.95 < ratio < 1.05
    assert distance < 0.1


def test_local_variance_is_tweedies():
    """Its mean is the error's variance, which is the same everywhere for stationary images."""
    prior = GaussianPrior.example()
    generator = torch.Generator().manual_seed(0)
    for t in (0.1, 0.5, 0.95):
        u = torch.randn(64, 1, 64, 64, generator=generator, dtype=torch.float64)
        found = _local_variance(prior, u, prior.denoise(t * u, t), t, generator)
        assert float(found.mean()) == pytest.approx(prior.residual_variance(t), rel=0.05)


def test_error_spectrum_has_mean_one():
    for prior in (GaussianPrior.example(), FlowPrior.load("ct-256"), MixturePrior.example()):
        for columns in (24, 25):
            white = torch.randn(20, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            gain = prior.error_spectrum(0.6, 20, columns).sqrt()
            # The energy of an impulse through the filter is the mean of its squared gain.
            impulse = torch.zeros_like(white)
            impulse[3, 4] = 1.0
            energy = float(torch.fft.irfft2(torch.fft.rfft2(impulse) * gain, s=impulse.shape).square().sum())
            assert energy == pytest.approx(1.0, rel=1e-9)


def test_preconditioner_saves_steps_and_not_the_solution():
    scales = torch.logspace(0, 6, 200, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)).double())[0]
    near = rotation @ torch.diag(1.05 * scales) @ rotation.T
    b = torch.randn(3, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def A(x):
        return (x @ rotation * scales) @ rotation.T

    exact = (b @ rotation / scales) @ rotation.T
    inverse = torch.linalg.inv(near)
    x = cg(A, b, 1, 10, 1e-12, preconditioner=lambda r: r @ inverse)
    assert (x - exact).norm() / exact.norm() < 1e-6
    assert (cg(A, b, 1, 10, 1e-12) - exact).norm() / exact.norm() > 0.1
