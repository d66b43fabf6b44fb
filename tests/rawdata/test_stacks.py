"""Panels from a stack of images or an array with a geometry file: order, fields, grid, refusals."""

import h5py
import numpy as np
import pytest
import tifffile
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import CTFlowError, GeometryError
from ctflow.geometry import ConeBeam, VolumeGeometry
from ctflow.rawdata import read_scan
from ctflow.scan import Scan

BEAM = ConeBeam(12, 20, 4.0, rows=9, row_pitch=5.0, source_axis=300.0, source_detector=500.0)
GRID = VolumeGeometry((4, 16, 16), (2.0, 2.0, 2.0))
BALL = Phantom((Ellipsoid((4.0, -3.0, 5.0), (12.0, 9.0, 7.0), 0.02),))
GEOMETRY = """units = { length = "mm", angle = "degrees" }
data = "views"
values = "counts"
flat = "flats/*.tif"
dark = "dark.tif"
geometry = { name = "cone-beam", pitch = 4.0, row_pitch = 5.0, source_axis = 300.0, source_detector = 500.0 }
"""


@pytest.fixture
def stack(tmp_path):
    """Counts of twelve views as TIFFs of 16 bits, two flats whose mean is the beam, and a dark field."""
    for folder in ("views", "flats"):
        (tmp_path / folder).mkdir()
    uneven = np.linspace(3e4, 5e4, 180).round().reshape(9, 20)
    y = BALL.line_integrals(GRID, BEAM).numpy()
    for view in range(12):  # view10 is not between view1 and view2
        counts = np.rint(100 + (uneven - 100.0) * np.exp(-y[:, view])).astype(np.uint16)
        tifffile.imwrite(tmp_path / "views" / f"view{view}.tif", counts)
    for sign in (-1, 1):
        tifffile.imwrite(tmp_path / "flats" / f"flat{sign}.tif", (uneven + sign * 500).astype(np.uint16))
    tifffile.imwrite(tmp_path / "dark.tif", np.full((9, 20), 100, np.uint16))
    (tmp_path / "scan.toml").write_text(GEOMETRY)
    return tmp_path / "scan.toml"


@pytest.mark.parametrize("data", ["views", "views/view*.tif"])
def test_a_stack_of_images_is_a_panel_view_by_view(stack, data):
    stack.write_text(GEOMETRY.replace('"views"', f'"{data}"'))
    scan = read_scan(stack)
    assert scan.beam == BEAM
    # Counts are rounded to whole ones of at least 18,000: half of one is 3e-5 of them.
    torch.testing.assert_close(scan.y, BALL.line_integrals(GRID, BEAM), rtol=0, atol=4e-5)


def test_rows_from_the_top_are_turned(stack):
    upright = read_scan(stack).y
    stack.write_text(GEOMETRY.replace("data =", 'axes = "views -rows bins"\ndata ='))
    assert torch.equal(read_scan(stack).y, upright.flip(0))  # after the fields, which lie as the counts do
    y = BALL.line_integrals(GRID, BEAM)
    np.save(stack.with_name("y.npy"), y.flip(0, 2).permute(1, 0, 2).numpy())
    plain = "".join(line + "\n" for line in GEOMETRY.splitlines() if line[:4] in ("unit", "geom"))
    stack.write_text(plain + 'data = "y.npy"\naxes = "views -rows -bins"\n')
    assert torch.equal(read_scan(stack).y, y)


def test_an_array_of_hdf5_is_a_panel_too(stack):
    y = BALL.line_integrals(GRID, BEAM)
    with h5py.File(stack.with_suffix(".h5"), "w") as opened:
        opened["entry/data"] = y.permute(1, 0, 2).numpy()
    plain = "".join(line + "\n" for line in GEOMETRY.splitlines() if line[:4] in ("unit", "geom"))
    stack.write_text(plain + 'data = "scan.h5"\nimage = { pixels = 20, pixel_mm = 1.5 }\n')
    scan = read_scan(stack)
    assert torch.equal(scan.y, y)
    # The near rim is 285 mm from the source: 22.5 mm of panel above the middle are 12.825 mm there.
    assert scan.grid == VolumeGeometry((17, 20, 20), (1.5, 1.5, 1.5))


def test_a_grid_of_its_own_is_as_fine_as_the_bins_and_as_high_as_every_view_sees(stack):
    grid = read_scan(stack).image_grid()
    fov = BEAM.field_of_view()
    assert grid.shape[1] == pytest.approx(fov / (4.0 * 300 / 500), abs=1)
    assert len(set(np.round(grid.spacing, 9))) == 1
    seen = 2 * 22.5 * (300 - fov / 2) / 500
    assert seen - grid.spacing[0] <= grid.extent[0] <= seen
    assert max(read_scan(stack).image_grid(largest=9).shape) == 9


def test_a_panel_that_misses_the_axis_is_refused_with_figures():
    away = ConeBeam(
        12, 20, 4.0, shift_bins=30.0, rows=9, row_pitch=5.0, source_axis=300.0, source_detector=500.0
    )
    with pytest.raises(GeometryError, match=r"see 0\.0 mm around the axis"):
        Scan(torch.zeros(9, 12, 20), away, "synthetic").image_grid()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"views"', '"flats/none*.tif"'), "no image of a view"),
        (('"views"', '"*.t*"'), "put other files elsewhere|none, or truncated"),
        (("row_pitch = 5.0, ", ""), "row_pitch"),
        (("data =", 'axes = "views -bins"\ndata ='), "does not name the 3 axes"),
        (("source_axis", "rows = 8, source_axis"), "geometry has 8 rows"),
        (("data =", "image = { pixels = 64, pixel_mm = 9.0 }\ndata ="), "less than one slice"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(stack, change, says):
    stack.write_text(GEOMETRY.replace(*change))
    with pytest.raises(CTFlowError, match=says):
        read_scan(stack)


def test_a_view_that_is_missing_is_said(stack):
    assert read_scan(stack).notes == ()
    (stack.parent / "views" / "view5.tif").unlink()
    (note,) = read_scan(stack).notes
    assert "go up by 1 to 2" in note


def test_counts_that_no_photon_made_are_said(stack):
    file = stack.parent / "views" / "view5.tif"
    counts = tifffile.imread(file)
    counts[0, 10:12] = (0, 100)
    tifffile.imwrite(file, counts)
    (note,) = read_scan(stack).notes
    assert note.startswith("2 counts are not above the dark field")


def test_a_field_of_another_panel_is_refused(stack):
    tifffile.imwrite(stack.with_name("dark.tif"), np.full((9, 19), 100, np.uint16))
    with pytest.raises(CTFlowError, match=r"dark is \(9, 19\) and a view has 9 rows of 20 bins"):
        read_scan(stack)


def test_an_image_of_another_shape_is_named_by_its_place(stack):
    tifffile.imwrite(stack.parent / "views" / "view3.tif", np.ones((9, 21), np.uint16))
    with pytest.raises(CTFlowError, match=r"image 4 of 12 has \(9, 21\)") as caught:
        read_scan(stack)
    assert "view3" not in str(caught.value)
