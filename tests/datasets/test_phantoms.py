"""Line integrals of phantoms in closed form, and the projector against them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom, disc, thorax
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, ParallelBeam, VolumeGeometry
from ctflow.operators.radon import Radon
from ctflow.units import MU_WATER

GRID = VolumeGeometry((1, 128, 128), (2.0, 1.5, 1.5))
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # results are rounded to float32; chords of 100 mm times 0.02 / mm


def ellipse(x=0.0, y=0.0, a=40.0, b=25.0, angle=0.0):
    return Phantom((Ellipsoid((x, y, 0.0), (a, b, math.inf), 0.02, angle),))


def bin_positions(beam):
    return (torch.arange(beam.bins, dtype=torch.float64) - (beam.bins - 1) / 2) * beam.pitch


def test_disc_under_a_parallel_beam_is_its_chord():
    beam = ParallelBeam(5).fitted(GRID)
    s = bin_positions(beam)
    chord = 2 * (50.0**2 - s**2).clamp_min(0).sqrt()
    measured = disc(50.0).line_integrals(GRID, beam)
    torch.testing.assert_close(measured, (MU_WATER * chord).float().expand(1, 5, -1), **FLOAT32)


def test_disc_under_a_fan_beam_is_its_chord():
    beam = FanBeam(5).fitted(GRID)
    # A ray to detector position s misses the axis by source_axis sin(atan(s / source_detector)).
    miss = beam.source_axis * (bin_positions(beam) / beam.source_detector).atan().sin()
    chord = 2 * (50.0**2 - miss**2).clamp_min(0).sqrt()
    measured = disc(50.0).line_integrals(GRID, beam)
    torch.testing.assert_close(measured, (MU_WATER * chord).float().expand(1, 5, -1), **FLOAT32)


def test_ellipse_under_a_parallel_beam_is_the_textbook_formula():
    """Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3, eq. 7."""
    beam = ParallelBeam(8).fitted(GRID)
    theta = torch.tensor(beam.views, dtype=torch.float64)[:, None]
    s = bin_positions(beam) - (12 * theta.cos() - 7 * theta.sin())
    turned = theta - 0.4
    width2 = (40 * turned.cos()) ** 2 + (25 * turned.sin()) ** 2
    expected = 0.02 * 2 * 40 * 25 * (width2 - s**2).clamp_min(0).sqrt() / width2
    measured = ellipse(12, -7, angle=0.4).line_integrals(GRID, beam)
    torch.testing.assert_close(measured[0], expected.float(), **FLOAT32)


def test_every_view_weighs_the_same():
    beam = ParallelBeam(6, bins=150, pitch=1.5)
    mass = ellipse(10, 5, angle=1.0).line_integrals(GRID, beam, rays_per_bin=8).sum(-1) * 1.5
    # The midpoint rule at 0.19 mm leaves (h / a)^1.5 = 3e-4 at the two ends of a half ellipse.
    torch.testing.assert_close(mass, torch.full((1, 6), 0.02 * math.pi * 40 * 25), rtol=3e-4, atol=0)


def test_a_turned_phantom_is_a_turned_beam():
    beam = FanBeam([0.1, 0.9, 2.2]).fitted(GRID)
    turned = replace(beam, angles=[view + 0.3 for view in beam.views])
    x, y = 12 * math.cos(0.3) + 7 * math.sin(0.3), 12 * math.sin(0.3) - 7 * math.cos(0.3)
    still = ellipse(12, -7, angle=0.4).line_integrals(GRID, beam)
    torch.testing.assert_close(ellipse(x, y, angle=0.7).line_integrals(GRID, turned), still, **FLOAT32)


def test_a_shifted_phantom_shifts_its_shadow():
    beam = ParallelBeam([0.0, math.pi / 2], bins=140, pitch=1.5)
    still, moved = (ellipse(x=x).line_integrals(GRID, beam)[0] for x in (0.0, 6.0))
    torch.testing.assert_close(moved[0], still[0].roll(4), **FLOAT32)  # 6 mm are four bins to the right
    torch.testing.assert_close(moved[1], still[1], **FLOAT32)  # along the rays nothing moves


@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_area_is_pi_a_b(angle):
    image = ellipse(3, 4, angle=angle).rasterise(GRID, supersampling=8).data
    # Boundary sub-pixels (0.19 mm wide, some 2000 of them) fall in or out at random: about 1e-4 of the area.
    assert float(image.sum()) * 1.5**2 == pytest.approx(0.02 * math.pi * 40 * 25, rel=5e-4)


def test_volume_of_an_ellipsoid_is_four_thirds_pi_a_b_c():
    grid = VolumeGeometry((40, 64, 64), (1.0, 1.5, 1.5))
    image = Phantom((Ellipsoid((0, 0, 0), (30, 20, 15), 0.02),)).rasterise(grid, supersampling=4).data
    # Midpoint rule over z of the area pi a b (1 - z²/c²): 1² / (8 c²) = 6e-4, and the in-plane error.
    assert float(image.sum()) * 1.5**2 == pytest.approx(0.02 * 4 / 3 * math.pi * 30 * 20 * 15, rel=1e-3)


def test_up_in_the_slice_is_positive_y():
    image = ellipse(x=40, y=50, a=5, b=5).rasterise(GRID).data[0]
    row, column = divmod(int(image.argmax()), 128)
    assert row < 64 < column


@pytest.mark.parametrize("beam", [ParallelBeam(12), FanBeam(12)])
def test_projector_agrees_to_discretisation_error(beam):
    grid = VolumeGeometry((1, 256, 256), (3.0, 1.5, 1.5))
    phantom = thorax()
    exact = phantom.line_integrals(grid, beam, rays_per_bin=4)
    discrete = Radon(grid, beam)(phantom.rasterise(grid).data)
    # Square voxels of 1.5 mm stand for curved edges: 0.28 % (parallel) and 0.38 % (fan) were measured; a
    # phantom mirrored left to right is 8.8 % off.
    assert float((discrete - exact).norm() / exact.norm()) < 0.006


def test_thorax_has_exactly_the_tissues_it_names():
    """Additive parts that overlapped wrongly, or stuck out, would give other CT numbers."""
    grid = VolumeGeometry((9, 200, 200), (32.0, 1.9, 1.9))
    for seed in range(3):
        hu = thorax(seed).rasterise(grid, supersampling=1).to_hu().data
        assert set(hu.round().unique().tolist()) == {-1000, -850, -600, -100, 40, 50, 250, 800}


def test_thorax_differs_by_slice_and_seed_and_repeats():
    grid = VolumeGeometry((2, 96, 96), (3.0, 4.0, 4.0))
    first = thorax(0).rasterise(grid).data
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, thorax(1).rasterise(grid).data)
    assert torch.equal(first, thorax(0).rasterise(grid).data)


@pytest.mark.parametrize("beam", [ConeBeam(4), ConeBeam(4, curved=True, axis_offset=7.0), HelicalBeam(9)])
def test_sphere_under_a_cone_is_its_chord(beam):
    grid = VolumeGeometry((12, 48, 48), (4.0, 4.0, 4.0))
    centre, radius = np.array([8.0, -5.0, 3.0]), 20.0
    sphere = Phantom((Ellipsoid(tuple(centre), (radius,) * 3, 0.02),))
    measured = sphere.line_integrals(grid, beam)
    rays = beam.fitted(grid).rays()
    for view in range(len(rays.source)):
        towards = rays.points(view) - rays.source[view]
        towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
        miss = np.linalg.norm(np.cross(centre - rays.source[view], towards), axis=-1)
        chord = torch.from_numpy(2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None)))
        torch.testing.assert_close(measured[:, view], (0.02 * chord).float(), **FLOAT32)
