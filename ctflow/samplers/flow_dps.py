"""FlowDPS: posterior sampling that corrects the clean image and mixes fresh noise into the old one."""

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
from ctflow.samplers._times import unit_variance
from ctflow.search_space import Range

__all__ = ["FlowDPS"]


@dataclass(frozen=True)
class FlowDPS(Renoise):
    """D' = prox of the data at D; x = u D' + (1 - u) (√(1 - u) ẑ + √u z), z fresh.

    With `interpolate`, D' is first mixed with D as σ D' + (1 - σ) D, σ = 1 - t: the data count less and less
    as the noise falls, and are under-fitted at the end.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: intervals of the uniform grid; steps - 1 network evaluations.
        prox_iterations: conjugate-gradient steps of one data prox.
        trust: factor of the prox variance r_t² of a unit-variance prior; larger trusts the data more.
        interpolate: mix the corrected with the uncorrected image, as the paper's code does.

    Raises:
        ProtocolError: a number is not positive.

    References:
        Kim, Kim, Ye, ICCV 2025, arXiv:2503.08136. Differs from it: an exact prox of the noise model takes
        the place of a few gradient steps on the unsquared norm; no latent decoder; no interpolation unless
        asked for. `paper_form()` has it.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.MotionBlur((1, 32, 32), length=7), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.FlowDPS(steps=10), prior)
        >>> found.stats["network"]
        9
        >>> bool((found.mean - truth).std() < 0.25 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "trust": Range((0.03, 10.0), log=True),
        "interpolate": Range((False, True), choices=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{kim2025flowdps,
  title={FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems},
  author={Kim, Jeongsol and Kim, Bryan Sangwoo and Ye, Jong Chul},
  booktitle={IEEE/CVF International Conference on Computer Vision}, year={2025}
}"""

    prox_iterations: int = 30
    trust: float = 1.0
    interpolate: bool = False

    @classmethod
    def paper_form(cls) -> FlowDPS:
        """28 steps with interpolation, as the paper's code runs; the data prox stays ours."""
        return cls(steps=28, interpolate=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.prox_iterations >= 1 and self.trust > 0, self, "prox_iterations >= 1 and trust > 0")

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """Prox of the data, mixed with the denoised image where `interpolate` is set."""
        corrected = inside.prox(denoised, self.trust * unit_variance(t), self.prox_iterations)
        return (1 - t) * corrected + t * denoised if self.interpolate else corrected

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """Old noise fades as fresh noise comes in."""
        mixed = math.sqrt(1 - u) * noise_in(x, denoised, t) + math.sqrt(u) * normal_like(x, generator)
        return u * corrected + (1 - u) * mixed
