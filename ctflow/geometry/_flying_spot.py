"""A scanner with a curved detector and a focal spot that may fly from view to view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import GeometryError
from ctflow.geometry.vector_beam import VectorBeam

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FlyingSpot:
    """Position of the detector's focal centre and of the focal spot in every view, in cylinder coordinates.

    The focal centre is at (-ρ sin φ, ρ cos φ, z) and the spot at the same with φ + Δφ, ρ + Δρ, z + Δz. The
    detector is a cylinder of radius `source_detector` around the focal centre, along z.

    Args:
        phi: angle of the focal centre, (views,), rad.
        z: height of the focal centre, (views,), mm.
        rho: distance of the focal centre from the axis, (views,), mm.
        shift_phi: Δφ of the spot, (views,), rad.
        shift_z: Δz of the spot, (views,), mm.
        shift_rho: Δρ of the spot, (views,), mm.
        source_detector: distance from focal centre to detector, mm.
        pitch: distance from bin to bin along the arc, mm.
        row_pitch: distance from row to row, mm.
        central: bin and row, counted from 0, of the element opposite the axis.
        bins: detector bins.
        rows: detector rows.
        mirrored: whether bins run along (cos φ, sin φ) instead of against it, and rows against z instead of
            along it.

    Raises:
        GeometryError: the tables have different lengths, or a number is not finite.

    References:
        Chen et al., Med. Phys. 42 (2015), DICOM-CT-PD; Moen et al., Med. Phys. 48 (2021), table IV.
    """

    phi: Array
    z: Array
    rho: Array
    shift_phi: Array
    shift_z: Array
    shift_rho: Array
    source_detector: float
    pitch: float
    row_pitch: float
    central: tuple[float, float]
    bins: int
    rows: int
    mirrored: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        tables = (self.phi, self.z, self.rho, self.shift_phi, self.shift_z, self.shift_rho)
        if len({table.shape for table in tables}) > 1 or not all(np.isfinite(t).all() for t in tables):
            raise GeometryError(
                f"the tables of a scan must be finite and (views,) and are {[t.shape for t in tables]}; "
                "give one number for every view"
            )

    @property
    def middle(self) -> float:
        """Height half way between the first and the last focal centre, mm."""
        return float(self.z.min() + self.z.max()) / 2

    def beam(self) -> VectorBeam:
        """The rays of every view, in a frame whose origin lies on the axis at the height `middle`."""
        columns, rows = (-1.0 if mirror else 1.0 for mirror in self.mirrored)
        focus = _cylinder(self.rho, self.phi, self.z - self.middle)
        spot = _cylinder(self.rho + self.shift_rho, self.phi + self.shift_phi, self.z + self.shift_z)
        spot[:, 2] -= self.middle
        ahead = _cylinder(-np.ones_like(self.phi), self.phi, np.zeros_like(self.phi))
        # A quarter turn on: a view at angle φ + π runs its bins along (cos(φ + π), sin(φ + π)).
        along = columns * np.stack([ahead[:, 1], -ahead[:, 0], ahead[:, 2]], 1)
        gamma = ((self.bins - 1) / 2 - self.central[0]) * self.pitch / self.source_detector
        up = np.array([0.0, 0.0, rows * self.row_pitch])
        centre = focus + self.source_detector * (np.cos(gamma) * ahead + np.sin(gamma) * along)
        centre += ((self.rows - 1) / 2 - self.central[1]) * up
        u = self.pitch * (np.cos(gamma) * along - np.sin(gamma) * ahead)
        table = np.concatenate([spot, centre, u, np.tile(up, (len(u), 1))], 1)
        return VectorBeam(tuple(map(tuple, table)), self.bins, self.rows, radius=self.source_detector)


def _cylinder(rho: Array, phi: Array, z: Array) -> Array:
    """Points at (ρ, φ, z), (views, 3), mm."""
    return np.stack([-rho * np.sin(phi), rho * np.cos(phi), z], 1)
