"""Contrast-to-noise ratio of a region against its surround."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import GeometryError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def contrast_to_noise(image: Floats, signal: Bools, background: Bools) -> float:
    """|mean of signal - mean of background| / standard deviation of background, dimensionless.

    Args:
        image: (Z, Y, X), HU.
        signal: (Z, Y, X), True inside the structure.
        background: (Z, Y, X), True in its uniform surround, apart from the structure.

    Raises:
        GeometryError: a region holds too few voxels, the two meet, or the background has no noise.
    """
    if not signal.any() or background.sum() < 2 or (signal & background).any():
        raise GeometryError("signal and background must not overlap, and need at least one and two voxels")
    noise = image[background].std(ddof=1)
    if not noise > 0:
        raise GeometryError("the background has no noise, so its contrast-to-noise ratio is not defined")
    return float(abs(image[signal].mean() - image[background].mean()) / noise)
