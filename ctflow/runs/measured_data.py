"""Runs on measured projections: the data are the scanner's, and no truth stands beside them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ctflow.dicom import Source
from ctflow.errors import GeometryError, ProtocolError
from ctflow.geometry import CircularBeam, ConeBeam, FanBeam, HelicalBeam, ParallelBeam3D, VolumeGeometry
from ctflow.metrics import fov_mask
from ctflow.noise import Gaussian, Noise
from ctflow.operators import LinearOperator, Radon
from ctflow.plausibility import unusual_hu
from ctflow.problem import InverseProblem
from ctflow.rawdata import read_scan
from ctflow.rebinning import orient_detector, to_fan_slices, to_parallel_slices
from ctflow.recon import FBP, FDK
from ctflow.recon._views import require_full_turn
from ctflow.recon.fbp import ray_weights
from ctflow.runs.measured_helix import reference_of_helix
from ctflow.runs.protocol import Protocol
from ctflow.scan import Scan
from ctflow.system.progress import FractionProgress
from ctflow.volume import Volume

_MOST_SLICES = 10_000
_VIEWS_OF_FIELD = 500  # that tell how wide all views see; an odd step leaves out no place of a flying spot


def reference_name(scan: Scan) -> str:
    """What stands for the truth that nobody knows."""
    if scan.beam.flat:
        return "FBP of all views"
    return "FDK of all views" if scan.spot is None else "WFBP of all views"


def no_truth(scan: Scan) -> str:
    """What a reader must know of the errors of measured data."""
    return (
        f"measured data, no ground truth: errors are differences from the {reference_name(scan)}, which has "
        "noise and artefacts of its own; the residual alone judges an image by what was measured"
    )


def load(path: Path, slices: tuple[int, int | None] | None, helix: bool = False) -> tuple[Scan, int, int]:
    """Read measured data and bring them to slices, each with its own row of data; a panel keeps all its rows.

    Slices of a helix are one detector row (at least 1 mm) apart. It is rebinned to fans, or to parallel views
    where its focal spot flies, unless its own rays are asked for. A circular cone keeps its rays; its
    `height` is that of all slices.

    Args:
        path: see `ctflow.rawdata.read_scan`.
        slices: first and one past the last slice, None for the end; all by default.
        helix: keep the rays of a helix.

    Returns:
        Scan of the chosen slices, y (slices, views, bins), dimensionless, or of a panel with the grid of all
        slices, or of a whole helix with the grid of the chosen ones and the tables of its spot; the first's
        number; and how many there are.

    Raises:
        GeometryError: the slices do not lie in the scan, or nothing stands for its truth.
    """
    scan = read_scan(path)
    if scan.spot is None:
        _refuse_without_fbp(scan)
        if not scan.beam.flat:
            grid = scan.image_grid()
            beam = replace(cast(ConeBeam, scan.beam), height=grid.extent[0])
            return replace(scan, beam=beam, grid=grid), chosen(slices, grid.shape[0])[0], grid.shape[0]
        total = len(scan.y)
        first, last = chosen(slices, total)
        rows = replace(scan, y=scan.y[first:last], grid=scan.grid.slices(first, last) if scan.grid else None)
        return rows, first, total
    scan = orient_detector(scan)
    heights, thickness = _heights(scan)
    first, last = chosen(slices, len(heights))
    taken = heights[first:last]
    assert scan.spot is not None  # settling keeps the tables
    if helix:
        thinned = scan.every(max(1, len(scan.spot.phi) // _VIEWS_OF_FIELD) | 1)
        grid = thinned.slice_grid(len(taken), thickness)
        return replace(scan, grid=_placed(grid, taken[0])), first, len(heights)
    still = not np.ptp([scan.spot.shift_phi, scan.spot.shift_z, scan.spot.shift_rho], axis=1).any()
    turns = np.ptp(scan.spot.phi) / (2 * math.pi)
    flat = (to_fan_slices if still and turns >= 1 else to_parallel_slices)(scan, taken)
    grid = flat.image_grid(len(taken), thickness)
    return replace(flat, grid=_placed(grid, taken[0])), first, len(heights)


def chosen(slices: tuple[int, int | None] | None, total: int) -> tuple[int, int]:
    """First and one past the last of `total` slices, all by default.

    Raises:
        GeometryError: they do not lie in 0 to `total`.
    """
    first, last = slices or (0, None)
    last = total if last is None else last
    if not 0 <= first < last <= total:
        raise GeometryError(
            f"slices {first}:{last} do not lie in 0:{total}; give start:stop with start < stop"
        )
    return first, last


def _heights(scan: Scan) -> tuple[list[float], float]:
    """Heights on the scanner's axis that a turn of views surrounds, and their distance, mm."""
    spot = scan.spot
    assert spot is not None
    thickness = max(1.0, spot.row_pitch * float(spot.rho[0]) / spot.source_detector)
    low, high = float(spot.z.min()), float(spot.z.max())
    turns = max(1e-9, float(np.ptp(spot.phi)) / (2 * math.pi))
    margin = (high - low) / turns / 2
    if high - low < 1e-3:
        return [spot.middle], thickness
    if high - low <= 2 * margin:
        raise GeometryError(
            f"the helix makes {turns:.2f} turns and a slice needs a whole one around it; give more views"
        )
    number = int((high - low - 2 * margin) / thickness) + 1
    if number > _MOST_SLICES:
        raise GeometryError(
            f"the helix is {high - low:.0f} mm long, {number} slices of {thickness:.2f} mm, and "
            f"{_MOST_SLICES} are the most; check the table positions, in mm"
        )
    start = spot.middle - (number - 1) / 2 * thickness
    return [start + k * thickness for k in range(number)], thickness


