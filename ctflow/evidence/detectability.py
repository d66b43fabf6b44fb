"""Detectability d': how well a model observer separates images with and without a lesion."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import eval_laguerre

from ctflow.errors import GeometryError
from ctflow.evidence.nps import NPS

Floats = NDArray[np.float64]


def npw_from_spectrum(signal: Floats, nps: NPS) -> float:
    """d' of the non-prewhitening observer for a known signal in stationary noise.

    d'² = [∫|S|²]² / ∫|S|² NPS, both over the spatial frequencies.

    Args:
        signal: the lesion's contribution to the image, HU; (n, n), as large as the spectrum.
        nps: noise power spectrum.

    Raises:
        GeometryError: the shapes differ.

    References:
        Burgess, J. Opt. Soc. Am. A 16 (1999); Richard et al., Med. Phys. 39 (2012), eq. 6.
    """
    if signal.shape != nps.power.shape:
        raise GeometryError(f"signal {signal.shape} and spectrum {nps.power.shape} must be one shape")
    area = nps.spacing**2
    energy = np.abs(np.fft.fft2(signal) * area) ** 2
    cell = 1 / (signal.size * area)
    return float(energy.sum() * cell / math.sqrt((energy * nps.power).sum() * cell))


def npw(template: Floats, present: Floats, absent: Floats) -> float:
    """d' of the non-prewhitening observer from images; negative where it is misled.

    Args:
        template: expected signal, any unit; (n, n).
        present: images with the lesion, HU; (images, n, n).
        absent: images without it, HU; (images, n, n).

    References:
        Barrett and Myers, Foundations of Image Science (2004), 13.2.
    """
    with_, without = ((images * template).sum((-2, -1)) for images in (present, absent))
    spread = math.sqrt(0.5 * (with_.var(ddof=1) + without.var(ddof=1)))
    return float((with_.mean() - without.mean()) / spread)


def hotelling(channels: Floats, present: Floats, absent: Floats) -> float:
    """d' of the channelised Hotelling observer, corrected for the finite number of images.

    With K the pooled covariance of the channels' outputs, D² = Δᵀ K⁻¹ Δ overestimates d'²; for Gaussian
    outputs E D² = ν / (ν - p - 1) · (d'² + p / m + p / n), with ν = m + n - 2 and p channels.

    Args:
        channels: (p, size, size).
        present: images with the lesion, HU; (m, size, size).
        absent: images without it, HU; (n, size, size).

    Returns:
        d', 0 where the correction leaves nothing.

    Raises:
        GeometryError: there are too few images for the number of channels.

    References:
        Myers and Barrett, J. Opt. Soc. Am. A 4 (1987); Lachenbruch and Mickey, Technometrics 10 (1968), bias.
    """
    flat = channels.reshape(len(channels), -1)
    with_, without = (images.reshape(len(images), -1) @ flat.T for images in (present, absent))
    p, freedom = len(channels), len(with_) + len(without) - 2
    if freedom - p - 1 <= 0:
        raise GeometryError(f"{freedom + 2} images are too few for {p} channels; give more images")
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (with_, without))
    delta = with_.mean(0) - without.mean(0)
    square = float(delta @ np.linalg.solve(scatter / freedom, delta)) * (freedom - p - 1) / freedom
    return math.sqrt(max(0.0, square - p / len(with_) - p / len(without)))


def laguerre_gauss(size: int, width: float, number: int = 6) -> Floats:
    """Laguerre-Gauss channels for round lesions, u_j(r) ∝ exp(-π r²/a²) L_j(2π r²/a²), of unit energy.

    Args:
        size: rows and columns of the images, pixels.
        width: a, pixels; about the lesion's diameter.
        number: channels.

    Returns:
        (number, size, size).

    References:
        Gallas and Barrett, J. Opt. Soc. Am. A 20 (2003).
    """
    y, x = _grid(size)
    g = 2 * np.pi * (x**2 + y**2) / width**2
    channels = np.stack([np.exp(-g / 2) * eval_laguerre(j, g) for j in range(number)])
    return _unit(channels)


def gabor(size: int, octaves: int = 4, angles: int = 5) -> Floats:
    """Gabor channels of one octave each, from ⅛ to ¼ cycles per pixel downwards, even phase, of unit energy.

    Args:
        size: rows and columns of the images, pixels.
        octaves: frequency bands.
        angles: orientations of each.

    Returns:
        (octaves · angles, size, size).

    References:
        Wunderlich et al., IEEE Trans. Med. Imaging 34 (2015), appendix (bands and widths).
    """
    y, x = _grid(size)
    channels = []
    for band in range(octaves):
        frequency = 3 / 16 / 2**band
        width = 4 * math.log(2) / (math.pi * frequency * 2 / 3)  # bandwidth of one octave
        for angle in np.pi * np.arange(angles) / angles:
            wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
            channels.append(np.exp(-4 * math.log(2) * (x**2 + y**2) / width**2) * wave)
    return _unit(np.stack(channels))


def _unit(channels: Floats) -> Floats:
    return np.asarray(channels / np.sqrt((channels**2).sum((1, 2), keepdims=True)), np.float64)


def _grid(size: int) -> tuple[Floats, Floats]:
    place = np.asarray(np.arange(size) - (size - 1) / 2, np.float64)
    return place[:, None], place[None, :]
