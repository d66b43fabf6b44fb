"""Residual of an image against its expected size, and a test for structure left in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.problem import InverseProblem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Residual:
    """Weighted squared residual per datum; 1 ± `standard_error` for the true image in Gaussian noise.

    A fitted image uses degrees of freedom of the data, so its residual should be somewhat below 1; well below
    means that noise was fitted, well above that the image contradicts the data.

    Args:
        mean: |A x - y|²_W / m.
        standard_error: √(2 / m) for m data with a weight.
        z: (mean - 1) / standard_error.
    """

    mean: float
    standard_error: float
    z: float


def residual(problem: InverseProblem, x: Tensor) -> Residual:
    """Residual of one image against the chi-square expectation; data without weight do not count.

    Args:
        problem: one measurement, y (rows, views, bins).
        x: (Z, Y, X), 1/mm for CT.
    """
    found = _normalised(problem, x)
    data = int((problem.W.expand_as(problem.y) > 0).sum())
    mean, error = float((found**2).sum()) / data, math.sqrt(2 / data)
    return Residual(mean, error, (mean - 1) / error)


@dataclass(frozen=True)
class Whiteness:
    """Autocorrelation of the normalised residual along the bins of every view.

    Args:
        autocorrelation: mean over the views at lags 1, 2, …; (lags,).
        statistic: Ljung-Box Q of every view; (views,).
        p: probability of a larger Q for a white residual; (views,).
    """

    autocorrelation: Floats
    statistic: Floats
    p: Floats

    @property
    def rejected(self) -> float:
        """Share of the views whose residual is not white at the 5 % level; by chance alone 0.05."""
        return float((self.p < 0.05).mean())


def whiteness(problem: InverseProblem, x: Tensor, lags: int = 10) -> Whiteness:
    """Test whether the residual of an image still holds structure, by the Ljung-Box test of every view.

    Args:
        problem: one measurement, y (rows, views, bins); rows are tested like views.
        x: (Z, Y, X), 1/mm for CT.
        lags: number of lags of the autocorrelation, bins.

    Raises:
        GeometryError: the views have no more bins than `lags`.

    References:
        Ljung and Box, Biometrika 65 (1978).
    """
    found = _normalised(problem, x).reshape(-1, problem.y.shape[-1])
    n = found.shape[1]
    if n <= lags:
        raise GeometryError(f"views of {n} bins have no autocorrelation at {lags} lags; give fewer lags")
    centred = found - found.mean(1, keepdims=True)
    power = (centred**2).sum(1)
    centred, power = centred[power > 0], power[power > 0]
    rho = np.stack([(centred[:, k:] * centred[:, : n - k]).sum(1) / power for k in range(1, lags + 1)], 1)
    q = n * (n + 2) * (rho**2 / (n - np.arange(1, lags + 1))).sum(1)
    return Whiteness(rho.mean(0), q, chi2.sf(q, lags))


def _normalised(problem: InverseProblem, x: Tensor) -> Floats:
    with torch.no_grad():
        return np.asarray((problem.W.sqrt() * (problem.A(x) - problem.y)).cpu(), np.float64)
