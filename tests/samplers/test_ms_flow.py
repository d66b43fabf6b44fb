"""MS-Flow against what linear algebra says its fixed points are."""

import pytest
import torch

from ctflow.errors import ProtocolError
from ctflow.priors import MixturePrior
from ctflow.problem import InverseProblem
from ctflow.samplers import MSFlow
from ctflow.samplers._start import tikhonov
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior

SIGMA = 0.05
LEVEL = 0.4


def at_one_level(trust: float) -> MSFlow:
    return MSFlow(1, 400, trust, first_noise=LEVEL, last_noise=LEVEL, prox_iterations=80)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.flatten() - y.flatten()).norm() / y.norm())


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_rest_at_one_level_is_the_map_under_a_scaled_covariance(ratio):
    """V / σ² times the prior's: at a ratio of 1 the exact posterior mean of a Gaussian."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    trust = ratio * LEVEL**2 / prior.residual_variance(1 / (1 + LEVEL))
    covariance = ratio * vectors @ torch.diag(values) @ vectors.T
    exact, _ = posterior(matrix, problem.y, SIGMA, covariance, prior.mean)
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert distance(solve(problem, at_one_level(trust), prior).mean, exact) < 1e-3


def test_without_data_no_noise_is_carried_on():
    """Every state is the denoised one before: the flow's own shrinking, level by level."""
    problem, _ = random_problem(sigma=SIGMA)
    nothing = InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))
    prior, *_ = stationary_prior()
    seen = []
    solve(nothing, MSFlow(6, 1), prior, watch=lambda _, x: seen.append((x[0] - prior.shift) / prior.scale))
    ratio = 0.06 ** (1 / 5)
    state = tikhonov(nothing.rescaled(prior.scale, prior.shift), prior, 60)
    for k, end_point in enumerate(seen):
        t = 1 / (1 + ratio**k)
        denoised = prior.denoise(t * state, t)
        torch.testing.assert_close(end_point, denoised - ratio * (state - denoised))  # σ_{k+1} z_k
        state = denoised


def test_mixture_posterior_mode_is_found():
    problem, matrix = random_problem(side=4, rows=8, sigma=0.1, seed=3)
    truth = torch.linalg.lstsq(matrix, problem.y.flatten()[:, None]).solution.reshape(1, 4, 4)
    means = torch.stack([truth, -truth, truth.flip(-1)])
    prior = MixturePrior(means, torch.full((3,), 0.05, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    x = solve(problem, MSFlow(), prior).mean
    exact, _ = posterior(
        matrix, problem.y, 0.1, 0.05 * torch.eye(16, dtype=torch.float64), means[0].flatten()
    )
    # The component's standard deviation; what a falling level leaves is below it.
    assert float((x.flatten() - exact).square().mean().sqrt()) < 0.05**0.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"states": 0}, "states"),
        ({"sweeps": -1}, "sweeps"),
        ({"trust": 0.0}, "trust"),
        ({"last_noise": 2.0}, "last_noise <= first_noise"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ProtocolError, match=said):
        MSFlow(**wrong)
