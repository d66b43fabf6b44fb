"""Laws of reconstruction methods with a flow prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ctflow.problem import InverseProblem
from ctflow.solving import Method, Solution, Spread, samples_of, solve, spread_of
from ctflow.testing._finding import Finding, Laws, check_laws
from ctflow.testing._gaussian import GaussianCase, gaussian_case


def check_sampler(method: Method, samples: int = 16) -> list[Finding]:
    """Check a sampler on a problem whose posterior is Gaussian and known in closed form.

    The data are 24 noisy random projections of a smooth 8 × 8 image, in attenuation. The mean of the samples
    must be closer to the exact posterior mean than half the distance from the prior's mean to it (a sampler
    that ignores the data reaches 1 or more); the data must be fitted to their noise; a seed determines the
    images, which differ exactly where the method's `spread` says so; the problems of a batch do not affect
    each other, and where no noise is drawn a batch equals a loop; network evaluations are counted; all steps
    are reported.

    Args:
        method: a method for `solve`.
        samples: number of images whose mean is compared with the posterior mean.

    Returns:
        The figure of every law.

    Raises:
        CheckError: a law is broken.
    """
    return check_laws(type(method).__name__, _laws(method, samples))


def _laws(method: Method, samples: int) -> Laws:
    case = gaussian_case()

    def run(problem: InverseProblem = case.problem, seed: int = 0, number: int = 1) -> Solution:
        return solve(problem, method, case.prior, samples=number, seed=seed)

    y, W = case.problem.y.clone(), case.problem.W.clone()
    many, (one, bookkeeping) = run(number=samples), _watched(method)
    twice = run(case.problem.samples(2)).mean  # asked for two samples, one that draws nothing gives one
    spread = float((twice[0] - twice[1]).abs().max())
    yield "values that are not finite", lambda: float((~many.x.isfinite()).sum()), 0.0
    yield "shape and type", lambda: _kind_changes(many, case, samples), 0.0
    # Few steps and first-order guidance bias every fast sampler; ours come to 0.26 and 0.39.
    yield "distance to the posterior mean", lambda: _distance(many, case), 0.5
    yield "residual per datum", lambda: float(case.problem.residual(many.mean)), 2.0
    yield "same seed, same image", lambda: float((run().x != one.x).sum()), 0.0
    yield "spread over starts", lambda: spread, math.inf
    yield "spread other than stated", lambda: float((spread > 0) is (spread_of(method) is Spread.NONE)), 0.0
    yield "a batch's problems disturb each other", lambda: _crosstalk(run, case), 1e-3
    if spread == 0:
        yield "batch is loop", lambda: _batch_against_loop(run, case), 1e-3
    for law, errors in bookkeeping.items():
        yield law, partial(float, errors), 0.0
    yield "problem changed", lambda: float((case.problem.y != y).sum() + (case.problem.W != W).sum()), 0.0


def _kind_changes(solution: Solution, case: GaussianCase, samples: int) -> float:
    wanted = (samples_of(solution.method, samples), *case.problem.A.domain_shape), case.problem.y.dtype, False
    return float((tuple(solution.x.shape), solution.x.dtype, solution.x.requires_grad) != wanted)


def _distance(solution: Solution, case: GaussianCase) -> float:
    return float((solution.mean - case.mean).norm() / (case.prior_mean - case.mean).norm())


def _crosstalk(run: Callable[..., Solution], case: GaussianCase) -> float:
    """Change of the first image of a batch when the second problem is replaced."""
    firsts = [run(_pair(case, other)).mean[0] for other in (1, 2)]
    return float((firsts[0] - firsts[1]).norm() / (case.prior_mean - case.mean).norm())


def _batch_against_loop(run: Callable[..., Solution], case: GaussianCase) -> float:
    loop = torch.stack([run(problem).mean for problem in (case.problem, gaussian_case(1).problem)])
    return float((run(_pair(case, 1)).mean - loop).norm() / loop.norm())


def _pair(case: GaussianCase, other: int) -> InverseProblem:
    return replace(case.problem, y=torch.stack([case.problem.y, gaussian_case(other).problem.y]))


def _watched(method: Method) -> tuple[Solution, dict[str, float]]:
    """One run, and the difference between its own counts and those of the prior and the caller."""
    case = gaussian_case()
    calls: list[float] = []
    reports: list[tuple[int, int]] = []
    denoise = case.prior._denoise

    def counted(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return denoise(x, t)

    case.prior._denoise = counted  # type: ignore[method-assign]
    solution = solve(
        case.problem, method, case.prior, callback=lambda step, steps: reports.append((step, steps))
    )
    whole = reports == [(step + 1, len(reports)) for step in range(len(reports))] and bool(reports)
    return solution, {
        "network evaluations miscounted": abs(len(calls) - solution.stats["network"]),
        "steps not reported": float(not whole),
    }
