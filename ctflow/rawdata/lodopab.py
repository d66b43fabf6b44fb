"""Read observations of LoDoPaB-CT: HDF5 files of up to 128 simulated low-dose scans of chest slices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ctflow.errors import UnreadableError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.rawdata.loading import load_hdf5
from ctflow.scan import Scan

VIEWS, BINS, PIXELS = 1000, 513, 362
SIDE_MM = 260.0
PHOTONS = 4096.0
MU_WATER = 0.02
"""Attenuation of water used for the set, 1/mm."""
MU_MAX = 81.35858
"""Divisor of the set's data, 1/m: the attenuation of 3,071 HU."""


def beam() -> ParallelBeam:
    """The beam of the set: 1,000 views over half a turn, 513 bins over the diagonal of the square, mm.

    The first image axis of the set is x and the second y. A quarter turn shows its images as stored.
    """
    angles = tuple((view + 0.5) * math.pi / VIEWS - math.pi / 2 for view in range(VIEWS))
    return ParallelBeam(angles, bins=BINS, pitch=SIDE_MM * math.sqrt(2) / BINS)


def read_lodopab(file: Path) -> Scan:
    """Read a file of observations; every sample is a slice.

    Returns:
        Line integrals (samples, 1000, 513), dimensionless.

    Raises:
        UnreadableError: the file is damaged, or does not hold observations.

    References:
        Leuschner, Schmidt, Baguer and Maass, Sci. Data 8 (2021).
    """
    data, _ = load_hdf5(file, "data")
    if data.ndim != 3 or data.shape[1:] != (VIEWS, BINS):
        raise UnreadableError(
            f"expected observations (samples, {VIEWS}, {BINS}) of LoDoPaB-CT and found {data.shape}; "
            "give a file of observations, not of ground truth, or write a geometry file for it"
        )
    pixel = SIDE_MM / PIXELS
    grid = VolumeGeometry((len(data), PIXELS, PIXELS), (1.0, pixel, pixel))
    return Scan(
        # Divided by MU_MAX in 1/m, with lengths in m.
        torch.from_numpy(np.asarray(data, np.float32) * np.float32(MU_MAX)),
        beam(),
        "LoDoPaB-CT",
        grid,
        photons=torch.full((1, BINS), PHOTONS),
        mu_water=MU_WATER,
        notes=("each slice is another sample; their order along z means nothing",),
    )
