"""Recognise a named beam in arrays of rays, where its views turn around the axis."""

from __future__ import annotations

import math

import numpy as np

from ctflow.geometry._beam import Beam
from ctflow.geometry._rays import Array, Rays
from ctflow.geometry.cone_beam import ConeBeam
from ctflow.geometry.fan_beam import FanBeam
from ctflow.geometry.helical_beam import HelicalBeam
from ctflow.geometry.parallel_beam import ParallelBeam
from ctflow.geometry.parallel_beam_3d import ParallelBeam3D
from ctflow.geometry.vector_beam import VectorBeam

_TOLERANCE = 1e-6  # relative to the largest length: files keep seven digits


def recognise_beam(rays: Rays, flat: bool) -> Beam:
    """Return the named beam with these rays, or a `VectorBeam` if they do not turn around the z axis evenly.

    The shift of a parallel or curved detector cannot be distinguished from an offset of the axis: it is
    returned as `shift_bins` and as `axis_offset`.

    Args:
        rays: in mm.
        flat: whether every slice is measured in its own plane.
    """
    return (_parallel if rays.parallel else _divergent)(rays, flat) or _by_vectors(rays, flat)


def _by_vectors(rays: Rays, flat: bool) -> VectorBeam:
    table = np.concatenate([rays.source, rays.centre, rays.u, rays.v], 1)
    rows = None if flat else rays.rows
    vectors = tuple(tuple(row) for row in table.tolist())
    return VectorBeam(vectors, rays.bins, rows, rays.parallel, rays.radius)


def _parallel(rays: Rays, flat: bool) -> Beam | None:
    along, _, angles = _frame(rays)
    size = float(np.abs(rays.centre).max() + np.abs(rays.u).max() * rays.bins)
    pitch = _constant(np.linalg.norm(rays.u, axis=1), size)
    middle = _constant((rays.centre * along).sum(1), size)
    square = np.abs((rays.source * along).sum(1)).max() < _TOLERANCE
    level = _level(rays, size) and np.abs(rays.centre[:, 2]).max() <= _TOLERANCE * size
    if pitch is None or middle is None or not (square and level):
        return None
    if flat:
        return ParallelBeam(angles, rays.bins, pitch, shift_bins=middle / pitch)
    row_pitch = float(rays.v[0, 2])
    return ParallelBeam3D(
        angles, rays.bins, pitch, shift_bins=middle / pitch, rows=rays.rows, row_pitch=row_pitch
    )


def _divergent(rays: Rays, flat: bool) -> Beam | None:
    along, ray, angles = _frame(rays)
    size = float(np.abs(rays.source).max() + np.abs(rays.centre).max())
    pitch = _constant(np.linalg.norm(rays.u, axis=1), size)
    behind, offset = (_constant(-(rays.source * axis).sum(1), size) for axis in (ray, along))
    reach, across = (_constant(((rays.centre - rays.source) * axis).sum(1), size) for axis in (ray, along))
    level = _level(rays, size) and np.abs((rays.centre - rays.source)[:, 2]).max() <= _TOLERANCE * size
    if pitch is None or behind is None or offset is None or reach is None or across is None:
        return None
    # A named beam's arc is around its source.
    apart = max(abs(across), abs(reach - rays.radius)) if rays.radius else 0.0
    if not level or not 0 < behind <= reach or apart > _TOLERANCE * size:
        return None
    fan = {
        "bins": rays.bins,
        "pitch": pitch,
        "shift_bins": across / pitch,
        "axis_offset": offset,
        "source_axis": behind,
        "source_detector": reach,
        "curved": rays.radius > 0,
    }
    if flat:
        return FanBeam(angles, **fan)  # type: ignore[arg-type]
    return _climbing(rays, angles, size, fan | {"rows": rays.rows, "row_pitch": float(rays.v[0, 2])})


def _climbing(
    rays: Rays, angles: tuple[float, ...], size: float, cone: dict[str, float | int]
) -> Beam | None:
    heights = rays.source[:, 2]
    if np.abs(heights).max() <= _TOLERANCE * size:
        return ConeBeam(angles, **cone)  # type: ignore[arg-type]
    turned = np.unwrap(angles)
    feed = 2 * math.pi * (heights[-1] - heights[0]) / (turned[-1] - turned[0])
    helix = HelicalBeam(tuple(turned.tolist()), **cone, feed=float(feed))  # type: ignore[arg-type]
    return helix if np.abs(np.array(helix.heights()) - heights).max() <= _TOLERANCE * size else None


def _frame(rays: Rays) -> tuple[Array, Array, tuple[float, ...]]:
    """Unit vectors along the detector row and a quarter turn from it, (views, 3), and the angles."""
    along = rays.u / np.linalg.norm(rays.u, axis=1, keepdims=True)
    ray = np.stack([-along[:, 1], along[:, 0], 0 * along[:, 0]], 1)
    return along, ray, tuple(np.arctan2(along[:, 1], along[:, 0]).tolist())


def _constant(values: Array, size: float) -> float | None:
    """The value that all views share to rounding, mm."""
    middle = float(values.mean())
    if np.abs(values - middle).max() > _TOLERANCE * size:
        return None
    return 0.0 if abs(middle) <= _TOLERANCE * size else middle


def _level(rays: Rays, size: float) -> bool:
    """Whether rows are equally spaced along z and bins stay level."""
    row_pitch = rays.v[:, 2]
    upright = np.abs(rays.v[:, :2]).max() <= _TOLERANCE * size and float(row_pitch.min()) > 0
    same = _constant(row_pitch, size) is not None
    return bool(upright and same and np.abs(rays.u[:, 2]).max() <= _TOLERANCE * size)
