"""Where the voxels are and where the rays run: plain values in mm and radians, no tensors.

Inside a slice x grows with the column and y grows against the row (row 0 is at the top). A view at angle
θ of a parallel beam measures along s = x cos θ + y sin θ; a fan or cone source stands at
(source_axis sin θ, -source_axis cos θ) and its detector row runs along (cos θ, sin θ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ctflow.errors import GeometryError

__all__ = ["ConeBeam", "FanBeam", "ParallelBeam"]  # what a protocol can name

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class VolumeGeometry:
    """A regular grid of voxels.

    Args:
        shape: voxels (Z, Y, X).
        spacing: distances between voxel centres (z, y, x), mm.
        affine: 4 × 4, array index (k, i, j, 1) to patient coordinates (left, posterior, superior), mm;
            by default the grid is centred on the origin with its axes along (z, y, x).

    Raises:
        GeometryError: a shape or spacing is not positive.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Affine = field(default=())

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or not min(self.spacing) > 0:
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
        """Geometry of the slices start to stop - 1, at the same place in the patient.

        Raises:
            GeometryError: the range is empty or leaves the volume.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise GeometryError(
                f"slices {start}:{stop} do not lie in 0:{self.shape[0]}; give start:stop with start < stop"
            )
        rows = [(*row[:3], row[3] + start * row[0]) for row in self.affine[:3]]
        return replace(self, shape=(stop - start, *self.shape[1:]), affine=(*rows, self.affine[3]))

    def __str__(self) -> str:
        z, y, x = self.shape
        return (
            f"{z} slices of {y} × {x} voxels, spacing {self.spacing[0]:.4g} × {self.spacing[1]:.4g} × "
            f"{self.spacing[2]:.4g} mm (z, y, x), field of view {self.fov:.1f} mm."
        )


def _views(angles: int | Sequence[float], arc_degrees: float) -> tuple[float, ...]:
    if isinstance(angles, int):
        if angles < 1:
            raise GeometryError(f"{angles} views: give at least one")
        # The end point is left out: it repeats the first view on a half turn (parallel) or full turn (fan).
        return tuple(math.radians(arc_degrees) * view / angles for view in range(angles))
    if not len(angles):
        raise GeometryError("no views: give their number, or their angles in radians")
    return tuple(float(angle) for angle in angles)


@dataclass(frozen=True)
class Beam:
    """What every beam has: views and one detector row of equal bins.

    Args:
        angles: number of equidistant views over `arc_degrees` (end point excluded), or angles in radians.
        bins: detector bins; None covers the diagonal of the slice.
        pitch: distance between bin centres, mm; None takes the voxel size (parallel), or the voxel size
            magnified onto the detector (fan, cone).
        arc_degrees: arc of the views when `angles` is a number, degrees.

    Raises:
        GeometryError: there are no views, or bins or pitch are not positive.
    """

    angles: int | Sequence[float]
    bins: int | None = None
    pitch: float | None = None
    arc_degrees: float = 180.0

    def __post_init__(self) -> None:
        if (self.bins is not None and self.bins < 1) or (self.pitch is not None and not self.pitch > 0):
            raise GeometryError(f"bins {self.bins} and pitch {self.pitch} mm must be positive, or absent")
        object.__setattr__(self, "angles", _views(self.angles, self.arc_degrees))

    @property
    def views(self) -> tuple[float, ...]:
        """Angles in radians."""
        assert not isinstance(self.angles, int)  # __post_init__ has replaced the number
        return tuple(self.angles)

    def subset(self, views: slice) -> Beam:
        """The same beam with some of its views: `beam.subset(slice(None, None, 12))`."""
        return replace(self, angles=self.views[views])

    def magnification(self) -> float:
        """Size on the detector over size at the axis, dimensionless."""
        return 1.0

    def shadow(self, radius: float) -> float:
        """Width on the detector of a centred disc of `radius` mm, mm."""
        return 2 * radius

    def fitted(self, volume: VolumeGeometry) -> Beam:
        """This beam with absent `pitch` and `bins` chosen for `volume`.

        Raises:
            GeometryError: the detector is too narrow for the field of view; the message says what is enough.
        """
        pitch = self.pitch or min(volume.spacing[1:]) * self.magnification()
        full = self.shadow(volume.diagonal / 2)
        bins = self.bins or math.ceil(full / pitch) + 1
        needed = self.shadow(volume.fov / 2)
        if bins * pitch < needed * (1 - 1e-6):
            raise GeometryError(
                f"the detector covers {bins * pitch:.1f} mm but the field of view of {volume.fov:.1f} mm "
                f"casts {needed:.1f} mm; give bins >= {math.ceil(needed / pitch)} at pitch {pitch:.4g} mm, "
                "or leave bins out"
            )
        return replace(self, bins=bins, pitch=pitch)

    def __str__(self) -> str:
        return (
            f"{len(self.views)} views over {math.degrees(max(self.views) - min(self.views)):.1f}°, "
            f"{self.bins or 'as many as needed'} bins of {self.pitch or 'voxel-sized'} mm."
        )


@dataclass(frozen=True)
class ParallelBeam(Beam):
    """Parallel rays, every slice of a stack on its own; a half turn is complete.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, Z, views, bins).
    """


@dataclass(frozen=True)
class FanBeam(Beam):
    """A point source and a flat detector, every slice of a stack on its own; a full turn by default.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, Z, views, bins).

    Args:
        source_axis: source to rotation axis, mm.
        source_detector: source to detector, mm.

    Raises:
        GeometryError: the detector lies on the source's side of the axis.
    """

    arc_degrees: float = 360.0
    source_axis: float = 595.0
    source_detector: float = 1085.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.source_axis <= self.source_detector:
            raise GeometryError(
                f"source_axis {self.source_axis} mm must be positive and at most source_detector "
                f"{self.source_detector} mm"
            )

    def magnification(self) -> float:
        """Size on the detector over size at the axis, dimensionless."""
        return self.source_detector / self.source_axis

    def shadow(self, radius: float) -> float:
        """Width on the detector of a centred disc of `radius` mm, mm.

        Raises:
            GeometryError: the disc reaches the source.
        """
        if radius >= self.source_axis:
            raise GeometryError(
                f"the slice reaches {radius:.1f} mm from the axis and the source orbits at "
                f"{self.source_axis} mm; give a larger source_axis"
            )
        return 2 * self.source_detector * math.tan(math.asin(radius / self.source_axis))


@dataclass(frozen=True)
class ConeBeam(FanBeam):
    """A circular cone beam with a flat panel; needs a CUDA device.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins).

    Args:
        rows: detector rows; None covers the volume.
        row_pitch: distance between row centres, mm; None takes the voxel size magnified.
    """

    rows: int | None = None
    row_pitch: float | None = None

    def fitted(self, volume: VolumeGeometry) -> ConeBeam:
        """This beam with absent pitches, bins and rows chosen for `volume`."""
        flat = super().fitted(volume)
        assert isinstance(flat, ConeBeam)
        row_pitch = self.row_pitch or volume.spacing[0] * self.magnification()
        # The corner nearest the source is magnified most.
        nearest = self.source_detector / (self.source_axis - volume.diagonal / 2)
        rows = self.rows or math.ceil(volume.extent[0] * nearest / row_pitch) + 1
        return replace(flat, rows=rows, row_pitch=row_pitch)
