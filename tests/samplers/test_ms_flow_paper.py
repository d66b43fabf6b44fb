"""The paper's alternation against what linear algebra says its fixed points are."""

import math

import pytest
import torch

from ctflow.errors import ProtocolError
from ctflow.problem import InverseProblem
from ctflow.samplers import MSFlowPaper
from ctflow.samplers.ms_flow_paper import flow
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior, white_prior

SIGMA = 0.05


def euler(method: MSFlowPaper, values: torch.Tensor) -> list[torch.Tensor]:
    """What the Euler step of each segment multiplies a deviation from t m by, for every eigenvalue of S."""
    K = method.segments
    times = [k / K for k in range(K)]
    return [1 + (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2) / K for t in times]


def response(method: MSFlowPaper, values: torch.Tensor) -> torch.Tensor:
    """x_K - m per unit of the multiplier: the covariance under which the fixed point is the MAP.

    With multipliers p_k = γ e_k, γ = K, rest means p_{k-1} = p_k and λ x_0 = p_0, since Jacobians count as 1.
    """
    x = torch.ones_like(values) / method.regularisation
    for step in euler(method, values):
        x = step * x + 1 / method.segments
    return x


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.flatten() - y.flatten()).norm() / y.norm())


@pytest.mark.parametrize("segments", [2, 3, 5])
def test_fixed_point_is_the_predicted_biased_map(segments):
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    method = MSFlowPaper(segments, 300, regularisation=2.0, regulariser="gaussian")
    covariance = vectors @ torch.diag(response(method, values)) @ vectors.T
    predicted, _ = posterior(matrix, problem.y, SIGMA, covariance, prior.mean)
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert distance(solve(problem, method, prior).mean, predicted) < 1e-3


def test_it_comes_to_rest():
    """Its hundredth alternation moves the image by less than a thousandth of the way of all of them."""
    problem, _ = random_problem(sigma=SIGMA)
    prior, *_ = stationary_prior()
    seen = []
    solve(problem, MSFlowPaper(), prior, watch=lambda _, x: seen.append(x))
    assert distance(seen[-2], seen[-1]) < 1e-3 * distance(seen[0], seen[-1])


def test_one_batch_is_the_flow_of_single_steps():
    prior, *_ = stationary_prior()
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = flow(prior, list(x), [0.0, 0.3, 0.6, 1.0])
    for start, reached, t, u in zip(x, found, (0.0, 0.3, 0.6), (0.3, 0.6, 1.0), strict=False):
        torch.testing.assert_close(reached, start + (u - t) * prior.velocity(start, t))


def test_radial_noise_has_the_typical_length():
    """Without data the start noise rests where the regulariser is least; a white prior stretches it."""
    problem, _ = random_problem()
    nothing = InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))
    method = MSFlowPaper(3, 200)
    x = solve(nothing, method, white_prior(0.4, 0.0)).mean
    stretch = math.prod(float(e) for e in euler(method, torch.tensor(0.4, dtype=torch.float64)))
    assert float(x.norm()) == pytest.approx(stretch * math.sqrt(x.numel() - 1), rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"iterations": 0}, "iterations"),
        ({"segments": -1}, "segments"),
        ({"regulariser": "cubic"}, "radial"),
        ({"regularisation": 0.0}, "regularisation"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ProtocolError, match=said):
        MSFlowPaper(**wrong)