def _placed(grid: VolumeGeometry, z: float) -> VolumeGeometry:
    """The grid with its first slice at height z, mm."""
    rows = [list(row) for row in grid.affine]
    rows[2][3] = z
    return replace(grid, affine=tuple(tuple(row) for row in rows))


def attenuation_of(protocol: Protocol, scan: Scan) -> Protocol:
    """The protocol with the scanner's attenuation of water, where it states one."""
    if scan.mu_water is None:
        return protocol
    tables = protocol.tables.copy()
    tables.pop("energy_kev", None)
    tables.pop("mu_water", None)
    return replace(protocol, tables={**tables, "mu_water": scan.mu_water})


def _refuse_without_fbp(scan: Scan) -> None:
    beam = scan.beam
    if not isinstance(beam, CircularBeam) or isinstance(beam, HelicalBeam | ParallelBeam3D):
        given = (
            "" if isinstance(beam, CircularBeam) else ", rays given view by view, as by offsets of a panel"
        )
        raise GeometryError(
            "a run compares with FBP of parallel or fan beams, or FDK of circular cones, and there is none "
            f"for a {type(beam).__name__}{given}; reconstruct these data from Python with CGLS, SIRT or TV"
        )


def refuse_short_arc(scan: Scan, grid: VolumeGeometry) -> None:
    """Refuse views that leave lines unmeasured, so that no FBP or FDK can stand for the truth.

    Args:
        scan: with a circular beam.
        grid: of the image, mm.

    Raises:
        GeometryError: the arc is too short.
    """
    beam = cast(CircularBeam, scan.beam)
    if isinstance(beam, FanBeam) and beam.displaced:
        require_full_turn(beam)
    ray_weights(beam, grid)


def reference_filter(protocol: Protocol) -> str:
    """Filter of the FBP, FDK or WFBP of all views: that of the protocol's own, else "hann"."""
    table = protocol.tables["reference"]
    return str(table.get("filter", "ramp")) if table.get("name") in ("fbp", "fdk", "wfbp") else "hann"


def reference(scan: Scan, protocol: Protocol, grid: VolumeGeometry, progress: FractionProgress) -> Volume:
    """FBP, FDK or WFBP of all views of a scan, under the filter of the protocol's own.

    Args:
        scan: y (slices, views, bins), dimensionless, of a parallel or fan beam; or (rows, views, bins) of a
            circular cone, or of a helix with the tables of its spot.
        protocol: its reference method may name a filter.
        grid: of the image, with the slices beyond the chosen ones that rays cross.
        progress: called with the fraction that is done.

    Returns:
        Volume in HU, (Z, Y, X), with the source of a series that can be written.
    """
    window = reference_filter(protocol)
    if scan.spot is not None:
        found = reference_of_helix(scan, grid, window, lambda step, steps: progress(step / steps))
    else:
        found = Volume(_formula(scan, grid, window, progress), grid, "1/mm")
    inside = torch.from_numpy(fov_mask(found))
    source = _source(scan, grid.shape[0])
    return Volume(found.data, grid, "1/mm", inside, protocol.mu_water, source).to_hu()


