"""FBP against water, laws of symmetry, and exact weights of uneven views."""

import math

import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom, disc, thorax
from ctflow.errors import GeometryError, ProtocolError, UsageError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, ParallelBeam3D, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP
from ctflow.recon._ramp import filter_rows
from ctflow.recon._views import redundancy, view_weights
from ctflow.units import MU_WATER, attenuation_to_hu


def square(n: int, pixel: float) -> VolumeGeometry:
    return VolumeGeometry((1, n, n), (3.0, pixel, pixel))


def invert(A, y, name="ramp"):
    # Not through solve, which measures the residual with a projector.
    return FBP(name)(InverseProblem(A, y, Gaussian(1.0)), None, torch.Generator(), lambda step, steps: None)


def fbp(phantom, volume, beam, name="ramp"):
    """FBP of exact line integrals, which no projector of ours has touched; (Y, X) in 1/mm."""
    A = Radon(volume, beam, "astra")
    y = phantom.line_integrals(volume, A.beam, rays_per_bin=4)
    return invert(A, y, name)[0]


def rings(volume, image):
    """Mean of the image in rings of ten pixels and more, which show cupping."""
    edges = ((0, 30), (30, 60), (60, 90))
    return [
        float(image[(radius(volume) >= inner) & (radius(volume) < outer)].mean()) for inner, outer in edges
    ]


def radius(volume):
    offsets = (torch.arange(volume.shape[1]) - (volume.shape[1] - 1) / 2) * volume.spacing[1]
    return torch.hypot(offsets[:, None], offsets)


@pytest.mark.parametrize("pixel", [1.4, 2.4])
@pytest.mark.parametrize("pitch", [None, 1.1, 3.1])
@pytest.mark.parametrize("beam", [ParallelBeam(120), FanBeam(180)])
def test_water_is_0_hu(beam, pitch, pixel):
    volume = square(160, pixel)
    hu = attenuation_to_hu(fbp(disc(100.0), volume, type(beam)(len(beam.views), pitch=pitch)))
    # A calibrated scanner holds ±5 HU; measured 0.1 HU.
    assert max(map(abs, rings(volume, hu))) < 1.0
    assert abs(float(hu[radius(volume) < 90].mean())) < 0.5


NEAR = {"source_axis": 300.0, "source_detector": 500.0}
SHORT = FanBeam(1, **NEAR).short_scan_degrees(128.0)
RANDOM = (6.2831 * torch.rand(300, generator=torch.Generator().manual_seed(1))).tolist()
WATER = {
    "half-bin shift": ParallelBeam(120, shift_bins=0.5),
    "axis off the centre": ParallelBeam(120, shift_bins=7.3, axis_offset=3.1),
    "full turn, quarter-bin shift": ParallelBeam(240, arc_degrees=360.0, shift_bins=0.25),
    "rows off the slices": ParallelBeam3D(120, row_pitch=2.0),
    "quarter-bin shift": FanBeam(180, shift_bins=0.25, **NEAR),
    "source and detector off the axis": FanBeam(180, axis_offset=9.0, shift_bins=-3.3, **NEAR),
    "curved": FanBeam(180, curved=True, **NEAR),
    "curved, off the axis": FanBeam(180, curved=True, axis_offset=9.0, shift_bins=-3.3, **NEAR),
    "shortest scan": FanBeam(120, arc_degrees=SHORT, **NEAR),
    "shortest scan from elsewhere": FanBeam(
        [2.0 + math.radians(SHORT) * k / 120 for k in range(120)], **NEAR
    ),
    "short scan, curved, off the axis": FanBeam(120, arc_degrees=250.0, curved=True, axis_offset=5.0, **NEAR),
    "more than a short scan": FanBeam(150, arc_degrees=300.0, **NEAR),
    "random views": FanBeam(RANDOM, **NEAR),
}


