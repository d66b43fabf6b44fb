"""Noise of the path: drawn, read off a state, mixed for the next one; and draws around an image."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ctflow.problem import InverseProblem
from ctflow.samplers._times import unit_variance
from ctflow.system.randomness import normal


def noise(inside: InverseProblem, generator: torch.Generator) -> Tensor:
    """Standard normal image of the problem's shape, (*batch, Z, Y, X), network range."""
    shape = (*inside.batch_shape, *inside.A.domain_shape)
    return normal(shape, generator).to(inside.y)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, dimensionless, shaped like x."""
    return normal(x.shape, generator).to(x)


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
    spread = torch.where(inside.W > 0, inside.W.clamp_min(1e-38).rsqrt(), 0.0)
    drawn = replace(inside, y=inside.y + spread * normal_like(inside.y, generator))
    return drawn.prox(center + variance**0.5 * normal_like(center, generator), variance, iterations)
