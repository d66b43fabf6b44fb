"""The skeleton of the denoise, correct, renoise family: each member says how it corrects and renoises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._path import noise, require, uniform_times
from ctflow.samplers._sampler import Sampler


@dataclass(frozen=True)
class Renoise(Sampler):
    """For t, u along a grid: D = denoised x; D' = `correct` D by the data; x = `renoise` D' to time u.

    Shapes: x (*batch, Z, Y, X), network range.

    Args:
        steps: intervals of the grid; each costs one network evaluation (none at t = 0).
        prox_iterations: conjugate-gradient steps of one data prox.

    References:
        Every member names its own. Daras et al. survey the family,
        arXiv:2410.00083.
    """

    steps: int = 50
    prox_iterations: int = 30

    def __post_init__(self) -> None:
        require(min(self.steps, self.prox_iterations) >= 1, self, "steps and prox_iterations >= 1")

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = noise(inside, generator)
        for t, u in pairwise(self.times()):
            denoised = self.predict(prior, x, t)
            corrected = self.correct(inside, prior, denoised, t, generator)
            x = self.renoise(x, denoised, corrected, t, u, generator)
            yield x if u == 1 else corrected

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return sum(t > 0 for t in self.times()[:-1]), 0

    def times(self) -> list[float]:
        """Grid of times; the last is 1."""
        return uniform_times(self.steps)

    def predict(self, prior: Prior, x: Tensor, t: float) -> Tensor:
        """The clean image that x at time t leads to."""
        return prior.denoise(x, t)

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """The denoised image, brought towards the data."""
        raise TypeError(f"{type(self).__name__} defines no correct")

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """The state at time u."""
        raise TypeError(f"{type(self).__name__} defines no renoise")
