"""Which pixels the scanner reconstructed: padding and the corners outside the field of view are masked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.dicom.grouping import number

# No scanner reconstructs less than air at -1000 HU by more than noise and calibration; padding of -2000 does.
LOWEST_HU = -1100.0

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
    """True where a pixel is neither the padding value (before rescale) nor below -1100 HU; (Y, X)."""
    mask = hu >= LOWEST_HU
    limits = padding_limits(header)
    if limits is not None:
        mask &= (stored < limits[0]) | (stored > limits[1])
    return mask


def radius_map(header: Dataset) -> NDArray[np.float64]:
    """Distance of pixel centres from the image centre over the radius of the field of view, (Y, X).

    The radius is half of ReconstructionDiameter, or of the largest disc inside the image where it is absent.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    dy, dx = (float(value) for value in header.PixelSpacing)
    diameter = number(header, "ReconstructionDiameter") or min(rows * dy, columns * dx)
    y = (np.arange(rows) - (rows - 1) / 2) * dy
    x = (np.arange(columns) - (columns - 1) / 2) * dx
    distance: NDArray[np.float64] = np.hypot(y[:, None], x[None, :])
    return distance / (diameter / 2)


def corners_filled(hu: NDArray[np.float32], radius: NDArray[np.float64]) -> bool:
    """Whether the pixels outside the field of view hold one constant per slice, so that the disc is the mask.

    Some scanners (Philips) reconstruct the corners as well: theirs vary and stay.

    Args:
        hu: CT numbers, (Z, Y, X).
        radius: distance from the centre over the radius of the field of view, (Y, X).
    """
    # The pixels cut by the circle hold mixtures; two per cent of the radius skips them.
    corners = hu[:, radius > 1.02]
    if corners.shape[1] == 0:
        return False
    common = sum(int(np.unique(values, return_counts=True)[1].max()) for values in corners)
    return common >= _CONSTANT_SHARE * corners.size
