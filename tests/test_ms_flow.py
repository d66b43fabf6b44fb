"""MS-Flow against what linear algebra says its fixed points are."""

import pytest
import torch

from ctflow.errors import ProtocolError
from ctflow.priors import GaussianPrior
from ctflow.samplers import MSFlow
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior

SIGMA = 0.05


def implied_covariance(values: torch.Tensor, method: MSFlow, rho: list[float]) -> torch.Tensor:
    """Covariance, per eigenvalue S, under which the fixed point of the chain is the maximum a posteriori.

    With multipliers q_k = γ e_k, stationarity reads q_{k-1} = ρ_k q_k and λ x_0 = ρ_0 q_0, and the Euler map
    of N(m, S) multiplies the deviation from t m by E_k = 1 + h (t S - (1 - t)) / (t² S + (1 - t)²).
    """
    K = method.segments
    stiffness = K / method.model_error**2
    multiplier = [1.0] * K
    for k in reversed(range(K - 1)):
        multiplier[k] = rho[k + 1] * multiplier[k + 1]
    state = torch.full_like(values, rho[0] * multiplier[0] / method.regularisation)
    for k in range(K):
        t = k / K
        euler = 1 + (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2) / K
        state = euler * state + multiplier[k] / stiffness
    return state


@pytest.mark.parametrize("jacobian", ["identity", "scaled"])
@pytest.mark.parametrize("segments", [2, 5])
def test_fixed_point_is_the_predicted_biased_map(jacobian, segments):
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    method = MSFlow(segments, 150, damping=0.9, decay=0.0, jacobian=jacobian, prox_iterations=80)
    x = solve(problem, method, prior).mean.flatten()

    times = [k / segments for k in range(segments + 1)]
    covariance = (
        vectors @ torch.diag(implied_covariance(values, method, method._jacobians(times, prior))) @ vectors.T
    )
    predicted, _ = posterior(matrix, problem.y, SIGMA, covariance, prior.mean)
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert (x - predicted).norm() < 1e-3 * predicted.norm()


def test_scaled_jacobian_is_the_exact_map_for_a_white_prior():
    problem, matrix = random_problem(sigma=SIGMA)
    variance = 0.4
    prior = GaussianPrior(torch.full((8,), variance), 0.2)
    prior.scale, prior.shift = 1.0, 0.0
    errors = []
    for segments in (8, 16, 32):
        method = MSFlow(
            segments,
            100,
            regularisation=1.0,
            damping=0.9,
            decay=0.0,
            model_error=1e-3,
            jacobian="scaled",
            prox_iterations=80,
        )
        x = solve(problem, method, prior).mean.flatten()
        covariance = variance * torch.eye(36, dtype=torch.float64)
        exact, _ = posterior(matrix, problem.y, SIGMA, covariance, prior.mean)
        errors.append(float((x - exact).norm() / exact.norm()))
    # Euler's first order: halving the step halves the error, to within the next order.
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]
    assert errors[2] < 0.02


def test_network_evaluations_are_counted_exactly():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    solution = solve(problem, MSFlow(segments=4, iterations=7, start_steps=5), prior)
    assert solution.stats["network"] == 5 + 7 * 3  # at t = 0 the velocity is known
    assert solution.stats["backward"] == 0


def test_a_batch_gives_what_its_samples_give_alone():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    method = MSFlow()
    times = [k / method.segments for k in range(method.segments + 1)]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(3, 1, 6, 6, generator=generator).double() for _ in times]
    together = method._solve_chain(problem.samples(3), prior, times, [1.0] * 4, states)
    for sample in range(3):
        alone = method._solve_chain(problem, prior, times, [1.0] * 4, [x[sample] for x in states])
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[sample], single, rtol=1e-9, atol=1e-9)


def test_seed_fixes_every_pixel():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    first, second, other = (solve(problem, MSFlow(iterations=3), prior, seed=s).x for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_impossible_numbers_are_refused():
    with pytest.raises(ProtocolError, match="identity"):
        MSFlow(jacobian="exact")
    with pytest.raises(ProtocolError, match="positive"):
        MSFlow(iterations=0)
