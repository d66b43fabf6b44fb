"""Extensions of MS-Flow: each is MS-Flow where its change is none, and what mathematics says elsewhere."""

import math

import pytest
import torch

from ctflow.benchmarks.extensions import (
    Balanced,
    Discrepancy,
    Extended,
    Multistep,
    Stochastic,
    Uncalibrated,
)
from ctflow.samplers import MSFlow
from ctflow.solving import solve
from tests.dense import random_problem, stationary_prior, white_prior


@pytest.mark.parametrize(
    "method",
    [
        Extended(sweeps=2),
        Stochastic(sweeps=2, renewal=0.0),
        Balanced(sweeps=2, apart=math.inf),
        Discrepancy(sweeps=2, power=0.0),
        Multistep(sweeps=2, order=0.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_without_its_change_an_extension_is_ms_flow_bit_for_bit(method):
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    assert torch.equal(solve(problem, method, prior).x, solve(problem, MSFlow(sweeps=2), prior).x)


def test_of_a_white_prior_of_unit_variance_the_uncalibrated_error_is_the_prior_s():
    problem, _ = random_problem()
    prior = white_prior(1.0, 0.3)
    calibrated, not_so = (solve(problem, kind(trust=3.0), prior).x for kind in (MSFlow, Uncalibrated))
    torch.testing.assert_close(calibrated, not_so)


def test_renewed_noise_keeps_its_variance_and_as_much_of_the_old_as_ddim():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(10**6, generator=generator, dtype=torch.float64)
    renewed = Stochastic(renewal=0.8).renew(z, 0.5, generator)
    share = 0.8**2 * (1 - 0.5**2)
    # The deviation of a mean of 10⁶ is 1e-3, of its square 1.4e-3.
    assert float(renewed.square().mean()) == pytest.approx(1.0, abs=6e-3)
    assert float((renewed * z).mean()) == pytest.approx(math.sqrt(1 - share), abs=6e-3)


@pytest.mark.parametrize("target", [0.5, 1.0])
def test_at_rest_at_one_level_the_misfit_is_the_target(target):
    problem, _ = random_problem(rows=24)
    prior, *_ = stationary_prior()
    method = Discrepancy(1, 400, first_noise=0.4, last_noise=0.4, prox_iterations=80, target=target)
    x = solve(problem, method, prior).mean
    assert float(problem.residual(x)) == pytest.approx(target, rel=1e-3)  # 400 steps, each a share of power


@pytest.mark.parametrize(("order", "slope"), [(0.0, 1), (1.0, 2)])
def test_order_of_the_flow_of_a_gaussian(order, slope):
    """u(σ) = u(σ_1) √((S + σ²) / (S + σ_1²)) for images N(0, S): the error falls as 1 / K or 1 / K²."""
    method, S, first, last = Multistep(order=order), 0.5, 2.0, 0.1

    def error(states: int) -> float:
        ratio = (last / first) ** (1 / states)
        u = torch.ones((), dtype=torch.float64)
        before, level = None, first
        for _ in range(states):
            denoised = S / (S + level**2) * u
            expected = denoised if before is None else method.predict(denoised, before)
            u, before, level = expected + ratio * (u - expected), denoised, level * ratio
        return abs(float(u) - math.sqrt((S + last**2) / (S + first**2)))

    # Terms of the next order are some percent at 100 states.
    assert math.log2(error(100) / error(200)) == pytest.approx(slope, abs=0.1)
