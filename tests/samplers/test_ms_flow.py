"""MS-Flow against what linear algebra says its fixed points are."""

import math

import pytest
import torch
from scipy.optimize import brentq

from ctflow.errors import ProtocolError
from ctflow.noise import Gaussian
from ctflow.operators import Mask
from ctflow.priors import MixturePrior
from ctflow.problem import InverseProblem
from ctflow.samplers import MSFlow
from ctflow.samplers._trajectory import Latent, flow, solve_chain
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior, white_prior

SIGMA = 0.05
SETTLED = {"damping": 0.9, "prox_iterations": 80}
SWEEPS = {"update": "coordinate", "model_error": 1.0}


def euler(method: MSFlow, values: torch.Tensor) -> list[torch.Tensor]:
    """What the Euler steps of each segment multiply a deviation from t m by, for every eigenvalue of S."""
    K, m = method.segments, method.flow_steps
    times = [step / (K * m) for step in range(K * m)]
    factors = [1 + (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2) / (K * m) for t in times]
    return [torch.stack(factors[m * k : m * (k + 1)]).prod(0) for k in range(K)]


def response(method: MSFlow, values: torch.Tensor) -> torch.Tensor:
    """x_K - m per unit of the multiplier: the covariance under which the fixed point is the MAP.

    With multipliers p_k = γ e_k, rest means p_{k-1} = p_k and λ x_0 = p_0, since Jacobians count as 1.
    """
    x = torch.ones_like(values) / method.regularisation
    for step in euler(method, values):
        x = step * x + method.model_error**2 / method.segments
    return x


def in_pixels(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ torch.diag(values) @ vectors.T


def predicted(method: MSFlow, problem, matrix) -> torch.Tensor:
    prior, values, vectors = stationary_prior()
    covariance = in_pixels(response(method, values), vectors)
    return posterior(matrix, problem.y, SIGMA, covariance, prior.mean)[0]


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.flatten() - y.flatten()).norm() / y.norm())


@pytest.mark.parametrize(("segments", "flow_steps"), [(2, 1), (5, 1), (3, 4)])
@pytest.mark.parametrize("start_steps", [0, 3])
def test_fixed_point_is_the_predicted_biased_map(segments, flow_steps, start_steps):
    problem, matrix = random_problem(sigma=SIGMA)
    method = MSFlow(segments, 400, start_steps, flow_steps=flow_steps, **SETTLED)
    x = solve(problem, method, stationary_prior()[0]).mean
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert distance(x, predicted(method, problem, matrix)) < 1e-3


def test_the_papers_alternation_has_the_same_fixed_point():
    problem, matrix = random_problem(sigma=SIGMA)
    method = MSFlow(3, 300, **SWEEPS)
    x = solve(problem, method, stationary_prior()[0]).mean
    assert distance(x, predicted(method, problem, matrix)) < 1e-3


def test_the_paper_form_comes_to_rest():
    """Its hundredth alternation moves the image by less than a thousandth of the way of all of them."""
    problem, _ = random_problem(sigma=SIGMA)
    prior, *_ = stationary_prior()
    seen = []
    solve(problem, MSFlow.paper_form(), prior, watch=lambda _, x: seen.append(x))
    assert distance(seen[-2], seen[-1]) < 1e-3 * distance(seen[0], seen[-1])


def test_chain_is_the_minimiser_of_its_quadratic():
    """Against one dense least-squares problem in all states at once."""
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    K, n, gamma, weight = 3, 16, 7.0, 1.5
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(2 * K + 1, 1, 4, 4, generator=draw, dtype=torch.float64)
    states, ahead = list(images[: K + 1]), list(images[K + 1 :])
    found = solve_chain(problem, states, ahead, Latent(weight, False), gamma, 60)
    eye, zero = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    rows = [torch.cat([matrix / SIGMA if k == K else zero[:8] for k in range(K + 1)], 1)]
    rows.append(torch.cat([weight**0.5 * eye if k == 0 else zero for k in range(K + 1)], 1))
    right = [problem.y.flatten() / SIGMA, zero[0]]
    for k in range(K):
        signs = {k: -1.0, k + 1: 1.0}
        rows.append(gamma**0.5 * torch.cat([signs.get(j, 0.0) * eye for j in range(K + 1)], 1))
        right.append(gamma**0.5 * (ahead[k] - states[k]).flatten())
    exact = torch.linalg.lstsq(torch.cat(rows), torch.cat(right)[:, None]).solution.reshape(K + 1, 1, 4, 4)
    # CG to a relative residual of 1e-6, condition number 1e3.
    torch.testing.assert_close(torch.stack(found), exact, rtol=1e-4, atol=1e-4)


