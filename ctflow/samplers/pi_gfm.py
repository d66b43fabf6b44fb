"""ΠGFM (OT-ODE): the flow's ODE with pseudo-inverse guidance, by plain Euler steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, require
from ctflow.samplers._start import START_IMAGES, start_between
from ctflow.samplers._times import residual_variance, uniform_times
from ctflow.search_space import Range

__all__ = ["PiGFM"]


@dataclass(frozen=True)
class PiGFM(Sampler):
    """x' = x + (u - t) (v + w (1 - t) / t · Jᵀ Aᵀ (r_t² A Aᵀ + W⁻¹)⁻¹ (y - A D)), J = dD/dx.

    What C-ΠGFM integrates analytically: explicit steps are stable only while the guidance is weak.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: Euler steps, each with one network evaluation and one backward pass.
        start: τ, time at which the integration starts from τ · start image + (1 - τ) · noise.
        guidance: w.
        calibrated: r_t² as measured on the prior; else that of a unit-variance prior, as in the paper.
        start_image: "tikhonov", or "pseudo-inverse" for A⁺y.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pokle et al., TMLR 2024, arXiv:2310.04432, algorithm 1. Differs from it: it starts from the Tikhonov
        image. `paper_form()` starts from A⁺y.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Blur((1, 32, 32), sigma=1.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.PiGFM(steps=10), prior)
        >>> found.stats["network"], found.stats["backward"]
        (10, 10)
        >>> bool((found.mean - truth).std() < 0.2 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "start": Range((0.1, 0.2, 0.4, 0.6), choices=True),
        "guidance": Range((0.1, 3.0), log=True),
        "calibrated": Range((False, True), choices=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 backward pass, 1 data prox"
    paper: ClassVar[str] = """@article{pokle2024otode,
  title={Training-free Linear Image Inverses via Flows},
  author={Pokle, Ashwini and Muckley, Matthew J. and Chen, Ricky T. Q. and Karrer, Brian},
  journal={Transactions on Machine Learning Research}, year={2024}
}"""

    steps: int = 50
    start: float = 0.2
    guidance: float = 1.0
    calibrated: bool = False
    start_image: str = "tikhonov"

    def __post_init__(self) -> None:
        require(self.start_image in START_IMAGES, self, "start_image 'tikhonov' or 'pseudo-inverse'")
        require(
            self.steps >= 1 and 0 < self.start < 1 and self.guidance >= 0,
            self,
            "steps >= 1, start in (0, 1) and guidance >= 0",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = start_between(inside, prior, self.start, PROX_ITERATIONS, generator, self.start_image)
        for t, u in pairwise(uniform_times(self.steps, self.start)):
            variance = residual_variance(prior, t, self.calibrated)

            def pull(denoised: Tensor, variance: float = variance) -> Tensor:
                return (inside.prox(denoised, variance, PROX_ITERATIONS) - denoised) / variance

            denoised, guided = prior.denoise_vjp(x, t, pull)
            x = x + (u - t) * ((denoised - x) / (1 - t) + self.guidance * (1 - t) / t * guided)
            yield x if u == 1 else denoised

    @classmethod
    def paper_form(cls) -> PiGFM:
        """From A⁺y at τ = 0.2, 80 of the paper's 100 steps, with w = 1."""
        return cls(steps=80, start_image="pseudo-inverse")

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, self.steps
