"""The baseline samplers against closed forms: posteriors, the flow without data, and each other."""

from itertools import pairwise

import pytest
import torch

from ctflow.errors import ProtocolError, UsageError
from ctflow.noise import Gaussian
from ctflow.operators import LinearOperator, Mask
from ctflow.priors import GaussianPrior
from ctflow.problem import InverseProblem, simulate
from ctflow.registry import build, names
from ctflow.samplers import (
    DDRM,
    DPS,
    FMCT,
    DiffPIR,
    FlowADMM,
    FlowDPS,
    Flower,
    PiGDM,
    PiGFM,
    PnPFlow,
    SingleShooting,
)
from ctflow.samplers._noise import draw_posterior
from ctflow.samplers._times import falling_times, uniform_times
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior

SIGMA = 0.1


def white_prior(variance: float, mean: float) -> GaussianPrior:
    prior = GaussianPrior(torch.full((8,), variance), mean)
    prior.scale, prior.shift = 1.0, 0.0
    return prior


def unmeasured(problem: InverseProblem) -> InverseProblem:
    """The same problem with weights of zero: the data say nothing."""
    return InverseProblem(problem.A, problem.y, problem.noise, torch.zeros_like(problem.y))


def test_fine_steps_of_pi_gfm_sample_the_posterior():
    # For a white prior N(D, r_t²) is the exact law of the image given x_t, and so is the guidance.
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    method = PiGFM(steps=200, start=0.02, calibrated=True)
    x = solve(problem, method, white_prior(0.5, 0.2), samples=1500).x.flatten(1)
    mean, covariance = posterior(matrix, problem.y, SIGMA, 0.5 * torch.eye(16, dtype=torch.float64), 0.2)
    # Monte Carlo: standard errors of 0.018 on a mean and on a covariance entry; four of them are allowed.
    assert (x.mean(0) - mean).abs().max() < 0.07
    assert (torch.cov(x.T) - covariance).abs().max() < 0.07


def test_flower_with_draws_samples_the_posterior_of_a_white_unit_prior():
    # ν² is then the variance of the image given x_t: every step maps the posterior's path onto itself.
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    x = solve(problem, Flower(steps=5, sample=True), white_prior(1.0, 0.2), samples=2000).x.flatten(1)
    mean, covariance = posterior(matrix, problem.y, SIGMA, torch.eye(16, dtype=torch.float64), 0.2)
    # Monte Carlo: standard errors of 0.022 on a mean and 0.032 on a variance; four of them are allowed.
    assert (x.mean(0) - mean).abs().max() < 0.09
    assert (torch.cov(x.T) - covariance).abs().max() < 0.13


def test_perturb_and_optimise_has_the_right_law():
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    center = torch.full((4000, 1, 4, 4), 0.3, dtype=torch.float64)
    many = problem.samples(4000)
    x = draw_posterior(many, center, 0.5, 40, torch.Generator().manual_seed(0)).flatten(1)
    mean, covariance = posterior(matrix, problem.y, SIGMA, 0.5 * torch.eye(16, dtype=torch.float64), 0.3)
    # Monte Carlo with 4000 draws: standard errors of 0.011; four of them are allowed.
    assert (x.mean(0) - mean).abs().max() < 0.045
    assert (torch.cov(x.T) - covariance).abs().max() < 0.045


@pytest.mark.parametrize("segments", [3, 6])
def test_single_shooting_is_the_map_of_the_euler_flow(segments):
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    x = solve(problem, SingleShooting(segments, 60), prior).mean.flatten()
    euler, start = torch.ones_like(values), torch.zeros(1, 6, 6, dtype=torch.float64)
    for t, u in pairwise(uniform_times(segments)):
        euler = euler * (1 + (u - t) * (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2))
        start = start + (u - t) * prior.velocity(start, t)
    covariance = vectors @ torch.diag(euler**2) @ vectors.T
    predicted, _ = posterior(matrix, problem.y, SIGMA, covariance, start.flatten())
    # L-BFGS stops where a step changes the objective by less than 1e-9.
    assert (x - predicted).norm() < 1e-3 * predicted.norm()


def ddim(prior: GaussianPrior, x: torch.Tensor, times: list[float]) -> torch.Tensor:
    for t, u in pairwise(times):
        denoised = prior.denoise(x, t)
        x = u * denoised + (1 - u) * (x - t * denoised) / (1 - t)
    return x


