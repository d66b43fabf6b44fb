"""Weighted filtered backprojection of helical scans, after rebinning to parallel rays."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import VolumeGeometry
from ctflow.rebinning._heights import at_row, row_of, row_weight
from ctflow.rebinning.parallel import ParallelSet, to_parallel
from ctflow.recon._backprojection import pixel_places
from ctflow.recon._ramp import filter_rows
from ctflow.scan import Scan
from ctflow.system.progress import StepProgress
from ctflow.units import MU_WATER
from ctflow.volume import Volume


def wfbp(
    scan: Scan,
    grid: VolumeGeometry,
    heights: list[float],
    filter: str = "ramp",
    progress: StepProgress = lambda done, of: None,
    whole: bool = True,
) -> Volume:
    """Reconstruct slices of a helical or circular scan from all rays that see them.

    Rays are sorted into parallel views, multiplied by the cosine of their tilt and filtered along the bins.
    Every voxel then receives, from each direction modulo half a turn, the mean of the rays through it, with
    weights that fall to zero at the edge of the detector.

    Args:
        scan: circle or helix, with tables of its focal spot, which may fly.
        grid: pixels of the slices, in the frame of the scanner's axis; its affine is kept.
        heights: heights of the slices on the scanner's axis, mm, as many as the grid has.
        filter: "ramp", "hann", "shepp-logan" or "cosine".
        progress: called as progress(slices done, slices in all).
        whole: refuse slices that are not seen from all directions; else they are 0 where they are not.

    Returns:
        Volume in 1/mm, (Z, Y, X), with the scanner's attenuation of water for conversion to HU.

    Raises:
        GeometryError: a slice is not seen from all directions and `whole` is asked for, or less than half a
            turn is measured.

    References:
        Stierstorfer, Rauscher, Boese, Bruder, Schaller and Flohr, Phys. Med. Biol. 49 (2004), eq. 10 to 17.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((3, 24, 24), (4.0, 4.0, 4.0))  # (Z, Y, X), mm
        >>> beam = ct.HelicalBeam(angles=360, arc_degrees=1080.0, rows=16, row_pitch=4.0, feed=16.0)
        >>> A = ct.Radon(grid, beam)
        >>> scan = ct.Scan(A(torch.full(grid.shape, 0.02)), A.beam, kind="a block")
        >>> volume = ct.wfbp(scan, grid, heights=[-4.0, 0.0, 4.0])
        >>> f"{volume.data[1, 8:16, 8:16].mean():.3f} / mm"
        '0.020 / mm'
    """
    parts = to_parallel(scan)
    step = float(parts[0].t[1] - parts[0].t[0])
    filtered = [filter_rows(_level(part), step, filter) for part in parts]
    x, y = pixel_places(grid, scan.y)
    slices = []
    for done, z in enumerate(heights, start=1):
        slices.append(_slice(parts, filtered, x, y, z - (scan.spot.middle if scan.spot else 0.0), whole))
        progress(done, len(heights))
    return Volume(torch.stack(slices), grid, "1/mm", mu_water=scan.mu_water or MU_WATER, source=None)


def on_slices_of(
    series: Volume, scan: Scan, filter: str = "hann", direction: float = 1.0, offset_mm: float = 0.0
) -> Volume:
    """Reconstruct a scan on the slices of a given series, to compare it with the scanner's reconstruction.

    The slice at the patient's z lies at `direction` · z + `offset_mm` on the scanner's axis. The pixels are
    those of the series, centred on the axis; scanners' images may be displaced by half a pixel.

    Args:
        series: volume (Z, Y, X) of axial slices.
        scan: circle or helix, with tables of its focal spot.
        filter: as in `wfbp`.
        direction: 1, or -1 where the scanner's axis runs against the patient's.
        offset_mm: height on the scanner's axis of the patient's z = 0.

    Returns:
        Volume in HU, by the scanner's attenuation of water, on the grid of the series.

    Raises:
        GeometryError: a slice lies outside the measured range.
    """
    origin, step = series.geometry.affine[2][3], series.geometry.affine[2][0]
    heights = [direction * (origin + k * step) + offset_mm for k in range(series.geometry.shape[0])]
    if scan.spot is not None:
        low, high = float(scan.spot.z.min()), float(scan.spot.z.max())
        reach = scan.spot.rows * scan.spot.row_pitch / scan.beam.magnification() / 2
        if min(heights) < low - reach or max(heights) > high + reach:
            raise GeometryError(
                f"the slices lie at {min(heights):.1f} to {max(heights):.1f} mm of the scanner's axis and "
                f"{low:.1f} to {high:.1f} mm were scanned; give direction=-1 or offset_mm, or fewer slices"
            )
    return replace(wfbp(scan, series.geometry, heights, filter), mask=series.mask).to_hu()


def _level(part: ParallelSet) -> Tensor:
    """Line integrals times the cosine of each ray's tilt, as a ray in the plane of a slice would measure."""
    rows = torch.arange(len(part.y), dtype=torch.float32) - (len(part.y) - 1) / 2
    rise = part.drop + rows * part.row_pitch
    return part.y * (part.reach / torch.hypot(part.reach, rise[:, None]))[:, None]


