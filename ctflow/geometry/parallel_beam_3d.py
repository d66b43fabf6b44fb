"""Parallel rays on a panel of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ctflow.geometry._beam import require_positive, require_room
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._panel import panel_shape, require_rows
from ctflow.geometry._rays import Rays
from ctflow.geometry.parallel_beam import ParallelBeam

__all__ = ["ParallelBeam3D"]


@dataclass(frozen=True)
class ParallelBeam3D(ParallelBeam):
    """Parallel rays on a flat panel whose rows need not coincide with slices; half a turn is complete.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins).

    Args:
        rows: detector rows; None covers the volume.
        row_pitch: distance between row centres, mm; None takes the slice distance.
        height: what the panel must see of the axis, mm; None is the whole volume. Smaller where the volume
            goes on beyond the panel.

    Raises:
        GeometryError: rows or row_pitch are not positive.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((8, 32, 32), (2.0, 2.0, 2.0))  # (Z, Y, X), mm
        >>> beam = ct.ParallelBeam3D(angles=60, row_pitch=1.0).fitted(grid)
        >>> beam.data_shape(grid)  # rows of 1 mm for slices of 2 mm
        (16, 60, 47)
    """

    kind: ClassVar[str] = "Parallel beam on a panel"
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
            GeometryError: the panel truncates the field of view or the height of the volume.
        """
        row_pitch = self.row_pitch or volume.spacing[0]
        height = self.height or volume.extent[0]
        rows = self.rows or math.ceil(height / row_pitch - 1e-6)
        require_rows(rows, row_pitch, height)
        fitted = super().fitted(volume)
        require_room((rows, len(self.views), fitted.bins or 1))
        return replace(fitted, rows=rows, row_pitch=row_pitch)

    def data_shape(self, volume: VolumeGeometry) -> tuple[int, int, int]:
        """(rows, views, bins) of the projections of `volume` by this fitted beam."""
        return panel_shape(self.rows, self)

    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""
        assert self.rows is not None  # the beam is fitted
        assert self.row_pitch is not None
        flat = super().rays()
        return replace(flat, v=self.row_pitch * np.asarray(flat.v), rows=self.rows)

    def _sentences(self) -> list[str]:
        return [*super()._sentences(), f"{self.rows or 'As many as needed'} rows of parallel rays."]
