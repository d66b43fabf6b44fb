"""ΠGDM: DDIM steps of a diffusion prior with pseudo-inverse guidance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import ddim_noise
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, require
from ctflow.samplers._start import start_between
from ctflow.samplers._times import LOWEST_NOISE, falling_times, unit_variance
from ctflow.search_space import Range

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM(Sampler):
    """x' = DDIM(x) + w √(ᾱ ᾱ') Jᵀ e, e = prox of the data at D minus D, J = dD/dx, on the diffusion's path.

    Written on the flow's path, where ᾱ = t² / (t² + (1 - t)²) and the same network serves: the guidance
    becomes w t u Jᵀ e.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; each costs one network evaluation and one backward pass.
        start: time of the first level, from `start` · Tikhonov image + (1 - start) · noise.
        guidance: w.
        renewal: η of DDIM; 0 draws no fresh noise.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Song, Vahdat, Mardani, Kautz, ICLR 2023, algorithm 1, with r_t² = 1 - ᾱ. Differs from it: starts late,
        from an image that knows the data; `paper_form()` starts from noise.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.PiGDM(steps=10), prior)
        >>> found.stats["network"], found.stats["backward"]
        (10, 10)
        >>> bool((found.mean - truth).std() < 0.35 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "steps": Range((20, 50, 100), choices=True),
        "start": Range((0.01, 0.2, 0.4, 0.6), choices=True),
        "guidance": Range((0.1, 3.0), log=True),
        "renewal": Range((0.0, 0.5, 1.0), choices=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 backward pass, 1 data prox"
    paper: ClassVar[str] = """@inproceedings{song2023pigdm,
  title={Pseudoinverse-Guided Diffusion Models for Inverse Problems},
  author={Song, Jiaming and Vahdat, Arash and Mardani, Morteza and Kautz, Jan},
  booktitle={International Conference on Learning Representations}, year={2023}
}"""

    steps: int = 50
    start: float = 0.2
    guidance: float = 1.0
    renewal: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.steps >= 1
            and 0 < self.start < 1 / (1 + LOWEST_NOISE)
            and self.guidance >= 0
            and 0 <= self.renewal <= 1,
            self,
            "steps >= 1, start in (0, 0.98), guidance >= 0 and renewal in [0, 1]",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = start_between(inside, prior, self.start, PROX_ITERATIONS, generator)
        times = falling_times(self.steps, (1 - self.start) / self.start)
        for t, u in pairwise(times):
            variance = unit_variance(t)

            def pull(denoised: Tensor, variance: float = variance) -> Tensor:
                return inside.prox(denoised, variance, PROX_ITERATIONS) - denoised

            denoised, guided = prior.denoise_vjp(x, t, pull)
            mixed = ddim_noise(x, denoised, t, u, self.renewal, generator)
            x = u * denoised + (1 - u) * mixed + self.guidance * t * u * guided
            yield x if u == 1 else denoised

    @classmethod
    def paper_form(cls) -> PiGDM:
        """100 ancestral steps from noise alone, with w = 1."""
        return cls(steps=100, start=0.01)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, self.steps
