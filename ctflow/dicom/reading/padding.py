"""Mask padding and the corners outside the field of view, which the scanner did not reconstruct."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.dicom.reading.grouping import number

# Nothing attenuates less than air, -1000 HU, by more than noise and artefacts; a filling of -2000 does. Noise
# and streaks reach below too, with values that vary: only a value that many pixels share is a filling.
LOWEST_HU = -1100.0
_SHARED_BY = 1e-3
_SHARED_BELOW = 0.1  # of the pixels that are as low; even behind a lossy coder, fillings measured above 0.7

# A tagged value that air has too is padding in one piece with the image's border alone; one that tissue has
# is none: a converter's PixelPaddingValue of 0 is water.
_AIR_HU = -900.0

# Corners with at least this share of one value were filled, not measured. Filled ones measured above 0.98
# in five real series, reconstructed ones below 0.3.
_CONSTANT_SHARE = 0.95

# What a lossy coder makes of one value, in steps of the stored values: 2 in JPEG 2000 and JPEG-LS, 1 in JPEG.
_BLURRED_BY = 4


def padding_limits(header: Dataset) -> tuple[int, int] | None:
    """Stored values (lowest, highest) that mean "no data", or None without a PixelPaddingValue.

    The tag is often written with the wrong signedness (63536 for -2000), so it is read modulo 2^BitsStored
    by PixelRepresentation. Behind a lossy coder the limits are wider.
    """
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    values = [_as_stored(header, int(item)) for item in (value, value if limit is None else limit)]
    blur = _BLURRED_BY * _lossy(header)
    return min(values) - blur, max(values) + blur


def _as_stored(header: Dataset, value: int) -> int:
    modulus = 1 << int(header.BitsStored)
    value %= modulus
    return value - modulus if int(header.PixelRepresentation) and value >= modulus // 2 else value


def _lossy(header: Dataset) -> bool:
    return str(header.get("LossyImageCompression", "")).strip() == "01"


def padding_is_tissue(header: Dataset) -> bool:
    """Whether PixelPaddingValue is above air, so that it cannot mean padding."""
    limits, slope = padding_limits(header), number(header, "RescaleSlope")
    intercept = number(header, "RescaleIntercept")
    if limits is None or slope is None or intercept is None:
        return False
    return min(limit * slope + intercept for limit in limits) > _AIR_HU


def blur_hu(header: Dataset) -> float:
    """Largest spread of the values of a constant area, HU: 0 unless a lossy coder was used."""
    return abs(float(header.RescaleSlope)) * _BLURRED_BY * _lossy(header)


def unpadded(stored: NDArray[np.integer], hu: NDArray[np.float32], header: Dataset) -> NDArray[np.bool_]:
    """True where a pixel is not padding, (Y, X): neither the tagged value nor a filling below -1100 HU.

    The tag is compared with stored values, before rescale, and believed only where nothing can have been
    measured: below -1100 HU, or at the level of air and connected to the border of the image.
    """
    padding = filling(hu, blur_hu(header))
    limits = padding_limits(header)
    if limits is not None:
        tagged = (stored >= limits[0]) & (stored <= limits[1]) & (hu <= _AIR_HU)
        padding |= tagged & ((hu < LOWEST_HU) | _from_border(tagged))
    return ~padding


def _from_border(tagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Connected parts of a mask, (Y, X), that reach the border of the image."""
    if not tagged.any():
        return tagged
    from scipy import ndimage

    pieces, count = ndimage.label(tagged)
    reaching = np.zeros(count + 1, np.bool_)
    reaching[pieces[[0, -1]]] = reaching[pieces[:, [0, -1]]] = True
    reaching[0] = False  # what is not tagged
    found: NDArray[np.bool_] = reaching[pieces]
    return found


def filling(hu: NDArray[np.float32], blur: float = 0.0) -> NDArray[np.bool_]:
    """True where a slice, (Y, X) in HU, holds one value below -1100 HU in a thousandth of its pixels.

    Args:
        hu: CT numbers.
        blur: how much a lossy coder spreads that value, HU.
    """
    low = hu[hu < LOWEST_HU]
    values, counts = np.unique(low, return_counts=True)
    if not low.size or counts.max() < max(_SHARED_BY * hu.size, _SHARED_BELOW * low.size):
        return np.zeros(hu.shape, np.bool_)
    same: NDArray[np.bool_] = (np.abs(hu - values[counts.argmax()]) <= blur) & (hu < LOWEST_HU)
    return same


def radius_map(header: Dataset) -> NDArray[np.float64]:
    """Distance of pixel centres from the image centre, divided by the radius of the field of view, (Y, X).

    The radius is half of ReconstructionDiameter, or of the largest disc inside the image where it is absent.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    dy, dx = (float(value) for value in header.PixelSpacing)
    widest = min(rows * dy, columns * dx)
    diameter = number(header, "ReconstructionDiameter") or widest
    if not widest / 4 <= diameter <= 2 * max(rows * dy, columns * dx):
        diameter = widest  # a tag that contradicts the pixels
    y = (np.arange(rows) - (rows - 1) / 2) * dy
    x = (np.arange(columns) - (columns - 1) / 2) * dx
    distance: NDArray[np.float64] = np.hypot(y[:, None], x[None, :])
    return distance / (diameter / 2)


def share_of_one_value(values: NDArray[np.float32], blur: float = 0.0) -> float:
    """Share of pixels within `blur` of their median: 1 for a constant, 0 where there are no pixels.

    Pixels below -1100 HU count as one value: no measured corner is that low, even behind a lossy coder.
    """
    if not values.size:
        return 0.0
    alike = np.abs(values - np.median(values)) <= blur
    return float(max(alike.mean(), (values < LOWEST_HU).mean()))


def corners_filled(shares: list[float]) -> bool:
    """Whether the pixels outside the field of view hold one constant per slice, so that the disc is the mask.

    Some scanners (Philips) reconstruct the corners as well: those vary and are kept.

    Args:
        shares: `share_of_one_value` of the corners of every slice.
    """
    return float(np.mean(shares)) >= _CONSTANT_SHARE
