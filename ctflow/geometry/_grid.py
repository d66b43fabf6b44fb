"""A regular grid of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ctflow.errors import GeometryError

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class VolumeGeometry:
    """A regular grid of voxels.

    Args:
        shape: voxels (Z, Y, X).
        spacing: distances between voxel centres (z, y, x), mm.
        affine: 4 × 4 matrix from array index (k, i, j, 1) to patient coordinates (left, posterior, superior),
            mm; by default the grid is centred on the origin with its axes along (z, y, x).

    Raises:
        GeometryError: a shape or spacing is not positive.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((10, 256, 256), (3.0, 1.5, 1.5))
        >>> print(grid)
        10 slices of 256 × 256 voxels, spacing 3 × 1.5 × 1.5 mm (z, y, x), field of view 384.0 mm.
        >>> grid.extent  # (z, y, x), mm
        (30.0, 384.0, 384.0)
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Affine = field(default=())

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or not all(0 < d < math.inf for d in self.spacing):
            raise GeometryError(
                f"shape {self.shape} and spacing {self.spacing} mm must be positive: "
                "(Z, Y, X) voxels, (z, y, x) mm"
            )
        if not self.affine:
            object.__setattr__(self, "affine", self._centred())

    def _centred(self) -> Affine:
        z, y, x = ((1 - n) * d / 2 for n, d in zip(self.shape, self.spacing, strict=True))
        dz, dy, dx = self.spacing
        return ((0.0, 0.0, dx, x), (0.0, dy, 0.0, y), (dz, 0.0, 0.0, z), (0.0, 0.0, 0.0, 1.0))

    @property
    def extent(self) -> tuple[float, float, float]:
        """Outer size (z, y, x), mm."""
        z, y, x = (n * d for n, d in zip(self.shape, self.spacing, strict=True))
        return z, y, x

    @property
    def diagonal(self) -> float:
        """Diagonal of one slice, mm: the widest shadow that it can cast."""
        return math.hypot(*self.extent[1:])

    @property
    def fov(self) -> float:
        """Diameter of the largest disc inside a slice, mm."""
        return min(self.extent[1:])

    def slices(self, start: int, stop: int) -> VolumeGeometry:
        """Geometry of the slices start to stop - 1, at the same position in the patient.

        Raises:
            GeometryError: the range is empty or leaves the volume.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise GeometryError(
                f"slices {start}:{stop} do not lie in 0:{self.shape[0]}; give start:stop with start < stop"
            )
        rows = [(*row[:3], row[3] + start * row[0]) for row in self.affine[:3]]
        return replace(self, shape=(stop - start, *self.shape[1:]), affine=(*rows, self.affine[3]))

    def coarsened(self, factor: int) -> VolumeGeometry:
        """Geometry of the same slices in pixels of `factor` times the side.

        Raises:
            GeometryError: rows or columns are no multiple of the factor.
        """
        Z, Y, X = self.shape
        if Y % factor or X % factor:
            raise GeometryError(
                f"slices of {Y} × {X} pixels have none of {factor} times the side; give a factor of both"
            )
        z, y, x = self.spacing
        rows = [
            (k, i * factor, j * factor, origin + (i + j) * (factor - 1) / 2)
            for k, i, j, origin in self.affine[:3]
        ]
        return VolumeGeometry(
            (Z, Y // factor, X // factor), (z, y * factor, x * factor), (*rows, self.affine[3])
        )

    def extended(self, margin: int) -> VolumeGeometry:
        """Geometry with `margin` more slices beyond either end, at the same position in the patient."""
        rows = [(*row[:3], row[3] - margin * row[0]) for row in self.affine[:3]]
        Z, Y, X = self.shape
        return replace(self, shape=(Z + 2 * margin, Y, X), affine=(*rows, self.affine[3]))

    def __str__(self) -> str:
        z, y, x = self.shape
        return (
            f"{z} slices of {y} × {x} voxels, spacing {self.spacing[0]:.4g} × {self.spacing[1]:.4g} × "
            f"{self.spacing[2]:.4g} mm (z, y, x), field of view {self.fov:.1f} mm."
        )
