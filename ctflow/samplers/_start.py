"""Where samplers start: the best image under a white prior, A⁺y, and states between image and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise

START_IMAGES = ("tikhonov", "pseudo-inverse")
"""Where guided flows may start: the best image under a white prior, or A⁺y, as their papers do."""


def tikhonov(inside: InverseProblem, prior: Prior, iterations: int) -> Tensor:
    """Best image under a white prior with the prior's mean and variance, (*batch, Z, Y, X), network range."""
    y = inside.y
    mean = torch.zeros((*inside.batch_shape, *inside.A.domain_shape), dtype=y.dtype, device=y.device)
    return inside.prox(mean + prior.mean, prior.residual_variance(0.0), iterations)


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
