"""A simulated scanner against closed forms: it does to data what physics says, and nothing by default."""

import math

import numpy as np
import pytest
import torch

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import ProtocolError
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Radon
from ctflow.problem import simulate
from ctflow.scanner import Scanner, _xray
from ctflow.scanner._sampling import pooled, refined, refined_grid, within
from ctflow.units import MU_WATER, attenuation_to_hu, mu_water_at

GRID = VolumeGeometry((1, 128, 128), (2.0, 2.0, 2.0))
QUIET = Gaussian(1e-7)

SLICE = toy_volume(1, 96)
BEAMS = {
    "parallel": ParallelBeam(12),
    "fan": FanBeam(15),
    "curved fan": FanBeam(15, curved=True, shift_bins=0.25),
    "half fan": FanBeam(16, bins=100, pitch=7.0, shift_bins=35.0, displaced=True),
}
STACK = toy_volume(5, 32)
PANELS = {"cone": ConeBeam(9), "helix": HelicalBeam(12, feed=30.0)}


@pytest.mark.parametrize("name", [*BEAMS, *PANELS])
def test_an_ideal_scanner_is_the_operator(name):
    volume, beam = (SLICE, BEAMS[name]) if name in BEAMS else (STACK, PANELS[name])
    A, mu = Radon(volume.geometry, beam), volume.to_attenuation().data
    noise = Poisson(1e5)
    ideal, scanned = (
        simulate(A, mu, noise, 3),
        Scanner().measure(A, attenuation_to_hu(mu), noise, MU_WATER, 3),
    )
    torch.testing.assert_close(scanned.W, noise.precision(scanned.y))
    # The generator's numbers serve the gains first, so that the noise is another draw: compare its sizes.
    clean = Scanner().measure(A, attenuation_to_hu(mu), QUIET, MU_WATER)
    torch.testing.assert_close(clean.y, A(mu), atol=2e-4, rtol=0)
    assert float(scanned.residual(mu)) == pytest.approx(float(ideal.residual(mu)), rel=0.2)


def test_a_finer_object_has_the_image_as_its_means():
    image = STACK.to_attenuation().data
    for along_z in (False, True):
        fine = refined(image, 3, along_z)
        grid = refined_grid(STACK.geometry, 3, along_z)
        assert tuple(fine.shape) == grid.shape
        assert grid.extent == pytest.approx(STACK.geometry.extent)
        means = fine.reshape(5, -1, 32, 3, 32, 3) if not along_z else fine.reshape(5, 3, 32, 3, 32, 3)
        torch.testing.assert_close(means.mean((1, 3, 5)), image, atol=1e-6, rtol=0)
        assert float(fine.min()) >= -1e-9  # where a spline would fall below air
        assert float((fine[..., 1:] - fine[..., :-1]).abs().mean()) < 0.6 * float(
            image.diff(dim=-1).abs().mean()
        )


def test_rays_within_a_bin_are_those_of_the_bin_on_average():
    beam = FanBeam(7).fitted(SLICE.geometry)
    (fine,) = within(beam, 3, [0.0], [0.0], (0.0, 0.0))
    points = beam.rays().points(4)
    between = fine.rays().points(4).reshape(1, -1, 3, 3)
    np.testing.assert_allclose(between.mean(2), points, atol=1e-9)
    np.testing.assert_allclose(between[:, :, 1], points, atol=1e-9)


def test_a_bin_adds_up_intensities():
    """Half of a bin's rays behind something dense: -ln of (1 + exp(-p)) / 2, and not p / 2."""
    passed = torch.tensor([1.0, math.exp(-4.0)]).reshape(1, 1, 2)
    assert float(-torch.log(pooled(passed, 2, flat=True))) == pytest.approx(-math.log((1 + math.exp(-4)) / 2))


