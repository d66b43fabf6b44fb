"""`solve` says what a method is to those who give another thing, and how far it is to those who ask."""

import pytest
import torch

from ctflow.errors import UsageError
from ctflow.priors import GaussianPrior, Prior
from ctflow.recon import CGLS, FBP
from ctflow.samplers import MSFlow
from ctflow.solving import solve
from tests.dense import random_problem


def threshold(problem):
    """A reconstruction as a plain function."""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fbp", r"give ctflow.FBP\(\)$"),
        ("ms-flow", r"give ctflow.MSFlow\(\)$"),
        ("msflow", "did you mean 'ms-flow'"),
        (FBP, r"FBP is a class; give FBP\(\)$"),
        (threshold, "a function is no method.*write a class as CONTRIBUTING.md shows$"),
        (None, "a NoneType is no method"),
    ],
)
def test_what_is_no_method_is_refused_with_what_to_give(method, said):
    with pytest.raises(UsageError, match=said):
        solve(random_problem()[0], method)


def test_progress_is_shown_on_stderr_when_asked_for(capsys):
    problem, seen = random_problem()[0], []
    for progress, lines in ((False, 0), (True, 5)):
        solve(problem, CGLS(iterations=5), callback=lambda step, of: seen.append(step), progress=progress)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count(" % CGLS") == lines
    assert seen == [1, 2, 3, 4, 5] * 2


class Drawn:
    """A method that draws its image."""

    needs_prior = False
    paper: tuple[str, ...] = ()

    def __call__(self, problem, prior, generator, callback):
        image = torch.randn(problem.y.shape[:-3] + problem.A.domain_shape, generator=generator)
        return image.to(problem.y)


class Spread(Drawn):
    spread = "starts"


def test_a_method_that_draws_must_say_what_its_samples_are():
    """One that does not would give one image, and be taken for sure of it."""
    problem = random_problem()[0]
    assert len(solve(problem, Drawn()).x) == 1
    assert len(solve(problem, CGLS(iterations=1), samples=3).x) == 1
    assert solve(problem, Spread(), samples=3).std.min() > 0
    with pytest.raises(UsageError, match="spread = 'starts'"):
        solve(problem, Drawn(), samples=3)


def test_a_prior_must_be_loaded_and_keep_shapes():
    class Cropped(Prior):
        name = "cropped"

        def _denoise(self, x, t):
            return x[..., 1:]

        def residual_variance(self, t):
            return 0.1

    problem = random_problem()[0]
    with pytest.raises(UsageError, match=r"the prior is str; load it first: FlowPrior.load"):
        solve(problem, MSFlow(), "ct-256")
    with pytest.raises(UsageError, match=r"prior 'cropped' made .* must keep their shape"):
        Cropped().denoise(torch.zeros(1, 4, 4), 0.5)
    assert GaussianPrior.example().denoise(torch.zeros(1, 8, 8), 0.5).shape == (1, 8, 8)
