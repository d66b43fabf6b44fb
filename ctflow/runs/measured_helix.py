"""Measured helices solved for with their own rays: which views, in which frame, compared with which image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ctflow.geometry import FlyingSpot, VectorBeam, VolumeGeometry
from ctflow.rebinning.wfbp import wfbp
from ctflow.runs.protocol import Protocol
from ctflow.runs.unknown import Unknown, crossing
from ctflow.scan import Scan
from ctflow.system.progress import StepProgress
from ctflow.volume import Volume

_TABLES = ("phi", "z", "rho", "shift_phi", "shift_z", "shift_rho")


def solves_helix(protocol: Protocol) -> bool:
    """Whether a protocol takes a helix as it was measured; others have it rebinned to slices."""
    return protocol.tables.get("geometry", {}).get("name") == "helical-beam"


def kept_of_helix(scan: Scan, protocol: Protocol, grid: VolumeGeometry) -> Scan:
    """The views of a helix that see the slices at the axis, and as many of them a turn as a protocol has.

    A view is kept where the panel, or half a turn, reaches the slices, so that these are seen from all
    directions.

    Args:
        scan: y (rows, views, bins), dimensionless, with the tables of its spot.
        protocol: its helix has `angles` views over `arc_degrees`; all the rest is the data's.
        grid: of the slices, at their heights on the scanner's axis, mm.

    Returns:
        Scan without tables, whose frame has its origin in the middle of the slices.
    """
    spot, table = _spot(scan), protocol.tables.get("geometry", {})
    turn = 2 * math.pi / abs(float(np.median(np.diff(spot.phi))))
    angles, arc = table.get("angles"), table.get("arc_degrees", 720.0)
    step = 1
    if isinstance(angles, int) and isinstance(arc, int | float) and 3 * turn > 2 * angles * 360 / arc:
        step = max(1, round(turn / (angles * 360 / arc)))
    if np.ptp([spot.shift_phi, spot.shift_z, spot.shift_rho], axis=1).any():
        step |= 1  # odd, so that no place of the spot is left out
    middle, height = _middle(grid), grid.extent[0]
    feed = abs(float(spot.z[-1] - spot.z[0])) / (len(spot.z) - 1) * turn
    panel = spot.rows * spot.row_pitch / scan.beam.magnification()
    near = np.flatnonzero(np.abs(spot.z - middle) <= height / 2 + max(feed, panel) / 2)
    views = slice(int(near[0]), int(near[-1]) + 1, step)
    part = replace(spot, **{name: getattr(spot, name)[views] for name in _TABLES})
    photons = scan.photons
    if photons is not None and len(photons) > 1:
        photons = photons[views]
    beam = _at_height(part, middle)
    return replace(scan, y=scan.y[:, views], beam=beam, grid=grid, photons=photons, spot=None)


def unknown_of_helix(kept: Scan, grid: VolumeGeometry) -> tuple[Unknown, str]:
    """What is solved for at once to reconstruct slices of a helix, and what a reader must know of it.

    Args:
        kept: of `kept_of_helix`.
        grid: of the slices, mm.

    Raises:
        GeometryError: the slices are too few for rays that cross them.
    """
    unknown = crossing(kept.beam, grid)
    note = (
        f"solved for with the helix's own rays, {len(kept.beam.views)} views of {kept.y.shape[0]} rows that "
        f"cross the slices; {unknown.beyond} slices beyond either end, which rays cross too, are solved for "
        "and not shown"
    )
    return unknown, note


def reference_of_helix(scan: Scan, grid: VolumeGeometry, filter: str, progress: StepProgress) -> Volume:
    """WFBP of all views, 1/mm, (Z, Y, X); slices that are not seen from all directions are 0.

    Args:
        scan: the whole helix, dimensionless, with the tables of its spot.
        grid: of the slices, at their heights on the scanner's axis, mm.
        filter: "ramp", "hann", "shepp-logan" or "cosine".
        progress: called as progress(slices done, slices in all).
    """
    low = grid.affine[2][3]
    heights = [low + k * grid.spacing[0] for k in range(grid.shape[0])]
    return wfbp(scan, grid, heights, filter, progress, whole=False)


def _spot(scan: Scan) -> FlyingSpot:
    assert scan.spot is not None  # a helix that was read has its tables
    return scan.spot


def _middle(grid: VolumeGeometry) -> float:
    return grid.affine[2][3] + (grid.shape[0] - 1) / 2 * grid.spacing[0]


def _at_height(spot: FlyingSpot, origin: float) -> VectorBeam:
    """The rays in a frame whose origin lies on the axis at a height, mm."""
    beam = spot.beam()
    up = np.zeros(12)
    up[[2, 5]] = spot.middle - origin  # of source and middle of the detector
    return replace(beam, vectors=tuple(map(tuple, np.asarray(beam.vectors) + up)))
