"""`solve(problem, method, prior)`: one entry for FBP, TV, MS-Flow and everything that comes after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.problem import InverseProblem
from ctflow.tally import tally

Callback = Callable[[int, int], None]
"""Called as callback(step, steps) after every step of a method."""


class Method(Protocol):
    """A reconstruction method: a frozen dataclass of numbers with one call."""

    needs_prior: bool
    cost: str
    paper: str

    def __call__(
        self, problem: InverseProblem, prior: Any, generator: torch.Generator, callback: Callback
    ) -> Tensor:
        """Image of the problem, (*batch, *domain_shape), in the unit of its x."""


@dataclass(frozen=True)
class Solution:
    """What a method found.

    Shapes: x (samples, *batch, *domain_shape), in 1/mm for CT.

    Args:
        x: images.
        method: the method that made them.
        stats: forward, adjoint, network and backward counts, seconds, and the final residual per datum
            (about 1 where the data are fitted to their noise).
        seed: seed of the run.
    """

    x: Tensor
    method: Any
    stats: dict[str, float]
    seed: int

    @property
    def mean(self) -> Tensor:
        """Mean over the samples, (*batch, *domain_shape)."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples, (*batch, *domain_shape).

        Raises:
            UsageError: there is one sample only.
        """
        if len(self.x) == 1:
            raise UsageError("one sample has no spread; call solve(..., samples=8)")
        return self.x.std(0)

    def citation(self) -> str:
        """BibTeX of the method."""
        return str(self.method.paper)


def _silent(step: int, steps: int) -> None:
    """The callback that is used where none is given."""


def solve(
    problem: InverseProblem,
    method: Any,
    prior: Any = None,
    *,
    samples: int = 1,
    seed: int = 0,
    callback: Callback = _silent,
) -> Solution:
    """Solve an inverse problem.

    A method that draws random numbers gives `samples` different images; one that does not is run once.

    Args:
        problem: operator, data and noise.
        method: FBP(), TV(), MSFlow(), ...
        prior: flow prior, for the methods that need one.
        samples: number of images.
        seed: seed of the random numbers; the same seed gives the same image on the same machine.
        callback: called as callback(step, steps).

    Returns:
        The images and what they cost.

    Raises:
        UsageError: the method needs a prior and none was given, or it diverged.
    """
    if method.needs_prior and prior is None:
        raise UsageError(
            f"{type(method).__name__} needs a prior; give FlowPrior.load('ct-256') or another one"
        )
    generator = torch.Generator().manual_seed(seed)
    repeated = problem.samples(samples if method.needs_prior else 1)
    with torch.no_grad(), tally() as counts:
        started = time.perf_counter()
        x = method(repeated, prior, generator, callback)
        seconds = time.perf_counter() - started
    if not bool(torch.isfinite(x).all()):
        raise UsageError(
            f"{type(method).__name__} diverged: its image holds values that are not numbers; "
            "lower its step or weight"
        )
    with torch.no_grad():
        residual = float(problem.residual(x.mean(0)).mean())
    stats = {name: counts[name] for name in ("forward", "adjoint", "network", "backward")}
    return Solution(x, method, {**stats, "seconds": seconds, "residual": residual}, seed)
