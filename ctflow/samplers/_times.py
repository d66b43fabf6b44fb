"""Grids of times from noise (0) to image (1), and the variance of the image that a state leaves open."""

from __future__ import annotations

import numpy as np

from ctflow.priors import Prior

HIGHEST_NOISE, LOWEST_NOISE = 4.0, 0.02
"""First and last noise level, network range: 2000 HU, where a state leaves 94 % of the variance of a white
unit-variance image open, and 10 HU, which is less than the noise of most CT."""


def uniform_times(steps: int, start: float = 0.0) -> list[float]:
    """steps + 1 times from `start` to 1, evenly."""
    return [float(t) for t in np.linspace(start, 1.0, steps + 1)]


def falling_times(steps: int, high: float = HIGHEST_NOISE, low: float = LOWEST_NOISE) -> list[float]:
    """steps times whose noise levels (1 - t) / t fall from `high` to `low` by one factor, and the end, 1."""
    return [*(1 / (1 + np.geomspace(high, low, steps))).tolist(), 1.0]


def unit_variance(t: float) -> float:
    """r_t² of a white unit-variance prior, the textbook's choice: (1 - t)² / ((1 - t)² + t²)."""
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def residual_variance(prior: Prior, t: float, calibrated: bool) -> float:
    """r_t² as measured on the prior, or the textbook's."""
    return prior.residual_variance(t) if calibrated else unit_variance(t)