def _formula(scan: Scan, grid: VolumeGeometry, window: str, progress: FractionProgress) -> Tensor:
    """FBP or FDK, (Z, Y, X), 1/mm."""
    flat = scan.beam.flat
    method: FBP | FDK = FBP(window) if flat else FDK(window)
    A = Radon(grid.slices(0, 1) if flat else grid, scan.beam)
    data = scan.y[:, None, None] if flat else scan.y[None, None]  # of every solve
    images: list[Tensor] = []
    for k, y in enumerate(data):
        problem = InverseProblem(A, y, Gaussian(1.0))  # neither asks for weights
        images.append(method(problem, None, torch.Generator(), lambda step, steps: None)[0])
        progress((k + 1) / len(data))
    return torch.cat(images)


def unusual_truth(truth: Volume, scan: Scan) -> tuple[str, ...]:
    """Warnings where the FBP, FDK or WFBP of all views shows neither air nor water where HU have them."""
    causes = "check that logarithms are natural, lengths in mm and mu_water the scanner's"
    return tuple(f"{reference_name(scan)}: {text}; {causes}" for text in unusual_hu(truth))


def _source(scan: Scan, number: int) -> Source | None:
    """The projections' header for every one of so many slices, so that the image belongs to their study."""
    if scan.source is None:
        return None
    source = cast("Source", scan.source)
    return replace(
        source,
        headers=source.headers * number,
        digests=source.digests * number,
        files=source.files * number,
    )


def kept_views(scan: Scan, protocol: Protocol) -> Scan:
    """The views that a protocol's geometry would have measured: those on its arc, and so many of them.

    Args:
        scan: y (slices, views, bins), dimensionless.
        protocol: its geometry's `angles` (a number of views) and `arc_degrees`; all the rest is the data's.

    Raises:
        ProtocolError: the protocol measures images and not projections.
    """
    table = protocol.tables.get("geometry")
    if table is None:
        raise ProtocolError(
            f"protocol '{protocol.name}' measures images and these are projections; give one with a geometry"
        )
    turn = 360.0 if isinstance(scan.beam, FanBeam) else 180.0
    arc = table.get("arc_degrees", turn)
    assert isinstance(arc, int | float)
    if arc < (180.0 if "parallel" in str(table.get("name")) else 360.0):
        turned = np.abs(np.unwrap(scan.beam.views) - scan.beam.views[0])
        scan = scan.first(int((turned <= math.radians(arc) + 1e-6).sum()))
    wanted = table.get("angles")
    if not isinstance(wanted, int) or 2 * wanted > 3 * len(scan.beam.views):
        return scan
    scan = scan.first(_different(scan))
    return scan.every(max(1, round(len(scan.beam.views) / wanted)))


def _different(scan: Scan) -> int:
    """Number of views before the last repeats the first, a whole turn on."""
    turned = np.abs(np.unwrap(scan.beam.views) - scan.beam.views[0])
    repeats = len(turned) > 2 and abs(turned[-1] - 2 * math.pi) < 0.1 * np.median(np.diff(turned))
    return len(turned) - int(repeats)


def weighted_problem(A: LinearOperator, scan: Scan, noise: Noise, acting: bool) -> InverseProblem:
    """The data of every solve with their weights: the scanner's photons, else those of the protocol's noise.

    Args:
        A: operator of one slice, or of the volume of a panel.
        scan: y (slices, views, bins), dimensionless, or (rows, views, bins) of a panel.
        noise: the protocol's noise model.
        acting: whether A is an operator on the projections after the projection itself.

    Returns:
        Problem with y (solves, *range of A).
    """
    solve = 1 if scan.beam.flat else 0
    y, weights = scan.y.unsqueeze(solve), scan.weights
    if acting:
        y = A.left(y)  # type: ignore[attr-defined]
        weights = None  # masks and sums of bins have no photons of their own
    if weights is None:
        return InverseProblem(A, y, noise)
    return InverseProblem(A, y, noise, weights.unsqueeze(solve))
