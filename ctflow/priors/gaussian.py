"""The closed-form Gaussian flow prior: stationary, with a radial power spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.priors._base import HU_CENTRE, HU_WIDTH, Prior
from ctflow.units import MU_WATER

__all__ = ["GaussianPrior"]


def radial_frequency(rows: int, columns: int) -> Tensor:
    """Spatial frequency of every coefficient of `rfft2`, cycles per pixel.

    Returns:
        Shape (rows, columns // 2 + 1), float64.
    """
    vertical = torch.fft.fftfreq(rows, dtype=torch.float64)[:, None]
    horizontal = torch.fft.rfftfreq(columns, dtype=torch.float64)[None, :]
    return torch.hypot(vertical, horizontal)


def filtered(x: Tensor, gain: Tensor) -> Tensor:
    """Filter slices (*batch, Y, X) circularly by a real gain at the frequencies of `rfft2`."""
    found: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])
    return found


class GaussianPrior(Prior):
    """Slices u ~ N(mean, C) with a circulant C, whose eigenvalues are a function of spatial frequency.

    The expected image has a closed form in the Fourier domain,
    D(x, t) = mean + t S / (t² S + (1 - t)²) (x - t mean), so that every sampler can be compared with the
    exact Gaussian posterior.

    Shapes: x (*batch, Z, Y, X), network range.

    Args:
        spectrum: power S, variance per pixel, at equidistant frequencies from 0 to √½ cycles per pixel; (n,).
        mean: mean of every pixel, network range.
        mu_water: attenuation of water, 1/mm.
        hu_centre: HU where u = 0.
        hu_width: HU per unit of u.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(1, -3, 16))  # smooth images
        >>> u = prior.sample((1, 32, 32))  # network range
        >>> t = 0.5
        >>> noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
        >>> error = (prior.denoise(t * u + (1 - t) * noise, t) - u).square().mean()
        >>> f"{error:.2f}, expected {prior.residual_variance(t):.2f}"
        '0.15, expected 0.15'
    """

    name = "gaussian"

    def __init__(
        self,
        spectrum: Tensor,
        mean: float = 0.0,
        mu_water: float = MU_WATER,
        hu_centre: float = HU_CENTRE,
        hu_width: float = HU_WIDTH,
    ) -> None:
        super().__init__(mu_water, hu_centre, hu_width)
        self.spectrum = spectrum.double()
        self.mean = mean
        self._sampled = self.eigenvalues(64, 64)

    def eigenvalues(self, rows: int, columns: int) -> Tensor:
        """S at the frequencies of `torch.fft.rfft2`, (rows, columns // 2 + 1)."""
        position = radial_frequency(rows, columns) / 0.5**0.5 * (len(self.spectrum) - 1)
        below = position.long().clamp_max(len(self.spectrum) - 2)
        share = position - below
        logarithm = self.spectrum.log()
        return torch.lerp(logarithm[below], logarithm[below + 1], share).exp()

    def covariance_product(self, x: Tensor, function: str = "C") -> Tensor:
        """Apply C or its square root to x, `function` "C" or "sqrt"; (*batch, Z, Y, X)."""
        S = self.eigenvalues(*x.shape[-2:]).to(x)
        return filtered(x, S if function == "C" else S.sqrt())

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        S = self.eigenvalues(*x.shape[-2:]).to(x)
        gain = t * S / (t**2 * S + (1 - t) ** 2)
        return self.mean + filtered(x - t * self.mean, gain)

    def error_spectrum(self, t: float, rows: int, columns: int) -> Tensor:
        """That of Wiener's filter, S (1 - t)² / (t² S + (1 - t)²), over its mean."""
        error = _wiener_error(self.eigenvalues(rows, columns), t)
        return error / _mean_over_plane(error, columns)

    def residual_variance(self, t: float) -> float:
        """Exact mean squared error per pixel of the denoiser at time t, network range, on a 64² grid."""
        return _mean_over_plane(_wiener_error(self._sampled, t), 64)

    @classmethod
    def example(cls) -> GaussianPrior:
        """Smooth images, whose power falls by four orders of magnitude."""
        return cls(torch.logspace(1, -3, 64), mean=0.3)


def _wiener_error(S: Tensor, t: float) -> Tensor:
    return S * (1 - t) ** 2 / (t**2 * S + (1 - t) ** 2)


def _mean_over_plane(values: Tensor, columns: int) -> float:
    """Mean over all frequencies of what stands at those of `rfft2`."""
    # Every coefficient stands for two of the full transform, but for the columns that are their own mirror.
    times = torch.full((columns // 2 + 1,), 2.0, dtype=values.dtype)
    times[0] = 1.0
    if columns % 2 == 0:
        times[-1] = 1.0
    return float((values * times).sum() / (values.shape[0] * columns))


def fit_spectrum(slices: list[Tensor], points: int = 64) -> tuple[Tensor, float]:
    """Fit the radial power spectrum and the mean of slices, for a `GaussianPrior`.

    Args:
        slices: (rows, columns) each, network range.
        points: frequencies from 0 to √½ cycles per pixel.

    Returns:
        Power, variance per pixel, (points,), and the mean.
    """
    mean = float(torch.stack([u.double().mean() for u in slices]).mean())
    total, weight = torch.zeros(points, dtype=torch.float64), torch.zeros(points, dtype=torch.float64)
    for u in slices:
        rows, columns = u.shape
        # A Hann window keeps the jump between opposite edges out of the spectrum.
        window = torch.outer(
            *(torch.hann_window(n, periodic=False, dtype=torch.float64) for n in (rows, columns))
        )
        power = torch.fft.rfft2((u.double() - mean) * window).abs() ** 2 / (window**2).sum()
        place = (radial_frequency(rows, columns) / 0.5**0.5 * (points - 1)).round().long().flatten()
        total.index_add_(0, place, power.flatten())
        weight.index_add_(0, place, torch.ones_like(power).flatten())
    return (total / weight.clamp_min(1)).clamp_min(1e-12), mean
