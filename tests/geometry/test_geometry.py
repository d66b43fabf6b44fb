"""Rays of every beam in closed form, fields of view, and refusals that say what would fit."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ctflow.errors import GeometryError
from ctflow.geometry import (
    ConeBeam,
    FanBeam,
    HelicalBeam,
    ParallelBeam,
    ParallelBeam3D,
    VectorBeam,
    VolumeGeometry,
)
from ctflow.registry import build

GRID = VolumeGeometry((6, 48, 48), (3.0, 2.0, 2.0))
NEAR = {"source_axis": 300.0, "source_detector": 500.0}
OFF = {"shift_bins": 2.25, "axis_offset": 7.0}
BEAMS = {
    "parallel": ParallelBeam(7, **OFF),
    "fan": FanBeam(7, **OFF, **NEAR),
    "curved fan": FanBeam(7, curved=True, **OFF, **NEAR),
    "panel": ParallelBeam3D(7, **OFF),
    "cone": ConeBeam(7, **OFF, **NEAR),
    "curved cone": ConeBeam(7, curved=True, **OFF, **NEAR),
    "helix": HelicalBeam(7, feed=20.0, **OFF, **NEAR),
    "flat helix": HelicalBeam(7, feed=-20.0, curved=False, **OFF, **NEAR),
}
EXACT = {"rtol": 0, "atol": 1e-9}  # mm, of hundreds, in float64


def as_vectors(beam):
    rays = beam.rays()
    table = np.concatenate([rays.source, rays.centre, rays.u, rays.v], 1)
    rows = None if beam.flat else rays.rows
    return VectorBeam(tuple(map(tuple, table)), rays.bins, rows, rays.parallel, rays.radius)


@pytest.mark.parametrize("name", BEAMS)
def test_points_on_a_ray_are_seen_by_its_bin(name):
    rays = BEAMS[name].fitted(GRID).rays()
    bins, rows = np.meshgrid(np.arange(rays.bins), np.arange(rays.rows))
    for view in range(7):
        points = rays.points(view)
        start = points if rays.parallel else rays.source[view]
        towards = rays.source[view] if rays.parallel else points - start
        found = rays.locate((start + 0.4 * towards).reshape(-1, 3))
        np.testing.assert_allclose(found[0][view], bins.ravel(), **EXACT)
        np.testing.assert_allclose(found[1][view], rows.ravel(), **EXACT)


def test_parallel_rays_measure_along_x_cos_plus_y_sin():
    beam = ParallelBeam([0.3, 2.0], bins=9, pitch=2.0, shift_bins=1.5, axis_offset=0.7)
    s = (np.arange(9) - 4 + 1.5) * 2.0 - 0.7
    for view, angle in enumerate(beam.views):
        x, y, z = beam.rays().points(view)[0].T
        np.testing.assert_allclose(x * math.cos(angle) + y * math.sin(angle), s, **EXACT)
        np.testing.assert_allclose(z, 0, **EXACT)


@pytest.mark.parametrize("curved", [False, True])
def test_fan_rays_leave_the_source_at_their_fan_angle(curved):
    beam = FanBeam([0.3, 2.0], bins=9, pitch=4.0, shift_bins=1.5, axis_offset=5.0, curved=curved, **NEAR)
    at = (np.arange(9) - 4 + 1.5) * 4.0
    gamma = at / 500.0 if curved else np.arctan(at / 500.0)
    rays = beam.rays()
    for view, angle in enumerate(beam.views):
        along = np.array([math.cos(angle), math.sin(angle), 0.0])
        ahead = np.array([-math.sin(angle), math.cos(angle), 0.0])
        np.testing.assert_allclose(rays.source[view], -300.0 * ahead - 5.0 * along, **EXACT)
        ray = rays.points(view)[0] - rays.source[view]
        np.testing.assert_allclose(np.arctan2(ray @ along, ray @ ahead), gamma, **EXACT)
    assert rays.fan_step == pytest.approx(4.0 / 500.0 if curved else 0.0)


def test_helix_climbs_by_its_feed():
    beam = HelicalBeam(36, arc_degrees=1080.0, feed=24.0, rows=8, row_pitch=5.0, **NEAR).fitted(GRID)
    z = beam.rays().source[:, 2]
    np.testing.assert_allclose(np.diff(z), 2.0, **EXACT)  # a twelfth of a turn of 24 mm
    assert z[0] == pytest.approx(-z[-1])
    np.testing.assert_allclose(beam.rays().centre[:, 2], z, **EXACT)


def test_default_rows_of_a_helix_fill_the_window_of_tam_and_danielsson():
    beam = HelicalBeam(36, feed=30.0, **NEAR).fitted(GRID)
    # At fan angle γ the window ends where the source stands half a turn and 2γ later or earlier.
    half = math.asin(GRID.diagonal / 2 / 300.0)
    height = 30.0 / math.pi * (500.0 / 300.0) * (math.pi / 2 + half) / math.cos(half) ** 2
    assert height <= beam.rows * beam.row_pitch < height + 3 * beam.row_pitch


@pytest.mark.parametrize("name", BEAMS)
def test_vectors_of_a_beam_are_that_beam(name):
    beam = BEAMS[name].fitted(GRID)
    vectors = as_vectors(beam).fitted(GRID)
    assert vectors.data_shape(GRID) == beam.data_shape(GRID)
    assert vectors.flat == beam.flat
    assert vectors.pitch == pytest.approx(beam.pitch)
    assert vectors.subset(slice(1, 3)).rays().source.shape == (2, 3)
    # The disc is sampled every degree, so its edge is missed by r (1 - cos 0.5°).
    assert vectors.field_of_view() == pytest.approx(beam.field_of_view(), rel=1e-4)


@pytest.mark.parametrize("name", BEAMS)
def test_field_of_view_is_what_the_detector_just_covers(name):
    beam = replace(BEAMS[name].fitted(GRID), bins=60)
    radius = beam.field_of_view() / 2
    low, high = beam.edges(radius)
    ends = sorted(beam.pitch * (end * 30 + beam.shift_bins) for end in (-1, 1))
    # One side touches the end of the detector and the other lies within it.
    assert min(low - ends[0], ends[1] - high) == pytest.approx(0, abs=1e-6)
    assert f"Field of view {2 * radius:.1f} mm." in str(beam)


def test_beams_print_as_paragraphs():
    assert str(ParallelBeam(60)) == (
        "Parallel beam: 60 views over 177.0°, as many as needed bins of voxel size. "
        "Field of view: the whole slice."
    )
    text = str(BEAMS["helix"].fitted(GRID))
    for part in ("Helical cone beam: 7 views", "shifted by 2.25 bins", "7 mm off the central ray", "curved"):
        assert part in text
    assert "20 mm per turn" in text
    assert "Field of view" in str(as_vectors(BEAMS["cone"].fitted(GRID)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ParallelBeam(np.arange(0, 180.0)), r"span 179 rad .* numpy.radians"),
        (lambda: ParallelBeam([0.0, math.nan]), "finite number of radians"),
        (lambda: ParallelBeam([]), "no views"),
        (lambda: ConeBeam(60, arc_degrees=0.0), "an arc of 0° repeats one view"),
        (lambda: ParallelBeam(5, pitch=-1.0), r"pitch must be positive, .*, and is -1\.0"),
        (lambda: ParallelBeam(5, shift_bins=math.inf), "shift_bins must be a finite number"),
        (lambda: FanBeam(5, source_axis=-3.0), "source_axis must be positive"),
        (lambda: ConeBeam(5, rows=0), "rows must be positive"),
        (lambda: HelicalBeam(5, feed=0.0), "use ConeBeam"),
        (lambda: VectorBeam(()), "at least one view"),
        (lambda: VectorBeam(((0.0,) * 12,), 5), "span no detector"),
        (lambda: VolumeGeometry((1, 4, 4), (1.0, math.nan, 1.0)), "must be positive"),
        (lambda: VolumeGeometry((1, 4, 4), (1.0, 1.0, -1.0)), "must be positive"),
    ],
)
def test_impossible_beams_are_refused(make, says):
    with pytest.raises(GeometryError, match=says):
        make()


def test_many_turns_of_a_helix_are_no_degrees():
    assert len(HelicalBeam([0.1 * k for k in range(400)]).views) == 400


@pytest.mark.parametrize(
    ("beam", "says"),
    [
        (ParallelBeam(4, bins=48, pitch=2.0, shift_bins=6), r"truncates 12 % .* bins >= 60 at pitch 2 mm"),
        (ParallelBeam(4, bins=48, pitch=2.0, shift_bins=60), "misses the field of view"),
        (FanBeam(4, bins=40, pitch=2.0, **NEAR), r"truncates 51 % .* casts 162\.1 mm .* bins >= 82"),
        (ConeBeam(4, rows=3, row_pitch=5.0, **NEAR), r"rows cover 15\.0 mm .* 30\.0 mm .* rows >= 6"),
        (ParallelBeam3D(4, rows=3), r"50 % is truncated.* rows >= 6"),
        (HelicalBeam(20, arc_degrees=180.0, feed=4.0, rows=2, row_pitch=5.0, **NEAR), "4.5 turns or more"),
        (FanBeam(4, source_axis=40.0, source_detector=500.0), "larger source_axis"),
        (
            FanBeam(4, bins=40, pitch=2.0, shift_bins=22.0, displaced=True, **NEAR),
            r"covers 4\.0 to 84\.0 mm, where the axis casts 0\.0 mm .* reach a little beyond the axis",
        ),
        (
            FanBeam(4, bins=40, pitch=2.0, shift_bins=10.0, displaced=True, **NEAR),
            r"-81\.\d to 81\.\d mm; give more shift_bins, or bins >= 6[12]",
        ),
    ],
)
def test_a_detector_that_truncates_is_refused_with_what_is_enough(beam, says):
    with pytest.raises(GeometryError, match=says):
        beam.fitted(GRID)
    if beam.bins and isinstance(beam, FanBeam) and not beam.displaced:
        assert replace(beam, bins=82).fitted(GRID).bins == 82


def test_a_displaced_detector_sees_the_field_of_its_long_side():
    beam = ConeBeam(8, bins=50, pitch=2.0, shift_bins=18.0, displaced=True, rows=9, **NEAR).fitted(GRID)
    full = ConeBeam(8, bins=86, pitch=2.0, rows=9, **NEAR).fitted(GRID)
    assert beam.field_of_view() == pytest.approx(full.field_of_view(), rel=1e-6)
    assert "one side of the object" in str(beam)


def test_vectors_that_truncate_are_refused():
    beam = as_vectors(replace(BEAMS["cone"].fitted(GRID), bins=40))
    with pytest.raises(GeometryError, match="bins beyond the detector of 40 bins"):
        beam.fitted(GRID)
    inside = as_vectors(ConeBeam(4, source_axis=100.0, source_detector=500.0).fitted(GRID))
    with pytest.raises(GeometryError, match="source stands inside"):
        inside.fitted(VolumeGeometry((6, 128, 128), (3.0, 2.0, 2.0)))


def test_protocols_can_name_every_beam():
    beam = build("geometry", {"name": "helical-beam", "angles": 9, "feed": 12.5})
    assert beam == HelicalBeam(9, feed=12.5)
    assert build("geometry", {"name": "parallel-beam-3d", "angles": 9}) == ParallelBeam3D(9)
    assert build("geometry", {"name": "fan-beam", "angles": 9, "curved": True}) == FanBeam(9, curved=True)
