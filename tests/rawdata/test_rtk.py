"""RTK's projections: its own numbers through the rays that are read, round trips, and what is refused."""

import math
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import CTFlowError, GeometryError, UnitError, UnreadableError, UsageError
from ctflow.geometry import ConeBeam, ParallelBeam3D, VectorBeam, VolumeGeometry
from ctflow.rawdata import holds_scan, read_scan, write_rtk
from ctflow.rawdata.metaimage import read_metaimage
from ctflow.rawdata.rtk import read_rtk
from ctflow.scan import Scan

RTK = Path(__file__).with_name("rtk_projections")  # written by RTK itself, see its make.py
GRID = VolumeGeometry((20, 20, 20), (1.0, 1.0, 1.0))
# Those of make.py, whose (x, y, z) are (x, z, y) here.
ELLIPSOIDS = Phantom(
    (
        Ellipsoid((12.0, 20.0, -9.0), (30.0, 26.0, 22.0), 0.019),
        Ellipsoid((-20.0, -16.0, 14.0), (14.0, 9.0, 11.0), 0.011),
    )
)
CONE = ConeBeam(
    5,
    12,
    11.0,
    shift_bins=0.3,
    axis_offset=2.5,
    source_axis=600.0,
    source_detector=1000.0,
    rows=6,
    row_pitch=9.0,
)


@pytest.fixture
def written(tmp_path):
    """A folder of ours with a cone of five views."""
    return write_rtk(Scan(ELLIPSOIDS.line_integrals(GRID, CONE), CONE, "synthetic"), tmp_path / "out")


def apart(a, b):
    """Largest distance of the rays' sources, centres and steps, mm."""
    return max(
        float(np.abs(getattr(a, name) - getattr(b, name)).max()) for name in ("source", "centre", "u", "v")
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("circular", ConeBeam), ("cylinder", ConeBeam), ("cylinder-off", VectorBeam), ("robotic", VectorBeam)],
)
def test_the_rays_that_are_read_measure_what_rtk_has_computed(name, kind):
    scan = read_rtk(RTK / f"{name}.xml")
    assert type(scan.beam) is kind
    exact = ELLIPSOIDS.line_integrals(GRID, scan.beam)
    # Both are computed in double precision and stored in single: rounding of values up to 1.2.
    torch.testing.assert_close(exact, scan.y, rtol=0, atol=2e-7)


def test_a_circle_is_a_cone_with_the_numbers_of_the_file():
    beam = read_rtk(RTK / "circular.xml").beam
    assert (beam.source_axis, beam.source_detector, beam.axis_offset) == pytest.approx((600.0, 1000.0, 1.25))
    assert (beam.bins, beam.rows, beam.pitch, beam.row_pitch) == pytest.approx((11, 7, 13.0, 15.0))
    # ProjectionOffsetX 3.5 and 2 of the origin, against a source at 1.25; bins run the other way.
    assert beam.shift_bins == pytest.approx(-(3.5 + 2.0 - 1.25) / 13.0)
    turned = np.degrees(np.array(beam.views) + np.radians([17 + 60 * k for k in range(6)]))
    np.testing.assert_allclose(turned % 360, 180)


def test_axes_are_those_of_a_patient_on_the_back_head_first():
    # IEC 61217: x grows to the patient's left, y to the head, z to the front; at 17° the source is in front
    # of the patient and to the left, and RTK's v grows to the head.
    rays = read_rtk(RTK / "circular.xml").beam.rays()
    source = [600 * math.sin(math.radians(17)) + 1.25 * math.cos(math.radians(17)), 0.0]
    source[1] = 600 * math.cos(math.radians(17)) - 1.25 * math.sin(math.radians(17))
    np.testing.assert_allclose(rays.source[0], [*source, 0.0], atol=1e-9)
    np.testing.assert_allclose(rays.v[0], [0.0, 0.0, 15.0], atol=1e-9)
    # In the frame of rays y runs against the rows, and rows run to the patient's back by the grid's affine.
    assert (np.array(GRID.affine)[:3, [2, 1, 0]].diagonal() == 1.0).all()


