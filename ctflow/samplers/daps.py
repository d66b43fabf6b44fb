"""DAPS: at every noise level a whole flow to a clean image, a draw given the data, and fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import draw_posterior, normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Renoise, require
from ctflow.samplers._times import LOWEST_NOISE, falling_times
from ctflow.search_space import Range
from ctflow.tables import Whole

__all__ = ["DAPS"]


@dataclass(frozen=True)
class DAPS(Renoise):
    """D = end of the flow from x; D' ~ N(D, σ² / (1 + σ²)) given the data; x = u D' + (1 - u) z, z fresh.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor.
        flow_steps: Euler steps from x to its image: so many network evaluations a level.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Zhang et al., CVPR 2025, arXiv:2407.01521, algorithm 1. Differs from it: linear data and Gaussian
        noise let the draw be exact, where the paper runs Langevin steps.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.DAPS(steps=10, flow_steps=2), prior)
        >>> found.stats["network"]
        20
        >>> bool((found.mean - truth).std() < 0.45 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = Renoise.search | {"flow_steps": Range((1, 3, 5), choices=True)}
    cost: ClassVar[str] = "a step: flow_steps network evaluations, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{zhang2025daps,
  title={Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing},
  author={Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima
          and Song, Yang},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition}, year={2025}
}"""

    flow_steps: Annotated[int, Whole(1, 1000)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.flow_steps >= 1, self, "flow_steps >= 1")

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps)

    def predict(self, prior: Prior, x: Tensor, t: float) -> Tensor:
        """Follow the flow from x to its end, on noise levels that fall by one factor."""
        level, inner = (1 - t) / t, [t, 1.0]
        if level > LOWEST_NOISE:
            inner = [t, *falling_times(self.flow_steps, level, LOWEST_NOISE / 2)[1:]]
        for s, u in pairwise(inner):
            x = x + (u - s) * prior.velocity(x, s)
        return x

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        levels = ((1 - t) / t for t in self.times()[:-1])
        return sum(self.flow_steps if level > LOWEST_NOISE else 1 for level in levels), 0

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """A draw around the image, given the data."""
        level = ((1 - t) / t) ** 2
        return draw_posterior(inside, denoised, level / (1 + level), PROX_ITERATIONS, generator)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """All noise is fresh."""
        return u * corrected + (1 - u) * normal_like(x, generator)
