"""FMCT: Euler steps of the flow, each corrected in full by a few conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._sampler import Renoise, require
from ctflow.search_space import Range

__all__ = ["FMCT"]

_CG_STEPS = 5  # few: that a correction is not solved to the end is part of the method


@dataclass(frozen=True)
class FMCT(Renoise):
    """x' = x + (u - t) v + (D' - D), D' = argmin ½ |A D' - y|²_W + |D' - D|² / (2 variance), in 5 steps.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: Euler steps; steps - 1 network evaluations.
        variance: 1 / γ, the same at all times.

    Raises:
        ProtocolError: a number is not positive.

    References:
        Shi et al., arXiv:2603.00205 (FMCT; its efficient variant, which reuses velocities, is not here).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.FMCT(steps=10), prior)
        >>> found.stats["network"]
        9
        >>> bool((found.mean - truth).std() < 0.1 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = Renoise.search | {"variance": Range((0.01, 1.0), log=True)}
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 short data prox"
    paper: ClassVar[str] = """@article{shi2026efmct,
  title={Efficient Flow Matching for Sparse-View CT Reconstruction},
  author={Shi, Jiayang and Yang, Lincen and Li, Zhong and van Leeuwen, Tristan and Pelt, Dani{\\"e}l M.
          and Batenburg, K. Joost},
  journal={arXiv preprint arXiv:2603.00205}, year={2026}
}"""

    variance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.variance > 0, self, "variance > 0")

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """A few conjugate gradients from the denoised image."""
        return inside.prox(denoised, self.variance, _CG_STEPS)

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """Euler's step, and the correction in full: no fresh noise."""
        return x + (u - t) / (1 - t) * (denoised - x) + corrected - denoised
