"""A point source and one detector row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry._beam import require_positive
from ctflow.geometry._circular import CircularBeam
from ctflow.geometry._rays import Rays

__all__ = ["FanBeam"]


@dataclass(frozen=True)
class FanBeam(CircularBeam):
    """A point source and one detector row, for each slice of a stack separately; a full turn by default.

    A short scan of 180° plus the fan angle is enough: see `short_scan_degrees`.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, Z, views, bins).

    Args:
        source_axis: distance from source to rotation axis along the central ray, mm.
        source_detector: distance from source to detector along the central ray, mm.
        curved: whether the detector is an arc around the source, with bins at equal angles (equiangular),
            `pitch` mm apart along the arc; otherwise it is flat.
        displaced: whether the detector is shifted so far that it sees one side of the object and a little
            beyond the axis (half fan), which a full turn makes good.

    Raises:
        GeometryError: the detector lies on the source's side of the axis.

    Examples:
        >>> import ctflow as ct
        >>> slices = ct.VolumeGeometry((1, 128, 128), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> beam = ct.FanBeam(angles=180).fitted(slices)  # bins that cover the slice
        >>> beam.data_shape(slices), round(beam.pitch, 2)  # (rows, views, bins); mm on the detector
        ((1, 180, 205), 5.47)
        >>> f"{beam.short_scan_degrees(radius=200.0):.0f}°"
        '219°'
    """

    kind: ClassVar[str] = "Fan beam"
    arc_degrees: float = 360.0
    source_axis: float = 595.0
    source_detector: float = 1085.6
    curved: bool = False
    displaced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(source_axis=self.source_axis, source_detector=self.source_detector)
        if self.source_axis > self.source_detector:
            raise GeometryError(
                f"source_axis {self.source_axis} mm must be at most source_detector "
                f"{self.source_detector} mm; exchange them if they were swapped"
            )

    def magnification(self) -> float:
        """Size on the detector over size at the axis, dimensionless."""
        return self.source_detector / self.source_axis

    @property
    def orbit(self) -> float:
        """Distance of the source from the rotation axis, mm."""
        return math.hypot(self.source_axis, self.axis_offset)

    @property
    def axis_angle(self) -> float:
        """Fan angle of the rotation axis, from the central ray, rad."""
        return math.atan2(self.axis_offset, self.source_axis)

    def half_fan(self, radius: float) -> float:
        """Half the angle under which the source sees a centred disc of `radius` mm, rad.

        Raises:
            GeometryError: the disc reaches the source.
        """
        if radius >= self.orbit:
            raise GeometryError(
                f"the slice reaches {radius:.1f} mm from the axis and the source orbits at "
                f"{self.source_axis} mm; give a larger source_axis"
            )
        return math.asin(radius / self.orbit)

    def short_scan_degrees(self, radius: float) -> float:
        """Smallest arc that measures every line through a centred disc of `radius` mm, degrees."""
        return 180 + math.degrees(2 * self.half_fan(radius))

    def edges(self, radius: float) -> tuple[float, float]:
        """Where the shadow of a centred disc of `radius` mm begins and ends, mm from the central ray.

        Raises:
            GeometryError: the disc reaches the source.
        """
        half = self.half_fan(radius)
        low, high = self.axis_angle - half, self.axis_angle + half
        if self.curved:
            return self.source_detector * low, self.source_detector * high
        # A flat detector never sees a ray that runs along it.
        low, high = max(low, -1.57), min(high, 1.57)
        return self.source_detector * math.tan(low), self.source_detector * math.tan(high)

    def _enough(self, radius: float, pitch: float) -> int:
        if not self.displaced:
            return super()._enough(radius, pitch)
        low, high = self.edges(radius)
        shift = self.shift_bins * pitch
        return math.ceil(2 * min(high - shift, shift - low) / pitch - 1e-6)

    def _require_cover(self, radius: float) -> None:
        if not self.displaced:
            return super()._require_cover(radius)
        if self._covers(radius):
            return
        assert self.pitch is not None  # the beam is fitted
        (left, right), (low, high), axis = self.ends(), self.edges(radius), self.edges(0.0)[0]
        lacks = f"more shift_bins, or bins >= {self._enough(radius, self.pitch)} at pitch {self.pitch:.4g} mm"
        if not left < axis < right:
            lacks = "fewer shift_bins: it must reach a little beyond the axis"
        raise GeometryError(
            f"the displaced detector covers {left:.1f} to {right:.1f} mm, where the axis casts {axis:.1f} mm "
            f"and the field of view of {2 * radius:.1f} mm {low:.1f} to {high:.1f} mm; give {lacks}"
        )

    def _covers(self, radius: float) -> bool:
        if not self.displaced:
            return super()._covers(radius)
        (left, right), (low, high), axis = self.ends(), self.edges(radius), self.edges(0.0)[0]
        return left < axis < right and (left <= low + 1e-6 or high - 1e-6 <= right)

    def _reach(self) -> float:
        return self.orbit * (1 - 1e-9)

    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""
        assert self.bins is not None  # the beam is fitted
        assert self.pitch is not None
        along, ray = self.turning()
        source = -self.source_axis * ray - self.axis_offset * along
        up = np.tile([0.0, 0.0, 1.0], (len(along), 1))
        shift = self.shift_bins * self.pitch
        if not self.curved:
            centre = source + self.source_detector * ray + shift * along
            return Rays(source, centre, self.pitch * along, up, 1, self.bins)
        sine, cosine = math.sin(shift / self.source_detector), math.cos(shift / self.source_detector)
        centre = source + self.source_detector * (cosine * ray + sine * along)
        u = self.pitch * (cosine * along - sine * ray)
        return Rays(source, centre, u, up, 1, self.bins, radius=self.source_detector)

    def _sentences(self) -> list[str]:
        where = (
            f"Source {self.source_axis:.4g} mm from the axis and {self.source_detector:.4g} mm from the "
            f"{'curved' if self.curved else 'flat'} detector."
        )
        side = ["It sees one side of the object, and a little beyond the axis."] if self.displaced else []
        return [*super()._sentences(), where, *side]
