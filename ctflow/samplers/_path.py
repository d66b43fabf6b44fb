"""What samplers share on the straight path: start noise, start image, grids of times, residual variances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.system.randomness import normal, seeded


def noise(inside: InverseProblem, generator: torch.Generator) -> Tensor:
    """Standard normal image of the problem's shape, (*batch, Z, Y, X), network range."""
    shape = (*inside.batch_shape, *inside.A.domain_shape)
    return normal(shape, generator).to(inside.y)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, dimensionless, shaped like x."""
    return normal(x.shape, generator).to(x)


def tikhonov(inside: InverseProblem, prior: Prior, iterations: int) -> Tensor:
    """Best image under a white prior with the prior's mean and variance, (*batch, Z, Y, X), network range."""
    y = inside.y
    mean = torch.zeros((*inside.batch_shape, *inside.A.domain_shape), dtype=y.dtype, device=y.device)
    return inside.prox(mean + prior.mean, prior.residual_variance(0.0), iterations)


START_IMAGES = ("tikhonov", "pseudo-inverse")
"""Where guided flows may start: the best image under a white prior, or A⁺y, as their papers do."""


def start_between(
    inside: InverseProblem,
    prior: Prior,
    t: float,
    iterations: int,
    generator: torch.Generator,
    image: str = "tikhonov",
) -> Tensor:
    """State at time t between a start image and noise, (*batch, Z, Y, X), network range.

    The pseudo-inverse damps singular values below 1 % of the largest; the papers' code cuts them off there.
    """
    if image == "tikhonov":
        first = tikhonov(inside, prior, iterations)
    else:
        first = inside.A.pinv(inside.y, 0.01, iterations, weights=inside.W)
    return t * first + (1 - t) * noise(inside, generator)


def draw_posterior(
    inside: InverseProblem, center: Tensor, variance: float, iterations: int, generator: torch.Generator
) -> Tensor:
    """Draw from the density proportional to exp(-½ |A x - y|²_W - |x - center|² / (2 variance)).

    The prox of perturbed data and a perturbed centre has exactly that law.

    Shapes: center (*batch, Z, Y, X) -> the same.

    Args:
        inside: problem in network range.
        center: mean before the data.
        variance: variance before the data.
        iterations: conjugate-gradient steps of the prox.
        generator: source of the random numbers.

    References:
        Papandreou and Yuille, NeurIPS 2010 (perturb and optimise).
    """
    drawn = perturbed(inside, generator)
    return drawn.prox(center + variance**0.5 * normal_like(center, generator), variance, iterations)


def perturbed(inside: InverseProblem, generator: torch.Generator) -> InverseProblem:
    """The same problem with noise of its own law added to the data, (*batch, ...)."""
    spread = torch.where(inside.W > 0, inside.W.clamp_min(1e-38).rsqrt(), 0.0)
    return replace(inside, y=inside.y + spread * normal_like(inside.y, generator))


def uniform_times(steps: int, start: float = 0.0) -> list[float]:
    """steps + 1 times from `start` to 1, evenly."""
    return [float(t) for t in np.linspace(start, 1.0, steps + 1)]


def falling_times(steps: int, high: float, low: float) -> list[float]:
    """steps times whose noise levels (1 - t) / t fall from `high` to `low` by one factor, and the end, 1."""
    return [*(1 / (1 + np.geomspace(high, low, steps))).tolist(), 1.0]


def unit_variance(t: float) -> float:
    """r_t² of a white unit-variance prior, the textbook's choice: (1 - t)² / ((1 - t)² + t²)."""
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def residual_variance(prior: Prior, t: float, calibrated: bool) -> float:
    """r_t² as measured on the prior, or the textbook's."""
    return prior.residual_variance(t) if calibrated else unit_variance(t)


def noise_in(x: Tensor, image: Tensor, t: float) -> Tensor:
    """The noise z for which x = (1 - t) z + t image, shaped like x, network range."""
    return (x - t * image) / (1 - t)


def ddim_noise(
    x: Tensor, denoised: Tensor, t: float, u: float, renewal: float, generator: torch.Generator
) -> Tensor:
    """Noise of DDIM's next state: the predicted noise mixed with fresh noise as η = `renewal` asks.

    Shapes: x and denoised (*batch, Z, Y, X), network range -> the same.

    References:
        Song, Meng, Ermon, ICLR 2021, equation 16, with ᾱ = t² / (t² + (1 - t)²).
    """
    now, then = 1 - unit_variance(t), 1 - unit_variance(u)
    share = renewal**2 * (1 - now / then) / (1 - now)
    kept = math.sqrt(max(0.0, 1 - share)) * noise_in(x, denoised, t)
    return kept + math.sqrt(share) * normal_like(x, generator)


def normal_norm(inside: InverseProblem, iterations: int = 20) -> float:
    """Largest eigenvalue of AᵀWA over the batch, by power iteration from a fixed start; above zero."""
    x = normal((*inside.batch_shape, *inside.A.domain_shape), seeded(0)).to(inside.y)
    length = torch.ones(())
    for _ in range(iterations):
        x = inside.normal(x / inner(x, x, inside.dims).sqrt().clamp_min(1e-30))
        length = inner(x, x, inside.dims).sqrt()
    return max(float(length.max()), 1e-30)


def require(holds: bool, method: object, what: str) -> None:
    """Refuse a method's numbers.

    Raises:
        ProtocolError: `holds` is false; the message shows the method and says what it needs.
    """
    if not holds:
        raise ProtocolError(f"{method} needs {what}")
