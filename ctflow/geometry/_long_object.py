"""Objects that go on beyond what a panel sees: where its rays run, and which slices every view sees."""

from __future__ import annotations

import numpy as np

from ctflow.geometry._beam import Beam
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Array

_POINTS = 64  # around the rim of a slice


def reach(beam: Beam, radius: float) -> float:
    """Largest |z| that a ray has inside the cylinder of `radius` mm around the axis, mm.

    Args:
        beam: fitted beam that measures a volume as a whole.
        radius: of the object, mm.
    """
    rays, highest = beam.rays(), 0.0
    for view, source in enumerate(rays.source):
        ends = rays.points(view)[[0, -1]]  # of the rows, (2, bins, 3): those between reach less far
        start, along = (ends, source) if rays.parallel else (source, ends - source)
        along = np.broadcast_to(along, ends.shape)
        # |start + t along| = radius in the plane of a slice.
        a = (along[..., :2] ** 2).sum(-1)
        half = (start[..., :2] * along[..., :2]).sum(-1)
        inside = half**2 - a * ((start[..., :2] ** 2).sum(-1) - radius**2)
        root = np.sqrt(inside.clip(0))
        for t in ((-half - root) / a, (-half + root) / a):
            z = start[..., 2] + t * along[..., 2]
            highest = max(highest, float(np.abs(np.where(inside > 0, z, 0.0)).max()))
    return highest


def views_of_slices(beam: Beam, volume: VolumeGeometry) -> Array:
    """Share of the views that see all of a slice's field of view, up and down, for every slice, (Z,)."""
    Z = volume.shape[0]
    heights = (np.arange(Z) - (Z - 1) / 2) * volume.spacing[0]
    turn = np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)
    rim = volume.fov / 2 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    points = (rim + heights[:, None, None] * [0.0, 0.0, 1.0]).reshape(-1, 3)
    rays = beam.rays()
    _, rows = rays.locate(points)
    seen = (rows >= -0.5) & (rows <= rays.rows - 0.5)
    return np.asarray(seen.reshape(len(seen), Z, _POINTS).all(-1).mean(0))
