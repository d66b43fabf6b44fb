"""DDNM: the data replace the row-space part of the denoised image."""

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

__all__ = ["DDNM"]

_RENEWAL = 0.85  # η of the official code


@dataclass(frozen=True)
class DDNM(Renoise):
    """D' = D + (AᵀWA + floor)⁻¹ AᵀW (y - A D); x = u D' + (1 - u) (√(1 - η²) ẑ + η z).

    With floor -> 0 the correction is the pseudo-inverse A⁺(y - A D). Sparse-view CT has small singular
    values, through which it would amplify noise: the floor is 1 / variance, with the prior's own variance.
    The share of fresh noise is η = 0.85.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; one network evaluation each.
        variance: variance of the image in network range; infinite would be the pseudo-inverse.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Wang, Yu, Zhang, ICLR 2023, arXiv:2212.00490, algorithm 1. Differs from it: the floor, in place of
        DDNM+'s thresholds on singular values.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Mask((1, 32, 32), missing=0.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.DDNM(steps=10), prior)
        >>> found.stats["network"]
        10
        >>> bool((found.mean - truth).std() < 0.4 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = Renoise.search | {"variance": Range((0.03, 3.0), log=True)}
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{wang2023ddnm,
  title={Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model},
  author={Wang, Yinhuai and Yu, Jiwen and Zhang, Jian},
  booktitle={International Conference on Learning Representations}, year={2023}
}"""

    variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.variance > 0, self, "variance > 0")

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps)

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """Damped projection onto the images that fit the data."""
        return inside.prox(denoised, self.variance, PROX_ITERATIONS)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """The predicted noise is kept, and mixed with fresh noise."""
        old = noise_in(x, denoised, t)
        mixed = math.sqrt(1 - _RENEWAL**2) * old + _RENEWAL * normal_like(x, generator)
        return u * corrected + (1 - u) * mixed
