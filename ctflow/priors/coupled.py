"""A prior of slices on a volume: neighbouring slices are made to agree."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.operators._simd import compiled, in_threads
from ctflow.priors._base import Prior

__all__ = ["Coupled"]


class Coupled(Prior):
    """A prior whose denoised slices are smoothed along z, by as much as it errs at the time.

    With D the slices as the prior denoises them and r_t its error,
        D̃ = argmin_d ½ |d - D|² + weight · r_t · Σ |d_{k+1} - d_k|,
    total variation along z: what differs between neighbours by less than the prior errs is taken for its
    error, and an edge along z stays one.

    Shapes: x (*batch, Z, Y, X), network range.

    Args:
        prior: of slices, in network range.
        weight: of the differences along z, dimensionless; the larger, the more the slices agree.

    Raises:
        UsageError: the prior denoises latents, or the weight is negative.

    References:
        Chung, Ryu, McCann, Klasky, Ye, CVPR 2023, arXiv:2211.10655 (DiffusionMBIR), where the same penalty
        stands beside the data and its weight is one number for all times.
    """

    def __init__(self, prior: Prior, weight: float) -> None:
        if prior.latent:
            raise UsageError("a prior of latents has no slices to couple; leave coupling out")
        if not 0 <= weight < math.inf:
            raise UsageError(f"coupling {weight} must be 0 or more; 0 leaves every slice to itself")
        self.prior, self.weight = prior, weight
        self.name, self.sha256 = prior.name, prior.sha256
        self.spacings_mm, self.hu_range = prior.spacings_mm, prior.hu_range
        self.mean, self.scale, self.shift = prior.mean, prior.scale, prior.shift

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        return self._agreeing(self.prior._denoise(x, t), t)

    def _denoise_each(self, x: Tensor, times: list[float]) -> Tensor:
        denoised = self.prior._denoise_each(x, times)
        return torch.stack([self._agreeing(one, t) for one, t in zip(denoised, times, strict=True)])

    def _agreeing(self, slices: Tensor, t: float) -> Tensor:
        limit = self.weight * math.sqrt(self.prior.residual_variance(t))
        return total_variation_along_z(slices, limit)

    def residual_variance(self, t: float) -> float:
        """That of the slices' prior."""
        return self.prior.residual_variance(t)

    def error_spectrum(self, t: float, rows: int, columns: int) -> Tensor:
        """That of the slices' prior."""
        return self.prior.error_spectrum(t, rows, columns)

    def to(self, device: str | torch.device) -> Coupled:
        """Move the weights of the slices' prior to a device."""
        self.prior.to(device)
        return self

    @classmethod
    def example(cls) -> Coupled:
        """A Gaussian prior, coupled weakly."""
        from ctflow.priors.gaussian import GaussianPrior

        return cls(GaussianPrior.example(), 0.1)


def total_variation_along_z(x: Tensor, limit: float) -> Tensor:
    """argmin_d ½ |d - x|² + limit · Σ |d_{k+1} - d_k| along the third dimension from the end, shaped like x.

    Exact, on the CPU: the running sums of d are the shortest way through the tube of half width `limit`
    around those of x, a taut string from end to end.

    References:
        Davies and Kovac, Ann. Statist. 29 (2001) (taut string).
    """
    if x.shape[-3] < 2 or limit == 0:
        return x
    columns = x.detach().cpu().movedim(-3, -1)
    values = columns.reshape(-1, x.shape[-3]).contiguous().clone()
    rows = torch.arange(len(values)).tensor_split(torch.get_num_threads())
    parts = [values[int(one[0]) : int(one[-1]) + 1].numpy() for one in rows if len(one)]
    in_threads([partial(_pull_taut, part, limit) for part in parts])
    return values.reshape(columns.shape).movedim(-1, -3).to(x)


@compiled
def _pull_taut(values: NDArray[Any], limit: float) -> None:
    """Replace every row of values (pixels, slices) by the slopes of its taut string."""
    n = values.shape[1]
    sums = np.empty(n + 1)
    for row in values:
        sums[0] = 0.0
        for k in range(n):
            sums[k + 1] = sums[k] + row[k]
        start, height = 0, 0.0
        while start < n:
            # From the last bend, slopes from `low` to `high` stay in the tube so far.
            low, high, floor, ceiling = -np.inf, np.inf, n, n
            bend, slope, bent = n, 0.0, sums[n]
            for k in range(start + 1, n + 1):
                half = limit if k < n else 0.0
                least, most = (sums[k] - half - height) / (k - start), (sums[k] + half - height) / (k - start)
                if least > high:
                    bend, slope, bent = ceiling, high, sums[ceiling] + limit
                    break
                if most < low:
                    bend, slope, bent = floor, low, sums[floor] - limit
                    break
                if least >= low:
                    low, floor = least, k
                if most <= high:
                    high, ceiling = most, k
                slope = least  # at the end both are one
            row[start:bend] = slope
            start, height = bend, float(bent)
