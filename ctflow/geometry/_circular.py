"""Beams that turn around an axis: views, one detector row, and its coverage of the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry._beam import Beam, require_finite, require_positive, require_room
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Array


@dataclass(frozen=True)
class CircularBeam(Beam):
    """A beam that turns around the z axis: views and one detector row of equal bins.

    Args:
        angles: number of equidistant views over `arc_degrees` (end point excluded), or angles in radians.
        bins: detector bins; None covers the diagonal of the slice.
        pitch: distance between bin centres, mm; None takes the voxel size (parallel), or the voxel size
            magnified onto the detector (fan, cone).
        arc_degrees: arc of the views when `angles` is a number, degrees.
        shift_bins: shift of the detector along its row, in bins (0.25 is the quarter-bin offset): the central
            ray meets bin (bins - 1) / 2 - shift_bins.
        axis_offset: distance of the rotation axis from the central ray along the detector row, mm.

    Raises:
        GeometryError: there are no views, angles look like degrees, or a number is not finite or positive.
    """

    angles: int | Sequence[float]
    bins: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride] (frozen: read-only as the property)
    pitch: float | None = None  # pyright: ignore[reportIncompatibleMethodOverride] (frozen: read-only as the property)
    arc_degrees: float = 180.0
    shift_bins: float = 0.0
    axis_offset: float = 0.0

    kind: ClassVar[str]
    longest_span: ClassVar[float] = 4 * math.pi  # of the angles, rad; beyond it they are degrees

    def __post_init__(self) -> None:
        require_positive(bins=self.bins, pitch=self.pitch)
        require_finite(arc_degrees=self.arc_degrees, shift_bins=self.shift_bins, axis_offset=self.axis_offset)
        object.__setattr__(self, "angles", self._angles())

    def _angles(self) -> tuple[float, ...]:
        if isinstance(self.angles, int):
            if self.angles < 1:
                raise GeometryError(f"{self.angles} views: give at least one")
            if self.arc_degrees == 0:
                raise GeometryError("an arc of 0° repeats one view; give 180, 360 or a list of angles")
            # Without the end point, which repeats the first view of a half turn (parallel) or full turn.
            step = math.radians(self.arc_degrees) / self.angles
            return tuple(step * view for view in range(self.angles))
        if not len(self.angles):
            raise GeometryError("no views: give their number, or their angles in radians")
        angles = tuple(float(angle) for angle in self.angles)
        self._require_radians(angles)
        return angles

    def _require_radians(self, angles: tuple[float, ...]) -> None:
        span = max(angles) - min(angles)
        if not all(math.isfinite(angle) for angle in angles):
            raise GeometryError(
                "every angle must be a finite number of radians and some are not; correct them"
            )
        if span > self.longest_span:
            raise GeometryError(
                f"angles must be radians within two turns and span {span:.4g} rad ({span / 2 / math.pi:.1f} "
                "turns); pass numpy.radians(angles) if they are degrees, or angles % (2 * numpy.pi) if not"
            )

    @property
    def views(self) -> tuple[float, ...]:
        """Angles in radians."""
        assert not isinstance(self.angles, int)  # __post_init__ has replaced the number
        return tuple(self.angles)

    def subset(self, views: slice) -> Self:
        """Keep some of the views: `beam.subset(slice(None, None, 12))`."""
        return replace(self, angles=self.views[views])

    def magnification(self) -> float:
        """Size on the detector over size at the axis, dimensionless."""
        return 1.0

    def edges(self, radius: float) -> tuple[float, float]:
        """Where the shadow of a centred disc of `radius` mm begins and ends, mm from the central ray."""
        return self.axis_offset - radius, self.axis_offset + radius

    def shadow(self, radius: float) -> float:
        """Width on the detector of a centred disc of `radius` mm, mm."""
        low, high = self.edges(radius)
        return high - low

    def fitted(self, volume: VolumeGeometry) -> Self:
        """Choose missing `pitch` and `bins` for `volume`.

        Raises:
            GeometryError: the detector truncates or misses the field of view; the message says what suffices.
        """
        pitch = self.pitch or min(volume.spacing[1:]) * self.magnification()
        bins = self.bins or self._enough(volume.diagonal / 2, pitch) + 1
        require_room((1, len(self.views), bins))
        fitted = replace(self, bins=bins, pitch=pitch)
        fitted._require_cover(volume.fov / 2)
        return fitted

    def _enough(self, radius: float, pitch: float) -> int:
        """Number of bins that see all of a centred disc, whatever the shift."""
        low, high = self.edges(radius)
        shift = self.shift_bins * pitch
        return math.ceil(2 * max(high - shift, shift - low) / pitch - 1e-6)

    def _require_cover(self, radius: float) -> None:
        assert self.pitch is not None  # the beam is fitted
        left, right = self.ends()
        low, high = self.edges(radius)
        seen = max(0.0, min(high, right) - max(low, left)) / (high - low)
        if seen < 1 - 1e-6:
            what = "misses" if seen == 0 else f"truncates {100 * (1 - seen):.2g} % of"
            raise GeometryError(
                f"the detector covers {right - left:.1f} mm ({left:.1f} to {right:.1f} mm) and {what} "
                f"the field of view of {2 * radius:.1f} mm, which casts {high - low:.1f} mm ({low:.1f} to "
                f"{high:.1f} mm); give bins >= {self._enough(radius, self.pitch)} at pitch {self.pitch:.4g} "
                "mm, or leave bins out"
            )

    def turning(self) -> tuple[Array, Array]:
        """Unit vectors of every view: along the detector row and along the central ray, each (views, 3)."""
        sine, cosine = np.sin(self.views), np.cos(self.views)
        zero = np.zeros_like(sine)
        return np.stack([cosine, sine, zero], 1), np.stack([-sine, cosine, zero], 1)

    def field_of_view(self) -> float:
        """Diameter of the largest centred disc that every view of a fitted beam sees completely, mm."""
        low, high = 0.0, self._reach()
        for _ in range(60):  # bisection to rounding: edges are monotonic in the radius
            middle = (low + high) / 2
            low, high = (middle, high) if self._covers(middle) else (low, middle)
        return 2 * low

    def _reach(self) -> float:
        """Radius in mm from which on no disc is seen completely."""
        assert self.bins is not None  # the beam is fitted
        assert self.pitch is not None
        return self.bins * self.pitch

    def ends(self) -> tuple[float, float]:
        """Where the detector begins and ends, mm from the central ray."""
        assert self.bins is not None  # the beam is fitted
        assert self.pitch is not None
        left, right = (self.pitch * (end * self.bins / 2 + self.shift_bins) for end in (-1, 1))
        return left, right

    def _covers(self, radius: float) -> bool:
        low, high = self.edges(radius)
        left, right = self.ends()
        return left <= low and high <= right

    def __str__(self) -> str:
        return " ".join([*self._sentences(), self._field()])

    def _sentences(self) -> list[str]:
        span = math.degrees(max(self.views) - min(self.views))
        lines = [
            f"{self.kind}: {len(self.views)} views over {span:.1f}°, "
            f"{self.bins or 'as many as needed'} bins of "
            f"{f'{self.pitch:.4g} mm' if self.pitch else 'voxel size'}."
        ]
        if self.shift_bins:
            lines.append(f"The detector is shifted by {self.shift_bins:.4g} bins.")
        if self.axis_offset:
            lines.append(f"The rotation axis lies {self.axis_offset:.4g} mm off the central ray.")
        return lines

    def _field(self) -> str:
        if self.bins is None or self.pitch is None:
            return "Field of view: the whole slice."
        return f"Field of view {self.field_of_view():.1f} mm."
