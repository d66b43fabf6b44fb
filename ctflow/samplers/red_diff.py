"""RED-diff: gradient descent on the data and on what the denoiser says of the noised image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise_in, normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, normal_norm, require
from ctflow.samplers._start import tikhonov
from ctflow.samplers._times import falling_times
from ctflow.search_space import Range

__all__ = ["REDDiff"]


@dataclass(frozen=True)
class REDDiff(Sampler):
    """μ follows Adam on AᵀW(A μ - y) / |AᵀWA| + strength · σ (ẑ(t μ + (1 - t) z, t) - z), for falling σ.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; one network evaluation each.
        strength: λ, weight of the prior.
        rate: learning rate of Adam, network range.

    Raises:
        ProtocolError: a number is not positive.

    References:
        Mardani, Song, Kautz, Vahdat, ICLR 2024, arXiv:2305.04391, algorithm 1.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.REDDiff(steps=50), prior)
        >>> found.stats["network"]
        50
        >>> bool((found.mean - truth).std() < 0.3 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "steps": Range((50, 100, 200), choices=True),
        "strength": Range((0.03, 3.0), log=True),
        "rate": Range((0.001, 0.1), log=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 gradient of the data"
    paper: ClassVar[str] = """@inproceedings{mardani2024reddiff,
  title={A Variational Perspective on Solving Inverse Problems with Diffusion Models},
  author={Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash},
  booktitle={International Conference on Learning Representations}, year={2024}
}"""

    steps: int = 100
    strength: float = 0.25
    rate: float = 0.05

    def __post_init__(self) -> None:
        require(
            self.steps >= 1 and min(self.strength, self.rate) > 0, self, "steps >= 1, strength and rate > 0"
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        length = normal_norm(inside)
        image = tikhonov(inside, prior, PROX_ITERATIONS)
        adam = torch.optim.Adam([image], lr=self.rate, betas=(0.9, 0.99))
        for t in falling_times(self.steps)[:-1]:
            fresh = normal_like(image, generator)
            x = t * image + (1 - t) * fresh
            doubt = noise_in(x, prior.denoise(x, t), t) - fresh
            image.grad = inside.gradient(image) / length + self.strength * (1 - t) / t * doubt
            adam.step()
            yield image

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, 0