def test_what_is_written_is_read_back(written):
    assert holds_scan(written)
    assert holds_scan(written / "geometry.xml")
    scan = read_scan(written)
    assert torch.equal(scan.y, ELLIPSOIDS.line_integrals(GRID, CONE))
    for name in ("bins", "pitch", "rows", "row_pitch", "shift_bins", "axis_offset", "source_axis", "curved"):
        assert getattr(scan.beam, name) == pytest.approx(getattr(CONE, name), rel=1e-9), name
    np.testing.assert_allclose(np.exp(1j * np.array(scan.beam.views)), np.exp(1j * np.array(CONE.views)))
    assert scan.sha256 == read_scan(written).sha256


@pytest.mark.parametrize("name", ["circular", "cylinder", "cylinder-off", "robotic"])
def test_every_orbit_survives_a_round_trip(name, tmp_path):
    scan = read_rtk(RTK / f"{name}.xml")
    back = read_rtk(write_rtk(scan, tmp_path / "out"))
    assert torch.equal(back.y, scan.y)
    # Lengths are written to 1e-9 mm.
    assert apart(back.beam.rays(), scan.beam.rays()) < 1e-8


def test_an_arc_off_the_axis_has_the_same_rays_after_a_round_trip(tmp_path):
    beam = replace(CONE, curved=True)
    back = read_rtk(write_rtk(Scan(torch.zeros(6, 5, 12), beam, "synthetic"), tmp_path / "out"))
    assert apart(back.beam.rays(), beam.rays()) < 1e-8


def test_a_detector_that_faces_along_the_axis_survives(tmp_path):
    vector = (*(0.0, 0.0, 500.0), *(0.0, 0.0, -200.0), *(-2.0, 0.0, 0.0), *(0.0, 3.0, 0.0))
    beam = VectorBeam((vector,), bins=4, rows=3)
    with pytest.raises(GeometryError, match="reverse them"):
        write_rtk(Scan(torch.zeros(3, 1, 4), beam, "synthetic"), tmp_path / "out")
    beam = VectorBeam(((*vector[:6], 2.0, 0.0, 0.0, *vector[9:]),), bins=4, rows=3)
    back = read_rtk(write_rtk(Scan(torch.zeros(3, 1, 4), beam, "synthetic"), tmp_path / "out"))
    assert apart(back.beam.rays(), beam.rays()) < 1e-8


def test_values_hold_until_they_are_given_anew(written):
    file = written / "geometry.xml"
    first, *others = file.read_text().split("<Matrix>")  # none: there is nothing to compare with
    text = first + "".join(part.partition("</Matrix>")[2] for part in others)
    file.write_text(text.replace("</Projection>", "<InPlaneAngle>10</InPlaneAngle></Projection>", 1))
    steps = read_rtk(file).beam.rays().u
    assert np.allclose(steps[:, 2], steps[0, 2])
    assert abs(steps[0, 2]) == pytest.approx(11 * math.sin(math.radians(10)))


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        (
            "<SourceOffsetX>2.5</SourceOffsetX>",
            "<SourceOfsetX>1</SourceOfsetX>",
            UsageError,
            "'SourceOffsetX'",
        ),
        ("<SourceOffsetX>", '<SourceOffsetX unit="mm">', UsageError, "unknown attribute unit"),
        ("<GantryAngle>", "<GantryAngle><InPlaneAngle>0</InPlaneAngle>", UsageError, "<InPlaneAngle>"),
        ('version="3"', 'version="1"', UsageError, "version 1 and 2 or 3"),
        ("<SourceOffsetX>2.5", "<SourceOffsetX>2.6", GeometryError, "<Matrix>"),
        ("<SourceOffsetX>2.5", "<SourceOffsetX>wide", GeometryError, "1 finite numbers"),
        ("<SourceOffsetX>2.5", "<SourceOffsetX>nan", GeometryError, "1 finite numbers"),
        ("<SourceOffsetX>2.5", "<SourceOffsetX>1e300", GeometryError, "degrees at most are expected"),
        (
            "<SourceO",
            "<RadiusCylindricalDetector>-9</RadiusCylindricalDetector><SourceO",
            GeometryError,
            "radius",
        ),
        ("1000.0</SourceToD", "0</SourceToD", GeometryError, "parallel geometry"),
        ("600.0</SourceToI", "-1</SourceToI", GeometryError, "must be positive"),
        ("600.0</SourceToI", "0</SourceToI", GeometryError, "lacks SourceToIsocenterDistance"),
        ("600.0</SourceToI", "1600.0</SourceToI", GeometryError, "at least as large"),
        (
            "<SourceOffsetX>",
            "<CollimationUInf>30</CollimationUInf><SourceOffsetX>",
            GeometryError,
            "the jaws",
        ),
        ("</Projection>", "</Projektion>", UnreadableError, "damaged"),
        ("<!DOCTYPE RTKGEOMETRY>", '<!DOCTYPE R [<!ENTITY a "b">]>', UsageError, "entities"),
    ],
)
def test_a_geometry_with_anything_unknown_is_refused_by_name(written, old, new, error, says):
    file = written / "geometry.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(error, match=says):
        read_rtk(file)


