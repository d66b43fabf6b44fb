"""FlowADMM: alternating directions between the data and a renoise-denoise operator of the flow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.search_space import Range
from ctflow.tables import Whole

__all__ = ["FlowADMM"]

_FIRST_TIME, _LAST_TIME = 0.2, 0.95  # noise of 2000 HU, where others start too, and of 26 HU


@dataclass(frozen=True)
class FlowADMM(Sampler):
    """x = prox of the data at z - u; z = mean over draws of D(t (x + u) + (1 - t) noise, t); u += x - z.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: iterations; the time t grows from 0.2 to 0.95, fast at first.
        draws: noise images that are averaged, one network evaluation each.
        variance: of the data prox, network range squared; larger trusts the data more.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Sommerhoff and Moeller, arXiv:2605.08640, algorithm 1 with a non-stationary schedule.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Blur((1, 32, 32), sigma=1.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.FlowADMM(steps=10), prior)
        >>> found.stats["network"]
        10
        >>> bool((found.mean - truth).std() < 0.3 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "steps": Range((10, 20, 50), choices=True),
        "variance": Range((0.01, 1.0), log=True),
    }
    cost: ClassVar[str] = "a step: `draws` network evaluations, 1 data prox"
    paper: ClassVar[str] = """@article{sommerhoff2026flowadmm,
  title={FlowADMM: Plug-and-play ADMM with Flow-based Renoise-Denoise Priors},
  author={Sommerhoff, Hendrik and Moeller, Michael},
  journal={arXiv preprint arXiv:2605.08640}, year={2026}
}"""

    steps: int = 50
    draws: Annotated[int, Whole(1, 1000)] = 1
    variance: float = 0.25

    def __post_init__(self) -> None:
        require(
            min(self.steps, self.draws) >= 1 and self.variance > 0,
            self,
            "steps and draws >= 1 and variance > 0",
        )

    def times(self) -> list[float]:
        """Times of the iterations: they grow as the square root of an iteration's number."""
        span = _LAST_TIME - _FIRST_TIME
        return [_FIRST_TIME + ((step + 1) / self.steps) ** 0.5 * span for step in range(self.steps)]

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = z = tikhonov(inside, prior, PROX_ITERATIONS)
        dual = torch.zeros_like(x)
        for t in self.times():
            x = inside.prox(z - dual, self.variance, PROX_ITERATIONS, start=x)
            noised = [t * (x + dual) + (1 - t) * normal_like(x, generator) for _ in range(self.draws)]
            z = prior.denoise_each(torch.stack(noised), [t] * self.draws).mean(0)
            dual = dual + x - z
            yield x

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.draws * self.steps, 0
