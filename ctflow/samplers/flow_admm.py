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
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.tables import Whole

__all__ = ["FlowADMM"]


@dataclass(frozen=True)
class FlowADMM(Sampler):
    """x = prox of the data at z - u; z = mean over draws of D(t (x + u) + (1 - t) noise, t); u += x - z.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: iterations; the time grows from `start` to `end`.
        draws: noise images that are averaged, one network evaluation each.
        variance: of the data prox, network range squared; larger trusts the data more.
        start: first time.
        end: last time.
        curve: exponent of the time's growth.
        prox_iterations: conjugate-gradient steps of one data prox.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Sommerhoff and Moeller, arXiv:2605.08640, algorithm 1 with a non-stationary schedule.
    """

    cost: ClassVar[str] = "a step: `draws` network evaluations, 1 data prox"
    paper: ClassVar[str] = """@article{sommerhoff2026flowadmm,
  title={FlowADMM: Plug-and-play ADMM with Flow-based Renoise-Denoise Priors},
  author={Sommerhoff, Hendrik and Moeller, Michael},
  journal={arXiv preprint arXiv:2605.08640}, year={2026}
}"""

    steps: int = 50
    draws: Annotated[int, Whole(1, 1000)] = 1
    variance: float = 0.25
    start: float = 0.2
    end: float = 0.95
    curve: float = 0.5
    prox_iterations: int = 30

    def __post_init__(self) -> None:
        require(
            min(self.steps, self.draws, self.prox_iterations) >= 1
            and min(self.variance, self.curve) > 0
            and 0 < self.start < self.end < 1,
            self,
            "steps, draws and prox_iterations >= 1, variance and curve > 0 and 0 < start < end < 1",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = z = tikhonov(inside, prior, self.prox_iterations)
        dual = torch.zeros_like(x)
        for step in range(self.steps):
            t = self.start + ((step + 1) / self.steps) ** self.curve * (self.end - self.start)
            x = inside.prox(z - dual, self.variance, self.prox_iterations, start=x)
            noised = [t * (x + dual) + (1 - t) * normal_like(x, generator) for _ in range(self.draws)]
            z = prior.denoise_each(torch.stack(noised), [t] * self.draws).mean(0)
            dual = dual + x - z
            yield x

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.draws * self.steps, 0