def test_flow_of_parts_is_the_flow_of_single_steps():
    prior, *_ = stationary_prior()
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = flow(prior, list(x), [0.0, 0.3, 0.6, 1.0], 2)
    for start, reached, t, u in zip(x, found, (0.0, 0.3, 0.6), (0.3, 0.6, 1.0), strict=False):
        middle = (t + u) / 2
        first = start + (middle - t) * prior.velocity(start, t)
        torch.testing.assert_close(reached, first + (u - middle) * prior.velocity(first, middle))


def test_the_bias_is_the_root_of_the_covariance():
    """As K grows, the implied covariance becomes S^½ / λ, which is not that of the prior."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    weight = 1.5
    found = []
    for segments in (16, 32, 64):
        method = MSFlow(segments, 60, regularisation=weight, model_error=1e-4, **SETTLED)
        found.append(solve(problem, method, prior).mean)
    limit = (8 * found[2] - 6 * found[1] + found[0]) / 3  # of errors in 1/K and 1/K²
    goal, _ = posterior(matrix, problem.y, SIGMA, in_pixels(values.sqrt() / weight, vectors), prior.mean)
    exact, _ = posterior(matrix, problem.y, SIGMA, in_pixels(values / weight, vectors), prior.mean)
    assert distance(limit, goal) < 1e-3  # what the extrapolation leaves is of order K^-3
    assert distance(goal, exact) > 0.02


@pytest.mark.parametrize("update", ["chain", "coordinate"])
def test_radial_noise_has_the_typical_length(update):
    """Without data the start noise rests where the regulariser is least; a white prior stretches it."""
    problem, _ = random_problem()
    nothing = InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))
    method = MSFlow(3, 200, regulariser="radial", update=update, damping=1.0, model_error=1.0)
    x = solve(nothing, method, white_prior(0.4, 0.0)).mean
    stretch = math.prod(float(e) for e in euler(method, torch.tensor(0.4, dtype=torch.float64)))
    assert float(x.norm()) == pytest.approx(stretch * math.sqrt(x.numel() - 1), rel=1e-6)


def test_radial_regulariser_weighs_against_the_data():
    """With every pixel measured the minimiser is the datum, stretched: one equation for its length."""
    direction = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 9.0 * direction / direction.norm()
    problem = InverseProblem(Mask((1, 6, 6), missing=0.0), y, Gaussian(0.5))
    method = MSFlow(4, 200, regulariser="radial", damping=0.3, model_error=1e-3)
    x = solve(problem, method, white_prior(0.4, 0.0)).mean
    E = math.prod(float(e) for e in euler(method, torch.tensor(0.4, dtype=torch.float64)))
    # One multiplier for all states: λ (r - 35 / r) at the noise is the pull of the data at E r.
    length = brentq(lambda r: (E * r - 9.0) / 0.25 + method.regularisation * (r - 35 / r), 1, 100)
    torch.testing.assert_close(x, E * length * y / 9.0, rtol=1e-3, atol=1e-3)


def test_mixture_posterior_mode_is_found():
    problem, matrix = random_problem(side=4, rows=8, sigma=0.1, seed=3)
    truth = torch.linalg.lstsq(matrix, problem.y.flatten()[:, None]).solution.reshape(1, 4, 4)
    means = torch.stack([truth, -truth, truth.flip(-1)])
    prior = MixturePrior(means, torch.full((3,), 0.05, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    x = solve(problem, MSFlow(iterations=40, start_steps=8), prior).mean
    exact, _ = posterior(
        matrix, problem.y, 0.1, 0.05 * torch.eye(16, dtype=torch.float64), means[0].flatten()
    )
    # The component's standard deviation; the Jacobian's bias and Euler's error are below it.
    assert float((x.flatten() - exact).square().mean().sqrt()) < 0.05**0.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"update": "exact"}, "coordinate"),
        ({"iterations": 0}, "positive"),
        ({"segments": -1}, "positive"),
        ({"start_steps": -1}, "start_steps"),
        ({"regulariser": "cubic"}, "radial"),
        ({"regulariser": "radial", "start_noise": 0.0}, "start_noise"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ProtocolError, match=said):
        MSFlow(**wrong)
