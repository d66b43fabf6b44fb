"""Runs on the projections of a panel: a cone's own rays, and FDK of all views in place of a truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.dicom import read_series
from ctflow.errors import GeometryError, UsageError
from ctflow.geometry import ConeBeam, VectorBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.rawdata import read_scan, write_rtk
from ctflow.recon import CGLS
from ctflow.runs import run as pipeline
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.scan import Scan
from ctflow.solving import solve
from ctflow.units import MU_WATER

CONE = Protocol.parse(
    "cone",
    """# Every other view of a cone.
geometry = { name = "cone-beam", angles = 24 }
noise = { name = "poisson", photons = 1e7 }
method = { name = "cgls", iterations = 25 }
reference = { name = "fdk", filter = "hann" }
""",
)
NEAR = {"source_axis": 400.0, "source_detector": 700.0}
BEAM = ConeBeam(48, 30, 14.0, rows=14, row_pitch=14.0, **NEAR)
GRID = VolumeGeometry((1, 8, 8), (1.0, 1.0, 1.0))
# It goes on beyond the panel, at the top more than at the bottom; one ball marks left, front and head.
PATIENT = Phantom(
    (
        Ellipsoid((0.0, 0.0, 20.0), (75.0, 65.0, 300.0), MU_WATER),
        Ellipsoid((35.0, 20.0, 15.0), (16.0, 16.0, 16.0), 0.4 * MU_WATER),
    )
)


def measured(beam, folder, phantom=PATIENT):
    """A folder of RTK's files."""
    return write_rtk(Scan(phantom.line_integrals(GRID, beam, 2), beam, "synthetic"), folder / "rtk")


def places(grid):
    """x, y and z of every voxel, mm, in the frame of rays."""
    z, y, x = ((torch.arange(n) - (n - 1) / 2) * d for n, d in zip(grid.shape, grid.spacing, strict=True))
    return x[None, None], -y[None, :, None], z[:, None, None]


def inside(grid, part, shrunk=0.7):
    x, y, z = (place - centre for place, centre in zip(places(grid), part.centre, strict=True))
    a, b, c = (axis * shrunk for axis in part.axes)
    return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 <= 1


def test_a_panel_from_files_to_dicom_series(tmp_path):
    report = pipeline.run(CONE, measured(BEAM, tmp_path), tmp_path / "out")
    assert list(report.volumes) == ["FDK of all views", "fdk", "cgls"]
    assert "errors are differences from the FDK of all views" in report.figures["warnings"][0]
    assert "24 views" in report.figures["measurement"]  # every other one
    assert any(
        "every view sees 10 slices from rim to rim; 4 beyond" in text for text in report.figures["warnings"]
    )
    assert report.figures["provenance"]["input_sha256"]
    volume = report.volumes["cgls"]
    grid = volume.geometry
    # Cubes as fine as bins at the axis, 8 mm, over what all views see; the near rim limits the height.
    fov = BEAM.field_of_view()
    assert grid.spacing == pytest.approx((fov / grid.shape[1],) * 3, rel=1e-3)
    assert grid.extent[0] == pytest.approx(2 * 7 * 14.0 * (400 - fov / 2) / 700, abs=grid.spacing[0])
    water = inside(grid, PATIENT.ellipsoids[0]) & ~inside(grid, PATIENT.ellipsoids[1], 1.4)
    ball = inside(grid, PATIENT.ellipsoids[1], 0.6)
    for name in ("FDK of all views", "fdk", "cgls"):
        hu = report.volumes[name].data
        # A calibrated scanner holds 5 HU; measured 4. Cubes of 8 mm blur a ball of 16 mm, or overshoot by 80.
        assert abs(float(hu[water].mean())) < 10, name
        assert float(hu[ball].mean()) == pytest.approx(400, abs=100), name
    # The object goes on: measured -30, 0, 3 and -27 HU, where without the slices beyond they are 602, -280,
    # -280 and 625. What is left are rays of few views through those.
    ends = torch.stack([volume.data[k][water[k]].mean() for k in (0, 1, -2, -1)])
    assert float(ends.abs().max()) < 40
    back = read_series(tmp_path / "out" / "cgls")
    assert back.geometry.shape == grid.shape
    assert float((back.data - volume.data)[back.mask].abs().max()) <= 0.5
    assert back.geometry.spacing == pytest.approx(grid.spacing, rel=1e-5)


