"""Slices solved together: as many as memory holds, with the same images, and what a lost device says."""

import logging
from types import SimpleNamespace

import pytest
import torch

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import BackendError, ProtocolError, UsageError
from ctflow.noise import Gaussian
from ctflow.operators import Blur
from ctflow.priors import GaussianPrior
from ctflow.problem import simulate
from ctflow.recon import CGLS, TV
from ctflow.registry import find_class, names
from ctflow.runs import reconstruction
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.samplers import DDNM, DPS, MSFlow
from ctflow.samplers._sampler import Sampler
from ctflow.solving import solve
from ctflow.system.randomness import normal, seeded, seeded_each
from tests.dense import random_problem, stationary_prior

SAMPLERS = [name for name, home in names("method").items() if "samplers" in home]


@pytest.fixture(scope="module")
def measurement():
    return prepare(Protocol.load("deblur"), toy_volume(5, 32))


def reconstructed(measurement, monkeypatch, most, watch=lambda step, image: None):
    """Images by a method that draws, with at most so many slices at once in memory, and their numbers."""
    sizes = []

    def limited(problem, *arguments, **keywords):
        sizes.append(len(problem.y))
        if len(problem.y) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return solve(problem, *arguments, **keywords)

    monkeypatch.setattr(reconstruction, "solve", limited)
    prior = GaussianPrior(torch.logspace(0, -2, 32), mean=-0.3)
    found = reconstruction.reconstruct(measurement, measurement.problem(0), DDNM(3), prior, samples=2, seed=4)
    return found, sizes


def test_portions_shrink_to_what_memory_holds_and_the_image_stays(measurement, monkeypatch, caplog):
    whole, sizes = reconstructed(measurement, monkeypatch, 5)
    assert sizes == [5]
    with caplog.at_level(logging.WARNING):
        some, sizes = reconstructed(measurement, monkeypatch, 2)
    assert sizes == [5, 2, 2, 1]
    assert "cpu does not hold 5 slices at once; going on with 2" in caplog.text
    # Sums of float32 over other batches; the numbers drawn are the same.
    torch.testing.assert_close(some.volume.data, whole.volume.data, rtol=0, atol=0.05)
    torch.testing.assert_close(some.spread.data, whole.spread.data, rtol=0, atol=0.05)
    assert some.figures["network"] >= whole.figures["network"]


def test_one_slice_that_does_not_fit_says_what_to_do(measurement, monkeypatch):
    with pytest.raises(BackendError, match=r"one slice takes more memory than cpu has;.*--device cpu"):
        reconstructed(measurement, monkeypatch, 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_method_draws_for_a_problem_does_not_depend_on_the_others(name):
    problem, (prior, _, _) = random_problem()[0], stationary_prior()
    both, method = problem.samples(2), find_class("method", name)()
    together = solve(both, method, prior, samples=2, seed=[7, 8]).x
    for k in (0, 1):
        alone = solve(both.part(slice(k, k + 1)), method, prior, samples=2, seed=[7 + k]).x
        # Other numbers change images of size 1 by 0.1; a hundred steps carry rounding on to 1e-6.
        torch.testing.assert_close(together[:, k : k + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "method", "number"),
    [
        (64, MSFlow(), 128),
        (256, MSFlow(), 8),
        (256, DPS(), 8),
        (512, MSFlow(), 8),
        (512, TV(), 8),
        (512, DPS(), 4),  # pulls gradients through the network, which holds four
        (512, Sampler(), 4),  # does not say whether it does
        (1024, MSFlow(), 2),
        (2048, MSFlow(), 1),
    ],
)
def test_eight_slices_share_a_projection_where_memory_holds_them(side, method, number):
    problem = SimpleNamespace(A=SimpleNamespace(domain_shape=(1, side, side)))
    assert reconstruction.solves_at_once(problem, method, samples=1) == number


def test_coarser_pixels_are_refused_where_nothing_is_projected():
    asked = Protocol.load("deblur").override(['method={name="ms-flow", refine={coarse_mm=2}}'])
    with pytest.raises(ProtocolError, match=r"'ms-flow-refinement' asks .* 'deblur' projects nothing"):
        prepare(asked, toy_volume(1, 32))
    prepare(asked.override(["method.refine.coarse_mm=0"]), toy_volume(1, 32))


@pytest.mark.parametrize(("name", "number"), [("ct-256", 0), ("ct-gaussian", 1)])
def test_a_prior_of_one_pixel_size_is_said_to_take_longer(name, number):
    asked = Protocol.load("sparse-view-60").override(['method={name="ms-flow", refine={coarse_mm=50}}'])
    measurement = prepare(asked, toy_volume(1, 32))
    said = [text for text in measurement.warnings(measurement.prior(name)) if "own pixels" in text]
    assert len(said) == number
    assert all("ms-flow-refinement: all of it" in text for text in said)


def test_a_prior_that_does_not_know_the_coarser_pixels_is_warned_of():
    asked = Protocol.load("sparse-view-60").override(['method={name="ms-flow", refine={coarse_mm=50}}'])
    measurement = prepare(asked, toy_volume(1, 32))
    prior = measurement.prior("ct-256")
    prior.spacings_mm = (measurement.grid.spacing[2],) * 2
    (said,) = [text for text in measurement.warnings(prior) if "not to be trusted" in text]
    assert "ms-flow-refinement: the pixels are" in said
    assert measurement.coarser["ms-flow-refinement"] == 4


def test_as_many_seeds_as_problems_are_asked_for():
    with pytest.raises(UsageError, match="3 seeds are given for problems"):
        solve(random_problem()[0].samples(2), CGLS(), seed=[1, 2, 3])


def test_seeds_of_each_are_those_of_one():
    together = normal((3, 2, 1, 4, 5), seeded_each([7, 8]))
    for k in (0, 1):
        assert torch.equal(together[:, k], normal((3, 1, 4, 5), seeded(7 + k)))


def test_a_device_that_is_lost_says_how_to_go_on(monkeypatch):
    class Lost(CGLS):
        def __call__(self, *arguments):
            raise torch.AcceleratorError(
                "CUDA error: unspecified launch failure\nCUDA kernel errors might be"
            )

    problem = simulate(Blur.example(), torch.ones(Blur.example().domain_shape), Gaussian(0.1))
    with pytest.raises(BackendError, match=r"stopped answering \(CUDA error: .* failure\) and.*new"):
        solve(problem, Lost())
