"""Parallel rays in a slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctflow.geometry._circular import CircularBeam
from ctflow.geometry._rays import Rays

__all__ = ["ParallelBeam"]


@dataclass(frozen=True)
class ParallelBeam(CircularBeam):
    """Parallel rays, for each slice of a stack separately; half a turn is complete.

    Shapes: volume (*batch, Z, Y, X) -> projections (*batch, Z, views, bins).

    Examples:
        >>> import ctflow as ct
        >>> slices = ct.VolumeGeometry((1, 128, 128), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> print(ct.ParallelBeam(angles=60).fitted(slices))  # bins that cover the slice
        Parallel beam: 60 views over 177.0°, 183 bins of 3 mm. Field of view 549.0 mm.
    """

    kind: ClassVar[str] = "Parallel beam"

    def rays(self) -> Rays:
        """Every ray of a fitted beam as arrays, mm, in the centred frame of the volume."""
        assert self.bins is not None  # the beam is fitted
        assert self.pitch is not None
        along, ray = self.turning()
        centre = (self.shift_bins * self.pitch - self.axis_offset) * along
        up = np.tile([0.0, 0.0, 1.0], (len(along), 1))
        return Rays(ray, centre, self.pitch * along, up, 1, self.bins, parallel=True)
