"""Rebin helical projections to fan or parallel views of single slices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import FanBeam, FlyingSpot, ParallelBeam
from ctflow.rebinning._heights import at_row, row_of, row_weight
from ctflow.rebinning.parallel import to_parallel
from ctflow.scan import Scan


def to_fan_slices(scan: Scan, heights: list[float]) -> Scan:
    """Single-slice rebinning to a full turn of fan-beam views for every slice, from the nearest rays.

    A slice takes the turn of views around it. The ray that crosses the slice above the axis replaces the ray
    in the plane of the slice, times the cosine of its tilt: exact where nothing changes along z, otherwise an
    approximation whose error grows with the feed and the distance from the axis.

    Args:
        scan: helix or circle whose focal spot does not fly.
        heights: heights of the slices on the scanner's axis, mm.

    Returns:
        Scan of a curved fan, (slices, views of one turn, bins), dimensionless.

    Raises:
        GeometryError: the spot flies, or a slice is not surrounded by a turn of views that see it.

    References:
        Noo, Defrise and Clackdoyle, Phys. Med. Biol. 44 (1999), 3.1, for a cylindrical detector.
    """
    spot = _still(scan)
    views = round(2 * math.pi / abs(float(np.median(np.diff(spot.phi)))))
    if len(spot.phi) < views:
        raise GeometryError(
            f"the scan has {len(spot.phi)} views and a turn has {views}; rebin to parallel views, which "
            "half a turn and the fan angle suffice for"
        )
    feed = (spot.z[-1] - spot.z[0]) / (len(spot.z) - 1) * views
    slices = torch.stack([_fan_slice(scan, spot, z, views, feed) for z in heights])
    phi = (np.arange(views) * np.median(np.diff(spot.phi)) + spot.phi[0] + math.pi) % (2 * math.pi)
    shift = ((spot.bins - 1) / 2 - spot.central[0]) * (-1 if spot.mirrored[0] else 1)
    beam = FanBeam(
        tuple(phi),
        bins=spot.bins,
        pitch=spot.pitch,
        shift_bins=shift,
        source_axis=float(spot.rho[0]),
        source_detector=spot.source_detector,
        curved=True,
    )
    slices = slices.flip(-1) if spot.mirrored[0] else slices
    return _flat(scan, slices, beam, "single-slice rebinning to a fan")


def _still(scan: Scan) -> FlyingSpot:
    spot = scan.spot
    if spot is None or np.ptp([spot.shift_phi, spot.shift_z, spot.shift_rho], axis=1).max() > 0:
        raise GeometryError(
            "rebinning to fans needs a turning scanner whose focal spot does not fly; rebin to parallel "
            "views, which keep every position of the spot"
        )
    return spot


def _fan_slice(scan: Scan, spot: FlyingSpot, z: float, views: int, feed: float) -> Tensor:
    """Views 0 to `views` - 1 modulo a turn, from the turn around the slice, (views, bins)."""
    last = len(spot.phi) - views
    start = round((z - spot.z[0]) / feed * views - views / 2) if abs(feed) > 1e-9 else 0
    start = min(max(start, 0), last)
    taken = np.arange(start, start + views)
    gamma = (np.arange(spot.bins) - spot.central[0]) * spot.pitch / spot.source_detector
    # Above the axis the ray has travelled ρ cos γ in the plane.
    rise = (z - spot.z[taken, None]) / (spot.rho[taken, None] * np.cos(gamma)) * spot.source_detector
    up = -1.0 if spot.mirrored[1] else 1.0
    row = torch.from_numpy(up * rise / spot.row_pitch + spot.central[1]).float()
    outside = float(torch.maximum(-row, row - (spot.rows - 1)).max())
    if outside > 0.5 + 1e-3:
        raise GeometryError(
            f"the slice at {z:.1f} mm is seen up to {outside:.1f} rows beyond the detector during the turn "
            f"around it; give slices further inside the scan, or a feed below {abs(feed):.1f} mm a turn"
        )
    tilt = torch.from_numpy(np.cos(np.arctan(rise / spot.source_detector))).float()
    rays = scan.y[:, torch.from_numpy(taken)].reshape(spot.rows, -1)
    values = at_row(rays, row.reshape(-1)).reshape(row.shape) * tilt
    return values.roll(start % views, 0)


def to_parallel_slices(scan: Scan, heights: list[float]) -> Scan:
    """Single-slice rebinning to half a turn of parallel views; the focal spot may fly.

    Each ray (θ, t) of a slice is the weighted mean of the measured ones that cross the slice at their point
    nearest the axis, from both sides and all turns, times the cosine of their tilt.

    Args:
        scan: helix or circle.
        heights: heights of the slices on the scanner's axis, mm.

    Returns:
        Scan of a parallel beam, (slices, views, bins), dimensionless.

    Raises:
        GeometryError: a slice is not seen from all directions, or less than half a turn is measured.

    References:
        Noo, Defrise and Clackdoyle, Phys. Med. Biol. 44 (1999), for rays sorted as by Stierstorfer et al.,
        Phys. Med. Biol. 49 (2004), with the row weights of the latter.
    """
    parts = to_parallel(scan)
    half, first = parts[0].half_turn, parts[0]
    middle = scan.spot.middle if scan.spot else 0.0
    total = torch.zeros(len(heights), half, len(first.t))
    weights = torch.zeros_like(total)
    for part in parts:
        for view in range(len(part.theta)):
            odd = (view // half) % 2 == 1
            for k, z in enumerate(heights):
                rise = z - middle - part.source_z[view]
                row = row_of(part, rise, part.distance, part.reach)
                weight = row_weight(row, len(part.y))
                tilt = part.distance / torch.hypot(part.distance, rise)
                value = weight * tilt * at_row(part.y[:, view], row)
                # Half a turn later the same line is seen from the other side.
                total[k, view % half] += value.flip(-1) if odd else value
                weights[k, view % half] += weight.flip(-1) if odd else weight
    if not bool((weights > 0).all()):
        raise GeometryError(
            "some slices are not seen from all directions; give slices further inside the scan, or a scan "
            "with a smaller feed"
        )
    step = float(first.t[1] - first.t[0])
    beam = ParallelBeam(tuple(first.theta[:half] % (2 * math.pi)), bins=len(first.t), pitch=step)
    return _flat(scan, total / weights, beam, "single-slice rebinning to parallel views")


def _flat(scan: Scan, y: Tensor, beam: FanBeam | ParallelBeam, how: str) -> Scan:
    photons = scan.photons
    if photons is not None:
        photons = photons.mean(0, keepdim=True)
        # Sorted rays mix neighbouring bins; the intensity behind a bow-tie filter varies slowly.
        photons = torch.nn.functional.interpolate(photons[None], y.shape[-1], mode="linear")[0]
    note = f"{how}: exact where nothing changes along z; ends of organs and sharp edges are approximate"
    return replace(scan, y=y, beam=beam, photons=photons, spot=None, notes=(*scan.notes, note))
