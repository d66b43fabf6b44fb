"""DDRM: diffusion in the modes of AᵀWA, each of which sees its own noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise, noise_in, normal_like
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._times import HIGHEST_NOISE, falling_times
from ctflow.search_space import Range

__all__ = ["DDRM"]


@dataclass(frozen=True)
class DDRM(Sampler):
    """Every mode with eigenvalue λ = s² of AᵀWA is a denoising problem with noise 1 / s.

    With x̄ = x / t and the next noise level σ': where s = 0, D + √(1 - η²) σ' ẑ + η σ' z; where σ' < 1 / s,
    D + √(1 - η²) σ' (ȳ - s D) + η σ' z; else ȳ / s + √(σ'² - 1 / s²) z.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor; one network evaluation each.
        renewal: η.

    Raises:
        ProtocolError: a number lies outside its range.
        UsageError: the operator has no spectrum that can be computed.

    References:
        Kawar, Elad, Ermon, Song, NeurIPS 2022, arXiv:2201.11793, equations 7 and 8, with its η_b = 1.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.DDRM(steps=10), prior)
        >>> found.stats["network"]
        10
        >>> bool((found.mean - truth).std() < 0.35 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {"renewal": Range((0.0, 1.0))}
    cost: ClassVar[str] = "a step: 1 network evaluation; once the spectrum of AᵀWA"
    paper: ClassVar[str] = """@inproceedings{kawar2022ddrm,
  title={Denoising Diffusion Restoration Models},
  author={Kawar, Bahjat and Elad, Michael and Ermon, Stefano and Song, Jiaming},
  booktitle={Advances in Neural Information Processing Systems}, year={2022}
}"""

    steps: int = 20
    renewal: float = 0.85

    def __post_init__(self) -> None:
        require(self.steps >= 1 and 0 <= self.renewal <= 1, self, "steps >= 1 and renewal in [0, 1]")

    def times(self) -> list[float]:
        """Noise levels fall by one factor."""
        return falling_times(self.steps)

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        spectrum = inside.spectrum
        if spectrum is None:
            raise UsageError(
                "DDRM needs the spectrum of the operator, and that of "
                f"{math.prod(inside.A.range_shape)} data is too large to compute; "
                "use fewer views, or a method that needs none, such as Flower or DiffPIR"
            )
        values = spectrum.values.to(inside.y)
        data = spectrum.analyse(inside.A.T(inside.W * inside.y)) / values.clamp_min(1e-30)  # ȳ / s
        first = noise(inside, generator)
        x = first + prior.mean / (1 + HIGHEST_NOISE) - first / (1 + HIGHEST_NOISE)  # (1 - t) z + t mean
        for t, u in pairwise(self.times()):
            denoised = prior.denoise(x, t)
            fresh = normal_like(x, generator)
            x = u * self._renoise(
                inside, values, data, denoised, noise_in(x, denoised, t), fresh, (1 - u) / u
            )
            yield x if u == 1 else denoised

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, 0

    def _renoise(
        self,
        inside: InverseProblem,
        values: Tensor,
        data: Tensor,
        denoised: Tensor,
        old: Tensor,
        fresh: Tensor,
        level: float,
    ) -> Tensor:
        """x̄ at the noise level σ': unmeasured modes as in DDIM, measured ones by their data."""
        spectrum = inside.spectrum
        assert spectrum is not None  # the caller has refused operators without one
        kept = math.sqrt(1 - self.renewal**2) * level
        image = denoised + kept * old + self.renewal * level * fresh
        D, z = spectrum.analyse(denoised), spectrum.analyse(fresh)
        rough = D + kept * values.sqrt() * (data - D) + self.renewal * level * z
        spread = (level**2 - 1 / values.clamp_min(1e-30)).clamp_min(0).sqrt()
        modes = torch.where(level**2 * values < 1, rough, data + spread * z)
        modes = torch.where(values > 0, modes, spectrum.analyse(image))
        return image + spectrum.synthesise(modes - spectrum.analyse(image))
