"""A beam with source and detector given for every view."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry._beam import Beam, require_positive, require_room
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._panel import panel_shape
from ctflow.geometry._rays import Rays

__all__ = ["VectorBeam"]


@dataclass(frozen=True)
class VectorBeam(Beam):
    """A beam given for every view: wobbling, tilted or robotic orbits, and converted geometries.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins); rows = Z when it is flat.

    Args:
        vectors: twelve numbers for every view in mm: source position (or, if parallel, unit direction towards
            the detector), middle of the detector, step from bin to bin, step from row to row, each (x, y, z);
            x grows with the column, y against the row, z with the slice, from the middle of the grid.
        bins: detector bins.
        rows: detector rows; None measures every slice in its own plane, and z is not used.
        parallel: whether the rays of a view are parallel.
        radius: radius of a detector that is an arc around the source, mm; 0 if it is flat.

    Raises:
        GeometryError: there are no views, or a number is not finite or a step is zero.

    Examples:
        >>> import ctflow as ct
        >>> # From a source 600 mm before the middle to bins of 2 mm in a row 400 mm behind it.
        >>> front = (0.0, -600.0, 0.0, 0.0, 400.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0)
        >>> side = (600.0, 0.0, 0.0, -400.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0)
        >>> beam = ct.VectorBeam((front, side), bins=128)
        >>> beam.data_shape(ct.VolumeGeometry((1, 32, 32), (2.0, 2.0, 2.0)))  # (rows, views, bins)
        (1, 2, 128)
    """

    vectors: tuple[tuple[float, ...], ...]
    bins: int = 1  # pyright: ignore[reportIncompatibleMethodOverride] (frozen: read-only as the property)
    rows: int | None = None
    parallel: bool = False
    radius: float = 0.0

    def __post_init__(self) -> None:
        require_positive(bins=self.bins, rows=self.rows)
        table = np.asarray(self.vectors, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != 12 or not np.isfinite(table).all():
            raise GeometryError(
                f"vectors must be finite and (views, 12) with at least one view and are {table.shape}; "
                "give source, centre, u and v, each (x, y, z) in mm"
            )
        if not (np.linalg.norm(np.cross(table[:, 6:9], table[:, 9:]), axis=1) > 0).all():
            raise GeometryError("the steps u and v of a view span no detector; give two directions, in mm")
        object.__setattr__(self, "vectors", tuple(tuple(row) for row in table.tolist()))

    @property
    def flat(self) -> bool:
        """Whether every slice is measured in its own plane."""
        return self.rows is None

    @property
    def pitch(self) -> float:
        """Distance between bin centres in the first view, mm."""
        return math.hypot(*self.vectors[0][6:9])

    @property
    def views(self) -> tuple[float, ...]:
        """Angle of the detector row of every view in the plane of a slice, radians."""
        return tuple(math.atan2(row[7], row[6]) for row in self.vectors)

    def subset(self, views: slice) -> Self:
        """Keep some of the views: `beam.subset(slice(None, None, 12))`."""
        return replace(self, vectors=self.vectors[views])

    def magnification(self) -> float:
        """Size on the detector over size at the origin in the first view, dimensionless."""
        if self.parallel:
            return 1.0
        rays = self.rays()
        ahead = (rays.normal * (rays.centre - rays.source)).sum(1)
        return float((ahead / -(rays.normal * rays.source).sum(1))[0])

    def fitted(self, volume: VolumeGeometry) -> Self:
        """Return this beam itself if its detector covers the field of view.

        Raises:
            GeometryError: a view truncates or misses the field of view, or its source is inside the volume.
        """
        require_room((self.rows or 1, len(self.vectors), self.bins))
        rays = self.rays()
        if not self.parallel and np.linalg.norm(rays.source[:, :2], axis=1).min() <= volume.fov / 2:
            raise GeometryError(
                f"a source stands inside the field of view of {volume.fov:.1f} mm; move it out, or check "
                "that the vectors are in mm"
            )
        beyond = self._beyond(volume.fov / 2)
        if beyond > 1e-3:
            raise GeometryError(
                f"the field of view of {volume.fov:.1f} mm reaches {beyond:.1f} bins beyond the detector of "
                f"{self.bins} bins; give bins >= {self.bins + 2 * math.ceil(beyond)}, or a smaller volume"
            )
        return self

    def _beyond(self, radius: float) -> float:
        """Number of bins by which the shadow of a centred disc of `radius` mm extends beyond the detector."""
        around = np.linspace(0, 2 * math.pi, 360, endpoint=False)
        bins, _ = self.rays().locate(radius * np.stack([np.cos(around), np.sin(around), 0 * around], 1))
        # Half a bin on either side belongs to the outer bins.
        return max(float(-0.5 - bins.min()), float(bins.max()) - (self.bins - 0.5))

    def field_of_view(self) -> float:
        """Diameter of the largest centred disc that every view sees completely, mm."""
        rays, low = self.rays(), 0.0
        reach = self.bins * self.pitch
        high = reach if self.parallel else min(reach, float(np.linalg.norm(rays.source[:, :2], axis=1).min()))
        for _ in range(40):  # bisection to rounding: a larger disc reaches further
            middle = (low + high) / 2
            low, high = (middle, high) if self._beyond(middle) <= 0 else (low, middle)
        return 2 * low

    def rays(self) -> Rays:
        """Every ray as arrays, mm, in the centred frame of the volume."""
        table = np.asarray(self.vectors)
        source, centre, u, v = (table[:, k : k + 3] for k in (0, 3, 6, 9))
        return Rays(source, centre, u, v, self.rows or 1, self.bins, self.parallel, self.radius)

    def data_shape(self, volume: VolumeGeometry) -> tuple[int, int, int]:
        """(rows, views, bins) of the projections of `volume`."""
        return super().data_shape(volume) if self.flat else panel_shape(self.rows, self)

    def __str__(self) -> str:
        kind = "parallel rays" if self.parallel else "a point source"
        rows = "every slice on its own" if self.rows is None else f"{self.rows} rows"
        shape = f"curved, radius {self.radius:.4g} mm" if self.radius else "flat"
        return (
            f"Beam given view by view: {len(self.vectors)} views, {kind}, {self.bins} bins of "
            f"{self.pitch:.4g} mm, {rows}, detector {shape}. Field of view {self.field_of_view():.1f} mm."
        )
