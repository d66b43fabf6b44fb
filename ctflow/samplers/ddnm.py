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
from ctflow.samplers._sampler import Renoise, require
from ctflow.samplers._times import falling_times

__all__ = ["DDNM"]


@dataclass(frozen=True)
class DDNM(Renoise):
    """D' = D + (AᵀWA + floor)⁻¹ AᵀW (y - A D); x = u D' + (1 - u) (√(1 - η²) ẑ + η z).

    With floor -> 0 the correction is the pseudo-inverse A⁺(y - A D). Sparse-view CT has small singular
    values, through which it would amplify noise: the floor is 1 / variance, with the prior's own variance.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; one network evaluation each.
        prox_iterations: conjugate-gradient steps of one correction.
        variance: variance of the image in network range; infinite would be the pseudo-inverse.
        renewal: η, share of fresh noise.
        high: first noise level, network range.
        low: last noise level, network range.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Wang, Yu, Zhang, ICLR 2023, arXiv:2212.00490, algorithm 1. Differs from it: the floor, in place of
        DDNM+'s thresholds on singular values.
    """

    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{wang2023ddnm,
  title={Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model},
  author={Wang, Yinhuai and Yu, Jiwen and Zhang, Jian},
  booktitle={International Conference on Learning Representations}, year={2023}
}"""

    variance: float = 1.0
    renewal: float = 0.85
    high: float = 4.0
    low: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.variance > 0 and 0 <= self.renewal <= 1 and self.high > self.low > 0,
            self,
            "variance > 0, renewal in [0, 1] and high > low > 0",
        )

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps, self.high, self.low)

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """Damped projection onto the images that fit the data."""
        return inside.prox(denoised, self.variance, self.prox_iterations)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """The predicted noise is kept, and mixed with fresh noise."""
        old = noise_in(x, denoised, t)
        mixed = math.sqrt(1 - self.renewal**2) * old + self.renewal * normal_like(x, generator)
        return u * corrected + (1 - u) * mixed
