"""FDK of water under a circular cone, and what it refuses."""

import math

import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom, disc
from ctflow.errors import GeometryError, UsageError
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Mask, Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP, FDK
from ctflow.units import MU_WATER, attenuation_to_hu

VOLUME = VolumeGeometry((17, 64, 64), (3.0, 3.0, 3.0))
NEAR = {"source_axis": 600.0, "source_detector": 1000.0}
BEAMS = {
    "flat": ConeBeam(120, **NEAR),
    "shifted and off the axis": ConeBeam(120, axis_offset=6.0, shift_bins=1.25, **NEAR),
    "curved": ConeBeam(120, curved=True, axis_offset=6.0, shift_bins=1.25, **NEAR),
    "short scan": ConeBeam(90, arc_degrees=220.0, **NEAR),
    "half fan": ConeBeam(160, bins=44, pitch=5.0, shift_bins=12.0, displaced=True, **NEAR),
    "half fan to the other side": ConeBeam(160, bins=44, pitch=5.0, shift_bins=-12.3, displaced=True, **NEAR),
    "curved half fan, off the axis": ConeBeam(
        160, bins=46, pitch=5.0, shift_bins=12.0, displaced=True, curved=True, axis_offset=4.0, **NEAR
    ),
}


def invert(method, A, y):
    return method(InverseProblem(A, y, Gaussian(1.0)), None, torch.Generator(), lambda step, steps: None)


def fdk(phantom, beam, volume=VOLUME):
    """FDK of exact line integrals, which no projector of ours has touched; (Z, Y, X) in HU."""
    A = Radon(volume, beam, "astra")
    return attenuation_to_hu(invert(FDK(), A, phantom.line_integrals(volume, A.beam, rays_per_bin=4)))


def distances():
    """From the axis (Y, X) and from the middle (Z, Y, X), mm."""
    x, z = ((torch.arange(n) - (n - 1) / 2) * 3.0 for n in (64, 17))
    axis = torch.hypot(x[:, None], x)
    return axis, torch.hypot(axis, z[:, None, None])


@pytest.mark.parametrize("name", BEAMS)
def test_sphere_of_water_is_0_hu(name):
    _, distance = distances()
    sphere = Phantom((Ellipsoid((0.0, 0.0, 0.0), (30.0, 30.0, 30.0), MU_WATER),))
    hu = fdk(sphere, BEAMS[name])
    # A calibrated scanner holds ±5 HU; measured 0.8 HU at the centre of a cone of ±2.3°.
    assert abs(float(hu[distance < 6].mean())) < 5
    assert abs(float(hu[distance < 22].mean())) < 2


@pytest.mark.parametrize("name", BEAMS)
def test_every_slice_of_a_cylinder_is_water(name):
    axis, _ = distances()
    hu = fdk(disc(70.0), BEAMS[name])
    # FDK is exact where the object does not change along z (Feldkamp et al., section 4); measured 0.3 HU.
    assert hu[:, axis < 60].mean(1).abs().max() < 1
    assert hu[:, axis < 60].abs().max() < 5


def test_the_plane_of_the_source_is_a_fan():
    fan, cone = FanBeam(90, **NEAR).fitted(VOLUME.slices(8, 9)), ConeBeam(90, rows=17, **NEAR)
    phantom = Phantom((Ellipsoid((20.0, -12.0, 0.0), (30.0, 18.0, 60.0), 0.02),))
    A = Radon(VOLUME, cone, "astra")
    y = phantom.line_integrals(VOLUME, A.beam)
    middle = invert(FDK(), A, y)[8]
    F = Radon(VOLUME.slices(8, 9), fan, "astra")
    # Row 8 lies in the plane: the same filter, weights and interpolation, in another order of summation.
    torch.testing.assert_close(middle, invert(FBP(), F, y[8:9])[0], rtol=0, atol=1e-5)


def test_a_half_fan_shows_what_a_full_fan_shows():
    phantom = Phantom(
        (
            Ellipsoid((0.0, 0.0, 0.0), (85.0, 70.0, 60.0), 0.02),
            Ellipsoid((40.0, 20.0, 5.0), (20.0, 14.0, 12.0), 0.006),
            Ellipsoid((-30.0, -25.0, -8.0), (15.0, 22.0, 12.0), -0.01),
        )
    )
    full = fdk(phantom, ConeBeam(160, bins=68, pitch=5.0, **NEAR))
    half = fdk(phantom, BEAMS["half fan"])
    axis, _ = distances()
    # Other rays through the same object, its edges included: measured 3.0 HU; a short scan is 4.5 HU away.
    assert float((half - full)[4:13, axis < 90].square().mean().sqrt()) < 5


def test_a_displaced_detector_without_a_full_turn_is_refused():
    beam = ConeBeam(90, arc_degrees=220.0, bins=44, pitch=5.0, shift_bins=12.0, displaced=True, **NEAR)
    A = Radon(VOLUME, beam, "astra")
    with pytest.raises(GeometryError, match="needs a full turn"):
        invert(FDK(), A, torch.zeros(A.range_shape))


def test_batch_is_loop():
    A = Radon(VolumeGeometry((3, 16, 16), (3.0, 2.0, 2.0)), ConeBeam(10), "astra")
    y = torch.rand(2, 2, *A.range_shape, generator=torch.Generator().manual_seed(0))
    loop = torch.stack([torch.stack([invert(FDK(), A, one) for one in row]) for row in y])
    torch.testing.assert_close(invert(FDK(), A, y), loop, rtol=0, atol=1e-6)


def test_a_point_stays_where_it_is():
    ball = Phantom((Ellipsoid((36.0, 24.0, 9.0), (7.0, 7.0, 7.0), 0.02),))
    x = (fdk(ball, BEAMS["shifted and off the axis"]) > -500).float()
    z, row, column = ((torch.arange(n) - (n - 1) / 2) * 3.0 for n in (17, 64, 64))
    centre = [
        float((x.sum(others) * at).sum() / x.sum())
        for others, at in (((1, 2), z), ((0, 2), row), ((0, 1), column))
    ]
    # Half a voxel.
    assert centre == pytest.approx([9.0, -24.0, 36.0], abs=1.5)


@pytest.mark.parametrize(
    ("A", "error", "says"),
    [
        (Radon(VOLUME, FanBeam(9), "astra"), GeometryError, "FanBeam; use FBP"),
        (Radon(VOLUME, HelicalBeam(9), "astra"), GeometryError, "HelicalBeam"),
        (Radon(VOLUME, ConeBeam(9, arc_degrees=120.0), "astra"), GeometryError, "SIRT or TV"),
        (Mask.example(), UsageError, "FDK inverts Radon and was given Mask"),
    ],
)
def test_what_fdk_cannot_invert_is_refused(A, error, says):
    with pytest.raises(error, match=says):
        invert(FDK(), A, torch.zeros(A.range_shape))


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    A = Radon(VOLUME, BEAMS["flat"], "astra")
    y = disc(70.0).line_integrals(VOLUME, A.beam)
    # Float32 sums in another order.
    torch.testing.assert_close(
        invert(FDK(), A, y.cuda()).cpu(), invert(FDK(), A, y), rtol=0, atol=1e-4 * MU_WATER * math.pi
    )