@pytest.mark.parametrize("name", WATER)
def test_every_orbit_and_detector_finds_water(name):
    volume = square(128, 2.0)
    hu = attenuation_to_hu(fbp(disc(100.0), volume, WATER[name]))
    # The scanner's ±5 HU in every ring and, streaks included, in every pixel; measured 0.2 and 1.4 HU.
    assert max(map(abs, rings(volume, hu))) < 1.0
    assert float(hu[radius(volume) < 90].abs().max()) < 5.0


def test_short_scan_is_close_to_the_full_turn():
    volume, phantom = square(128, 3.0), thorax()
    arc = FanBeam(1).short_scan_degrees(192.0)
    full, short = (fbp(phantom, volume, FanBeam(n, arc_degrees=a)) for n, a in ((300, 360.0), (180, arc)))
    inside = radius(volume) < 180
    difference_hu = 1000 * (full - short)[inside].square().mean().sqrt() / MU_WATER
    # Interlaced rays alias otherwise: less than the error that the band limit of the pixels leaves anyway.
    truth = phantom.rasterise(volume).data[0]
    error_hu = 1000 * (full - truth)[inside].square().mean().sqrt() / MU_WATER
    assert difference_hu < error_hu / 2
    short_hu = 1000 * (short - truth)[inside].square().mean().sqrt() / MU_WATER
    assert short_hu < 1.1 * error_hu


def test_weights_of_one_line_measured_twice_sum_to_two():
    # The same line from the other side: θ' = θ + π - 2γ. On the grid where view and fan angle step alike.
    step = math.radians(1.0)
    beam = FanBeam(
        [step * k for k in range(250)],
        bins=41,
        pitch=500.0 * step,
        curved=True,
        source_axis=300.0,
        source_detector=500.0,
    )
    weights = redundancy(beam, 90.0)
    assert weights.min() >= 0
    for view, bin in ((10, 3), (40, 20), (5, 40), (60, 30)):
        other = view + 180 - 2 * (bin - 20)
        there = float(weights[other, 40 - bin]) if 0 <= other < 250 else 0.0
        assert float(weights[view, bin]) + there == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize("name", ["hann", "shepp-logan", "cosine"])
def test_windows_keep_the_mean_and_lower_the_noise(name):
    volume = square(128, 2.0)
    ramp, windowed = (fbp(disc(100.0), volume, ParallelBeam(120), filter) for filter in ("ramp", name))
    inside = radius(volume) < 80
    # The mean is the response at frequency zero, which every window leaves at one.
    assert float(windowed[inside].mean()) == pytest.approx(MU_WATER, rel=2e-3)
    noise = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    assert filter_rows(noise, 1.0, name).std() < 0.97 * filter_rows(noise, 1.0, "ramp").std()
    assert (windowed - ramp).abs().max() > 0


@pytest.mark.parametrize("beam", [ParallelBeam(150), FanBeam(240)])
def test_thorax_is_found(beam):
    volume, phantom = square(192, 2.1), thorax()
    truth = phantom.rasterise(volume).data[0]
    found = fbp(phantom, volume, beam)
    inside = radius(volume) < 200
    # Edges ring by the band limit of the pixels: 30 dB over 2000 HU is 63 HU.
    error_hu = 1000 * (found - truth)[inside].square().mean().sqrt() / MU_WATER
    assert float(error_hu) < 63


@pytest.mark.parametrize("beam", [ParallelBeam(120), FanBeam(240)])
def test_shifted_phantom_moves_by_exactly_its_shift(beam):
    volume = square(128, 2.0)

    def spot(dx, dy):
        return Phantom((Ellipsoid((10.0 + dx, -6.0 + dy, 0.0), (30.0, 20.0, math.inf), 0.02),))

    still, moved = fbp(spot(0, 0), volume, beam), fbp(spot(12.0, 8.0), volume, beam)
    # Six columns right, four rows up; what remains is streaks outside and ringing at the edge.
    shifted = still.roll((-4, 6), (0, 1))
    inside = radius(volume) < 80
    assert (moved - shifted)[inside].norm() < 0.08 * still.norm()
    ys, xs = ((torch.arange(128) - 63.5) * 2.0 for _ in range(2))
    mass = moved.clamp_min(0.004)[:, :] - 0.004
    centre = float((mass * xs).sum() / mass.sum()), float((mass * -ys[:, None]).sum() / mass.sum())
    # A tenth of a pixel.
    assert centre == pytest.approx((22.0, 2.0), abs=0.2)


