"""A refinement: its fixed point, its place after every other method, and how a table asks for it."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from ctflow.errors import ProtocolError, UsageError
from ctflow.experiments.cases import Case
from ctflow.experiments.unit import Unit
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.priors import Coupled, FlowPrior, GaussianPrior
from ctflow.problem import simulate
from ctflow.recon import FBP
from ctflow.registry import build, find_class, names
from ctflow.runs.protocol import Protocol
from ctflow.runs.report import citation
from ctflow.samplers import ConjugateIntegrator, MSFlow, Refinement
from ctflow.solving import solve
from ctflow.system.randomness import seeded
from ctflow.testing._gaussian import gaussian_case
from tests.dense import random_problem, stationary_prior

SIGMA = 0.05
METHODS = [name for name, home in names("method").items() if "samplers" in home]
TEXT = """# Blur, with and without a refinement.
operator = { name = "blur", sigma = 1.0 }
noise = { name = "gaussian", sigma = 4e-4 }
method = { name = "ms-flow", states = 6, refine = { steps = 3, noise = 0.06 } }
beside = [{ name = "ms-flow" }, { name = "conjugate", refine = { steps = 2 } }, { name = "refinement" }]
reference = { name = "cgls" }
"""


def test_it_comes_to_the_closed_form_of_plug_and_play():
    """At rest x is the data prox of its own denoised image, which for N(m, S) is a filtered one."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, values, vectors = stationary_prior()
    x = solve(problem, Refinement(300, prox_iterations=60), prior).mean.flatten()
    noise, variance = 0.03**2, 5 * 0.03**2  # of the last step
    pull = vectors @ torch.diag(noise / (values + noise) / variance) @ vectors.T
    M = matrix.T @ matrix / SIGMA**2
    right = matrix.T @ problem.y.flatten() / SIGMA**2 + pull @ torch.full_like(x, prior.mean)
    exact = torch.linalg.solve(M + pull, right)
    # The noise level still falls by 0.6 % a step when the run ends.
    assert (x - exact).norm() < 0.01 * exact.norm()


def test_steps_are_those_of_the_formula():
    """The update written out with dense matrices, from where another method ended."""
    problem, matrix = random_problem(sigma=SIGMA)
    prior, *_ = stationary_prior()
    first = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    method = Refinement(3, noise=0.1, first_noise=0.4, ratio=2.0, momentum=0.5, prox_iterations=80)
    images = [*method.refine(problem, prior, first)]
    x = before = first
    M, right = matrix.T @ matrix / SIGMA**2, matrix.T @ problem.y.flatten() / SIGMA**2
    for sigma, found in zip((0.4, 0.2, 0.1), images, strict=True):
        t = 1 / (1 + sigma)
        D = prior.denoise(t * (x + 0.5 * (x - before)), t).flatten()
        precision = 1 / (2.0 * sigma**2)
        solved = torch.linalg.solve(M + precision * torch.eye(36, dtype=torch.float64), right + precision * D)
        before, x = x, solved.reshape(1, 6, 6)
        # Each step's CG stops at a relative residual of 1e-6; the condition number is 1e3.
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_after_a_method_it_goes_on_from_that_methods_image(name):
    case, method, last = gaussian_case(), find_class("method", name)(), Refinement(2)
    method = replace(method, steps=min(method.steps, 8)) if hasattr(method, "steps") else method
    own = solve(case.problem, method, case.prior, seed=3)
    whole = solve(case.problem, last.after(method), case.prior, seed=3)
    inside = case.problem.rescaled(case.prior.scale, case.prior.shift)
    first = (own.mean - case.prior.shift) / case.prior.scale
    x = [*last.refine(inside, case.prior, first)][-1]
    # The image goes to the problem's unit and back here: rounding, which two steps of CG amplify.
    torch.testing.assert_close(whole.mean, case.prior.scale * x + case.prior.shift, rtol=1e-6, atol=1e-8)
    assert whole.stats["network"] == own.stats["network"] + 2
    assert whole.stats["backward"] == own.stats["backward"]
    assert len(whole.trace) == min(20, len(own.trace) + 2) or len(own.trace) > 10


def test_a_table_builds_what_python_does():
    table = {"name": "ms-flow", "states": 6, "refine": {"steps": 3, "noise": 0.06}}
    assert build("method", table) == Refinement(3, 0.06).after(MSFlow(6))
    changed = {**table, "refine.noise": 0.1}  # as a tuner gives it
    assert build("method", changed) == Refinement(3, 0.1).after(MSFlow(6))
    assert build("method", {"name": "conjugate", "refine.steps": 1}) == Refinement(1).after(
        ConjugateIntegrator()
    )


