"""Geometries from and to tomosipo, where it is importable; what it cannot hold is refused everywhere."""

import numpy as np
import pytest

from ctflow.errors import GeometryError
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, ParallelBeam, ParallelBeam3D, VolumeGeometry
from ctflow.operators._tomosipo import from_tomosipo, to_tomosipo

VOLUME = VolumeGeometry((5, 40, 48), (2.0, 1.6, 1.6))
NEAR = {"source_axis": 200.0, "source_detector": 320.0}


def same_rays(one, other):
    for view in range(len(one.views)):
        np.testing.assert_allclose(one.rays().points(view), other.rays().points(view), rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.rays().source, other.rays().source, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "beam",
    [
        ParallelBeam3D(7, shift_bins=1.5),
        ConeBeam(7, axis_offset=3.0, **NEAR),
        HelicalBeam(7, curved=False, **NEAR),
    ],
)
def test_there_and_back_is_the_same_beam(beam):
    pytest.importorskip("tomosipo", reason="tomosipo is not installed", exc_type=ImportError)
    volume, back = from_tomosipo(*to_tomosipo(VOLUME, beam))
    assert volume.shape == VOLUME.shape
    assert volume.spacing == pytest.approx(VOLUME.spacing)
    assert type(back) is type(beam)
    same_rays(beam.fitted(VOLUME), back)


def test_a_stack_of_slices_is_a_panel():
    pytest.importorskip("tomosipo", reason="tomosipo is not installed", exc_type=ImportError)
    stack = ParallelBeam(7, shift_bins=1.5).fitted(VOLUME)
    _, back = from_tomosipo(*to_tomosipo(VOLUME, stack))
    assert isinstance(back, ParallelBeam3D)
    assert (back.rows, back.row_pitch) == pytest.approx((5, 2.0))
    assert back.data_shape(VOLUME) == stack.data_shape(VOLUME)


def test_tomosipos_own_geometry_is_read():
    ts = pytest.importorskip("tomosipo", reason="tomosipo is not installed", exc_type=ImportError)
    grid = ts.volume(shape=(5, 40, 48), size=(10.0, 64.0, 76.8))
    parallel = ts.parallel(angles=np.linspace(0, 3, 6), shape=(9, 70), size=(18.0, 140.0))
    volume, beam = from_tomosipo(parallel, grid)
    assert volume.spacing == pytest.approx((2.0, 1.6, 1.6))
    assert isinstance(beam, ParallelBeam3D)
    # Angle by angle, a view is its detector's corners: tomosipo's (z, y, x) with y along the rows.
    corners = parallel.to_vec().det_pos + 4 * parallel.to_vec().det_v + 34.5 * parallel.to_vec().det_u
    for view in range(6):
        z, y, x = corners[view]
        np.testing.assert_allclose(beam.rays().points(view)[8, 69], [x, -y, z], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("beam", "says"),
    [
        (FanBeam(7, **NEAR), "slices one by one"),
        (HelicalBeam(7, **NEAR), "reverse the rows"),
    ],
)
def test_what_tomosipo_cannot_hold_is_refused(beam, says):
    with pytest.raises(GeometryError, match=says):
        to_tomosipo(VOLUME, beam)


def test_other_objects_are_refused():
    with pytest.raises(GeometryError, match="dict and int were given"):
        from_tomosipo({}, 3)
