"""MS-Flow against what linear algebra says its fixed points and its samples are."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.optimize import brentq

from ctflow.errors import ProtocolError, UsageError
from ctflow.noise import Gaussian
from ctflow.operators import Mask
from ctflow.priors import MixturePrior
from ctflow.problem import InverseProblem
from ctflow.samplers import MSFlow
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior, white_prior

SIGMA = 0.05
SETTLED = {"damping": 0.9, "decay": 0.0, "prox_iterations": 80}
shooting = partial(MSFlow, finish_steps=0)  # the finish is plug and play: the claims are about the trajectory
JACOBIANS = ["identity", "scaled", "spectral"]


def models(method: MSFlow, values: torch.Tensor, variance: float) -> list[torch.Tensor]:
    """ρ_k for every eigenvalue S of the prior's covariance."""
    s = {
        "identity": torch.ones_like(values),
        "scaled": torch.full_like(values, variance),
        "spectral": values,
    }
    grid = [k / method.segments for k in range(method.segments + 1)]
    c = [((1 - t) ** 2 + t**2 * s[method.jacobian]).sqrt() for t in grid]
    if method.jacobian == "identity":
        c = [torch.ones_like(values)] * len(grid)
    return [after / before for before, after in pairwise(c)]


def euler(method: MSFlow, values: torch.Tensor) -> list[torch.Tensor]:
    """What the Euler steps of each segment multiply a deviation from t m by, for every eigenvalue of S."""
    K, m = method.segments, method.flow_steps
    times = [step / (K * m) for step in range(K * m)]
    factors = [1 + (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2) / (K * m) for t in times]
    return [torch.stack(factors[m * k : m * (k + 1)]).prod(0) for k in range(K)]


def response(
    method: MSFlow, steps: list[torch.Tensor], rho: list[torch.Tensor], gaps: bool = True
) -> torch.Tensor:
    """x_K - m per unit of the last multiplier: the covariance under which the fixed point is the MAP.

    With multipliers p_k = γ e_k, rest means p_{k-1} = ρ_k p_k and λ x_0 = ρ_0 p_0.
    """
    K = method.segments
    p = [torch.ones_like(steps[0])] * K
    for k in reversed(range(K - 1)):
        p[k] = rho[k + 1] * p[k + 1]
    x = rho[0] * p[0] / method.regularisation
    for k in range(K):
        x = steps[k] * x + gaps * p[k] * method.model_error**2 / K
    return x


def in_pixels(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ torch.diag(values) @ vectors.T


def predicted(method: MSFlow, problem, matrix, corrected: bool = False, gaps: bool = True) -> torch.Tensor:
    prior, values, vectors = stationary_prior()
    steps = euler(method, values)
    rho = steps if corrected else models(method, values, prior.residual_variance(0.0))
    covariance = in_pixels(response(method, steps, rho, gaps), vectors)
    return posterior(matrix, problem.y, SIGMA, covariance, prior.mean)[0]


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.flatten() - y.flatten()).norm() / y.norm())


@pytest.mark.parametrize("jacobian", JACOBIANS)
@pytest.mark.parametrize(("segments", "flow_steps"), [(2, 1), (5, 1), (3, 4)])
def test_fixed_point_is_the_predicted_biased_map(jacobian, segments, flow_steps):
    problem, matrix = random_problem(sigma=SIGMA)
    method = shooting(segments, 100, jacobian=jacobian, flow_steps=flow_steps, **SETTLED)
    x = solve(problem, method, stationary_prior()[0]).mean
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert distance(x, predicted(method, problem, matrix)) < 1e-3


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_the_papers_alternation_has_the_same_fixed_point(jacobian):
    problem, matrix = random_problem(sigma=SIGMA)
    method = shooting(3, 300, jacobian=jacobian, update="coordinate", damping=1.0, decay=0.0, model_error=1.0)
    x = solve(problem, method, stationary_prior()[0]).mean
    assert distance(x, predicted(method, problem, matrix)) < 1e-3


@pytest.mark.parametrize("penalty", ["lagrangian", "adaptive"])
def test_multipliers_close_the_gaps(penalty):
    problem, matrix = random_problem(sigma=SIGMA)
    method = shooting(3, 400, update="coordinate", damping=1.0, decay=0.0, model_error=0.7, penalty=penalty)
    x = solve(problem, method, stationary_prior()[0]).mean
    closed = predicted(method, problem, matrix, gaps=False)
    open_ = predicted(method, problem, matrix)
    assert distance(x, closed) < 1e-3
    assert distance(open_, closed) > 0.05  # what the multipliers are there for


