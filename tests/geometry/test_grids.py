"""Units, grids and beams: round trips, and refusals that say what would fit."""

import math

import pytest
import torch

from ctflow.errors import GeometryError, UnitError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.units import MU_WATER, attenuation_to_hu, hu_to_attenuation, mu_water_at
from ctflow.volume import Volume

GRID = VolumeGeometry((4, 64, 64), (3.0, 0.8, 0.8))


def test_hu_and_attenuation_are_inverse():
    hu = torch.linspace(-1000, 3071, 4072, dtype=torch.float64)
    torch.testing.assert_close(attenuation_to_hu(hu_to_attenuation(hu)), hu, rtol=0, atol=1e-9)
    assert hu_to_attenuation(0.0) == MU_WATER
    assert hu_to_attenuation(-1000.0) == 0.0


def test_water_at_tabulated_and_in_between_energies():
    assert mu_water_at(60) == pytest.approx(0.02059)
    assert mu_water_at(70) == pytest.approx(0.01937, rel=0.01)  # NIST between its nodes, log-log
    assert mu_water_at(71.6) == pytest.approx(MU_WATER, rel=0.01)
    with pytest.raises(UnitError, match="outside 30 to 150 keV"):
        mu_water_at(500)


def test_volume_to_attenuation_and_back():
    mask = torch.ones(4, 64, 64, dtype=torch.bool)
    mask[:, :5] = False
    hu = torch.full((4, 64, 64), 40.0)
    hu[:, :5] = -3024.0
    hu[:, 5] = -1100.0
    mu = Volume(hu, GRID, "HU", mask).to_attenuation()
    assert mu.data.min() == 0
    back = mu.to_hu()
    torch.testing.assert_close(back.data[:, 6:], hu[:, 6:], rtol=0, atol=1e-3)
    assert bool((back.data[:, :6] == -1000).all())


def test_slices_stay_where_they_are():
    part = GRID.slices(1, 3)
    assert part.shape == (2, 64, 64)
    assert part.affine[2][3] == pytest.approx(GRID.affine[2][3] + 3.0)
    with pytest.raises(GeometryError, match="0:4"):
        GRID.slices(2, 9)


def test_views_leave_out_the_end_point():
    beam = ParallelBeam(60)
    assert len(beam.views) == 60
    assert beam.views[-1] == pytest.approx(math.pi * 59 / 60)
    assert beam.subset(slice(None, None, 12)).views == beam.views[::12]


def test_fitted_detector_covers_the_slice():
    beam = ParallelBeam(10).fitted(GRID)
    assert beam.pitch == 0.8
    assert beam.bins * beam.pitch >= GRID.diagonal
    fan = FanBeam(10).fitted(GRID)
    assert fan.bins * fan.pitch >= fan.shadow(GRID.diagonal / 2)
    cone = ConeBeam(10).fitted(GRID)
    assert cone.rows * cone.row_pitch >= GRID.extent[0] * cone.magnification()


def test_a_narrow_detector_is_refused_with_what_is_enough():
    figures = r"covers 40.0 mm .* truncates 22 % .* 51.2 mm .* bins >= 64 at pitch 0.8 mm"
    with pytest.raises(GeometryError, match=figures):
        ParallelBeam(10, bins=50, pitch=0.8).fitted(GRID)


def test_impossible_geometries_are_refused():
    with pytest.raises(GeometryError, match="positive"):
        VolumeGeometry((0, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="at least one"):
        ParallelBeam(0)
    with pytest.raises(GeometryError, match="source_axis"):
        FanBeam(4, source_axis=900.0, source_detector=800.0)
    with pytest.raises(GeometryError, match="larger source_axis"):
        FanBeam(4, source_axis=30.0).fitted(GRID)
    with pytest.raises(UnitError, match="1/mm"):
        Volume(torch.zeros(4, 64, 64), GRID, "mu")


def test_a_coarser_pixel_lies_where_those_that_it_holds_do():
    turned = ((0.0, 0.6, 0.8, 7.0), (0.0, -0.8, 0.6, -3.0), (2.0, 0.0, 0.0, 5.0), (0.0, 0.0, 0.0, 1.0))
    fine = VolumeGeometry((3, 12, 18), (2.0, 1.0, 1.0), turned)
    coarse = fine.coarsened(3)
    assert (coarse.shape, coarse.spacing, coarse.extent) == ((3, 4, 6), (2.0, 3.0, 3.0), fine.extent)
    inside = [torch.tensor([1.0, 3 * 2 + i, 3 * 5 + j, 1.0]) for i in range(3) for j in range(3)]
    held = torch.stack([torch.tensor(fine.affine) @ index for index in inside]).mean(0)
    torch.testing.assert_close(torch.tensor(coarse.affine) @ torch.tensor([1.0, 2, 5, 1]), held)
    with pytest.raises(GeometryError, match="12 × 18 pixels have none of 4 times the side"):
        fine.coarsened(4)
