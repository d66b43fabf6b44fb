"""Plug and play at falling noise: how the flow's methods start, and how they finish at fine noise levels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem

_HIGH, _RATIO, _MOMENTUM = 0.2, 5.0, 0.9  # chosen on two training slices at 20 and 60 views


def anneal(
    inside: InverseProblem,
    prior: Prior,
    image: Tensor,
    levels: list[float],
    ratio: float,
    iterations: int,
    momentum: float = 0.0,
) -> Iterator[Tensor]:
    """Denoise at every noise level, each time followed by a data prox.

    Args:
        inside: problem in network range.
        prior: flow prior; one network evaluation for each level.
        image: where to start, (*batch, Z, Y, X), network range.
        levels: standard deviations of the noise, network range.
        ratio: variance of the data prox over that of the noise.
        iterations: conjugate-gradient steps of the prox.
        momentum: share of the last change that is added before denoising.

    References:
        Zhang et al., TPAMI 2022, arXiv:2008.13751 (half-quadratic splitting, noise that falls);
        Kamilov, Mansour, Wohlberg, IEEE Signal Process. Lett. 24 (2017) (momentum with a denoiser).
    """
    last = image
    for sigma in levels:
        t = 1 / (1 + sigma)
        denoised = prior.denoise(t * (image + momentum * (image - last)), t)
        last = image
        image = inside.prox(denoised, ratio * sigma**2, iterations, start=image)
        yield image


def finish(
    inside: InverseProblem, prior: Prior, image: Tensor, steps: int, noise: float, iterations: int
) -> Iterator[Tensor]:
    """From a flow's few coarse steps to the fine noise levels, with momentum.

    Args:
        inside: problem in network range.
        prior: flow prior.
        image: where to start, (*batch, Z, Y, X), network range.
        steps: noise levels, falling by one factor; one network evaluation each.
        noise: the last of them, network range.
        iterations: conjugate-gradient steps of a data prox.
    """
    levels = np.geomspace(_HIGH, noise, steps).tolist()
    return anneal(inside, prior, image, levels, _RATIO, iterations, _MOMENTUM)