def test_bias_of_each_jacobian_is_the_predicted_one():
    """As K grows, the implied covariance becomes S^½ / λ, √s S^½ / λ or S / λ."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    weight, s = 1.5, prior.residual_variance(0.0)
    implied = {"identity": values.sqrt(), "scaled": s**0.5 * values.sqrt(), "spectral": values}
    exact, _ = posterior(matrix, problem.y, SIGMA, in_pixels(values / weight, vectors), prior.mean)
    for jacobian, covariance in implied.items():
        found = []
        for segments in (16, 32, 64):
            method = shooting(
                segments,
                20,
                start_steps=0,
                regularisation=weight,
                model_error=1e-4,
                jacobian=jacobian,
                **SETTLED,
            )
            found.append(solve(problem, method, prior).mean)
        limit = (8 * found[2] - 6 * found[1] + found[0]) / 3  # of errors in 1/K and 1/K²
        goal, _ = posterior(matrix, problem.y, SIGMA, in_pixels(covariance / weight, vectors), prior.mean)
        print(
            f"{jacobian}: distance to the prediction {distance(limit, goal):.1e}, "
            f"to the MAP {distance(limit, exact):.1e}"
        )
        # What the extrapolation leaves is of order K^-3.
        assert distance(limit, goal) < 1e-3
        assert jacobian == "spectral" or distance(goal, exact) > 0.02


@pytest.mark.parametrize(
    ("jacobian", "correction"), [("identity", "finite-difference"), ("identity", "vjp"), ("spectral", "vjp")]
)
def test_a_correction_removes_the_bias(jacobian, correction):
    problem, matrix = random_problem(sigma=SIGMA)
    method = shooting(
        3,
        120,
        jacobian=jacobian,
        correction=correction,
        correction_limit=1e9,
        damping=0.9,
        decay=0.0,
    )
    x = solve(problem, method, stationary_prior()[0]).mean
    exact = predicted(method, problem, matrix, corrected=True)
    assert distance(x, exact) < 1e-3
    if jacobian == "identity":
        assert distance(predicted(method, problem, matrix), exact) > 0.05


def test_a_correction_is_limited():
    problem, matrix = random_problem(sigma=SIGMA)
    method = shooting(4, 60, correction="vjp", correction_limit=1e-6, **SETTLED)
    x = solve(problem, method, stationary_prior()[0]).mean
    assert distance(x, predicted(method, problem, matrix)) < 1e-3  # that of no correction


def test_spectral_jacobian_converges_to_the_exact_map_at_order_one():
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    exact, _ = posterior(matrix, problem.y, SIGMA, in_pixels(values, vectors), prior.mean)
    errors = []
    for segments in (8, 16, 32):
        method = shooting(
            segments, 20, regularisation=1.0, model_error=1e-4, jacobian="spectral", start_steps=0, **SETTLED
        )
        errors.append(distance(solve(problem, method, prior).mean, exact))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    print("spectral: errors", [f"{e:.1e}" for e in errors], "orders", [f"{o:.2f}" for o in orders])
    assert orders == pytest.approx([1.0, 1.0], abs=0.2)  # the next order still shows at 8 segments


@pytest.mark.parametrize("update", ["chain", "coordinate"])
def test_radial_noise_has_the_typical_length(update):
    """Without data the start noise rests where the regulariser is least; a white prior stretches it."""
    problem, _ = random_problem()
    nothing = InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))
    method = shooting(3, 200, regulariser="radial", update=update, damping=1.0, decay=0.0, model_error=1.0)
    x = solve(nothing, method, white_prior(0.4, 0.0)).mean
    stretch = math.prod(float(e) for e in euler(method, torch.tensor(0.4, dtype=torch.float64)))
    assert float(x.norm()) == pytest.approx(stretch * math.sqrt(x.numel() - 1), rel=1e-6)


def test_radial_regulariser_weighs_against_the_data():
    """With every pixel measured the minimiser is the datum, stretched: one equation for its length."""
    direction = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 9.0 * direction / direction.norm()
    problem = InverseProblem(Mask((1, 6, 6), missing=0.0), y, Gaussian(0.5))
    method = shooting(
        4, 200, regulariser="radial", correction="vjp", correction_limit=1e9, damping=0.3, model_error=1e-3
    )
    x = solve(problem, method, white_prior(0.4, 0.0)).mean
    E = math.prod(float(e) for e in euler(method, torch.tensor(0.4, dtype=torch.float64)))
    length = brentq(lambda r: E * (E * r - 9.0) / 0.25 + method.regularisation * (r - 35 / r), 1, 100)
    torch.testing.assert_close(x, E * length * y / 9.0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("jacobian", "correction"), [("identity", "none"), ("spectral", "none"), ("spectral", "vjp")]
)
def test_randomised_problems_have_the_derived_law(jacobian, correction):
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    prior, values, vectors = stationary_prior(side=4)
    method = shooting(
        3,
        30,
        regularisation=1.0,
        jacobian=jacobian,
        correction=correction,
        correction_limit=1e9,
        stochastic=True,
        **{**SETTLED, "damping": 0.5 if correction == "vjp" else 0.9},
    )
    x = solve(problem, method, prior, samples=1500).x.flatten(1)
    # x = r + C M' (y' - A x) with r ~ N(m, S_E), the flow of perturbed noise, and C of the Jacobian's model.
    steps = euler(method, values)
    own = in_pixels(response(method, steps, steps), vectors)
    rho = models(method, values, prior.residual_variance(0.0)) if correction == "none" else steps
    C = in_pixels(response(method, steps, rho), vectors)
    mean, _ = posterior(matrix, problem.y, SIGMA, C, prior.mean)
    M = matrix.T @ matrix / SIGMA**2
    inverse = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + C @ M)
    covariance = inverse @ (own + C @ M @ C) @ inverse.T
    # Monte Carlo: 1500 samples of variance at most 1.5; four standard errors are allowed.
    assert (x.mean(0) - mean).abs().max() < 4 * (1.5 / 1500) ** 0.5
    assert (torch.cov(x.T) - covariance).abs().max() < 4 * 1.5 * (2 / 1500) ** 0.5
    if correction == "vjp":  # then it is the posterior of what the Euler steps make of noise
        _, exact = posterior(matrix, problem.y, SIGMA, own, prior.mean)
        torch.testing.assert_close(covariance, exact, rtol=1e-6, atol=1e-9)


def test_randomised_problems_without_data_are_the_priors_own_samples():
    problem, _ = random_problem()
    nothing = InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))
    prior, values, vectors = stationary_prior()
    method = shooting(5, 60, regularisation=1.0, stochastic=True, model_error=1e-6, **SETTLED)
    x = solve(nothing, method, prior, samples=40).x.flatten(1) - prior.mean
    whitened = x @ vectors / math.prod(euler(method, values)).clamp_min(1e-12)
    # 40 × 36 numbers of unit variance: their mean square has a standard error of 0.037.
    assert float(whitened.square().mean()) == pytest.approx(1.0, abs=0.15)


def test_mixture_posterior_mode_is_found_by_every_variant():
    problem, matrix = random_problem(side=4, rows=8, sigma=0.1, seed=3)
    truth = torch.linalg.lstsq(matrix, problem.y.flatten()[:, None]).solution.reshape(1, 4, 4)
    means = torch.stack([truth, -truth, truth.flip(-1)])
    prior = MixturePrior(means, torch.full((3,), 0.05, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    start = shooting(iterations=40)
    for method in (start, replace(start, jacobian="scaled", correction="vjp", damping=0.2)):
        x = solve(problem, method, prior).mean
        exact, _ = posterior(
            matrix, problem.y, 0.1, 0.05 * torch.eye(16, dtype=torch.float64), means[0].flatten()
        )
        # The component's standard deviation; the Jacobian's bias and Euler's error are below it.
        assert float((x.flatten() - exact).square().mean().sqrt()) < 0.05**0.5


def test_the_finish_comes_to_the_closed_form_of_plug_and_play():
    """At rest x is the data prox of its own denoised image, which for N(m, S) is a filtered one."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    x = solve(problem, MSFlow(finish_steps=300, prox_iterations=60, iterations=1), prior).mean.flatten()
    noise, variance = 0.03**2, 5 * 0.03**2  # of the last step
    pull = in_pixels(noise / (values + noise), vectors) / variance
    M = matrix.T @ matrix / SIGMA**2
    right = matrix.T @ problem.y.flatten() / SIGMA**2 + pull @ torch.full_like(x, prior.mean)
    # The noise level still falls by 0.6 % a step when the run ends.
    assert distance(x, torch.linalg.solve(M + pull, right)) < 0.01


def test_spectral_jacobian_needs_a_spectrum():
    problem, _ = random_problem()
    prior = MixturePrior(torch.zeros(1, 1, 6, 6, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    with pytest.raises(UsageError, match="scaled"):
        solve(problem, shooting(jacobian="spectral"), prior)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"jacobian": "exact"}, "identity"),
        ({"iterations": 0}, "positive"),
        ({"segments": -1}, "positive"),
        ({"penalty": "lagrangian"}, "coordinate"),
        ({"update": "coordinate", "correction": "vjp"}, "chain"),
        ({"regulariser": "radial", "stochastic": True}, "Gaussian"),
        ({"regulariser": "radial", "start_noise": 0.0}, "start_noise"),
        ({"flow_steps": 2, "correction": "vjp"}, "flow_steps"),
    ],
)
def test_impossible_numbers_are_refused(wrong, said):
    with pytest.raises(ProtocolError, match=said):
        MSFlow(**wrong)