@pytest.mark.parametrize("beam", [ParallelBeam(16), FanBeam(16)])
def test_turning_the_views_turns_the_image(beam):
    volume = square(96, 2.0)
    A = Radon(volume, beam, "astra")
    y = torch.rand(A.range_shape, generator=torch.Generator().manual_seed(0))
    quarter = tuple(angle + math.pi / 2 for angle in beam.views)
    turned = Radon(volume, type(beam)(quarter, bins=A.beam.bins, pitch=A.beam.pitch))
    first, second = (invert(R, y) for R in (A, turned))
    # Noise exercises every pixel; float32 rounding of positions.
    torch.testing.assert_close(
        second, torch.rot90(first, 1, (-2, -1)), rtol=0, atol=1e-3 * float(first.max())
    )


def test_batch_and_slices_are_independent():
    A = Radon(VolumeGeometry((2, 32, 32), (3.0, 2.0, 2.0)), ParallelBeam(12))
    y = torch.rand(3, *A.range_shape, generator=torch.Generator().manual_seed(0))
    batch = invert(A, y)
    loop = torch.stack([invert(A, one) for one in y])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-6)


def test_weights_of_even_views_are_even():
    # Exact: each of n views stands for π / n, of a fan for half of 2π / n.
    for beam in (ParallelBeam(10), FanBeam(10), ParallelBeam(10, arc_degrees=360.0)):
        torch.testing.assert_close(view_weights(beam), torch.full((10,), math.pi / 10, dtype=torch.float64))


def test_repeated_view_shares_its_weight():
    ends = [math.pi * k / 10 for k in range(11)]  # the last repeats the first
    weights = view_weights(ParallelBeam(ends))
    assert float(weights.sum()) == pytest.approx(math.pi)
    assert float(weights[0] + weights[-1]) == pytest.approx(math.pi / 10)


def test_missing_wedge_is_not_filled():
    weights = view_weights(ParallelBeam([math.radians(k) for k in range(120)]))
    # Exact: 120 views of 1° and not the 60° between the last and the first.
    torch.testing.assert_close(weights, torch.full_like(weights, math.radians(1)))


def test_golden_angle_views_sum_to_a_half_turn():
    golden = math.pi * (math.sqrt(5) - 1) / 2
    assert float(
        view_weights(ParallelBeam([golden * k % math.pi for k in range(40)])).sum()
    ) == pytest.approx(math.pi)


def test_unknown_filter_lists_the_filters():
    with pytest.raises(ProtocolError, match="ramp, hann, shepp-logan, cosine"):
        FBP("ram-lak")


@pytest.mark.parametrize(
    ("beam", "says"),
    [
        (FanBeam(90, arc_degrees=180.0), "over 186.2° without a gap .* given 180.0°.*SIRT or TV"),
        (FanBeam([math.radians(4 * k) for k in range(80) if k % 40 > 10]), "in 2 parts"),
        (ConeBeam(90), "ConeBeam; use FDK"),
    ],
)
def test_beams_without_an_exact_formula_are_refused(beam, says):
    A = Radon(square(32, 2.0), beam)
    with pytest.raises(GeometryError, match=says):
        invert(A, torch.zeros(A.range_shape))


def test_other_operators_are_refused():
    A = 2.0 * Radon(square(32, 2.0), ParallelBeam(9))
    with pytest.raises(UsageError, match="Radon and was given Scaled"):
        invert(A, torch.zeros(A.range_shape))


@pytest.mark.parametrize("beam", [ParallelBeam((0.5,) * 4), FanBeam((0.5,) * 4, **NEAR)])
def test_views_in_one_direction_alone_are_refused(beam):
    with pytest.raises(GeometryError, match="all 4 views lie in one direction"):
        view_weights(beam)