def test_jaws_wider_than_the_detector_do_no_harm(written):
    # The detector of 132 mm is 79 mm at the axis, half of it and the shift on either side.
    file = written / "geometry.xml"
    file.write_text(
        file.read_text().replace("<SourceOffsetX>", "<CollimationUInf>45</CollimationUInf><SourceOffsetX>", 1)
    )
    assert torch.equal(read_rtk(file).y, ELLIPSOIDS.line_integrals(GRID, CONE))


def test_a_view_without_an_angle_of_its_own_is_refused(written):
    file = written / "geometry.xml"
    plain = re.sub(r"<Matrix>.*?</Matrix>", "", file.read_text(), flags=re.DOTALL)  # it would contradict
    file.write_text(re.sub(r"<GantryAngle>.*</GantryAngle>", "", plain, count=1))
    with pytest.raises(GeometryError, match=r"1 of \d+ <Projection> have no <GantryAngle>"):
        read_rtk(file)


def test_no_projection_is_refused(written):
    text = (written / "geometry.xml").read_text()
    (written / "geometry.xml").write_text(
        text[: text.index("  <Projection>")] + "</RTKThreeDCircularGeometry>"
    )
    with pytest.raises(GeometryError, match="no <Projection>"):
        read_rtk(written)


def test_counts_other_numbers_of_views_and_missing_files_are_refused(written):
    mha = written / "projections.mha"
    image = SimpleITK.ReadImage(mha)
    SimpleITK.WriteImage(SimpleITK.Cast(image * 1000, SimpleITK.sitkUInt16), mha)
    with pytest.raises(UnitError, match=r"uint16.*-log\(counts / flat\)"):
        read_rtk(written)
    SimpleITK.WriteImage(image[:, :, :4], mha)
    with pytest.raises(GeometryError, match="5 views and there are 4 projections"):
        read_rtk(written)
    SimpleITK.WriteImage(image, written / "other.mha")
    with pytest.raises(UsageError, match="there are 2"):
        read_rtk(written)
    SimpleITK.WriteImage(image, written / "geometry.mhd")  # the name decides
    assert read_rtk(written).y.shape == (6, 5, 12)
    for file in written.glob("*.mh*"):
        file.unlink()
    with pytest.raises(UsageError, match="there are 0"):
        read_rtk(written)
    (written / "again.xml").write_text((written / "geometry.xml").read_text())
    with pytest.raises(UsageError, match=r"give its \.xml file itself"):
        read_rtk(written)


