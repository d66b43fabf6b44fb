"""Rays of a beam as plain arrays: the one description that all projectors, kernels and conversions use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rays:
    """All rays of a fitted beam, in mm, in the centred frame of the volume.

    Frame: the origin is the middle of the grid, x grows with the column, y grows AGAINST the row (row 0 has
    the largest y), z grows with the slice. The centre of voxel (k, i, j) is at
    x = (j - (X - 1) / 2) dx, y = ((Y - 1) / 2 - i) dy, z = (k - (Z - 1) / 2) dz.

    Row r, view i, bin k is measured along one line:
        parallel:   through point[i, r, k], in the unit direction source[i];
        otherwise:  from the position source[i] through point[i, r, k];
    with a = k - (bins - 1) / 2 and b = r - (rows - 1) / 2,
        flat detector (radius = 0):  point = centre + a u + b v
        curved detector (radius > 0):  point = centre + radius (sin γ u/|u| - (1 - cos γ) n) + b v
    where γ = a |u| / radius and n is the detector's unit normal away from the source. A curved detector is a
    cylinder along v, around the source unless its focal spot flies, so bins are equal steps |u| / radius of
    the fan angle.

    Beams that measure every slice in its own plane (`Beam.flat`) have one row, z = 0 and v = (0, 0, 1):
    take the first two columns. Detector shift, axis offset, table feed and orbit are all in these arrays.

    Args:
        source: (views, 3), source positions in mm, or unit directions towards the detector (parallel).
        centre: (views, 3), middle of the detector (of all bins and rows), mm.
        u: (views, 3), step from one bin to the next, mm; tangent at `centre` when curved.
        v: (views, 3), step from one row to the next, mm.
        rows: detector rows.
        bins: detector bins.
        parallel: whether the rays of a view are parallel.
        radius: radius of the curved detector, mm; 0 when it is flat.
    """

    source: Array
    centre: Array
    u: Array
    v: Array
    rows: int
    bins: int
    parallel: bool = False
    radius: float = 0.0

    @property
    def fan_step(self) -> float:
        """Step of the fan angle from bin to bin of a curved detector, rad; 0 when it is flat."""
        return float(np.linalg.norm(self.u[0])) / self.radius if self.radius else 0.0

    @property
    def normal(self) -> Array:
        """Unit normal of the detector away from the source, (views, 3)."""
        n = np.cross(self.u, self.v)
        n /= np.linalg.norm(n, axis=1, keepdims=True)
        along = self.source if self.parallel else self.centre - self.source
        return np.asarray(n * np.sign((n * along).sum(1, keepdims=True)))

    def points(self, view: int) -> Array:
        """Centres of all bins of one view, (rows, bins, 3), mm."""
        a = np.arange(self.bins)[:, None] - (self.bins - 1) / 2
        b = np.arange(self.rows)[:, None, None] - (self.rows - 1) / 2
        u = self.u[view]
        along = a * u
        if self.radius:
            gamma = a * self.fan_step
            tangent = u / np.linalg.norm(u)
            along = self.radius * (np.sin(gamma) * tangent - (1 - np.cos(gamma)) * self.normal[view])
        return np.asarray(self.centre[view] + along + b * self.v[view])

    def locate(self, points: Array) -> tuple[Array, Array]:
        """Find where on the detector points are seen: the inverse of `points`.

        Args:
            points: (n, 3), mm.

        Returns:
            Fractional bins and fractional rows, each (views, n).
        """
        n, u, v = (vector[:, None] for vector in (self.normal, self.u, self.v))
        source, middle = self.source[:, None], self.centre[:, None]
        if self.parallel:
            ray, start = source, points[None] - middle
            hit = start - ray * _dot(start, n) / _dot(ray, n)
        else:
            ray = points[None] - source
            if self.radius:
                return self._locate_curved(ray)
            hit = source - middle + ray * _dot(middle - source, n) / _dot(ray, n)
        return self._indices(*_solve(hit, u, v))

    def _locate_curved(self, ray: Array) -> tuple[Array, Array]:
        tangent = (self.u / np.linalg.norm(self.u, axis=1, keepdims=True))[:, None]
        axis = (self.v / np.linalg.norm(self.v, axis=1, keepdims=True))[:, None]
        normal = self.normal[:, None]
        # A flying focal spot leaves the axis of the cylinder; from there the ray meets it where
        # |source + t ray - axis| = radius, in the plane across v.
        away = self.source[:, None] - self.centre[:, None] + self.radius * normal
        across, ahead = _dot(ray, tangent), _dot(ray, normal)
        x, y = _dot(away, tangent), _dot(away, normal)
        length = across**2 + ahead**2
        along = (x * across + y * ahead) / length
        t = np.sqrt(along**2 + (self.radius**2 - x**2 - y**2) / length) - along
        height = _dot(away, axis) + t * _dot(ray, axis)
        rows = height / np.linalg.norm(self.v, axis=1)[:, None, None]
        return self._indices(np.arctan2(x + t * across, y + t * ahead) / self.fan_step, rows)

    def _indices(self, a: Array, b: Array) -> tuple[Array, Array]:
        return a[..., 0] + (self.bins - 1) / 2, b[..., 0] + (self.rows - 1) / 2


def _dot(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(-1, keepdims=True))


def _solve(hit: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Coordinates (a, b) of hit = a u + b v in a plane, u and v of any angle."""
    uu, uv, vv = _dot(u, u), _dot(u, v), _dot(v, v)
    hu, hv = _dot(hit, u), _dot(hit, v)
    determinant = uu * vv - uv**2
    return (hu * vv - hv * uv) / determinant, (hv * uu - hu * uv) / determinant