@pytest.mark.parametrize("kev", [40, 60, 80, 100])
def test_the_tables_are_those_of_nist(kev):
    assert _xray.attenuation_at("water", kev) == pytest.approx(mu_water_at(kev), rel=0.01)
    assert _xray.energy_of(mu_water_at(kev)) == pytest.approx(kev, rel=0.02)


# NIST XCOM, ICRU 44 cortical bone, and iodine, cm²/g with coherent scattering.
@pytest.mark.parametrize(
    ("material", "kev", "expected"),
    [
        ("bone", 60, 0.3148),
        ("bone", 80, 0.2229),
        ("bone", 100, 0.1855),
        ("iodine", 60, 7.579),
        ("titanium", 60, 0.7661),
    ],
)
def test_other_materials_are_those_of_nist(material, kev, expected):
    assert _xray.attenuation_at(material, kev) == pytest.approx(expected / 10, rel=0.01)


def test_a_spectrum_behind_water_is_seen_as_water_at_one_energy():
    water = torch.where(
        torch.hypot(*torch.meshgrid(*2 * [torch.arange(128.0) - 63.5], indexing="ij")) < 50, 0.0, -1000.0
    )
    A = Radon(GRID, ParallelBeam(6))
    scanned = Scanner(kvp=120).measure(A, water[None], QUIET, MU_WATER)
    expected = A((water[None] + 1000) / 1000 * MU_WATER)
    torch.testing.assert_close(scanned.y, expected, atol=3e-3, rtol=0)


def test_a_spectrum_behind_bone_is_the_integral_over_its_energies():
    """Water of 1.1 g/cm³ with bone of 0.5 g/cm³ in it, integrated by hand at the tables' energies."""
    length = 60.0  # mm
    parts = {"water": torch.tensor([1.1 * length]), "bone": torch.tensor([0.5 * length])}
    share = _xray.signal(140)
    mu = 1.1 * _xray.attenuation("water") + 0.5 * _xray.attenuation("bone")
    exact = float(np.sum(share * np.exp(-mu * length)))
    assert float(_xray.transmitted(parts, 140)) == pytest.approx(exact, rel=1e-5)
    # Bone hardens the beam beyond what a correction for water undoes: twice as much seems less than that.
    seen = torch.tensor([float(np.sum(share * np.exp(-mu * times * length))) for times in (1, 2)])
    corrected, slope = _xray.water_correction(-torch.log(seen), 140, MU_WATER)
    assert float(corrected[1]) < 1.98 * float(corrected[0])
    assert float(slope.min()) > 0


def test_the_parts_of_the_object_attenuate_as_the_image_says():
    scanner, grid = Scanner(kvp=100, dense="iodine"), SLICE.geometry
    mu = SLICE.to_attenuation().data
    parts, kev = scanner._parts(mu, grid, MU_WATER), _xray.energy_of(MU_WATER)
    total = sum(density * _xray.attenuation_at(name, kev) for name, density in parts.items())
    torch.testing.assert_close(total, mu, atol=1e-6, rtol=1e-4)
    assert set(parts) == {"water", "iodine"}


def test_the_share_of_scatter_is_that_behind_the_reference():
    behind = torch.full((1, 3, 64), math.exp(-200 * MU_WATER))
    found = Scanner(scatter=0.3)._scattered(behind, True, MU_WATER)
    torch.testing.assert_close((found - behind) / found, torch.full_like(behind, 0.3))
    clear = torch.ones(1, 3, 64)
    torch.testing.assert_close(Scanner(scatter=0.3)._scattered(clear, True, MU_WATER), clear)


def test_gains_are_the_same_in_all_views():
    A, hu = Radon(SLICE.geometry, ParallelBeam(40)), SLICE.data
    apart = (
        Scanner(gain_error=0.01).measure(A, hu, QUIET, MU_WATER).y
        - Scanner().measure(A, hu, QUIET, MU_WATER).y
    )
    assert float(apart.std(1).max()) < 1e-4
    assert float(apart.mean(1).std()) == pytest.approx(0.01, rel=0.3)


