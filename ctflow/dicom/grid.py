"""Do these slices stand on one regular grid? Every reason why not is collected; nothing is repaired."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ctflow.dicom.files import Slice
from ctflow.dicom.grouping import Group, number, orientation, position, spacing
from ctflow.geometry import VolumeGeometry

# Tolerances: what exporters' rounding of positions (1e-2 to 1e-5 mm in real series) must not trip, and what
# would move a voxel visibly must. Shear of 0.05° displaces the top of a 300 mm stack by 0.26 mm.
SAME_PLACE_MM = 0.01
SHEAR_DEGREES = 0.05
TILT_DEGREES = 5.0
SPACING_REFUSED = 0.05
SPACING_WARNED = 0.01
SIDEWAYS_PIXELS = 0.1


def normal(item: Slice) -> NDArray[np.float64]:
    """Unit vector perpendicular to a slice: row direction × column direction."""
    row, column = orientation(item.header)
    vector = np.cross(row, column)
    return np.asarray(vector / np.linalg.norm(vector))


def in_space(slices: list[Slice]) -> list[Slice]:
    """Slices by their position along the normal; ties by acquisition, instance, UID."""
    axis = normal(min(slices, key=lambda item: str(item.header.SOPInstanceUID)))

    def key(item: Slice) -> tuple[float, int, int, str]:
        header = item.header
        along = round(float(position(header) @ axis), 6)
        numbers = (int(number(header, name) or 0) for name in ("AcquisitionNumber", "InstanceNumber"))
        return (along, *numbers, str(header.SOPInstanceUID))  # type: ignore[return-value]

    return sorted(slices, key=key)


def same_place(slices: list[Slice]) -> list[list[Slice]]:
    """Sorted slices in runs that share a position within 0.01 mm."""
    along = np.array([position(item.header) @ normal(slices[0]) for item in slices])
    run = np.concatenate([[0], np.cumsum(np.diff(along) >= SAME_PLACE_MM)])
    return [[slices[k] for k in members] for _, members in groupby(range(len(slices)), key=lambda k: run[k])]


def check(group: Group) -> None:
    """Append to `group`, whose slices are sorted, every geometric reason to refuse it or to warn."""
    runs = same_place(group.slices)
    group.reasons += [
        f"{len(run)} images at one position, z = {_z(run[0])} mm (phases, acquisitions or copies that differ)"
        for run in runs
        if len(run) > 1
    ]
    places = [run[0] for run in runs]
    axis = normal(places[0])
    angle = math.degrees(math.acos(min(1.0, abs(axis[2]))))
    if angle > TILT_DEGREES:
        group.reasons.append(f"the slices lie {angle:.1f}° off axial, expected at most {TILT_DEGREES:.0f}°")
    if len(places) > 1:
        _check_shear(group, places, axis)
        _check_steps(group, places, axis)


def _z(item: Slice) -> str:
    return f"{position(item.header)[2]:.2f}"


def _check_shear(group: Group, places: list[Slice], axis: NDArray[np.float64]) -> None:
    points = np.array([position(item.header) for item in places])
    whole = points[-1] - points[0]
    along = float(whole @ axis)
    sideways = float(np.linalg.norm(whole - along * axis))
    shear = math.degrees(math.atan2(sideways, along))
    if shear > SHEAR_DEGREES and sideways > SAME_PLACE_MM:
        group.reasons.append(
            f"gantry tilt: the stack is sheared by {shear:.2f}°, its last slice lies {sideways:.1f} mm aside"
        )
    share = (points - points[0]) @ axis / along
    drift = points - points[0] - share[:, None] * whole
    worst = int(np.argmax(np.linalg.norm(drift, axis=1)))
    jump = float(np.linalg.norm(drift[worst]))
    if jump > SIDEWAYS_PIXELS * min(spacing(group.first)):
        group.reasons.append(
            f"the slice at z = {_z(places[worst])} mm stands {jump:.2f} mm beside the others"
        )
    elif jump > SAME_PLACE_MM:
        group.warnings.append(f"slices stand up to {jump:.3f} mm beside the common axis")


def _check_steps(group: Group, places: list[Slice], axis: NDArray[np.float64]) -> None:
    steps = np.diff([position(item.header) @ axis for item in places])
    expected = float(np.median(steps))
    count = np.rint(steps / expected)
    gaps = (count >= 2) & (np.abs(steps / expected - count) <= 2 * SPACING_REFUSED)
    for k in np.flatnonzero(gaps):
        group.reasons.append(
            f"gap after z = {_z(places[k])} mm: the next slice is {steps[k]:.2f} mm away, expected "
            f"{expected:.2f} mm ({int(count[k]) - 1} missing)"
        )
    rest = steps[~gaps]
    deviation = float(np.abs(rest - expected).max())
    if deviation > SPACING_REFUSED * expected:
        group.reasons.append(f"slice spacing varies from {rest.min():.2f} to {rest.max():.2f} mm")
    elif deviation > max(SAME_PLACE_MM, SPACING_WARNED * expected):
        group.warnings.append(f"slice spacing varies by {deviation:.3f} mm around {expected:.2f} mm")


def geometry(slices: list[Slice]) -> VolumeGeometry:
    """Grid of checked slices: affine from array index (k, i, j, 1) to patient coordinates (LPS), mm.

    The first and the last ImagePositionPatient are met exactly. One slice alone is as far from its
    neighbours as it is thick, or 1 mm.
    """
    first, last = slices[0].header, slices[-1].header
    row, column = orientation(first)
    dy, dx = spacing(first)
    origin = position(first)
    if len(slices) > 1:
        step = (position(last) - origin) / (len(slices) - 1)
    else:
        step = normal(slices[0]) * (number(first, "SliceThickness") or 1.0)
    # An index step i leads to the next row: along the column direction.
    columns = np.column_stack([step, column * dy, row * dx, origin])
    affine = (*(tuple(float(value) for value in line) for line in columns), (0.0, 0.0, 0.0, 1.0))
    shape = (len(slices), int(first.Rows), int(first.Columns))
    return VolumeGeometry(shape, (float(np.linalg.norm(step)), dy, dx), affine)
