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


def seen_height(beam: Beam, radius: float) -> float:
    """Largest height up to which every view sees the rim of `radius` mm of every slice, up and down, mm.

    Args:
        beam: fitted beam that measures a volume as a whole.
        radius: of the field of view, mm.

    Returns:
        Height from the middle slice; 0 where even that is not seen from rim to rim.
    """
    rays, rim, low = beam.rays(), _rim(radius), 0.0
    high = float(np.linalg.norm(rays.v, axis=1).max()) * rays.rows  # no panel sees more than its own height
    for _ in range(50):  # bisection to rounding: what is seen at a height is seen below it
        middle = (low + high) / 2
        up = np.array([0.0, 0.0, middle])
        _, rows = rays.locate(np.concatenate([rim + up, rim - up]))
        seen = bool((rows >= -0.5).all() and (rows <= rays.rows - 0.5).all())
        low, high = (middle, high) if seen else (low, middle)
    return low


def _rim(radius: float) -> Array:
    turn = np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)
    return np.asarray(radius * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1))


def directions_of_slices(beam: Beam, volume: VolumeGeometry) -> Array:
    """Share of the directions within half a turn from which a slice's rim and middle are seen, (Z,).

    The least over its points: below 1, a formula lacks rays of the slice, as where a helix climbs too fast.

    Args:
        beam: fitted beam from a source that measures a volume as a whole.
        volume: grid of the slices.
    """
    Z, rays = volume.shape[0], beam.rays()
    places = np.concatenate([_rim(volume.fov / 2), np.zeros((1, 3))])
    turned = abs(float(np.ptp(np.unwrap(np.arctan2(rays.source[:, 1], rays.source[:, 0])))))
    sectors = max(2, int(len(rays.source) * np.pi / turned / 2))  # two views in each, or more
    shares = []
    for height in (np.arange(Z) - (Z - 1) / 2) * volume.spacing[0]:
        points = places + np.array([0.0, 0.0, height])
        _, rows = rays.locate(points)
        ray = points - rays.source[:, None]
        sector = (np.arctan2(ray[..., 1], ray[..., 0]) % np.pi / np.pi * sectors).astype(int) % sectors
        seen = np.zeros((sectors, len(points)), bool)
        view, point = np.nonzero((rows >= -0.5) & (rows <= rays.rows - 0.5))
        seen[sector[view, point], point] = True
        shares.append(seen.mean(0).min())
    return np.array(shares)


def views_of_slices(beam: Beam, volume: VolumeGeometry) -> Array:
    """Share of the views that see all of a slice's field of view, up and down, for every slice, (Z,)."""
    Z = volume.shape[0]
    heights = (np.arange(Z) - (Z - 1) / 2) * volume.spacing[0]
    points = (_rim(volume.fov / 2) + heights[:, None, None] * [0.0, 0.0, 1.0]).reshape(-1, 3)
    rays = beam.rays()
    _, rows = rays.locate(points)
    seen = (rows >= -0.5) & (rows <= rays.rows - 0.5)
    return np.asarray(seen.reshape(len(seen), Z, _POINTS).all(-1).mean(0))
