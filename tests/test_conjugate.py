"""The conjugate integrator against closed-form posteriors and dense spectra."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ctflow.errors import ProtocolError
from ctflow.linalg import lanczos_function
from ctflow.priors import GaussianPrior, MixturePrior
from ctflow.samplers import ConjugateIntegrator
from ctflow.samplers.conjugate import _Decay
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior

SIGMA = 0.1


def white_prior(variance: float, mean: float) -> GaussianPrior:
    prior = GaussianPrior(torch.full((8,), variance), mean)
    prior.scale, prior.shift = 1.0, 0.0
    return prior


def test_samples_have_the_posterior_mean_and_covariance():
    # For a white Gaussian prior the guidance is exact, so fine steps must give exact posterior samples.
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    prior = white_prior(0.5, 0.2)
    method = ConjugateIntegrator(steps=80, start=0.02, jacobian=1.0, clip=1e9, lanczos=12, tolerance=1e-9)
    x = solve(problem, method, prior, samples=1500).x.flatten(1)
    mean, covariance = posterior(matrix, problem.y, SIGMA, 0.5 * torch.eye(16, dtype=torch.float64), 0.2)
    # Monte Carlo: 1500 samples of variance at most 0.5 leave 0.018 on a mean and 0.018 on a covariance entry
    # (one standard error); four of them are allowed.
    assert (x.mean(0) - mean).abs().max() < 0.07
    assert (torch.cov(x.T) - covariance).abs().max() < 0.07


def test_mixture_samples_find_the_right_component():
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA, seed=3)
    truth = torch.linalg.lstsq(matrix, problem.y.flatten()[:, None]).solution.reshape(1, 4, 4)
    means = torch.stack([truth, -truth, truth.flip(-1)])
    prior = MixturePrior(means, torch.full((3,), 0.05, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    x = solve(problem, ConjugateIntegrator(steps=20, lanczos=12), prior, samples=100).x
    nearest = ((x[:, None] - means) ** 2).flatten(2).sum(-1).argmin(1)
    # The others miss the data by more than 490 squared standard deviations: their posterior odds are nil.
    assert bool((nearest == 0).all())
    covariance = 0.05 * torch.eye(16, dtype=torch.float64)
    mean, _ = posterior(matrix, problem.y, SIGMA, covariance, means[0].flatten())
    # 100 samples of standard deviation 0.22 leave 0.022 on a mean: four standard errors.
    assert (x.flatten(1).mean(0) - mean).abs().max() < 0.09


def test_no_guidance_is_the_unconditional_flow():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    method = ConjugateIntegrator(steps=4, start=0.3, guidance=0.0)
    guided = solve(problem, method, prior, seed=2).mean
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    image = problem.prox(
        torch.zeros(1, 6, 6, dtype=torch.float64) + prior.mean, prior.residual_variance(0.0), 24
    )
    x = 0.3 * image + 0.7 * noise[0]
    grid = np.linspace(0.3, 1, 5).tolist()
    for t, u in pairwise(grid):
        x = x + (u - t) * prior.velocity(x, t)
    torch.testing.assert_close(guided, x, rtol=1e-9, atol=1e-9)


def test_step_functions_agree_with_adaptive_quadrature():
    prior = white_prior(0.3, 0.0)
    t, u, eigenvalue = 0.4, 0.7, 12.0
    decay = _Decay(prior, 1.5, t, u)

    def rate(s: float) -> float:
        return 1.5 * (1 - s) / s / (prior.residual_variance(s) * eigenvalue + 1)

    E = quad(rate, t, u)[0]
    G = quad(
        lambda s: (
            1.5 * (1 - s) ** 2 / (s * prior.residual_variance(s)) * np.exp(-eigenvalue * quad(rate, s, u)[0])
        ),
        t,
        u,
    )[0]
    value = torch.tensor([eigenvalue, 0.0], dtype=torch.float64)
    # Gauss-Legendre of 32 nodes on a smooth integrand: converged to rounding.
    assert decay.h(value)[0].item() == pytest.approx((1 - np.exp(-eigenvalue * E)) / eigenvalue, rel=1e-8)
    assert decay.G(value)[0].item() == pytest.approx(G, rel=1e-6)
    E0 = quad(lambda s: 1.5 * (1 - s) / s, t, u)[0]
    assert decay.h(value)[1].item() == pytest.approx(E0, rel=1e-8)  # the limit at λ = 0


def test_lanczos_equals_the_dense_function():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    dense = root.T @ root
    b = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    functions = [lambda v: torch.exp(-v / 10), lambda v: 1 / (v + 1)]
    values, vectors = torch.linalg.eigh(dense)
    results = lanczos_function(lambda x: x @ dense, b, functions, 1, 25, 0.0)
    for f, result in zip(functions, results, strict=True):
        exact = b @ vectors @ torch.diag(f(values.clamp_min(0))) @ vectors.T
        # 21 distinct eigenvalues: the Krylov space is complete after 21 steps.
        torch.testing.assert_close(result, exact, rtol=1e-8, atol=1e-8)


def test_cost_is_counted_exactly():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    stats = solve(problem, ConjugateIntegrator(steps=5), prior).stats
    assert (stats["network"], stats["backward"]) == (5, 5)
    stats = solve(problem, ConjugateIntegrator(steps=5, jacobian=0.0), prior).stats
    assert (stats["network"], stats["backward"]) == (5, 0)


def test_halving_the_step_halves_the_error():
    problem, _ = random_problem(sigma=SIGMA)
    prior = white_prior(0.5, 0.2)

    def run(steps: int) -> torch.Tensor:
        method = ConjugateIntegrator(steps, 0.3, jacobian=1.0, clip=1e9, lanczos=20, tolerance=1e-12)
        return solve(problem, method, prior).mean

    fine = run(256)
    errors = [float((run(steps) - fine).norm()) for steps in (8, 16, 32)]
    slopes = [np.log2(a / b) for a, b in pairwise(errors)]
    # First order; the next order still shows at 8 steps, and the reference is 8 times finer than the last.
    assert slopes == pytest.approx([1.0, 1.0], abs=0.3)


def test_seed_fixes_every_pixel():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    first, second, other = (solve(problem, ConjugateIntegrator(), prior, seed=s).x for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_impossible_numbers_are_refused():
    with pytest.raises(ProtocolError, match="start"):
        ConjugateIntegrator(start=1.0)
