"""Find the direction of a detector from its data: rays measured from both sides must agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from ctflow.rebinning._heights import at_row, row_of
from ctflow.rebinning.parallel import ParallelSet, to_parallel
from ctflow.scan import Scan

_EXCERPT = 1.6 * math.pi  # rad on either side of the middle: opposed views with a fan to spare
_ENOUGH = math.radians(1.5)  # between the views that are compared
_TABLES = ("phi", "z", "rho", "shift_phi", "shift_z", "shift_rho")
_DECISIVE = 0.8  # relative to the inconsistency as stored: below it another direction is the right one


def inconsistency(scan: Scan) -> float:
    """Relative difference of line integrals that were measured from both sides.

    A line in a slice is measured twice, half a turn apart, by rays that cross above the axis.

    Args:
        scan: helix or circle, y (rows, views, bins), dimensionless.

    Returns:
        RMS of the difference divided by that of the line integrals, over all rows that see both,
        dimensionless.

    Raises:
        GeometryError: the scan cannot be sorted into parallel views.
    """
    parts = to_parallel(_excerpt(scan))
    found = [pair for part in parts for pair in _pairs(part)]
    if not found:
        return float("nan")
    difference = torch.cat([d for d, _ in found]).square().mean()
    size = torch.cat([v for _, v in found]).square().mean()
    return float((difference / size).sqrt())


def _excerpt(scan: Scan) -> Scan:
    """The middle turn and a half, thinned to the views needed, with all positions of the focal spot."""
    spot = scan.spot
    if spot is None:
        return scan
    places = len(np.unique(np.stack([spot.shift_phi, spot.shift_z, spot.shift_rho]).round(6), axis=1).T)
    turned = np.abs(spot.phi - np.median(spot.phi))
    step = max(1, round(_ENOUGH / (places * abs(float(np.median(np.diff(spot.phi)))))))
    kept = np.flatnonzero((turned <= _EXCERPT) & (np.arange(len(turned)) // places % step == 0))
    tables = {name: getattr(spot, name)[kept] for name in _TABLES}
    part = replace(spot, **tables)
    # The middle of the excerpt is another height; only heights relative to the source matter here.
    return replace(scan, y=scan.y[:, torch.from_numpy(kept)], beam=part.beam(), photons=None, spot=part)


def _pairs(part: ParallelSet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Differences of opposed rays, and one ray of each pair, view by view."""
    half, rows = part.half_turn, len(part.y)
    # The lines of both directions that lie on the same bins.
    width = min(-part.t[0], part.t[-1]) + 1e-6
    kept = torch.from_numpy(abs(part.t) <= width)
    for view in range(len(part.theta) - half):
        opposite = view + half
        for k in range(0, rows, max(1, rows // 4)):
            rise = (part.drop + (k - (rows - 1) / 2) * part.row_pitch) * part.distance / part.reach
            z = (part.source_z[view] + rise)[kept].flip(-1)
            there = z - part.source_z[opposite][kept]
            row = row_of(part, there, part.distance[kept], part.reach[kept])
            seen = (row >= 0) & (row <= rows - 1)
            # Both run over the axis: the cosine of the tilt makes them comparable.
            level = part.distance[kept] / torch.hypot(part.distance[kept], there)
            tilt = (part.distance / torch.hypot(part.distance, rise))[kept].flip(-1)
            value = part.y[k, view][kept].flip(-1) * tilt
            other = at_row(part.y[:, opposite][:, kept], row) * level
            yield (value - other)[seen], value[seen]


def orient_detector(scan: Scan) -> Scan:
    """Orient the detector columns and rows of a scan as its own data require.

    Readers of the same files disagree about the directions. That of the format is kept unless another one
    makes opposed rays agree decisively better. A mirrored object on a mirrored orbit cannot be detected.

    Args:
        scan: scan from DICOM-CT-PD, y (rows, views, bins), dimensionless.

    Returns:
        The same data with the rays that fit, and a note where they differ from the format.

    Raises:
        GeometryError: the scan cannot be sorted into parallel views.
    """
    spot = scan.spot
    if spot is None:
        return scan
    tried = {}
    for mirrored in product((False, True), (False, True)):
        turned = replace(spot, mirrored=mirrored)
        tried[mirrored] = inconsistency(replace(scan, spot=turned, beam=turned.beam()))
    best = min(tried, key=lambda mirrored: tried[mirrored])
    if not tried[best] < _DECISIVE * tried[spot.mirrored]:
        return scan
    turned = replace(spot, mirrored=best)
    names = [name for name, flag in zip(("columns", "rows"), best, strict=True) if flag]
    note = (
        f"detector {' and '.join(names) or 'directions'} run against the format's direction: opposed rays "
        f"then differ by {100 * tried[best]:.2g} % instead of {100 * tried[spot.mirrored]:.2g} %"
    )
    return replace(scan, spot=turned, beam=turned.beam(), notes=(*scan.notes, note))
