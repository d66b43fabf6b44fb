"""Moment matching: at every noise level a draw of the image, given noisy image and data; then fresh noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.linalg import cg
from ctflow.priors import Prior
from ctflow.priors.gaussian import filtered, radial_frequency
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise, normal_like
from ctflow.samplers._sampler import Sampler, require
from ctflow.search_space import Range
from ctflow.solving import Spread
from ctflow.tables import Whole

__all__ = ["MomentMatching"]

_PROBE = 0.2  # step of the finite difference, in noise levels
_FREEDOM = 10.0  # degrees of freedom of the window in which a local variance is found
_LEAST = 0.01  # least local variance, over the prior's r_t²


@dataclass(frozen=True)
class MomentMatching(Sampler):
    """Draw samples of the posterior: from noise, level by level, each image a draw given the data.

    With u = x_t / t = image + σ · noise, σ = (1 - t) / t, Tweedie's formulas give mean and covariance of the
    image behind u, D(u) and σ² J with J = dD/du. At each of the falling levels
        image ~ N(D(u), Σ) times the likelihood of the data,   u' = image + σ' z,  z ~ N(0, I) fresh.
    Σ = M^½ F M^½ stands for σ² J: M holds its local mean variance, by one probe of J with random signs, and
    F has the spectrum of the prior's errors, of mean 1. The draw is exact (perturb and optimise, in the space
    of the data). Where images are Gaussian and stationary, Σ is σ² J, and the samples are exact draws of the
    posterior however few the levels are. Of images of several separate kinds that the data hardly tell apart
    the early levels choose one, and the samples scatter too widely.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels; two network evaluations each, no backward pass.
        first_noise: the first of them, network range.
        last_noise: the last of them, network range: 0.06 is 30 HU.
        iterations: most conjugate-gradient steps of a draw.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Rozet et al., NeurIPS 2024, arXiv:2405.13712 (moment matching posterior sampling: Tweedie's covariance
        in the likelihood); Boys et al., TMLR 2024, arXiv:2310.06721 (the same, its diagonal); Zhang et al.,
        CVPR 2025, arXiv:2407.01521 (fresh noise at every level). Differs from the first: draws, not
        steps along a score; a covariance of local variance and one spectrum needs no backward pass.
        Bekas, Kokiopoulou, Saad, Appl. Numer. Math. 57 (2007) (a diagonal by random signs); Papandreou and
        Yuille, NeurIPS 2010 (perturb and optimise).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.MomentMatching(steps=8), prior, samples=4)
        >>> found.spread, found.std.shape
        (<Spread.POSTERIOR: 'posterior'>, torch.Size([1, 32, 32]))
        >>> bool((found.mean - truth).std() < 0.3 * truth.std())
        True
    """

    spread: ClassVar[Spread] = Spread.POSTERIOR
    search: ClassVar[dict[str, Range]] = {
        "steps": Range((8, 16, 30), choices=True),
        "first_noise": Range((2.0, 20.0), log=True),
        "last_noise": Range((0.03, 0.15), log=True),
    }
    cost: ClassVar[str] = "a step: 2 network evaluations, 1 draw by conjugate gradients"
    paper: ClassVar[str] = """@inproceedings{rozet2024learning,
  title={Learning Diffusion Priors from Observations by Expectation Maximization},
  author={Rozet, Fran{\\c{c}}ois and Andry, G{\\'e}r{\\^o}me and Lanusse, Fran{\\c{c}}ois and Louppe, Gilles},
  booktitle={Advances in Neural Information Processing Systems}, year={2024}
}"""

    steps: Annotated[int, Whole(1, 1000)] = 16
    first_noise: float = 5.0
    last_noise: float = 0.06
    iterations: int = 30

    def __post_init__(self) -> None:
        require(
            min(self.steps, self.iterations) >= 1 and 0 < self.last_noise <= self.first_noise,
            self,
            "steps and iterations >= 1 and 0 < last_noise <= first_noise",
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return 2 * self.steps, 0

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Draws (*batch, Z, Y, X), network range, after every level."""
        levels = np.geomspace(self.first_noise, self.last_noise, self.steps).tolist()
        u = prior.mean + self.first_noise * noise(inside, generator)
        for now, then in pairwise([*levels, 0.0]):
            t = 1 / (1 + now)
            denoised = prior.denoise(t * u, t)
            scale = _local_variance(prior, u, denoised, t, generator).sqrt()
            gain = prior.error_spectrum(t, *u.shape[-2:]).sqrt().to(u)
            image = _draw(inside, denoised, scale, gain, self.iterations, generator)
            u = image + then * normal_like(image, generator)
            yield image


def _local_variance(
    prior: Prior, u: Tensor, denoised: Tensor, t: float, generator: torch.Generator
) -> Tensor:
    """Diagonal of σ² dD/du, (*batch, Z, Y, X), smoothed over about ten degrees of freedom of the error."""
    level, variance = (1 - t) / t, prior.residual_variance(t)
    signs = normal_like(u, generator).sign()
    step = _PROBE * level
    diagonal = signs * (prior.denoise(t * (u + step * signs), t) - denoised) / step
    # A Gaussian window of width w holds 4 π w² pixels, each of r_t² / σ² degrees of freedom.
    width = math.sqrt(_FREEDOM / (4 * math.pi * variance)) * level
    window = torch.exp(-2 * (math.pi * width * radial_frequency(*u.shape[-2:])) ** 2).to(u)
    return (level**2 * filtered(diagonal, window)).clamp_min(_LEAST * variance)


def _draw(
    inside: InverseProblem,
    center: Tensor,
    scale: Tensor,
    gain: Tensor,
    iterations: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw from N(center, L Lᵀ), L = scale · filter of `gain`, given the data; (*batch, Z, Y, X).

    x = e + L Lᵀ Aᵀ W^½ v with e ~ N(center, L Lᵀ) and (I + B Bᵀ) v = W^½ (y - A e) + z, B = W^½ A L. The
    preconditioner takes B Bᵀ as stationary along the detector, with the power of one random B w.
    """
    A, root = inside.A, inside.W.sqrt()
    dims = len(A.range_shape)

    def spread(white: Tensor) -> Tensor:
        return scale * filtered(white, gain)

    def gram(v: Tensor) -> Tensor:
        return v + root * A(spread(filtered(scale * A.T(root * v), gain)))

    drawn = center + spread(normal_like(center, generator))
    power = torch.fft.rfft(root * A(spread(normal_like(center, generator))), norm="ortho").abs() ** 2
    if dims > 1:
        power = power.mean(tuple(range(-dims, -1)), keepdim=True)

    def preconditioner(residual: Tensor) -> Tensor:
        conditioned: Tensor = torch.fft.irfft(torch.fft.rfft(residual) / (1 + power), n=residual.shape[-1])
        return conditioned

    misfit = root * (inside.y - A(drawn)) + normal_like(inside.y, generator)
    v = cg(gram, misfit, dims, iterations, 1e-6, preconditioner=preconditioner)
    return drawn + spread(filtered(scale * A.T(root * v), gain))
