"""Convert geometries from and to the dictionaries of the ASTRA toolbox; ASTRA itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry._beam import Beam
from ctflow.geometry._grid import VolumeGeometry
from ctflow.geometry._rays import Array, Rays
from ctflow.geometry._recognition import recognise_beam

Dictionary = dict[str, Any]
_FLAT = ("parallel", "parallel_vec", "fanflat", "fanflat_vec")
_SPATIAL = ("parallel3d", "parallel3d_vec", "cone", "cone_vec", "cyl_cone_vec")


def to_astra(volume: VolumeGeometry, beam: Beam) -> tuple[Dictionary, Dictionary]:
    """Convert a geometry to ASTRA's dictionaries, lengths in mm; projections and images keep their order.

    Fan and parallel beams become "fanflat_vec" and "parallel_vec" (of one slice), the others "cone_vec",
    "parallel3d_vec" and "cyl_cone_vec". ASTRA's y grows against the row in a slice, as ours, and with the row
    in a volume: there it is negated.

    Args:
        volume: grid with square pixels.
        beam: any beam; absent bins and pitches are chosen for `volume`.

    Returns:
        The projection geometry and the volume geometry.

    Raises:
        GeometryError: ASTRA has no such geometry, or the detector does not cover the field of view.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 32, 32), (2.0, 2.0, 2.0))  # (Z, Y, X), mm
        >>> projections, image = ct.to_astra(grid, ct.ParallelBeam(angles=30))
        >>> projections["type"], projections["DetectorCount"], image["GridColCount"]
        ('parallel_vec', 47, 32)
    """
    beam = beam.fitted(volume)
    rays = beam.rays()
    grid = astra_grid(volume, beam.flat)
    if beam.flat:
        if rays.radius:
            raise GeometryError(
                "ASTRA has curved detectors for cones only and a curved fan was given; "
                "convert ConeBeam(rows=1, curved=True), or keep Radon's own projectors"
            )
        kind = "parallel_vec" if rays.parallel else "fanflat_vec"
        table = np.concatenate([a[:, :2] for a in (rays.source, rays.centre, rays.u)], 1)
        return {"type": kind, "DetectorCount": rays.bins, "Vectors": table}, grid
    if rays.radius and not bulges_as_astra(rays):
        raise GeometryError(
            "ASTRA's curved detector bulges towards -u × v, in its frame, and this one the other way; "
            "reverse the rows of the projections and negate v in a VectorBeam"
        )
    return spatial_dictionary(rays), grid


def astra_grid(volume: VolumeGeometry, flat: bool) -> Dictionary:
    """ASTRA's dictionary of one slice of the volume (`flat`) or of all of it, lengths in mm."""
    (Z, Y, X), (z, y, x) = volume.shape, (extent / 2 for extent in volume.extent)
    window = {"WindowMinX": -x, "WindowMaxX": x, "WindowMinY": -y, "WindowMaxY": y}
    if flat:
        return {"GridRowCount": Y, "GridColCount": X, "option": window}
    window |= {"WindowMinZ": -z, "WindowMaxZ": z}
    return {"GridRowCount": Y, "GridColCount": X, "GridSliceCount": Z, "option": window}


def bulges_as_astra(rays: Rays) -> bool:
    """Whether a curved detector bulges away from the source in ASTRA's sense: towards -u × v in its frame."""
    # Mirroring y turns -u × v of ASTRA's frame into u × v of ours.
    return bool(((np.cross(rays.u, rays.v) * rays.normal).sum(1) > 0).all())


def spatial_dictionary(rays: Rays) -> Dictionary:
    """ASTRA's dictionary of rays through a volume, lengths in mm."""
    mirrored = [a * [1.0, -1.0, 1.0] for a in (rays.source, rays.centre, rays.u, rays.v)]
    table = np.concatenate(mirrored, 1)
    kind = "parallel3d_vec" if rays.parallel else "cone_vec"
    if rays.radius:
        kind, table = "cyl_cone_vec", np.pad(table, ((0, 0), (0, 1)), constant_values=rays.radius)
    return {"type": kind, "DetectorRowCount": rays.rows, "DetectorColCount": rays.bins, "Vectors": table}


