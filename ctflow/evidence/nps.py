"""Noise power spectrum: the variance at each spatial frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import GeometryError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class NPS:
    """A noise power spectrum; its integral over both frequencies is the variance.

    Args:
        power: mm² HU², in the order of `numpy.fft.fft2`; (n, n).
        spacing: width of a square pixel, mm.
    """

    power: Floats
    spacing: float

    @property
    def frequency(self) -> Floats:
        """Radial frequency of every entry of `power`, 1/mm, (n, n)."""
        f = np.fft.fftfreq(len(self.power), self.spacing)
        return np.asarray(np.hypot(f[:, None], f), np.float64)

    @property
    def variance(self) -> float:
        """Integral of the spectrum, HU²."""
        return float(self.power.sum() / (len(self.power) * self.spacing) ** 2)

    def radial(self) -> tuple[Floats, Floats]:
        """Mean over circles: frequencies in 1/mm and power in mm² HU², from 0 to the Nyquist frequency."""
        n = len(self.power)
        place = np.rint(self.frequency * n * self.spacing).astype(int).ravel()
        sums = np.bincount(place, self.power.ravel())[: n // 2 + 1]
        counts = np.bincount(place)[: n // 2 + 1]
        return np.arange(n // 2 + 1) / (n * self.spacing), sums / counts

    @property
    def mean_frequency(self) -> float:
        """Mean frequency of the radial spectrum, 1/mm: the grain of the noise."""
        f, power = self.radial()
        return float((f * power).sum() / power.sum())


def noise_power(regions: Floats, spacing: float) -> NPS:
    """Noise power spectrum of square regions of a uniform material, or of a difference image.

    NPS(u, v) = Δ² / n² · mean |DFT(region - its mean)|².

    Args:
        regions: (regions, n, n), HU.
        spacing: width of a square pixel, mm.

    Returns:
        Spectrum whose integral is the mean variance of the regions.

    Raises:
        GeometryError: the regions are not square.

    References:
        ICRU Report 87 (2012), 5.3; AAPM TG-233 (2019), 4.2.
    """
    if regions.ndim != 3 or regions.shape[1] != regions.shape[2]:
        raise GeometryError(f"regions must be (number, n, n) and are {regions.shape}; cut squares")
    noise = regions - regions.mean((1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0) * spacing**2 / regions[0].size
    return NPS(power, spacing)


def regions_inside(image: Floats, mask: Bools, size: int) -> Floats:
    """Cut square regions that lie wholly inside a mask, overlapping by half.

    Args:
        image: (Z, Y, X), HU.
        mask: (Z, Y, X).
        size: rows and columns of a region.

    Returns:
        (regions, size, size), HU.

    Raises:
        GeometryError: none fits.
    """
    steps = [range(0, n - size + 1, max(1, size // 2)) for n in image.shape[1:]]
    corners = [(z, y, x) for z in range(len(image)) for y in steps[0] for x in steps[1]]
    cut = [(z, slice(y, y + size), slice(x, x + size)) for z, y, x in corners]
    found = [image[place] for place in cut if mask[place].all()]
    if not found:
        raise GeometryError(f"no region of {size} × {size} pixels fits into the mask; give a smaller size")
    return np.stack(found)
