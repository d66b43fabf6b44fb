"""Which pixels the scanner reconstructed: padding and the corners outside the field of view are masked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.dicom.grouping import number

# Nothing attenuates less than air, -1000 HU, by more than noise and artefacts; a filling of -2000 does. Noise
# and streaks reach below too, with values that vary: only a value that many pixels share is a filling.
LOWEST_HU = -1100.0
_SHARED_BY = 1e-3

# Corners with at least this share of one value were filled, not measured. Filled ones measured above 0.98
# in five real series, reconstructed ones below 0.3.
_CONSTANT_SHARE = 0.95


def padding_limits(header: Dataset) -> tuple[int, int] | None:
    """Stored values (lowest, highest) that mean "no data", or None without a PixelPaddingValue.

    The tag is often written with the wrong signedness (63536 for -2000), so it is read modulo
    2^BitsAllocated by PixelRepresentation.
    """
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    values = [_as_stored(header, int(item)) for item in (value, value if limit is None else limit)]
    return min(values), max(values)


def _as_stored(header: Dataset, value: int) -> int:
    modulus = 1 << int(header.BitsAllocated)
    value %= modulus
    return value - modulus if int(header.PixelRepresentation) and value >= modulus // 2 else value


def unpadded(stored: NDArray[np.integer], hu: NDArray[np.float32], header: Dataset) -> NDArray[np.bool_]:
    """True where a pixel is not padding, (Y, X): neither the tagged value nor a filling below -1100 HU.

    The tag is compared with stored values, before rescale.
    """
    mask = np.ones(hu.shape, np.bool_)
    limits = padding_limits(header)
    if limits is not None:
        mask &= (stored < limits[0]) | (stored > limits[1])
    mask &= ~filling(hu)
    return mask


def filling(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """True where a slice, (Y, X) in HU, holds one value below -1100 HU in a thousandth of its pixels."""
    lowest = hu.min()
    same: NDArray[np.bool_] = hu == lowest
    if lowest < LOWEST_HU and same.sum() >= _SHARED_BY * same.size:
        return same
    return np.zeros(hu.shape, np.bool_)


def radius_map(header: Dataset) -> NDArray[np.float64]:
    """Distance of pixel centres from the image centre over the radius of the field of view, (Y, X).

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


def share_of_one_value(values: NDArray[np.float32]) -> float:
    """The largest share of pixels that hold one value: 1 for a constant; 0 where there are no pixels."""
    return float(np.unique(values, return_counts=True)[1].max()) / values.size if values.size else 0.0


def corners_filled(shares: list[float]) -> bool:
    """Whether the pixels outside the field of view hold one constant per slice, so that the disc is the mask.

    Some scanners (Philips) reconstruct the corners as well: theirs vary and stay.

    Args:
        shares: `share_of_one_value` of the corners of every slice.
    """
    return float(np.mean(shares)) >= _CONSTANT_SHARE
