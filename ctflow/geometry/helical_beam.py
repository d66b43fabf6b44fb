"""A point source on a helix and a curved panel, as of a scanner with a moving table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry._beam import require_finite
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Rays
from ctflow.geometry.cone_beam import ConeBeam

__all__ = ["HelicalBeam"]


@dataclass(frozen=True)
class HelicalBeam(ConeBeam):
    """A helical cone beam: source and panel rise with the angle; the panel is curved by default.

    The middle of the scan (halfway between the first and the last angle) is at z = 0.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, rows, views, bins).

    Args:
        feed: table feed per turn, mm; negative if the source moves against z.

    Raises:
        GeometryError: the feed is zero.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((8, 64, 64), (3.0, 6.0, 6.0))  # (Z, Y, X), mm
        >>> beam = ct.HelicalBeam(angles=241, arc_degrees=1084.5, rows=16, row_pitch=4.0, feed=20.0)
        >>> beam = beam.fitted(grid)
        >>> beam.data_shape(grid)  # (rows, views, bins)
        (16, 241, 95)
        >>> heights = beam.rays().source[:, 2]
        >>> round(float(heights[-1] - heights[0]), 3)  # three turns of 20 mm
        60.0
    """

    kind: ClassVar[str] = "Helical cone beam"
    longest_span: ClassVar[float] = math.inf
    arc_degrees: float = 720.0
    curved: bool = True
    feed: float = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(feed=self.feed)
        if self.feed == 0:
            raise GeometryError("a helix needs a table feed and it is 0 mm; use ConeBeam for a circle")

    def covering(self, height: float) -> Self:
        """The helix with as many more views as the slices over `height` mm need.

        Half a turn before and after them, so that each is seen from all directions.
        """
        step = (max(self.views) - min(self.views)) / max(1, len(self.views) - 1)
        turned = 2 * math.pi * (height / abs(self.feed) + 1)
        return replace(self, angles=tuple(step * view for view in range(math.ceil(turned / step) + 1)))

    def heights(self) -> tuple[float, ...]:
        """z of the source in every view, mm."""
        middle = (min(self.views) + max(self.views)) / 2
        return tuple(self.feed * (angle - middle) / (2 * math.pi) for angle in self.views)

    def _rows_for(self, volume: VolumeGeometry, row_pitch: float) -> int:
        # Tam and Danielsson's window: each point is then seen over 180° at least.
        half = self.half_fan(volume.diagonal / 2)
        turn = abs(self.feed) * self.magnification() / (2 * math.pi)
        window = 2 * turn * (math.pi / 2 + half) / math.cos(half) ** 2
        return math.ceil(window / row_pitch) + 1

    def _require_height(self, volume: VolumeGeometry, rows: int, row_pitch: float) -> None:
        """Refuse slices that the helix never meets; it sees every other slice while passing it."""
        reach = (max(self.heights()) - min(self.heights()) + rows * row_pitch / self.magnification()) / 2
        height = self.height or volume.extent[0]
        if height / 2 > reach * (1 + 1e-6):
            turns = height / abs(self.feed)
            raise GeometryError(
                f"the helix sees {2 * reach:.1f} mm along z and the volume is {height:.1f} mm "
                f"high; give {turns:.1f} turns or more (arc_degrees >= {360 * turns:.0f}), or fewer slices"
            )

    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""
        circle = super().rays()
        climb = np.outer(self.heights(), [0.0, 0.0, 1.0])
        return replace(circle, source=circle.source + climb, centre=circle.centre + climb)

    def _sentences(self) -> list[str]:
        return [*super()._sentences(), f"The table feeds {self.feed:.4g} mm per turn."]
