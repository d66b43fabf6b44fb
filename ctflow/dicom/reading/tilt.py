"""Resample a stack sheared by a tilted gantry onto perpendicular axes by shifting slices in their planes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import GeometryError
from ctflow.geometry import VolumeGeometry

_MOST_TIMES = 8  # a stack as high as its slices are wide, under 30°, needs 1.6 times their pixels


@dataclass(frozen=True)
class Straightening:
    """Shift of each slice, and the grid that holds all of them.

    Slice planes stay where they are, so nothing is interpolated across slices: the new grid runs along their
    normal and is as oblique to the patient as the gantry was.

    Args:
        geometry: grid of the straightened volume.
        first: position of the first pixel of slice 0 in the new slice 0, (rows, columns).
        step: how that position moves from slice to slice, (rows, columns).
    """

    geometry: VolumeGeometry
    first: tuple[float, float]
    step: tuple[float, float]

    def place(self, image: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Place slice k in the new grid, linear between pixels, NaN where it does not reach."""
        for axis, (start, step) in enumerate(zip(self.first, self.step, strict=True)):
            image = _shifted(image, round(start + k * step, 6), self.geometry.shape[1 + axis], axis)
        return image


def straightening(sheared: VolumeGeometry) -> Straightening:
    """Find the perpendicular grid for a sheared one: same planes, same pixel size, larger matrix.

    Raises:
        GeometryError: the matrix would be many times as large.
    """
    affine = np.array(sheared.affine)
    step, down, right, origin = affine[:3].T
    normal = np.cross(right, down)
    normal /= np.linalg.norm(normal)
    climb = float(step @ normal)
    # In-plane advance from slice to slice, in pixels; rows and columns are perpendicular.
    advance = [float(step @ axis / (axis @ axis)) for axis in (down, right)]
    advance = [0.0 if abs(value) * sheared.shape[0] < 1e-3 else value for value in advance]
    reach = [value * (sheared.shape[0] - 1) for value in advance]
    first = [max(0.0, math.ceil(-value)) if value < 0 else 0.0 for value in reach]
    size = [n + math.ceil(abs(value)) for n, value in zip(sheared.shape[1:], reach, strict=True)]
    if max(size) > _MOST_TIMES * max(sheared.shape[1:]):
        raise GeometryError(
            f"the stack leans so far that its straightened slices have {size[0]} × {size[1]} pixels; read it "
            "with --tilt in-plane, or check the slice positions"
        )
    corner = origin - first[0] * down - first[1] * right
    columns = np.column_stack([climb * normal, down, right, corner])
    lines = (*(tuple(float(value) for value in line) for line in columns), (0.0, 0.0, 0.0, 1.0))
    geometry = VolumeGeometry((sheared.shape[0], size[0], size[1]), (abs(climb), *sheared.spacing[1:]), lines)
    return Straightening(geometry, (first[0], first[1]), (advance[0], advance[1]))


def _shifted(image: NDArray[np.float32], shift: float, size: int, axis: int) -> NDArray[np.float32]:
    """Shift an image by `shift` pixels along an axis into `size` pixels; NaN outside it."""
    lines = np.moveaxis(image, axis, 0)
    whole = math.floor(shift)
    share = np.float32(shift - whole)
    out = np.full((size + 1, *lines.shape[1:]), np.nan, np.float32)
    out[whole : whole + len(lines)] = lines
    if share:
        out[1:] = (1 - share) * out[1:] + share * out[:-1]
        out[0] = np.nan
    return np.moveaxis(out[:size], 0, axis)
