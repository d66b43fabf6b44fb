"""Check whether slices lie on one regular grid; every reason why not is collected, nothing is repaired."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.dicom.reading.files import Slice
from ctflow.dicom.reading.grouping import Group, listed, number, orientation, position, spacing
from ctflow.geometry import VolumeGeometry

# Tolerances: exporters' rounding of positions (1e-2 to 1e-5 mm in real series) must pass, and whatever moves
# a voxel visibly must not. Shear of 0.05° displaces the top of a 300 mm stack by 0.26 mm.
SAME_PLACE_MM = 0.01
SHEAR_DEGREES = 0.05
TILT_DEGREES = 5.0
GANTRY_DEGREES = 35.0  # CT gantries tilt by up to 30°
SPACING_REFUSED = 0.05
SPACING_WARNED = 0.01
SIDEWAYS_PIXELS = 0.1
_COARSEST = 0.4  # of the step, to which positions may be rounded: from a half on, steps cannot be counted


def slice_normal(item: Slice) -> NDArray[np.float64]:
    """Unit vector perpendicular to a slice: row direction × column direction."""
    row, column = orientation(item.header)
    vector = np.cross(row, column)
    return np.asarray(vector / np.linalg.norm(vector))


def sorted_by_position(slices: list[Slice]) -> list[Slice]:
    """Sort slices by position along the normal; ties by acquisition number, instance number and UID."""
    axis = slice_normal(min(slices, key=lambda item: item.uid))

    def key(item: Slice) -> tuple[float, int, int, tuple[str, int]]:
        header = item.header
        along = round(float(position(header) @ axis), 6)
        acquisition, instance = (
            int(number(header, name) or 0) for name in ("AcquisitionNumber", "InstanceNumber")
        )
        return along, acquisition, instance, item.uid

    return sorted(slices, key=key)


def grouped_by_position(slices: list[Slice]) -> list[list[Slice]]:
    """Group sorted slices that share a position within 0.01 mm."""
    along = _along(slices)
    run = np.concatenate([[0], np.cumsum(np.diff(along) >= SAME_PLACE_MM)])
    return [[slices[k] for k in members] for _, members in groupby(range(len(slices)), key=lambda k: run[k])]


def check_grid(group: Group, options: ReadOptions = AS_IT_IS) -> None:
    """Append to `group`, whose slices are sorted, every geometric reason to refuse it or to warn."""
    runs = grouped_by_position(group.slices)
    if crowded := [run for run in runs if len(run) > 1]:
        more = f" and at {len(crowded) - 1} more positions" if len(crowded) > 1 else ""
        group.reasons.append(
            f"{len(crowded[0])} images at one position, z = {_z(crowded[0][0])} mm{more} "
            "(phases, acquisitions or copies that differ)"
        )
    places = [run[0] for run in runs]
    axis = slice_normal(places[0])
    angle = math.degrees(math.acos(min(1.0, abs(axis[2]))))
    if angle > TILT_DEGREES:
        words = f"the slices lie {angle:.1f}° off axial, expected at most {TILT_DEGREES:.0f}°"
        allowed = options.tilt != "refuse" and angle <= GANTRY_DEGREES
        (group.warnings if allowed else group.reasons).append(words)
    if len(places) > 1:
        _check_shear(group, places, axis, options)
        _check_steps(group, places, options)


def offset_to_last(slices: list[Slice]) -> tuple[float, NDArray[np.float64]]:
    """Offset from the first to the last of sorted slices: along their normal, and within their plane, mm."""
    axis = slice_normal(slices[0])
    whole = position(slices[-1].header) - position(slices[0].header)
    along = float(whole @ axis)
    return along, whole - along * axis


def is_sheared(slices: list[Slice]) -> bool:
    """Whether the stack axis is oblique to the slices, as with a tilted gantry."""
    along, aside = offset_to_last(slices)
    sideways = float(np.linalg.norm(aside))
    return math.degrees(math.atan2(sideways, along)) > SHEAR_DEGREES and sideways > SAME_PLACE_MM


_TREATMENT = {
    "resample": "moved in their planes onto a grid with perpendicular axes (linear interpolation)",
    "in-plane": "kept as they are, each on its own plane: the axes of the volume are not perpendicular",
}


def _z(item: Slice) -> str:
    return f"{position(item.header)[2]:.2f}"


def _check_shear(group: Group, places: list[Slice], axis: NDArray[np.float64], options: ReadOptions) -> None:
    points = np.array([position(item.header) for item in places])
    whole = points[-1] - points[0]
    along, aside = offset_to_last(places)
    if is_sheared(places):
        sideways = float(np.linalg.norm(aside))
        shear = math.degrees(math.atan2(sideways, along))
        words = f"gantry tilt: the stack is sheared by {shear:.2f}°, its last slice is {sideways:.1f} mm off"
        if options.tilt == "refuse" or shear > GANTRY_DEGREES:
            group.reasons.append(words)
        else:
            group.warnings.append(f"{words}; the slices are {_TREATMENT[options.tilt]}")
    share = (points - points[0]) @ axis / along
    drift = points - points[0] - share[:, None] * whole
    worst = int(np.argmax(np.linalg.norm(drift, axis=1)))
    jump = float(np.linalg.norm(drift[worst]))
    if jump > SIDEWAYS_PIXELS * min(spacing(group.first)):
        group.reasons.append(
            f"the slice at z = {_z(places[worst])} mm is displaced by {jump:.2f} mm from the others"
        )
    elif jump > SAME_PLACE_MM:
        group.warnings.append(f"slices are displaced by up to {jump:.3f} mm from the common axis")


def _check_steps(group: Group, places: list[Slice], options: ReadOptions) -> None:
    along = _along(places)
    steps, (expected, rounded) = np.diff(along), grid_step(places)
    count = np.rint(steps / expected)
    near = max(2 * SPACING_REFUSED * expected, rounded)
    gaps = (count >= 2) & (np.abs(steps - count * expected) <= near)
    found = [
        f"gap after z = {_z(places[k])} mm: the next slice is {steps[k]:.2f} mm away, expected "
        f"{expected:.2f} mm ({int(count[k]) - 1} missing)"
        for k in np.flatnonzero(gaps)
    ]
    if len(found) > 1:
        found = [f"{found[0]} and {len(found) - 1} more gaps"]
    rest = steps[~gaps]
    deviation = float(np.abs(rest - expected).max(initial=0))
    if rounded:
        group.warnings.append(
            f"positions are rounded to {rounded:g} mm; the slices are taken to be {expected:.4g} mm apart"
        )
    elif deviation > SPACING_REFUSED * expected:
        found.append(f"slice spacing varies from {rest.min():.2f} to {rest.max():.2f} mm")
    elif deviation > max(SAME_PLACE_MM, SPACING_WARNED * expected):
        group.warnings.append(f"slice spacing varies by {deviation:.3f} mm around {expected:.2f} mm")
    if found and options.fill:
        _promise_filling(group, places, found)
    else:
        group.reasons += found


def _along(slices: list[Slice]) -> NDArray[np.float64]:
    """Positions of slices along the normal of the first, mm."""
    axis = slice_normal(slices[0])
    return np.array([position(item.header) @ axis for item in slices])


def grid_step(slices: list[Slice]) -> tuple[float, float]:
    """Distance between sorted slices, and the step to which their positions were rounded (0 if not), mm.

    Rounded positions may lie half a rounding step off the regular grid. A slice distance that is itself a
    multiple of the rounding step stays regular, so that irregular positions are then not due to rounding.
    """
    along = _along(slices)
    steps = np.diff(along)
    median = float(np.median(steps))
    count = np.rint(steps / steps[steps <= 1.5 * median].mean()).clip(1)
    even = float(along[-1] - along[0]) / float(count.sum())
    off = float(np.abs(along[1:] - along[0] - np.cumsum(count) * even).max())
    for coarse in (1.0, 0.1):
        moved = SPACING_REFUSED * even < off <= coarse <= _COARSEST * even
        if moved and not _multiples(np.array([even]), coarse) and _written_in(slices, coarse):
            return even, coarse
    return median, 0.0


def _written_in(slices: list[Slice], coarse: float) -> bool:
    points = np.array([position(item.header) for item in slices])
    return _multiples(points[:, np.ptp(points, axis=0) > 0], coarse)


def _multiples(values: NDArray[np.float64], of: float) -> bool:
    return bool(np.abs(values / of - np.rint(values / of)).max() < 1e-6)


def _promise_filling(group: Group, places: list[Slice], found: list[str]) -> None:
    shares = source_positions(places, "linear")
    if shares is None:
        group.reasons += [*found, "more slices would be invented than there are"]
        return
    filled = [k for k, share in enumerate(shares) if share % 1]
    group.warnings += found
    group.warnings.append(
        f"slices {listed(filled, 20)} of {len(shares)} (from 0) are interpolated between their neighbours"
    )


def source_positions(slices: list[Slice], fill: str = "") -> list[float] | None:
    """Position of every slice of the volume in the list of images, counted from the first image.

    A whole number is an image; 2.25 lies between images 2 and 3, a quarter of the way.

    Args:
        slices: sorted images at different places.
        fill: "linear" places the volume on even steps of the median distance.

    Returns:
        One position per slice of the volume; None where more than half of them would be interpolated.
    """
    if not fill or len(slices) < 3:
        return [float(k) for k in range(len(slices))]
    along = _along(slices)
    along -= along[0]
    step, rounded = grid_step(slices)
    count = round(along[-1] / step) + 1 if along[-1] / step < 2 * len(slices) else 0
    wanted = np.linspace(0, along[-1], count)
    shares = np.interp(wanted, along, np.arange(len(slices)))
    near = np.rint(shares).astype(int)
    exact = max(SPACING_REFUSED * step, rounded)
    shares = np.where(np.abs(along[near] - wanted) <= exact, near, shares)
    if count == 0 or 2 * int((shares % 1 > 0).sum()) > count:
        return None
    return [float(share) for share in shares]


def geometry(slices: list[Slice], count: int | None = None) -> VolumeGeometry:
    """Grid of checked slices: affine from array index (k, i, j, 1) to patient coordinates (LPS), mm.

    The first and the last ImagePositionPatient are met exactly. The slice distance of a single slice is its
    thickness, or 1 mm.

    Args:
        slices: sorted images.
        count: slices of the volume, where some are interpolated; as many as images by default.
    """
    first, last = slices[0].header, slices[-1].header
    count = count or len(slices)
    row, column = orientation(first)
    dy, dx = spacing(first)
    origin = position(first)
    if count > 1:
        step = (position(last) - origin) / (count - 1)
    else:
        step = slice_normal(slices[0]) * abs(number(first, "SliceThickness") or 1.0)
    # An index step i leads to the next row: along the column direction.
    columns = np.column_stack([step, column * dy, row * dx, origin])
    affine = (*(tuple(float(value) for value in line) for line in columns), (0.0, 0.0, 0.0, 1.0))
    shape = (count, int(first.Rows), int(first.Columns))
    return VolumeGeometry(shape, (float(np.linalg.norm(step)), dy, dx), affine)
