"""A prior of slices on a volume: neighbouring slices are made to agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.priors._base import Prior
from ctflow.system.compiled import compiled, in_threads

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

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> slices = ct.GaussianPrior(torch.ones(16))  # of each slice alone
        >>> prior = ct.Coupled(slices, weight=1.0)
        >>> x = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> change = [float(one.denoise(x, t=0.5).diff(dim=0).abs().mean()) for one in (slices, prior)]
        >>> change[1] < 0.2 * change[0]  # from slice to slice
        True
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

    def denoise_vjp(
        self, x: Tensor, t: float, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As of every prior, through that of the slices.

        Returns:
            D̃ and (dD̃/dx)ᵀ cotangent(D̃), both shaped like x.
        """
        found: list[Tensor] = []

        def through(denoised: Tensor) -> Tensor:
            with torch.enable_grad():
                inside = denoised.detach().requires_grad_()
                together = self._agreeing(inside, t)
            found.append(together.detach())
            (pulled,) = torch.autograd.grad(together, inside, cotangent(found[0]))
            return pulled

        _, pulled = self.prior.denoise_vjp(x, t, through)
        return found[0], pulled

    def _agreeing(self, slices: Tensor, t: float) -> Tensor:
        limit = self.weight * math.sqrt(self.prior.residual_variance(t))
        return total_variation_along_z(slices, limit)

    def residual_variance(self, t: float) -> float:
        """That of the slices' prior."""
        return self.prior.residual_variance(t)

    def error_spectrum(self, t: float, rows: int, columns: int) -> Tensor:
        """That of the slices' prior."""
        return self.prior.error_spectrum(t, rows, columns)

    def coarsened(self, factor: int) -> Coupled | None:
        """The slices' prior in pixels of `factor` times the side, coupled alike; None where it has none."""
        coarse = self.prior.coarsened(factor)
        return None if coarse is None else Coupled(coarse, self.weight)

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
    around those of x, a taut string from end to end. Its derivative takes means over the runs of equal d.

    References:
        Davies and Kovac, Ann. Statist. 29 (2001) (taut string); Tibshirani and Taylor, Ann. Statist. 39
        (2011) (derivative).
    """
    if x.shape[-3] < 2 or limit == 0:
        return x
    found: Tensor = _TautString.apply(x, limit)  # type: ignore[no-untyped-call]
    return found


class _TautString(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        strings = _along_z(x).clone()
        _each(_pull_taut, strings, limit)
        ctx.strings = strings
        return _upright(strings, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pulled = _along_z(gradients[0]).clone()
        _each(_average_runs, ctx.strings, pulled)
        return _upright(pulled, gradients[0]), None


def _along_z(x: Tensor) -> Tensor:
    """Every pixel's column of slices, (pixels, Z), on the CPU."""
    return x.detach().cpu().movedim(-3, -1).reshape(-1, x.shape[-3]).contiguous()


def _upright(columns: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_along_z`, shaped like `like`."""
    shape = like.movedim(-3, -1).shape
    return columns.reshape(shape).movedim(-1, -3).to(like)


def _each(kernel: Callable[..., None], columns: Tensor, other: Tensor | float) -> None:
    """Run a kernel on the columns, in shares of the threads."""
    bounds = np.linspace(0, len(columns), torch.get_num_threads() + 1).astype(int)
    shares = [slice(a, b) for a, b in pairwise(bounds.tolist())]
    others = [other[share].numpy() if isinstance(other, Tensor) else other for share in shares]
    parts = zip(shares, others, strict=True)
    in_threads([partial(kernel, columns[share].numpy(), each) for share, each in parts])


@compiled
def _average_runs(strings: NDArray[Any], values: NDArray[Any]) -> None:
    """Replace values (pixels, slices) by their means over the runs where the strings are constant."""
    n = strings.shape[1]
    for string, row in zip(strings, values):  # noqa: B905 (Numba knows no strict)
        start = 0
        while start < n:
            end = start + 1
            while end < n and string[end] == string[start]:
                end += 1
            row[start:end] = row[start:end].mean()
            start = end


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
