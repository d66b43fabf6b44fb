"""Rays of a beam in voxel indices, as Joseph's method needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ctflow.geometry import Rays, VolumeGeometry
from ctflow.geometry._rays import Array


@dataclass(frozen=True, eq=False)
class IndexedRays:
    """Every ray of a beam in array indices (slice, row, column), in which voxel centres are whole numbers.

    Row r, view i, bin k is the line through middle[i, k] + (r - (rows - 1) / 2) step[i]; it runs along
    source[i] when the rays of a view are parallel, otherwise from source[i].

    Args:
        source: (views, 3), position in indices, or direction in indices (parallel).
        middle: bins of the middle row, (views, bins, 3), indices.
        step: step from one detector row to the next, (views, 3), indices.
        spacing: spacing of the voxels (z, y, x), mm.
        rows: detector rows.
        parallel: whether the rays of a view are parallel.
    """

    source: Array
    middle: Array
    step: Array
    spacing: tuple[float, float, float]
    rows: int
    parallel: bool


def index_rays(volume: VolumeGeometry, rays: Rays) -> IndexedRays:
    """Express the rays of a fitted beam in the voxel indices of a volume.

    Args:
        volume: grid, of any spacing.
        rays: in mm, x growing with the column, y against the row, z with the slice.
    """
    # Per axis (z, y, x): y grows against the row.
    scale = np.array([1.0, -1.0, 1.0]) / volume.spacing
    centre = (np.array(volume.shape) - 1) / 2
    row = replace(rays, rows=1)
    middle = np.stack([row.points(view)[0] for view in range(len(rays.source))])
    source = rays.source[:, ::-1] * scale
    return IndexedRays(
        source=source if rays.parallel else source + centre,
        middle=middle[..., ::-1] * scale + centre,
        step=rays.v[:, ::-1] * scale,
        spacing=volume.spacing,
        rows=rays.rows,
        parallel=rays.parallel,
    )
