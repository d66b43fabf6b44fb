"""DPS: ancestral steps of a diffusion prior, each followed by a gradient step on the residual's norm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import ddim_noise
from ctflow.samplers._sampler import Sampler, normal_norm, require
from ctflow.samplers._times import LOWEST_NOISE, falling_times
from ctflow.search_space import Range
from ctflow.system.randomness import normal

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS(Sampler):
    """x' = DDIM(x) - ζ ∇ |y - A D(x)|_W / |W½ A|, on the diffusion's path.

    Of a `LatentPrior` it samples the latents, with A after the decoder, by the decoder's own gradient.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; each costs one network evaluation and one backward pass.
        guidance: ζ, length of one step in network range for an operator of norm 1.
        renewal: η of DDIM; 1 is ancestral sampling.
        high: first noise level, network range.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Chung et al., ICLR 2023, arXiv:2209.14687, algorithm 1 (ζ over the residual's norm, its section 4).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.DPS(steps=100), prior)
        >>> found.stats["network"], found.stats["backward"]
        (100, 100)
        >>> bool((found.mean - truth).std() < 0.35 * truth.std())
        True
    """

    takes_latents: ClassVar[bool] = True
    search: ClassVar[dict[str, Range]] = {
        "guidance": Range((0.03, 10.0), log=True),
        "renewal": Range((0.0, 0.5, 1.0), choices=True),
        "high": Range((3.0, 10.0, 20.0), choices=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 backward pass, 1 gradient of the data"
    paper: ClassVar[str] = """@inproceedings{chung2023dps,
  title={Diffusion Posterior Sampling for General Noisy Inverse Problems},
  author={Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul},
  booktitle={International Conference on Learning Representations}, year={2023}
}"""

    steps: int = 100
    guidance: float = 1.0
    renewal: float = 1.0
    high: float = 20.0

    def __post_init__(self) -> None:
        require(
            self.steps >= 1 and self.guidance >= 0 and 0 <= self.renewal <= 1 and self.high > LOWEST_NOISE,
            self,
            "steps >= 1, guidance >= 0, renewal in [0, 1] and high > 0.02, the last level",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        length = normal_norm(inside).sqrt()
        shape = (*inside.batch_shape, *inside.A.domain_shape)

        def uphill(image: Tensor) -> Tensor:
            dims = len(inside.A.range_shape)
            misfit = inside.A(image) - inside.y
            norm = inner(inside.W * misfit, misfit, dims).sqrt().clamp_min(1e-30)
            return inside.A.T(inside.W * misfit / norm) / length

        x = normal(prior.latent_shape(shape), generator).to(inside.y)
        for t, u in pairwise(falling_times(self.steps, self.high)):
            denoised, pulled = prior.denoise_vjp(x, t, partial(prior.decode_vjp, cotangent=uphill))
            mixed = ddim_noise(x, denoised, t, u, self.renewal, generator)
            # The step is one of the diffusion's x / √(t² + (1 - t)²), at both of its ends.
            scale = math.hypot(t, 1 - t) * math.hypot(u, 1 - u)
            x = u * denoised + (1 - u) * mixed - self.guidance * scale * pulled
            yield prior.decode(x if u == 1 else denoised)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, self.steps