def test_without_data_every_sampler_follows_the_flow():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    nothing = unmeasured(problem)
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()[0]
    grid = falling_times(10, 4.0, 0.02)
    for method in (DPS(10, renewal=0.0, high=4.0), DiffPIR(10, renewal=0.0)):
        x = solve(nothing, method, prior).mean
        torch.testing.assert_close(x, ddim(prior, noise, grid), rtol=1e-9, atol=1e-9)
    x = solve(nothing, FMCT(10), prior).mean
    torch.testing.assert_close(x, ddim(prior, noise, uniform_times(10)), rtol=1e-9, atol=1e-9)
    x = solve(nothing, DDRM(10, renewal=0.0), prior).mean
    start = noise * 4 / 5 + prior.mean / 5
    torch.testing.assert_close(x, ddim(prior, start, grid), rtol=1e-9, atol=1e-9)


def test_no_guidance_is_no_guidance():
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    low = solve(problem, PiGDM(10, guidance=0.0, renewal=0.0), prior).mean
    image = problem.prox(
        torch.zeros(1, 6, 6, dtype=torch.float64) + prior.mean, prior.residual_variance(0.0), 30
    )
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()[0]
    start = 0.2 * image + 0.8 * noise
    torch.testing.assert_close(low, ddim(prior, start, falling_times(10, 4.0, 0.02)), rtol=1e-9, atol=1e-9)
    plain = solve(problem, PiGFM(10, guidance=0.0), prior).mean
    torch.testing.assert_close(plain, ddim(prior, start, uniform_times(10, 0.2)), rtol=1e-9, atol=1e-9)


class DownToNothing(DDRM):
    """Ends at a noise of 1e-5."""

    def times(self):
        return falling_times(self.steps, low=1e-5)


def test_ddrm_keeps_what_is_measured_without_noise():
    operator = Mask((1, 8, 8), missing=0.5)
    image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = simulate(operator, image, Gaussian(1e-6))
    prior, *_ = stationary_prior()
    x = solve(problem, DownToNothing(), prior).mean
    # The last step denoises at a level of 1e-5, which moves a measured pixel by about that much.
    assert (operator(x) - problem.y).abs().max() < 1e-4


def test_ddrm_says_when_the_spectrum_is_out_of_reach():
    class Unknown(LinearOperator):
        domain_shape = (1, 6, 6)
        range_shape = (1, 1, 12)

        def _forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(-3)[..., None, None, :12]

        def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(y[..., 0, 0, :], (0, 24)).reshape(*y.shape[:-3], 1, 6, 6)

        def spectrum(self, weights: torch.Tensor, dense: bool = False) -> None:
            return None

    prior, *_ = stationary_prior()
    problem = simulate(Unknown(), torch.zeros(1, 6, 6, dtype=torch.float64), Gaussian(0.1))
    with pytest.raises(UsageError, match="Flower"):
        solve(problem, DDRM(), prior)


class Stationary(FlowADMM):
    """Stays at one time."""

    def times(self):
        return [0.6] * self.steps


def test_flow_admm_rests_where_data_and_flow_agree():
    """For a Gaussian prior the mean over draws is the prox of a quadratic, and the rest point a MAP."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    t = 0.6
    # Many draws make the operator its mean.
    x = solve(problem, Stationary(40, draws=100, variance=0.5), prior).mean.flatten()
    # E[D(t v + (1 - t) z)] = mean + g (v - mean), g = t² S / (t² S + (1 - t)²): the prox of the quadratic
    # of precision (1 / g - 1) / variance: x is the posterior mean under covariance variance g / (1 - g).
    gain = t**2 * values / (t**2 * values + (1 - t) ** 2)
    covariance = vectors @ torch.diag(0.5 * gain / (1 - gain)) @ vectors.T
    predicted, _ = posterior(matrix, problem.y, SIGMA, covariance, prior.mean)
    # 100 draws leave noise of at most 0.4 / 10 on z in every step, which the data damp.
    assert (x - predicted).norm() < 0.06 * predicted.norm()


@pytest.mark.parametrize(
    ("method", "network", "backward"),
    [
        (PiGFM(7), 7, 7),
        (PiGDM(7), 7, 7),
        (DPS(7), 7, 7),
        (Flower(7), 6, 0),
        (FlowDPS(7), 6, 0),
        (DiffPIR(7), 7, 0),
        (PnPFlow(7, draws=3), 18, 0),
        (FlowADMM(7, draws=2), 14, 0),
        (DDRM(7), 7, 0),
    ],
)
def test_network_calls_and_backward_passes_are_as_stated(method, network, backward):
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    stats = solve(problem, method, prior).stats
    assert (stats["network"], stats["backward"]) == (network, backward)


def test_impossible_numbers_are_refused():
    for name in names("method"):
        method = build("method", {"name": name})
        if method.needs_prior and hasattr(method, "steps"):
            with pytest.raises(ProtocolError, match="steps"):
                build("method", {"name": name, "steps": 0})
    with pytest.raises(ProtocolError, match="start"):
        PiGFM(start=1.0)
    with pytest.raises(ProtocolError, match="segments"):
        SingleShooting(segments=0)
