"""DiffPIR: plug-and-play restoration along a diffusion path, with part of the noise renewed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise_in, normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Renoise, require
from ctflow.samplers._times import falling_times
from ctflow.search_space import Range

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR(Renoise):
    """D' = prox of the data at D with variance trust · σ²; x = u D' + (1 - u) (√(1 - ζ) ẑ' + √ζ z).

    σ = (1 - t) / t is the noise level of x / t, ẑ' the noise that x holds beside D', z fresh. With ζ = 0 and
    x = D' this is the half-quadratic splitting that starts MS-Flow.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; one network evaluation each.
        trust: 1 / λ of the paper; larger trusts the data more.
        renewal: ζ, share of fresh noise.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Zhu et al., CVPR workshops 2023, arXiv:2305.08995, algorithm 1 (on the flow's path).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.MotionBlur((1, 32, 32), length=7), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.DiffPIR(steps=10), prior)
        >>> found.stats["network"]
        10
        >>> bool((found.mean - truth).std() < 0.3 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = Renoise.search | {
        "trust": Range((0.1, 30.0), log=True),
        "renewal": Range((0.0, 0.3, 0.5, 1.0), choices=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{zhu2023diffpir,
  title={Denoising Diffusion Models for Plug-and-Play Image Restoration},
  author={Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu
          and Van Gool, Luc},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops}, year={2023}
}"""

    trust: float = 1.0
    renewal: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trust > 0 and 0 <= self.renewal <= 1, self, "trust > 0 and renewal in [0, 1]")

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps)

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """Prox of the data at the denoised image."""
        return inside.prox(denoised, self.trust * ((1 - t) / t) ** 2, PROX_ITERATIONS)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """Part of the noise is kept, part is fresh."""
        old = noise_in(x, corrected, t)
        mixed = math.sqrt(1 - self.renewal) * old + math.sqrt(self.renewal) * normal_like(x, generator)
        return u * corrected + (1 - u) * mixed
