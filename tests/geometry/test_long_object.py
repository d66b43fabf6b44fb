"""How far rays climb inside an object that goes on, and which slices every view sees."""

import math

import numpy as np
import pytest

from ctflow.geometry import ConeBeam, HelicalBeam, ParallelBeam3D, VectorBeam, VolumeGeometry
from ctflow.geometry._long_object import directions_of_slices, reach, seen_height, views_of_slices

GRID = VolumeGeometry((10, 32, 32), (4.0, 5.0, 5.0))
GANTRY = {"source_axis": 500.0, "source_detector": 800.0}


def as_vectors(beam):
    rays = beam.fitted(GRID).rays()
    return np.concatenate([rays.source, rays.centre, rays.u, rays.v], 1)


@pytest.mark.parametrize("radius", [40.0, 80.0])
def test_a_cone_climbs_to_the_far_side_in_proportion_to_the_distance(radius):
    beam = ConeBeam(30, rows=21, row_pitch=4.0, bins=401, pitch=1.0, **GANTRY).fitted(GRID)
    # The outermost rows lie 10 pitches from the middle; the central bin's ray leaves at the far rim.
    assert reach(beam, radius) == pytest.approx(40.0 * (500 + radius) / 800, rel=1e-6)


@pytest.mark.parametrize("curved", [False, True])
def test_a_rim_is_seen_in_proportion_to_its_distance_from_the_source(curved):
    beam = ConeBeam(64, rows=21, row_pitch=4.0, bins=401, pitch=1.0, height=12.0, curved=curved, **GANTRY)
    # 42 mm of the panel above the plane of the source, seen at the near rim. 64 views hit it exactly.
    assert seen_height(beam.fitted(GRID), 80.0) == pytest.approx(42.0 * 420 / 800, rel=1e-9)
    assert seen_height(VectorBeam(as_vectors(beam), 401, 21, radius=800.0 * curved), 80.0) == pytest.approx(
        42.0 * 420 / 800, rel=1e-9
    )


def test_parallel_rays_do_not_climb():
    beam = ParallelBeam3D(8, rows=14, row_pitch=3.0).fitted(GRID)
    assert reach(beam, 80.0) == pytest.approx(6.5 * 3.0)


def test_a_helix_reaches_beyond_its_ends():
    beam = HelicalBeam(36, feed=30.0, rows=21, row_pitch=4.0, curved=False, bins=401, pitch=1.0, **GANTRY)
    fitted = beam.fitted(GRID)
    assert reach(fitted, 80.0) == pytest.approx(max(fitted.heights()) + 40.0 * 580 / 800, rel=1e-3)


def test_views_see_a_slice_until_its_near_rim_leaves_the_panel():
    beam = ConeBeam(48, rows=21, row_pitch=4.0, height=12.0, **GANTRY).fitted(GRID)
    # From the source the near rim, 420 mm away, is seen up to 42 mm of panel: 42 · 420 / 800 = 22.05 mm.
    heights = (np.arange(10) - 4.5) * 4.0
    share = views_of_slices(beam, GRID)
    assert (share[np.abs(heights) < 22.05] == 1).all()
    low = ConeBeam(48, rows=9, row_pitch=4.0, height=12.0, **GANTRY).fitted(GRID)
    share = views_of_slices(low, GRID)
    assert (share[np.abs(heights) < 18 * 420 / 800] == 1).all()
    assert (share[np.abs(heights) > 18 * 420 / 800] < 1).all()
    assert (share[np.abs(heights) > 18 * 580 / 800] == 0).all()


def test_extended_slices_keep_their_place():
    more = GRID.extended(3)
    assert more.shape == (16, 32, 32)
    assert more.slices(3, 13) == GRID
    assert math.isclose(more.affine[2][3], GRID.affine[2][3] - 12.0)


def test_a_helix_sees_the_axis_in_all_directions_while_it_climbs_the_panel_in_half_a_turn():
    """On the axis a source turns by half a turn within rows · pitch · 500 / 800 = 2 · feed / 4."""
    middle = VolumeGeometry((1, 2, 2), (4.0, 1e-3, 1e-3))
    for rows, expected in ((20, 0.5), (40, 1.0), (44, 1.0)):
        beam = HelicalBeam(
            720,
            feed=100.0,
            arc_degrees=1440.0,
            rows=rows,
            row_pitch=2.0,
            bins=401,
            pitch=1.0,
            height=4.0,
            **GANTRY,
        )
        (share,) = directions_of_slices(beam.fitted(middle), middle)
        assert share == pytest.approx(expected, abs=0.02)
