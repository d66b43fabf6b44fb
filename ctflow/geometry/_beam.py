"""The base class of beams: views, detector and rays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

from ctflow.errors import GeometryError
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Rays

_SMALLEST = 1e-6  # mm, or a number
_MOST_RAYS, _MOST_DATA = 2**27, 2**33


class Beam(ABC):
    """Rays through a volume; subclasses define where they run.

    `flat` beams measure every slice of a stack in its own plane; the others measure the volume as a whole.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins); rows = Z when flat.
    """

    @property
    @abstractmethod
    def bins(self) -> int | None:
        """Detector bins; None until the beam is fitted."""

    @property
    @abstractmethod
    def pitch(self) -> float | None:
        """Distance between bin centres, mm; None until the beam is fitted."""

    @property
    def flat(self) -> bool:
        """Whether every slice is measured in its own plane."""
        return True

    @property
    @abstractmethod
    def views(self) -> tuple[float, ...]:
        """Angle of every view, radians."""

    @abstractmethod
    def subset(self, views: slice) -> Self:
        """Keep some of the views: `beam.subset(slice(None, None, 12))`."""

    @abstractmethod
    def magnification(self) -> float:
        """Size on the detector over size at the axis, dimensionless."""

    @abstractmethod
    def fitted(self, volume: VolumeGeometry) -> Self:
        """Choose missing pitches, bins and rows for `volume`.

        Raises:
            GeometryError: the detector truncates or misses the field of view; the message says what suffices.
        """

    @abstractmethod
    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""

    def data_shape(self, volume: VolumeGeometry) -> tuple[int, int, int]:
        """(rows, views, bins) of the projections of `volume` by this fitted beam."""
        assert self.bins is not None  # the beam is fitted
        return volume.shape[0], len(self.views), self.bins


def require_finite(**values: float | None) -> None:
    """Refuse NaN and infinity.

    Raises:
        GeometryError: a value is not finite.
    """
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise GeometryError(f"{name} must be a finite number and is {value}; correct it")


def require_positive(**values: float | None) -> None:
    """Refuse lengths and numbers that are zero, negative, NaN or beyond any scanner; None is allowed.

    Raises:
        GeometryError: a value is not positive, or its size is impossible.
    """
    for name, value in values.items():
        if value is not None and not _SMALLEST < value < 1 / _SMALLEST:
            raise GeometryError(
                f"{name} must be positive, between {_SMALLEST:g} and {1 / _SMALLEST:g}, and is {value}; "
                "correct it, or leave it out"
            )


def require_room(shape: tuple[int, int, int]) -> None:
    """Refuse projections (rows, views, bins) that no memory holds, before any is taken.

    Raises:
        GeometryError: there are too many rays in one row, or in all.
    """
    rows, views, bins = shape
    if views * bins > _MOST_RAYS or rows * views * bins > _MOST_DATA:
        raise GeometryError(
            f"{rows} rows × {views} views × {bins} bins are {rows * views * bins:.3g} rays; {_MOST_RAYS:.2g} "
            f"in a row and {_MOST_DATA:.2g} in all are the most: give fewer views or bins, or a larger pitch"
        )