def test_crosstalk_keeps_the_signal_and_widens_an_edge():
    impulse = torch.zeros(1, 1, 9)
    impulse[..., 4] = 1.0
    found = Scanner(crosstalk=0.1)._crossed(impulse)
    torch.testing.assert_close(found[0, 0, 3:6], torch.tensor([0.1, 0.8, 0.1]))
    assert float(found.sum()) == pytest.approx(1.0)


def wire(x_mm: float = 0.0, y_mm: float = 0.0) -> torch.Tensor:
    """A smooth wire of 6 mm that attenuates little, HU, on the middle slice of `GRID`."""
    across = (torch.arange(128) - 63.5) * 2.0
    r2 = (across[None, :] - x_mm) ** 2 + (-across[:, None] - y_mm) ** 2
    return (-1000 + 50 * torch.exp(-r2 / (2 * 6.0**2)))[None]


def moments(y: torch.Tensor, pitch: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and variance of the shadow of every view, mm and mm²."""
    place = (torch.arange(y.shape[-1]) - (y.shape[-1] - 1) / 2) * pitch
    mass = y[0].double()
    centre = (mass * place).sum(-1) / mass.sum(-1)
    return centre, (mass * (place - centre[:, None]) ** 2).sum(-1) / mass.sum(-1)


def measured(scanner: Scanner, beam, hu: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    A = Radon(GRID, beam)
    return moments(scanner.measure(A, hu, QUIET, MU_WATER).y, A.beam.pitch)


def test_a_focal_spot_widens_a_shadow_by_its_own_magnified_width():
    beam = FanBeam([0.3, 1.1, 2.0], source_axis=500.0, source_detector=1000.0)
    _, sharp = measured(Scanner(), beam, wire())
    _, wide = measured(Scanner(focal_spot_mm=9.0), beam, wire())
    # Three places 3 mm apart, seen through the axis at magnification M - 1 = 1: variance (2 / 3) 3².
    np.testing.assert_allclose(wide - sharp, 6.0, rtol=0.02)


def test_the_turn_during_a_view_widens_what_lies_off_the_axis():
    beam, place = ParallelBeam([0.4, 0.4 + math.pi / 2]), (-80 * math.sin(0.4), 80 * math.cos(0.4))
    _, sharp = measured(Scanner(), beam, wire(*place))
    _, wide = measured(Scanner(exposure_degrees=6.0), beam, wire(*place))
    # The wire passes across the rays of the first view, by 80 mm times 6 degrees, and along the second's.
    np.testing.assert_allclose(wide - sharp, [2 / 3 * (80 * math.radians(2)) ** 2, 0.0], atol=0.05)


def test_a_movement_carries_the_shadow_along():
    beam = ParallelBeam(angles=[0.0, 1e-9, 2e-9])
    still, _ = measured(Scanner(), beam, wire(10.0, 5.0))
    moving, _ = measured(Scanner(movement=(8.0, 3.0)), beam, wire(10.0, 5.0))
    np.testing.assert_allclose(moving - still, [-4.0, 0.0, 4.0], atol=0.02)


def test_a_bowtie_takes_photons_at_the_rim_and_nothing_else():
    A, hu, noise = Radon(GRID, FanBeam(4)), torch.full((1, 128, 128), -1000.0), Poisson(1e12)
    plain, filtered = (Scanner(bowtie_mm=mm).measure(A, hu, noise, MU_WATER) for mm in (0.0, 200.0))
    torch.testing.assert_close(filtered.y, plain.y, atol=2e-3, rtol=0)
    share = (filtered.W / plain.W)[0, 0]
    assert float(share.max()) == pytest.approx(1.0, abs=1e-3)
    assert float(share[0]) == pytest.approx(math.exp(-200 * MU_WATER), rel=1e-2)  # beyond the cylinder


def test_a_rod_is_as_dark_as_its_metal():
    A, hu = Radon(GRID, ParallelBeam(2)), torch.full((1, 128, 128), -1000.0)
    scanned = Scanner(metal=20.0, metal_at=(10.0, 0.0), metal_of="steel", fine=4).measure(
        A, hu, QUIET, MU_WATER
    )
    mu = 7.9 * _xray.attenuation_at("steel", _xray.energy_of(MU_WATER))
    places = (torch.arange(A.beam.bins) - (A.beam.bins - 1) / 2) * A.beam.pitch
    through = int((places - 10.0).abs().argmin())
    assert float(scanned.y[0, 0, through]) == pytest.approx(20 * mu, rel=0.03)
    assert float(scanned.y[0, 0, : through - 8].abs().max()) < 1e-3


def test_a_rod_has_its_own_cross_section():
    for size in (6.0, 10.0):
        share = Scanner(metal=size, metal_at=(11.0, -7.0)).rod(VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0)))
        assert float(share.sum()) * 9.0 == pytest.approx(math.pi * size**2 / 4, rel=0.02)


def test_what_lets_no_photon_through_leaves_finite_data():
    hu = torch.full((1, 64, 64), 0.0)
    A = Radon(VolumeGeometry((1, 64, 64), (4.0, 4.0, 4.0)), ParallelBeam(4))
    for scanner in (
        Scanner(metal=190.0, metal_of="steel", scatter=0.1),
        Scanner(gain_error=0.2, metal=190.0),
    ):
        for noise in (Poisson(1e5), Gaussian(0.01)):
            assert bool(torch.isfinite(scanner.measure(A, hu, noise, MU_WATER).y).all())


def test_the_share_of_scatter_is_that_behind_the_reference_with_a_spectrum_too():
    behind = torch.full((1, 2, 32), math.exp(-_xray.behind_water(200.0, 80)))
    found = Scanner(scatter=0.2, kvp=80)._scattered(behind, True, MU_WATER)
    torch.testing.assert_close((found - behind) / found, torch.full_like(behind, 0.2))


def test_the_weights_know_the_correction_for_water():
    """Variance of the corrected data over draws is one over their weight."""
    A, hu = Radon(SLICE.geometry, ParallelBeam(6)), SLICE.data
    scanner = Scanner(kvp=120)
    draws = [scanner.measure(A, hu, Poisson(1e6), MU_WATER, seed) for seed in range(60)]
    y, W = torch.stack([draw.y for draw in draws]), torch.stack([draw.W for draw in draws])
    spread = y.var(0) * W.mean(0)
    assert float(spread.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"kvp": 90}, "80, 100, 120, 140"),
        ({"scatter": 1.0}, "scatter"),
        ({"dense": "fat"}, "bone"),
        ({"metal_at": (1.0,)}, "metal_at"),
        ({"fine": 0}, "fine"),
        ({"metal_of": "steel"}, "give metal"),
        ({"dense": "iodine"}, "give kvp"),
        ({"gain_error": -0.1}, "gain_error"),
    ],
)
def test_what_no_scanner_has_is_refused(keywords, said):
    with pytest.raises(ProtocolError, match=said):
        Scanner(**keywords)


def test_what_does_not_fit_the_measurement_is_refused():
    A, hu = Radon(GRID, ParallelBeam(2)), torch.zeros(1, 128, 128)
    with pytest.raises(ProtocolError, match="fan beam"):
        Scanner(focal_spot_mm=1.0).measure(A, hu, QUIET, MU_WATER)
    for rod in ({"metal": 10.0, "metal_at": (200.0, 0.0)}, {"metal": 1e-3}):
        with pytest.raises(ProtocolError, match="must lie inside images"):
            Scanner(**rod).measure(A, hu, QUIET, MU_WATER)
    with pytest.raises(ProtocolError, match="measures projections"):
        Scanner().measure(2.0 * A, hu, QUIET, MU_WATER)
    with pytest.raises(ProtocolError, match="at no energy"):
        Scanner(kvp=120).measure(A, hu, QUIET, 0.5)