def test_label_cost_and_citation_name_both():
    protocol = Protocol.parse("both", TEXT)
    methods = protocol.validate().methods()
    assert list(methods) == ["cgls", "ms-flow", "conjugate-refinement", "refinement", "ms-flow-refinement"]
    text = citation({name: method.paper for name, method in methods.items()}, projects=False)
    assert [text.count(key) for key in ("denker2026", "pandey2024", "zhang2022dpir")] == [1, 1, 1]
    assert "3 steps of refinement" in methods["ms-flow-refinement"].cost
    assert methods["ms-flow-refinement"].evaluations == (2 * 6 + 3, 0)
    finer = protocol.override(["method.refine.noise=0.02"]).methods()["ms-flow-refinement"]
    assert finer.refinement.noise == 0.02


def test_a_unit_of_a_study_is_another_one_with_another_refinement():
    protocol = Protocol.parse("both", TEXT)
    case = Case("phantom-0", "phantom-0", "test", "0" * 64)
    tables = [{"name": "ms-flow"}, *({"name": "ms-flow", "refine": {"noise": n}} for n in (0.03, 0.06))]
    hashes = {
        Unit(case, protocol, "flow", table, seed=0, samples=1, prior="", prior_sha256="").hash
        for table in tables
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("refine", "said"),
    [
        ({"noise": 0.3}, "noise <= first_noise"),
        ({"steps": 0}, "steps"),
        ({"coarse_mm": -1.0}, "coarse_mm <= 100"),
        ({"momentum": 1.0}, "momentum"),
        ({"nois": 0.3}, "did you mean 'noise'"),
        ({"steps": 1.5}, "whole number"),
        ({"name": "tv"}, "no keyword 'name'"),
        (16, "must be a table"),
    ],
)
def test_a_wrong_refinement_is_refused(refine, said):
    with pytest.raises(ProtocolError, match=said):
        build("method", {"name": "ms-flow", "refine": refine})


def test_a_key_into_no_table_is_refused():
    with pytest.raises(ProtocolError, match=r"'refine', which 'refine.noise' names, is 16"):
        build("method", {"name": "ms-flow", "refine": 16, "refine.noise": 0.1})


def test_a_method_without_a_prior_has_no_refinement():
    with pytest.raises(ProtocolError, match="FBP is no sampler: it has no prior"):
        build("method", {"name": "fbp", "refine": {"steps": 3}})
    with pytest.raises(ProtocolError, match="take method 'refinement' itself"):
        Refinement().after(FBP())


def test_what_comes_before_may_be_found_in_coarser_pixels():
    """The method's own image of the coarse problem, resampled, and the refinement of that."""

    class Scaleless(GaussianPrior):
        def coarsened(self, factor):
            return self

    grid, prior = VolumeGeometry((1, 16, 16), (1.0, 1.0, 1.0)), Scaleless(torch.logspace(2, -2, 9))
    truth = prior.scale * prior.sample((2, 1, 16, 16)) + prior.shift
    problem = simulate(Radon(grid, ParallelBeam(9)), truth, Gaussian(0.01))
    inside = problem.rescaled(prior.scale, prior.shift)
    flow, last = MSFlow(2, 1), Refinement(2, coarse_mm=2.5)
    *_, coarse = flow.images(inside.coarsened(2.0), prior, seeded(0))
    fine = interpolate(coarse, scale_factor=2.0, mode="bilinear")
    *_, x = last.refine(inside, prior, fine)
    found = solve(problem, last.after(flow), prior)
    torch.testing.assert_close(found.mean, prior.scale * x + prior.shift)
    assert found.stats["network"] == 4
    alone = solve(problem, last, prior).mean
    assert (alone - truth).norm() < 0.5 * (truth - truth.mean()).norm()
    with pytest.raises(UsageError, match="has no coarser pixels"):
        solve(gaussian_case().problem, last, prior)
    of_one_size = GaussianPrior(torch.logspace(2, -2, 9))
    found = [solve(problem, Refinement(2, coarse_mm=mm), of_one_size).mean for mm in (2.5, 0.0)]
    assert torch.equal(*found)


def test_a_network_is_told_the_coarser_spacing():
    prior = FlowPrior.load("ct-256", spacing=0.8)
    assert prior.coarsened(2).spacing == 1.6
    assert Coupled(prior, 0.3).coarsened(2).prior.spacing == 1.6
    assert prior.spacing == 0.8