def from_astra(
    projections: Mapping[str, Any], grid: Mapping[str, Any], unit_mm: float = 1.0
) -> tuple[VolumeGeometry, Beam]:
    """Convert two of ASTRA's dictionaries to a geometry; projections and images keep their order.

    Views that turn around the z axis evenly become the named beam (angles within one turn), all others a
    `VectorBeam`, as does every "cone", whose bins run opposite to those of `ConeBeam`. The frame is centred:
    a window off the origin moves the rays instead.

    Args:
        projections: projection geometry, of any type but "sparse_matrix".
        grid: volume geometry.
        unit_mm: length in mm of the unit of the dictionaries: 1 for mm, the pixel size for pixels.

    Raises:
        GeometryError: the type is unknown, or the two dictionaries are not both flat or both spatial.

    Examples:
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 32, 32), (2.0, 2.0, 2.0))  # (Z, Y, X), mm
        >>> projections, image = ct.to_astra(grid, ct.ParallelBeam(angles=30))
        >>> back, beam = ct.from_astra(projections, image)
        >>> back.shape, beam.bins, beam.pitch
        ((1, 32, 32), 47, 2.0)
    """
    kind = projections.get("type")
    if kind not in (*_FLAT, *_SPATIAL):
        raise GeometryError(f"ASTRA's type '{kind}' is not known; there are {', '.join((*_FLAT, *_SPATIAL))}")
    if (kind in _FLAT) == ("GridSliceCount" in grid):
        raise GeometryError(
            f"type '{kind}' and a grid {'with' if kind in _FLAT else 'without'} slices do not go together; "
            "give both dictionaries of a slice, or both of a volume"
        )
    volume, origin = _grid(grid, unit_mm)
    rays = _flat_rays(projections) if kind in _FLAT else _spatial_rays(projections)
    return volume, recognise_beam(_scaled(rays, unit_mm, origin), flat=kind in _FLAT)


def _grid(grid: Mapping[str, Any], unit_mm: float) -> tuple[VolumeGeometry, Array]:
    """The grid, and the position of its middle in the frame of the rays, (3,) in mm, y against the row."""
    shape = (grid.get("GridSliceCount", 1), grid["GridRowCount"], grid["GridColCount"])
    window = [
        [grid["option"].get(f"Window{end}{axis}", 0.0) * unit_mm for end in ("Min", "Max")] for axis in "ZYX"
    ]
    spacing = [(high - low) / n for (low, high), n in zip(window, shape, strict=True)]
    z, y, x = ((low + high) / 2 for low, high in window)
    if "GridSliceCount" not in grid:
        spacing[0] = spacing[2]  # a slice has no thickness of its own
        return VolumeGeometry(shape, (spacing[0], spacing[1], spacing[2])), np.array([x, y, 0.0])
    return VolumeGeometry(shape, (spacing[0], spacing[1], spacing[2])), np.array([x, -y, z])


def _flat_rays(projections: Mapping[str, Any]) -> Rays:
    parallel = projections["type"].startswith("parallel")
    if "Vectors" in projections:
        table = np.asarray(projections["Vectors"], np.float64)
        source, centre, u = (np.pad(table[:, k : k + 2], ((0, 0), (0, 1))) for k in (0, 2, 4))
    else:
        source, centre, u = _turning(projections, projections["DetectorWidth"])
    up = np.tile([0.0, 0.0, 1.0], (len(u), 1))
    return Rays(source, centre, u, up, 1, projections["DetectorCount"], parallel)


def _turning(projections: Mapping[str, Any], pitch: float) -> tuple[Array, Array, Array]:
    """Source (or direction), detector and step of ASTRA's own orbits, each (views, 3)."""
    sine, cosine = np.sin(projections["ProjectionAngles"]), np.cos(projections["ProjectionAngles"])
    towards = np.stack([sine, -cosine, 0 * sine], 1)
    u = pitch * np.stack([cosine, sine, 0 * sine], 1)
    source = projections.get("DistanceOriginSource", 1.0) * towards
    return source, -projections.get("DistanceOriginDetector", 0.0) * towards, u


def _spatial_rays(projections: Mapping[str, Any]) -> Rays:
    kind, radius = projections["type"], 0.0
    if "Vectors" in projections:
        table = np.asarray(projections["Vectors"], np.float64)
        source, centre, u, v = (table[:, k : k + 3] for k in (0, 3, 6, 9))
        radius = float(table[0, 12]) if kind == "cyl_cone_vec" else 0.0
    else:
        source, centre, u = _turning(projections, projections["DetectorSpacingX"])
        v = np.tile([0.0, 0.0, projections["DetectorSpacingY"]], (len(u), 1))
    rows, bins = projections["DetectorRowCount"], projections["DetectorColCount"]
    source, centre, u, v = (a * [1.0, -1.0, 1.0] for a in (source, centre, u, v))
    return Rays(source, centre, u, v, rows, bins, kind.startswith("parallel"), radius)


def _scaled(rays: Rays, unit_mm: float, origin: Array) -> Rays:
    source = rays.source / np.linalg.norm(rays.source, axis=1, keepdims=True)
    if not rays.parallel:
        source = rays.source * unit_mm - origin
    # The step between the rows of a beam in a slice is a placeholder of 1 mm.
    flat = rays.rows == 1 and bool((rays.v == [0.0, 0.0, 1.0]).all())
    v = rays.v if flat else rays.v * unit_mm
    centre = rays.centre * unit_mm - origin
    return Rays(
        source, centre, rays.u * unit_mm, v, rays.rows, rays.bins, rays.parallel, rays.radius * unit_mm
    )
