"""A point source and a panel of detector rows on a circular orbit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ctflow.geometry._beam import require_positive, require_room
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._panel import panel_shape, require_rows
from ctflow.geometry._rays import Rays
from ctflow.geometry.fan_beam import FanBeam

__all__ = ["ConeBeam"]


@dataclass(frozen=True)
class ConeBeam(FanBeam):
    """A circular cone beam: a point source in the plane z = 0 and a panel, flat unless `curved`.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins).

    Args:
        rows: detector rows; None covers the volume.
        row_pitch: distance between row centres, mm; None takes the magnified voxel size.
        height: what the panel must see of the axis, mm; None is the whole volume. Smaller where the volume
            goes on beyond the panel, as a patient does.

    Raises:
        GeometryError: rows or row_pitch are not positive.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((32, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> beam = ct.ConeBeam(angles=90, source_axis=1000.0, source_detector=1500.0).fitted(grid)
        >>> beam.pitch, beam.row_pitch  # mm on the panel
        (4.5, 4.5)
        >>> beam.data_shape(grid)  # (rows, views, bins)
        (37, 90, 93)
    """

    kind: ClassVar[str] = "Cone beam"
    rows: int | None = None
    row_pitch: float | None = None
    height: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(rows=self.rows, row_pitch=self.row_pitch, height=self.height)

    @property
    def flat(self) -> bool:
        """False: a panel measures the volume as a whole."""
        return False

    def fitted(self, volume: VolumeGeometry) -> Self:
        """Choose missing pitches, bins and rows for `volume`.

        Raises:
            GeometryError: the panel truncates the field of view, or the height of the volume at the axis.
        """
        row_pitch = self.row_pitch or volume.spacing[0] * self.magnification()
        fitted = super().fitted(volume)
        rows = self.rows or self._rows_for(volume, row_pitch)
        self._require_height(volume, rows, row_pitch)
        require_room((rows, len(self.views), fitted.bins or 1))
        return replace(fitted, rows=rows, row_pitch=row_pitch)

    def _rows_for(self, volume: VolumeGeometry, row_pitch: float) -> int:
        # The rim of the field of view nearest the source is magnified most.
        nearest = self.source_detector / (self.source_axis - volume.fov / 2)
        return math.ceil((self.height or volume.extent[0]) * nearest / row_pitch) + 1

    def _require_height(self, volume: VolumeGeometry, rows: int, row_pitch: float) -> None:
        require_rows(rows, row_pitch, (self.height or volume.extent[0]) * self.magnification())

    def data_shape(self, volume: VolumeGeometry) -> tuple[int, int, int]:
        """(rows, views, bins) of the projections of `volume` by this fitted beam."""
        return panel_shape(self.rows, self)

    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""
        assert self.rows is not None  # the beam is fitted
        assert self.row_pitch is not None
        fan = super().rays()
        return replace(fan, v=self.row_pitch * fan.v, rows=self.rows)

    def _sentences(self) -> list[str]:
        rows = f"{self.rows or 'As many as needed'} rows of "
        return [
            *super()._sentences(),
            rows + (f"{self.row_pitch:.4g} mm." if self.row_pitch else "slice size."),
        ]
