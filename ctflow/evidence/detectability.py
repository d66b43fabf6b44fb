"""Detectability d': how well a model observer separates images with and without a lesion."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import eval_laguerre
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.evidence.nps import NPS
from ctflow.problem import InverseProblem

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

    Args:
        channels: (p, size, size).
        present: images with the lesion, HU; (m, size, size).
        absent: images without it, HU; (n, size, size).

    Returns:
        d', 0 where the correction leaves nothing.

    Raises:
        GeometryError: there are too few images for the number of channels, or they have no noise.

    References:
        Myers and Barrett, J. Opt. Soc. Am. A 4 (1987).
    """
    flat = channels.reshape(len(channels), -1)
    with_, without = (images.reshape(len(images), -1) @ flat.T for images in (present, absent))
    return hotelling_of_outputs(with_, without)


def hotelling_of_outputs(with_: Floats, without: Floats) -> float:
    """d' of the Hotelling observer from the outputs of its channels, corrected for their finite number.

    With K the pooled covariance of the channels' outputs, D² = Δᵀ K⁻¹ Δ overestimates d'²; for Gaussian
    outputs E D² = ν / (ν - p - 1) · (d'² + p / m + p / n), with ν = m + n - 2 and p channels.

    Args:
        with_: outputs for images with the lesion, (m, p).
        without: outputs for images without it, (n, p).

    Returns:
        d', 0 where the correction leaves nothing.

    Raises:
        GeometryError: there are too few images for the number of channels, or they have no noise.

    References:
        Lachenbruch and Mickey, Technometrics 10 (1968) (bias).
    """
    square, freedom, p = _mahalanobis(with_, without)
    unbiased = square * (freedom - p - 1) / freedom - p / len(with_) - p / len(without)
    return math.sqrt(max(0.0, unbiased))


def hotelling_interval(with_: Floats, without: Floats, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of the Hotelling observer's d', for independent Gaussian outputs.

    (ν - p + 1) / (ν p) · mn / (m + n) · D² has the noncentral F distribution with p and ν - p + 1 degrees of
    freedom and noncentrality mn / (m + n) · d'².

    Args:
        with_: outputs of the channels for images with the lesion, (m, p).
        without: outputs for images without it, (n, p).
        level: level of confidence.

    Returns:
        Lower and upper end of d'.

    Raises:
        GeometryError: there are too few images for the number of channels, or they have no noise.

    References:
        Wunderlich et al., IEEE Trans. Med. Imaging 34 (2015); Anderson, Multivariate Statistical Analysis
        (2003), theorem 5.2.2.
    """
    square, freedom, p = _mahalanobis(with_, without)
    scale = len(with_) * len(without) / (len(with_) + len(without))
    f = (freedom - p + 1) / (freedom * p) * scale * square

    def end(tail: float) -> float:
        """The d' at which F falls below the value found with this probability."""
        if stats.f.cdf(f, p, freedom - p + 1) <= tail:
            return 0.0

        def excess(d: float) -> float:
            return float(stats.ncf.cdf(f, p, freedom - p + 1, scale * d**2)) - tail

        highest = 2 * math.sqrt(square) + 1
        while excess(highest) > 0:
            highest *= 2
        return float(brentq(excess, 0, highest))

    return end((1 + level) / 2), end((1 - level) / 2)


def _mahalanobis(with_: Floats, without: Floats) -> tuple[float, int, int]:
    """D², degrees of freedom and number of channels."""
    p, freedom = with_.shape[1], len(with_) + len(without) - 2
    if freedom - p - 1 <= 0 or not len(with_) or not len(without):
        raise GeometryError(f"{freedom + 2} images are too few for {p} channels; give more images")
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (with_, without))
    if np.linalg.matrix_rank(scatter) < p:
        raise GeometryError(
            f"the outputs of {p} channels vary in {np.linalg.matrix_rank(scatter)} directions only; "
            "give images with noise, or fewer channels"
        )
    delta = with_.mean(0) - without.mean(0)
    return float(delta @ np.linalg.solve(scatter / freedom, delta)), freedom, p


def channel_outputs(channels: Floats, image: Floats, places: NDArray[np.intp]) -> Floats:
    """Outputs of channels that are centred on places of an image, which is 0 beyond its edge.

    Args:
        channels: (p, size, size), size odd.
        image: (Y, X), HU.
        places: rows and columns, (number, 2), pixels.

    Returns:
        (number, p).
    """
    size = channels.shape[-1]
    padded = np.pad(image, size // 2)
    regions = [padded[row : row + size, column : column + size].ravel() for row, column in places]
    found: Floats = np.asarray(regions).reshape(len(regions), size**2) @ channels.reshape(len(channels), -1).T
    return found


def ideal(problem: InverseProblem, signal: Tensor) -> float:
    """d' of the ideal observer, which sees the data and knows background and lesion: d'² = Δᵀ Aᵀ W A Δ.

    No reconstruction lets anyone who knows the background find the lesion better than this.

    Args:
        problem: operator and weights; weights of noiseless data give the data's own bound.
        signal: the lesion's contribution to the image, (Z, Y, X), 1/mm for CT.

    References:
        Barrett and Myers, Foundations of Image Science (2004), 13.2 (a known signal in Gaussian noise).
    """
    seen = problem.A(signal).double()
    return math.sqrt(float((problem.W * seen**2).sum()))


def auc(detectability: float) -> float:
    """Area under the receiver's curve of an observer with Gaussian scores, Φ(d' / √2).

    Args:
        detectability: d'.

    References:
        Barrett and Myers, Foundations of Image Science (2004), 13.2.
    """
    return float(stats.norm.cdf(detectability / math.sqrt(2)))


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
