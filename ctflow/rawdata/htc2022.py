"""Read scans of the Helsinki Tomography Challenge 2022, each a MATLAB file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctflow.errors import UnreadableError, UsageError
from ctflow.geometry import FanBeam, VolumeGeometry
from ctflow.rawdata.loading import load_mat
from ctflow.scan import Scan

_PIXELS = 512  # pixels along a side of the challenge's images


def read_htc2022(file: Path) -> Scan:
    """Read a full or limited scan; pixels and orientation are those of the challenge's own images.

    Returns:
        Line integrals (1, views, bins), dimensionless, of a flat fan in mm.

    Raises:
        UnreadableError: the file is damaged, or its numbers do not fit this scanner.
        UsageError: the file holds no scan of the challenge.

    References:
        Meaney, Silva de Moura and Siltanen, Zenodo 6984868 (2022).
    """
    try:
        data = load_mat(file, "CtDataFull")
    except UsageError:
        data = load_mat(file, "CtDataLimited")
    try:
        return _scan(np.asarray(data["sinogram"], np.float32), data["parameters"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise UnreadableError(
            "expected sinogram and parameters of the Helsinki challenge and some are missing; "
            "download the file again"
        ) from None


def _scan(sinogram: Any, parameters: dict[str, Any]) -> Scan:
    if str(parameters["distanceUnit"]) != "mm":
        raise UnreadableError(f"expected lengths in mm and the file says {parameters['distanceUnit']!r}")
    source_axis, source_detector, pitch = (
        float(parameters[name])
        for name in ("distanceSourceOrigin", "distanceSourceDetector", "pixelSizePost")
    )
    angles = np.atleast_1d(np.asarray(parameters["angles"], float))
    if sinogram.ndim != 2 or sinogram.shape[0] != len(angles):
        raise UnreadableError(
            f"expected a sinogram of {len(angles)} views and it is {sinogram.shape}; download the file again"
        )
    beam = FanBeam(
        tuple(math.radians(angle) for angle in angles),
        bins=sinogram.shape[1],
        pitch=pitch,
        source_axis=source_axis,
        source_detector=source_detector,
    )
    pixel = pitch * source_axis / source_detector
    grid = VolumeGeometry((1, _PIXELS, _PIXELS), (1.0, pixel, pixel))
    note = "beam hardening: no linear model fits these data to their noise"
    return Scan(torch.from_numpy(sinogram.copy())[None], beam, "HTC 2022", grid, notes=(note,))