def _slice(
    parts: list[ParallelSet], filtered: list[Tensor], x: Tensor, y: Tensor, z: float, whole: bool
) -> Tensor:
    """One slice at a height above the middle of the scan, (Y, X); zero outside what all views see."""
    half, image = parts[0].half_turn, torch.zeros(len(y), len(x))
    inside = x**2 + y**2 <= float(parts[0].t[-1]) ** 2
    x, y = (places.expand_as(image)[inside] for places in (x, y))
    total, everywhere = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
    for direction in range(half):
        seen, weights = torch.zeros_like(x), torch.zeros_like(x)
        for part, rows in zip(parts, filtered, strict=True):
            for view in range(direction, len(part.theta), half):
                _add(part, rows[:, view], view, x, y, z, seen, weights)
        everywhere &= weights > 0
        if whole and not bool(everywhere.all()):
            raise GeometryError(
                f"the slice at {z:.1f} mm from the middle of the scan is not seen from all directions; give "
                f"slices further inside, or scan with a feed below {_feed(parts):.1f} mm a turn"
            )
        total += torch.where(everywhere, seen / weights, 0.0)
    image[inside] = total * everywhere * (math.pi / half)
    return image


def _feed(parts: list[ParallelSet]) -> float:
    part = parts[0]
    turns = float(part.theta[-1] - part.theta[0]) / (2 * math.pi)
    return abs(float(part.source_z[-1].mean() - part.source_z[0].mean())) / turns


def _add(
    part: ParallelSet, rows: Tensor, view: int, x: Tensor, y: Tensor, z: float, seen: Tensor, weights: Tensor
) -> None:
    """Add one parallel view (rows, bins) to `seen` and its weights to `weights`, each (points,)."""
    source_z = part.source_z[view]
    nearest = float((source_z - z).abs().min())
    if nearest > len(rows) * abs(part.row_pitch) + abs(part.drop):
        return  # further than the whole detector: no ray comes near
    cosine, sine = math.cos(part.theta[view]), math.sin(part.theta[view])
    bins = (x * cosine + y * sine - part.t[0]) / (part.t[1] - part.t[0])
    bins = bins.clamp(0, len(part.t) - 1)
    k = bins.long().clamp_max(len(part.t) - 2)
    table = torch.stack([source_z, part.distance, part.reach])
    height, distance, reach = torch.lerp(table[:, k], table[:, k + 1], bins - k)
    row = row_of(part, z - height, distance + y * cosine - x * sine, reach)
    weight = row_weight(row, len(rows))
    seen += weight * at_row(rows, row, bins)
    weights += weight
