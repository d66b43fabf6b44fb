"""Task transfer function (TTF): the share of contrast that survives at each spatial frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import tukey

from ctflow.errors import GeometryError

Floats = NDArray[np.float64]

_BINS_PER_PIXEL = 5  # fine enough for the aliases to lie beyond the pixels' own Nyquist frequency


@dataclass(frozen=True)
class MTF:
    """A modulation transfer function.

    Args:
        frequency: spatial frequencies, 1/mm, up to the Nyquist frequency of the pixels; (n,).
        value: modulation, 1 at frequency 0; (n,).
    """

    frequency: Floats
    value: Floats

    def at(self, modulation: float) -> float:
        """First frequency, 1/mm, where the modulation falls to this value; the last if it never does."""
        below = np.flatnonzero(self.value <= modulation)
        if not len(below):
            return float(self.frequency[-1])
        k = int(below[0])
        return float(np.interp(-modulation, -self.value[k - 1 : k + 1], self.frequency[k - 1 : k + 1]))

    @property
    def f50(self) -> float:
        """Frequency at half modulation, 1/mm."""
        return self.at(0.5)

    @property
    def f10(self) -> float:
        """Frequency at a tenth of the modulation, 1/mm."""
        return self.at(0.1)


def rod_mtf(image: Floats, spacing: float, centre: tuple[float, float], radius: float, reach: float) -> MTF:
    """Transfer function from the edge of a circular rod in uniform surroundings.

    The edge's curvature is neglected: the blur must be small against the radius.

    Args:
        image: (Y, X) or (Z, Y, X), HU; slices are averaged.
        spacing: width of a square pixel, mm.
        centre: centre of the rod, (y, x) from the middle of the first pixel, mm.
        radius: radius of the rod, mm.
        reach: distance from the edge that is used on both sides, mm; it must contain no other structure.

    Returns:
        Up to the Nyquist frequency of the pixels.

    Raises:
        GeometryError: the reach exceeds the radius or the image, or the edge has no contrast.

    References:
        Richard et al., Med. Phys. 39 (2012) (task transfer function from rods); AAPM TG-233 (2019), 4.1.
    """
    plane = image.reshape(-1, *image.shape[-2:]).mean(0)
    rows, columns = (np.arange(n) * spacing for n in plane.shape)
    distance = np.hypot(rows[:, None] - centre[0], columns - centre[1]) - radius
    edges = (min(c, axis[-1] - c) for c, axis in zip(centre, (rows, columns), strict=True))
    if not (0 < reach <= radius and radius + reach <= min(edges) + spacing / 2):
        raise GeometryError(
            f"an edge of reach {reach:.3g} mm at radius {radius:.3g} mm does not fit; give a smaller reach"
        )
    return _from_edge(distance.ravel(), plane.ravel(), spacing, reach)


def edge_mtf(image: Floats, spacing: float, point: tuple[float, float], angle: float, reach: float) -> MTF:
    """Transfer function across a straight edge that is slanted against the pixels.

    Args:
        image: (Y, X) or (Z, Y, X), HU; slices are averaged.
        spacing: width of a square pixel, mm.
        point: any point of the edge, (y, x) from the middle of the first pixel, mm.
        angle: angle of the edge's normal from x towards y, rad; a few degrees off the axes.
        reach: distance from the edge that is used on both sides, mm.

    Returns:
        Up to the Nyquist frequency of the pixels.

    Raises:
        GeometryError: the edge has no contrast, or no pixel lies at some distance from it.

    References:
        Judy, Med. Phys. 3 (1976).
    """
    plane = image.reshape(-1, *image.shape[-2:]).mean(0)
    rows, columns = (np.arange(n) * spacing for n in plane.shape)
    distance = (columns - point[1]) * np.cos(angle) + (rows[:, None] - point[0]) * np.sin(angle)
    return _from_edge(distance.ravel(), plane.ravel(), spacing, reach)


def _from_edge(distance: Floats, values: Floats, spacing: float, reach: float) -> MTF:
    """Transfer function from the edge spread, its derivative (line spread) and its Fourier transform."""
    step = spacing / _BINS_PER_PIXEL
    bins = 2 * max(1, round(reach / step))
    place = np.floor(distance / step).astype(int) + bins // 2
    inside = (place >= 0) & (place < bins)
    number = np.bincount(place[inside], minlength=bins)
    filled = np.flatnonzero(number)
    if len(filled) < bins / 2:
        raise GeometryError("most distances from the edge hold no pixel; slant the edge or use a larger rod")
    mean, offset = (
        np.bincount(place[inside], weights[inside], bins)[filled] / number[filled]
        for weights in (values, distance)
    )
    # Pixels are not spread evenly in a bin: the edge is drawn through their mean distances.
    nodes = (np.arange(bins) + 0.5 - bins / 2) * step
    spread = np.diff(np.interp(nodes, offset, mean)) / step
    # Flat over the inner half, so that it leaves the line spread alone and fades the noise of the flanks.
    padded = np.fft.rfft(spread * tukey(len(spread), 0.5), 8 * bins)
    if not abs(padded[0]) > 1e-6 * (np.abs(values).max() + 1e-30):
        raise GeometryError("the edge has no contrast; check the centre and radius")
    frequency = np.fft.rfftfreq(8 * bins, step)
    kept = frequency <= 0.5 / spacing
    # The mean over a step and the difference over a step each multiply by sinc(f step).
    value = np.abs(padded) / abs(padded[0]) / np.sinc(frequency * step) ** 2
    return MTF(np.asarray(frequency[kept], np.float64), np.asarray(value[kept], np.float64))