def test_chosen_slices_are_those_of_the_whole(tmp_path):
    path = measured(BEAM, tmp_path)
    whole, part = prepare(CONE, path), prepare(CONE, path, slices=(2, 5))
    assert prepare(CONE, path, slices=(7, None)).range == "7:10"
    assert part.A.domain_shape == whole.A.domain_shape
    assert part.range == "2:5"
    torch.testing.assert_close(part.truth.data, whole.truth.data[2:5])
    assert part.truth.geometry == whole.grid.slices(2, 5)
    torch.testing.assert_close(part.unknown.chosen(part.x, 3), part.mu.data)
    assert whole.problem(0).y.shape == (1, 14, 24, 30)
    assert part.solves == 1


def test_a_displaced_panel_is_found_in_its_data(tmp_path):
    half = ConeBeam(48, 22, 14.0, shift_bins=7.0, rows=14, row_pitch=14.0, displaced=True, **NEAR)
    path = measured(half, tmp_path)
    scan = read_scan(path)
    assert scan.beam.displaced
    assert "sees one side of the object and 32.0 mm beyond the axis" in scan.notes[0]  # (11 - 7) · 14 · 4 / 7
    report = pipeline.run(CONE, path)
    grid = report.volumes["cgls"].geometry
    assert grid.fov == pytest.approx(half.field_of_view(), rel=1e-3)
    water = inside(grid, PATIENT.ellipsoids[0]) & ~inside(grid, PATIENT.ellipsoids[1], 1.4)
    for name, volume in report.volumes.items():
        assert abs(float(volume.data[water].mean())) < 20, name


def test_a_panel_that_is_merely_shifted_is_not_displaced(tmp_path):
    shifted = replace(BEAM, bins=40, shift_bins=4.0)  # air on both sides
    assert not read_scan(measured(shifted, tmp_path)).beam.displaced


def test_an_orbit_that_is_no_circle_is_refused_with_what_to_do(tmp_path):
    rays = BEAM.rays()
    lifted = rays.centre + np.array([0, 0, 3.0])
    table = np.concatenate([rays.source, lifted, rays.u, rays.v], 1)
    ball = Ellipsoid((20.0, -10.0, 5.0), (24.0, 24.0, 24.0), MU_WATER)
    path = measured(VectorBeam(tuple(map(tuple, table)), 30, 14), tmp_path, Phantom((ball,)))
    with pytest.raises(
        GeometryError,
        match=r"none for a VectorBeam, rays given view by view.*; reconstruct these data from Python",
    ):
        prepare(CONE, path)
    scan = read_scan(path)
    problem = InverseProblem(Radon(scan.image_grid(), scan.beam), scan.y, Gaussian(0.01))
    x = solve(problem, CGLS(iterations=20)).mean
    # Edges of 8 mm cubes overshoot by some per cent.
    assert float(x[inside(scan.image_grid(), ball, 0.6)].mean()) == pytest.approx(MU_WATER, rel=0.1)


def test_arcs_without_fdk_are_refused_before_anything_is_computed(tmp_path):
    short = replace(BEAM, angles=tuple(math.radians(4 * k) for k in range(48)))
    with pytest.raises(GeometryError, match=r"needs views over 2\d\d\.\d° .* given 192\.0°"):
        prepare(CONE, measured(short, tmp_path))


def test_a_protocol_of_a_short_scan_keeps_the_views_of_its_arc(tmp_path):
    path = measured(BEAM, tmp_path)
    kept = prepare(CONE.override(["geometry.arc_degrees=240", "geometry.angles=1000"]), path).kept
    assert len(kept.beam.views) == 33  # 0 to 240° in steps of 7.5°


def test_a_panel_of_few_rows_is_refused(tmp_path):
    with pytest.raises(GeometryError, match="1 of them were given, or are seen by all views"):
        prepare(CONE, measured(replace(BEAM, rows=2), tmp_path))
    with pytest.raises(UsageError, match="one geometry of RTK"):
        read_scan(two_geometries(tmp_path / "rtk"))


def two_geometries(folder):
    (folder / "again.xml").write_text((folder / "geometry.xml").read_text())
    return folder
