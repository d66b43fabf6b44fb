"""A phantom for raw data: water, four rods and a bead, measured along the rays of a real scanner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.geometry import FlyingSpot, VolumeGeometry
from ctflow.scan import Scan
from ctflow.units import MU_WATER

__all__ = ["write_raw_phantom", "raw_phantom", "scanner", "measure_phantom", "RODS_HU"]  # noqa: RUF022 (a protocol names the first)

RODS_HU = (-100.0, 120.0, 340.0, -200.0)
"""CT numbers of the rods at 0°, 90°, 180° and 270° from x towards y; those of a quality phantom."""

_VIEWS = 64  # projected together, which bounds the memory


def raw_phantom(
    radius: float = 100.0,
    rod: float = 10.0,
    bead: tuple[float, float, float] | None = (30.0, 40.0, 0.0),
    rods: bool = True,
) -> Phantom:
    """A water cylinder along z with four rods at half its radius, and a bead of 10 mm and 500 HU.

    Args:
        radius: radius of the cylinder, mm.
        rod: radius of the rods, mm.
        bead: centre of the bead (x, y, z), mm; None leaves it out.
        rods: whether there are rods.
    """
    parts = [Ellipsoid((0.0, 0.0, 0.0), (radius, radius, math.inf), MU_WATER)]
    for k, hu in enumerate(RODS_HU if rods else ()):
        centre = (radius / 2 * math.cos(k * math.pi / 2), radius / 2 * math.sin(k * math.pi / 2), 0.0)
        parts.append(Ellipsoid(centre, (rod, rod, math.inf), MU_WATER * hu / 1000))
    if bead is not None:
        parts.append(Ellipsoid(bead, (5.0, 5.0, 5.0), MU_WATER / 2))
    return Phantom(tuple(parts))


def scanner(
    views: int = 360,
    turns: float = 3.0,
    feed: float = 10.0,
    *,
    bins: int = 184,
    rows: int = 16,
    flying: str = "FFSNONE",
    z: float = 0.0,
) -> FlyingSpot:
    """A scanner like those of the public sets, with fewer bins and rows, and with their quarter-bin offset.

    Args:
        views: views per turn.
        turns: turns, half of them below `z`.
        feed: table feed per turn, mm; 0 is a circle.
        bins: detector bins over an arc of 946 mm.
        rows: detector rows over 70 mm.
        flying: movement of the focal spot from view to view: "FFSNONE", "FFSXY", "FFSZ" or "FFSXYZ".
        z: height of the middle of the scan, mm.
    """
    number = round(views * turns)
    phi = 2 * math.pi * (np.arange(number) - (number - 1) / 2) / views
    none, odd = np.zeros(number), (np.arange(number) % 2).astype(np.float64)
    in_plane, along = "XY" in flying, flying.endswith("Z")
    return FlyingSpot(
        phi=phi,
        z=z + feed * phi / (2 * math.pi),
        rho=none + 595.0,
        # Half a bin at the axis apart, as scanners fly to double their sampling.
        shift_phi=(0.5 - odd) * 0.25 * 946 / bins / 1085.6 * 2 if in_plane else none,
        shift_z=(0.5 - odd) * 0.66 if along else none,
        shift_rho=odd * 5.45 if along else none,
        source_detector=1085.6,
        pitch=946 / bins,
        row_pitch=70 / rows,
        central=((bins - 1) / 2 + 1.125, (rows - 1) / 2),
        bins=bins,
        rows=rows,
    )


def measure_phantom(phantom: Phantom, spot: FlyingSpot, photons: float = 1e5, rays_per_bin: int = 1) -> Scan:
    """Compute the exact line integrals of a phantom along the rays of a scanner.

    Args:
        phantom: ellipsoids, in the scanner's frame.
        spot: tables of the scanner.
        photons: incident photons behind the thinnest part of a bow-tie filter; half of them at the outer
            bins.
        rays_per_bin: rays per bin whose mean is its value.

    Returns:
        Scan of (rows, views, bins), dimensionless.
    """
    lowered = Phantom(tuple(_raised(part, -spot.middle) for part in phantom.ellipsoids))
    beam, grid = spot.beam(), VolumeGeometry((1, 1, 1), (1.0, 1.0, 1.0))
    parts = [
        lowered.line_integrals(grid, beam.subset(slice(first, first + _VIEWS)), rays_per_bin)
        for first in range(0, len(spot.phi), _VIEWS)
    ]
    bow_tie = photons * (1 - 0.5 * torch.linspace(-1, 1, spot.bins).square())
    return Scan(torch.cat(parts, 1), beam, "synthetic", photons=bow_tie[None], mu_water=MU_WATER, spot=spot)


def _raised(part: Ellipsoid, height: float) -> Ellipsoid:
    x, y, z = part.centre
    return replace(part, centre=(x, y, z + height))


def write_raw_phantom(path: str | Path, flying: str = "FFSNONE") -> Path:
    """Write a small helical scan of the phantom as DICOM-CT-PD: 1,080 views of 16 rows and 184 bins.

    Args:
        path: folder to make.
        flying: movement of the focal spot: "FFSNONE", "FFSXY", "FFSZ" or "FFSXYZ".

    Returns:
        The folder.

    Raises:
        OutputError: the folder exists already.
    """
    from ctflow.dicom.projections.writing import write_projections

    return write_projections(measure_phantom(raw_phantom(), scanner(flying=flying)), path)
