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
from ctflow.samplers._sampler import Renoise, require
from ctflow.samplers._times import falling_times
from ctflow.tables import Whole

__all__ = ["DAPS"]


@dataclass(frozen=True)
class DAPS(Renoise):
    """D = end of the flow from x; D' ~ N(D, σ² / (1 + σ²)) given the data; x = u D' + (1 - u) z, z fresh.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor.
        prox_iterations: conjugate-gradient steps of one draw.
        flow_steps: Euler steps from x to its image: so many network evaluations a level.
        high: first noise level, network range.
        low: last noise level, network range.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Zhang et al., CVPR 2025, arXiv:2407.01521, algorithm 1. Differs from it: linear data and Gaussian
        noise let the draw be exact, where the paper runs Langevin steps.
    """

    cost: ClassVar[str] = "a step: flow_steps network evaluations, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{zhang2025daps,
  title={Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing},
  author={Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima
          and Song, Yang},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition}, year={2025}
}"""

    flow_steps: Annotated[int, Whole(1, 1000)] = 3
    high: float = 4.0
    low: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.flow_steps >= 1 and self.high > self.low > 0,
            self,
            "flow_steps >= 1 and high > low > 0",
        )

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps, self.high, self.low)

    def predict(self, prior: Prior, x: Tensor, t: float) -> Tensor:
        """Follow the flow from x to its end, on noise levels that fall by one factor."""
        level = (1 - t) / t
        inner = (
            [t, *falling_times(self.flow_steps, level, self.low * 0.5)[1:]] if level > self.low else [t, 1.0]
        )
        for s, u in pairwise(inner):
            x = x + (u - s) * prior.velocity(x, s)
        return x

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        levels = ((1 - t) / t for t in self.times()[:-1])
        return sum(self.flow_steps if level > self.low else 1 for level in levels), 0

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """A draw around the image, given the data."""
        level = ((1 - t) / t) ** 2
        return draw_posterior(inside, denoised, level / (1 + level), self.prox_iterations, generator)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """All noise is fresh."""
        return u * corrected + (1 - u) * normal_like(x, generator)
