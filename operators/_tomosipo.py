"""Convert geometries from and to tomosipo, which no other module imports."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ctflow.errors import GeometryError
from ctflow.geometry import (
    Beam,
    ConeBeam,
    FanBeam,
    ParallelBeam,
    ParallelBeam3D,
    VolumeGeometry,
    from_astra,
    to_astra,
)
from ctflow.system.optional import optional_library


def from_tomosipo(projections: Any, grid: Any, unit_mm: float = 1.0) -> tuple[VolumeGeometry, Beam]:
    """Convert two of tomosipo's objects to a geometry; projections and images keep their order.

    tomosipo's axes are (Z, Y, X) and (rows, views, bins), as ours.

    Args:
        projections: a parallel or cone geometry, by angles or by vectors.
        grid: a volume geometry whose axes are those of the frame.
        unit_mm: length in mm of the unit of the objects.

    Raises:
        GeometryError: an object is not such a geometry.
    """
    if not (hasattr(projections, "to_vec") and hasattr(grid, "to_astra")):
        raise GeometryError(
            f"tomosipo's projection and volume geometries are expected and {type(projections).__name__} and "
            f"{type(grid).__name__} were given; give ts.parallel(...) or ts.cone(...) first, "
            "then ts.volume(...)"
        )
    return from_astra(projections.to_vec().to_astra(), grid.to_astra(), unit_mm)


def to_tomosipo(volume: VolumeGeometry, beam: Beam) -> tuple[Any, Any]:
    """Convert a geometry to tomosipo's objects, lengths in mm; projections and images keep their order.

    tomosipo has no beams in slices: a parallel beam becomes a panel with one row per slice, a fan through a
    single slice a cone with one row.

    Args:
        volume: grid with square pixels.
        beam: parallel, fan or cone beam with a flat detector.

    Returns:
        The projection geometry and the volume geometry.

    Raises:
        BackendError: tomosipo is not installed.
        GeometryError: tomosipo has no such geometry.
    """
    projections, grid = to_astra(volume, _with_rows(volume, beam.fitted(volume)))
    if projections["type"] not in ("parallel3d_vec", "cone_vec"):
        raise GeometryError("tomosipo has flat detectors only and a curved one was given; give curved=False")
    with optional_library("tomosipo", "pip install git+https://github.com/ahendriksen/tomosipo"):
        import tomosipo  # pyright: ignore[reportMissingImports] (it need not be here)
    return tomosipo.from_astra(projections), tomosipo.from_astra(grid)


def _with_rows(volume: VolumeGeometry, beam: Beam) -> Beam:
    """The same rays as those of a panel."""
    if not beam.flat:
        return beam
    height = volume.spacing[0] * beam.magnification()
    if isinstance(beam, ParallelBeam):
        return ParallelBeam3D(**_fields(beam), rows=volume.shape[0], row_pitch=height)
    if isinstance(beam, FanBeam) and volume.shape[0] == 1:
        return ConeBeam(**_fields(beam), rows=1, row_pitch=height)
    raise GeometryError(
        f"tomosipo measures volumes and a {type(beam).__name__} measures {volume.shape[0]} slices one by "
        "one; convert volume.slices(k, k + 1), or a ConeBeam"
    )


def _fields(beam: ParallelBeam | FanBeam) -> dict[str, Any]:
    return {field.name: getattr(beam, field.name) for field in fields(beam)}
