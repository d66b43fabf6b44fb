"""Projections of RTK: a geometry in XML and a stack of line integrals in a MetaImage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from ctflow.errors import GeometryError, UnitError, UsageError
from ctflow.geometry import Rays
from ctflow.geometry._recognition import recognise_beam
from ctflow.rawdata.metaimage import MetaImage, read_metaimage, write_metaimage
from ctflow.rawdata.rtk_geometry import Panel, rays_of, views_of
from ctflow.rawdata.rtk_xml import ROOT, geometry_text, parse_geometry
from ctflow.scan import Scan
from ctflow.system.files import check_target, whole_folder
from ctflow.system.handwritten import read_text

ENDINGS = (".mha", ".mhd")
_START = 512  # bytes of an XML file in which its outermost element begins


def is_rtk(path: Path) -> bool:
    """Whether a path is an XML file with a geometry of RTK, or a folder with one."""
    return bool(_geometries(path))


def _geometries(path: Path) -> list[Path]:
    files = sorted(path.glob("*.xml")) if path.is_dir() else [path] if path.suffix.lower() == ".xml" else []
    return [file for file in files if file.is_file() and ROOT.encode() in _start(file)]


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_START)


def read_rtk(path: Path) -> Scan:
    """Read projections of RTK: a folder, or its XML file, with the projections beside it.

    The projections are the .mha or .mhd file of the XML file's name, else the only one in the folder. A
    circle with constant distances becomes a `ConeBeam`; every other orbit, with in-plane and out-of-plane
    angles or offsets that change, a `VectorBeam`.

    Returns:
        Line integrals (rows, views, bins), dimensionless, rays in mm and rad. Slices are axial for a patient
        on the back, head first, if the axes of RTK are those of IEC 61217; bins run against RTK's.

    Raises:
        UsageError: the files are not one geometry and its projections, or hold something unknown.
        UnreadableError: a file is damaged.
        GeometryError: the geometry is impossible, or has another number of views.
        UnitError: the projections are counts.
    """
    found = _geometries(path)
    if len(found) != 1:
        raise UsageError(
            f"one geometry of RTK in XML was expected and there are {len(found)}; give its .xml file itself"
        )
    views, radius = parse_geometry(read_text(found[0], "RTK's geometry", UsageError))
    image = read_metaimage(_projections(found[0]))
    if image.data.dtype.kind != "f":
        raise UnitError(
            f"the projections are whole numbers ({image.data.dtype.name}), like counts, and line integrals "
            "are expected; write -log(counts / flat) as MET_FLOAT (rtkprojections does), or describe the "
            'counts by a geometry file with values = "counts"'
        )
    number, rows, bins = image.data.shape
    if number != len(views):
        raise GeometryError(
            f"RTK's geometry has {len(views)} views and there are {number} projections; give those that "
            "belong together"
        )
    # Bins are reversed, as `rays_of` has them.
    y = torch.from_numpy(np.ascontiguousarray(image.data[:, :, ::-1].transpose(1, 0, 2), np.float32))
    panel = Panel((image.origin[0], image.origin[1]), (image.spacing[0], image.spacing[1]), bins, rows)
    rays = rays_of(views, radius, panel)
    return Scan(y, recognise_beam(rays, flat=False), "RTK", sha256=_sha256(y.numpy(), rays))


def _projections(geometry: Path) -> Path:
    named = [file for ending in ENDINGS if (file := geometry.with_suffix(ending)).is_file()]
    found = named or [file for ending in ENDINGS for file in geometry.parent.glob(f"*{ending}")]
    if len(found) != 1:
        raise UsageError(
            f"one file of projections (.mha or .mhd) was expected beside RTK's geometry and there are "
            f"{len(found)}; put one there, with the name of the .xml file"
        )
    return found[0]


def _sha256(y: np.ndarray, rays: Rays) -> str:
    parts = (y, rays.source, rays.centre, rays.u, rays.v)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def write_rtk(scan: Scan, path: str | Path) -> Path:
    """Write projections for RTK: geometry.xml and projections.mha, which `read_scan` reads back.

    Args:
        scan: line integrals (rows, views, bins), dimensionless, of a beam from a point source, in mm.
        path: folder to make; it appears once it is complete.

    Returns:
        The folder.

    Raises:
        OutputError: the folder exists already, or cannot be written.
        GeometryError: RTK has no parameters for such a beam.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((4, 8, 8), (4.0, 4.0, 4.0))  # (Z, Y, X), mm
        >>> A = ct.Radon(grid, ct.ConeBeam(angles=12, source_axis=1000.0, source_detector=1500.0))
        >>> scan = ct.Scan(A(torch.full(grid.shape, 0.02)), A.beam, kind="a block of water")
        >>> folder = ct.write_rtk(scan, "rtk")
        >>> sorted(file.name for file in folder.iterdir())
        ['geometry.xml', 'projections.mha']
        >>> ct.read_scan(folder).y.equal(scan.y)
        True
    """
    target = Path(path)
    check_target(target)
    if scan.beam.flat:
        raise GeometryError(
            f"RTK projects volumes and a {type(scan.beam).__name__} measures slices; give a ConeBeam of one "
            "row"
        )
    rays = scan.beam.rays()
    views, panel = views_of(rays)
    stack = scan.y.cpu().numpy().transpose(1, 0, 2)[:, :, ::-1]
    image = MetaImage(stack, (*panel.origin, 0.0), (*panel.spacing, 1.0))
    with whole_folder(target) as folder:
        (folder / "geometry.xml").write_text(geometry_text(views, rays.radius), encoding="ascii")
        write_metaimage(image, folder / "projections.mha")
    return target