def test_beams_that_rtk_does_not_have_are_refused(tmp_path):
    parallel = ParallelBeam3D(4, 8, 1.0, rows=3, row_pitch=1.0)
    with pytest.raises(GeometryError, match="point source"):
        write_rtk(Scan(torch.zeros(3, 4, 8), parallel, "synthetic"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [SimpleITK.sitkFloat32, SimpleITK.sitkFloat64, SimpleITK.sitkInt16])
@pytest.mark.parametrize(("ending", "packed"), [("mha", False), ("mha", True), ("mhd", False), ("mhd", True)])
def test_metaimages_of_itk(tmp_path, kind, ending, packed):
    values = (100 * np.random.default_rng(0).standard_normal((3, 4, 5))).astype(np.float32)
    image = SimpleITK.Cast(SimpleITK.GetImageFromArray(values), kind)
    image.SetOrigin((1.5, -2.25, 3.0))
    image.SetSpacing((0.5, 0.75, 2.0))
    SimpleITK.WriteImage(image, tmp_path / f"a.{ending}", packed)
    found = read_metaimage(tmp_path / f"a.{ending}")
    assert np.array_equal(found.data, SimpleITK.GetArrayFromImage(image))
    assert found.origin == (1.5, -2.25, 3.0)
    assert found.spacing == (0.5, 0.75, 2.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("DimSize = 12 6 5", "DimSize = 12 6 6", "cut short"),
        ("DimSize = 12 6 5", "DimSize = 12 6 99999999", "more than the file can hold"),
        ("DimSize = 12 6 5", "DimSize = 12 6", "3 numbers of DimSize"),
        ("MET_FLOAT", "MET_STRING", "MET_STRING"),
        ("ElementSpacing = 11.0", "ElementSpacing = 0", "spacing_along_bins must be positive"),
        ("Offset = -60.5", "Offset = 1e300", "correct the origin"),
        ("TransformMatrix = 1", "TransformMatrix = -1", "turned"),
        ("ElementDataFile = LOCAL", "ElementDataFile = ../secret", "one .mha file"),
        ("ElementDataFile = LOCAL", "ElementDataFile = a.raw", "not beside it"),
        ("ElementDataFile", "NoFile", "ends early"),
        ("CompressedData = False", "CompressedData = True", "damaged"),
    ],
)
def test_metaimages_that_lie_are_refused(written, old, new, says):
    file = written / "projections.mha"
    content = file.read_bytes()
    assert old.encode() in content
    file.write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises(CTFlowError, match=says):
        read_rtk(written)


def test_elekta_s_frames_are_read_as_the_documentation_says(tmp_path):
    """Its command and its code, in processes of their own: itk and SimpleITK collide in one."""
    program = shutil.which("rtkelektasynergygeometry", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("itk-rtk is not installed")
    counts = np.random.default_rng(0).integers(1000, 60000, (3, 24, 32), dtype=np.uint16)
    (tmp_path / "images").mkdir()
    frames = []
    for k, frame in enumerate(counts):
        header = struct.pack("<6H", 0x7000, 68, 100, 0, 0, 0) + struct.pack("<4H", 1, 1, 24, 32)
        header += struct.pack("<H", 1) + bytes(10) + struct.pack("<H", 4)
        file = tmp_path / "images" / f"{k:05}.his"
        file.write_bytes(header.ljust(68, b"\0") + frame.tobytes())
        frames.append(
            f"<Frame><Seq>{k + 1}</Seq><GantryAngle>{40 * k}</GantryAngle><UCentre>0</UCentre>"
            "<VCentre>0</VCentre><Inactive>False</Inactive><DeltaMS>180</DeltaMS></Frame>"
        )
    (tmp_path / "_Frames.xml").write_text(f"<ImageSet><Frames>{''.join(frames)}</Frames></ImageSet>")
    page = (Path(__file__).parents[2] / "docs/howto/measured-data.md").read_text(encoding="utf-8")
    code = page.split("```py\n")[1].split("```")[0]
    for command in ([program, "--xml", "_Frames.xml", "--output", "scan.xml"], [sys.executable, "-c", code]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    scan = read_scan(tmp_path / "scan.xml")
    assert len(scan.beam.views) == 3
    # RTK leaves out a rim of four pixels, takes values for what was held back, and x runs against the bins.
    passed = 65536 - counts[:, 4:-4, -5:3:-1].astype(float)
    np.testing.assert_allclose(scan.y, -np.log(passed / 65536).transpose(1, 0, 2), atol=1e-3)
