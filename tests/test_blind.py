"""A number of the operator is found from exact line integrals, and refused where the data cannot tell it."""

import math
from dataclasses import replace

import pytest
import torch

from ctflow.blind import Found, _Search, find_parameter
from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import UsageError
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Blur, Radon
from ctflow.priors import FlowPrior, LatentPrior
from ctflow.problem import InverseProblem
from ctflow.units import MU_WATER
from tests.dense import Dense, random_problem, white_prior

GRID = VolumeGeometry((1, 64, 64), (6.0, 6.0, 6.0))
BODY = Phantom(
    (
        Ellipsoid((0.0, 0.0, 0.0), (150.0, 100.0, math.inf), MU_WATER),
        Ellipsoid((-60.0, 10.0, 0.0), (45.0, 60.0, math.inf), -0.75 * MU_WATER),
        Ellipsoid((65.0, 5.0, 0.0), (40.0, 55.0, math.inf), -0.75 * MU_WATER),
        Ellipsoid((0.0, -70.0, 0.0), (15.0, 15.0, math.inf), 0.6 * MU_WATER),
    )
)
GAUSSIAN = FlowPrior.load("ct-gaussian")


def shifted(beam: ParallelBeam | FanBeam, bins: float, low: float = -4.0, high: float = 4.0) -> Found:
    """What is found from exact line integrals with counting noise, with the detector shifted by `bins`."""
    beam = Radon(GRID, beam).beam
    noise = Poisson(1e5)
    exact = BODY.line_integrals(GRID, replace(beam, shift_bins=bins), rays_per_bin=8)
    y = noise.sample(exact, torch.Generator().manual_seed(0))
    problem = InverseProblem(Radon(GRID, beam), y, noise)
    return find_parameter(
        lambda value: replace(problem, A=Radon(GRID, replace(beam, shift_bins=value), "joseph")),
        GAUSSIAN,
        low,
        high,
    )


def blurred(image: torch.Tensor, width: float) -> Found:
    noise = Gaussian(1.92e-4)
    y = noise.sample(Blur(GRID.shape, width)(image), torch.Generator().manual_seed(0))
    problem = InverseProblem(Blur(GRID.shape, width), y, noise)
    prior = FlowPrior.load("ct-256", spacing=3.0)
    return find_parameter(lambda value: replace(problem, A=Blur(GRID.shape, value)), prior, 0.5, 4.0)


@pytest.mark.parametrize(
    ("beam", "bins"), [(ParallelBeam(60), 1.3), (ParallelBeam(20), -2.4), (FanBeam(60), 1.3)]
)
def test_a_shifted_detector_is_found_from_exact_line_integrals(beam, bins):
    # A tenth is what an image of pixels owes to line integrals through ellipses; seen is a fifth of it.
    assert shifted(beam, bins).value == pytest.approx(bins, abs=0.1)


def test_the_width_of_a_blur_is_found():
    found = blurred(BODY.rasterise(GRID).data, 1.5)
    assert found.value == pytest.approx(1.5, abs=0.1)  # the prior's own sharpness decides within that
    assert found.moved < 3.5 / 200
    assert found.evaluations % 4 == 0


def test_two_views_of_a_shifted_detector_are_those_of_an_image_moved():
    with pytest.raises(UsageError, match="the image makes up for it"):
        shifted(ParallelBeam(2), 1.3)


def test_the_blur_of_a_constant_image_is_refused():
    with pytest.raises(UsageError, match="hardly depend on the parameter"):
        blurred(torch.full(GRID.shape, MU_WATER), 1.5)


def test_a_number_beyond_the_bounds_is_refused():
    with pytest.raises(UsageError, match="at a bound of -4 to 1"):
        shifted(ParallelBeam(20), 2.0, high=1.0)


def test_a_step_minimises_the_misfit_that_the_image_leaves():
    """Of a matrix that depends linearly on θ: the minimum over θ of the image's own minimum, by algebra."""
    problem, matrix = random_problem()
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(matrix.shape, generator=generator, dtype=torch.float64) / 10
    c = torch.randn(1, 6, 6, generator=generator, dtype=torch.float64)
    V = 0.3

    def family(theta: float) -> InverseProblem:
        return replace(problem, A=Dense(matrix + theta * change, 6))

    search = _Search(family, white_prior(1.0, 0.0), -50.0, 50.0, 1.0, 80)
    step, information = search._step(c, 0.0, V)
    d, r = change @ c.flatten(), problem.y.flatten() - matrix @ c.flatten()
    left = 0.05**2 * torch.eye(len(matrix), dtype=torch.float64) + V * matrix @ matrix.T
    # CG stops at a relative residual of 1e-6 and the condition number is about 1e3.
    assert information == pytest.approx(float(d @ torch.linalg.solve(left, d)), rel=1e-3)
    assert step == pytest.approx(float(d @ torch.linalg.solve(left, r)) / information, rel=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"low": 2.0}, {"rounds": 1}, {"states": 0}, {"trust": 0.0}, {"last_noise": 2.0}]
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match="needs low < high"):
        find_parameter(lambda value: random_problem()[0], GAUSSIAN, **({"low": 0.0, "high": 1.0} | wrong))


def test_a_latent_prior_is_refused():
    with pytest.raises(UsageError, match="follows a decoder"):
        find_parameter(lambda value: random_problem()[0], LatentPrior.example(), 0.0, 1.0)
