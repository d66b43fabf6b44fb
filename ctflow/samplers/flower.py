"""Flower: destination, refinement by the data, and a fresh start on the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import draw_posterior, normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Renoise
from ctflow.samplers._times import unit_variance
from ctflow.search_space import Range

__all__ = ["Flower"]


@dataclass(frozen=True)
class Flower(Renoise):
    """D' = prox of the data at D with variance ν²; x = u D' + (1 - u) z, z fresh.

    ν² = (1 - t)² / ((1 - t)² + t²) is the variance given x for a white prior of unit variance. With
    `sample`, D' is instead drawn from N(prox, (1/ν² + AᵀWA)⁻¹): the prox of perturbed data and a perturbed
    centre, exactly.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: intervals of the uniform grid; steps - 1 network evaluations.
        sample: draw D' (the paper's γ = 1) instead of taking the mean (γ = 0).

    Raises:
        ProtocolError: a number is not positive.

    References:
        Pourya, El Rawas, Unser, ICLR 2026, arXiv:2509.26287; `draw_posterior` (the draw).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.Flower(steps=10, sample=True), prior)
        >>> found.stats["network"]
        9
        >>> bool((found.mean - truth).std() < 0.45 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = Renoise.search | {"sample": Range((False, True), choices=True)}
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{pourya2026flower,
  title={Flower: A Flow-Matching Solver for Inverse Problems},
  author={Pourya, Mehrsa and El Rawas, Bassam and Unser, Michael},
  booktitle={International Conference on Learning Representations}, year={2026}
}"""

    sample: bool = False

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """Prox of the data at the denoised image, or a draw around it."""
        variance = unit_variance(t)
        if self.sample:
            return draw_posterior(inside, denoised, variance, PROX_ITERATIONS, generator)
        return inside.prox(denoised, variance, PROX_ITERATIONS)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """All noise is fresh."""
        return u * corrected + (1 - u) * normal_like(x, generator)
