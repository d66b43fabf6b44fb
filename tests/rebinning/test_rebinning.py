"""Raw data by physics: phantoms measured through real rays come out where and as dense as they are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.datasets.raw_phantom import RODS_HU, measure_phantom, raw_phantom, scanner
from ctflow.errors import GeometryError
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.rebinning import (
    inconsistency,
    on_slices_of,
    orient_detector,
    to_fan_slices,
    to_parallel,
    to_parallel_slices,
    wfbp,
)
from ctflow.recon import CGLS, FBP
from ctflow.solving import solve
from ctflow.units import MU_WATER
from ctflow.volume import Volume

BEAD, TABLE_Z = (30.0, 42.0, 137.0), 137.0  # mm
SIDE, PIXEL = 96, 2.5
GRID = VolumeGeometry((1, SIDE, SIDE), (1.0, PIXEL, PIXEL))
Y, X = np.meshgrid(*[(np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL * sign for sign in (-1, 1)], indexing="ij")
RODS = [(50 * math.cos(k * math.pi / 2), 50 * math.sin(k * math.pi / 2)) for k in range(4)]
WATER = (np.hypot(X, Y) < 85) & (np.hypot(X - BEAD[0], Y - BEAD[1]) > 12)
for x, y in RODS:
    WATER &= np.hypot(X - x, Y - y) > 16


def fbp(scan, grid=GRID, filter="ramp"):
    grid = replace(grid, shape=(len(scan.y), *grid.shape[1:]), affine=())
    problem = InverseProblem(Radon(grid, scan.beam), scan.y, Gaussian(1.0))
    return FBP(filter)(problem, None, torch.Generator(), lambda step, steps: None)


def hu(attenuation):
    return (attenuation.double().numpy() / MU_WATER - 1) * 1000


def reconstructed(flying, heights, **keywords):
    """WFBP of the phantom, HU."""
    scan = measure_phantom(raw_phantom(bead=BEAD), scanner(flying=flying, z=TABLE_Z, **keywords))
    grid = replace(GRID, shape=(len(heights), SIDE, SIDE), affine=())
    return hu(wfbp(scan, grid, heights).data)


@pytest.mark.parametrize("flying", ["FFSNONE", "FFSZ", "FFSXYZ"])
def test_water_rods_and_bead(flying):
    heights = [TABLE_Z + dz for dz in (-6.0, -3.0, 0.0, 3.0, 6.0)]
    found = reconstructed(flying, heights, views=160, turns=2.2, bins=150, rows=8, feed=10.0)
    print(f"{flying}: water {found[:, WATER].mean():+.2f} HU")
    assert abs(found[:, WATER].mean()) < 3  # the physics bar; 0.3 HU is measured
    for (x, y), expected in zip(RODS, RODS_HU, strict=True):
        rod = found[:, np.hypot(X - x, Y - y) < 5].mean()
        print(f"  rod of {expected:+.0f} HU: {rod:+.1f}")
        assert abs(rod - expected) < 5  # the physics bar
    excess = np.where(np.hypot(X - BEAD[0], Y - BEAD[1]) < 10, found, 0.0)
    # Ripples of the ramp outside the bead must not pull: half of its height and more counts.
    excess = np.where(excess > 40, excess, 0.0)
    z = np.array(heights)[:, None, None]
    centroid = [float((excess * place).sum() / excess.sum()) for place in (X, Y, z)]
    print(f"  bead at {np.round(centroid, 3)} mm")
    # The bar is 0.1 mm; along z five slices of a ball are summed 3 mm apart, symmetric about it.
    assert np.abs(np.subtract(centroid, BEAD)).max() < 0.1


@pytest.mark.parametrize("feed", [4.0, 20.0])
def test_single_slices_are_exact_where_nothing_changes_along_z(feed):
    spot = scanner(views=90, turns=3, bins=92, rows=10, feed=feed, z=TABLE_Z)
    phantom = raw_phantom(bead=None)
    scan = measure_phantom(phantom, spot)
    heights = [TABLE_Z - 2, TABLE_Z + 5]
    fan = to_fan_slices(scan, heights)
    direct = phantom.line_integrals(VolumeGeometry((2, 8, 8), (1.0, 1.0, 1.0)), fan.beam)
    # Rows differ by the cosine of a tilt below 3.7°, whose square interpolation misses by 1e-4 of 3.9.
    assert float((fan.y - direct).abs().max()) < 1e-3
    parallel = to_parallel_slices(scan, heights)
    direct = phantom.line_integrals(VolumeGeometry((2, 8, 8), (1.0, 1.0, 1.0)), parallel.beam)
    # Interpolation between fan rays at the rim of the cylinder, where the chord's slope is infinite.
    assert float((parallel.y - direct).abs().mean()) < 5e-3


BALL = (60.0, 0.0, TABLE_Z), 25.0  # centre and radius, mm


def ball_errors(feed):
    """A ball off the axis, cut 18 mm above its middle: error of single-slice rebinning, and images in HU.

    Returns the RMS error of the slice's line integrals; the RMS in HU of what FBP makes of that error; and
    the RMS error in HU of WFBP against the truth, 5 mm and more away from the edge of the disc in the slice.
    """
    (x, y, z), radius = BALL
    ball = Phantom((Ellipsoid((x, y, z), (radius,) * 3, MU_WATER),))
    spot = scanner(views=80, turns=2.4 + 40 / feed, bins=92, rows=12, feed=feed, z=TABLE_Z)
    scan, height = measure_phantom(ball, spot), z + 18
    fan = to_fan_slices(scan, [height])
    shifted = Phantom(tuple(replace(part, centre=(x, y, z - height)) for part in ball.ellipsoids))
    direct = shifted.line_integrals(VolumeGeometry((1, 8, 8), (1.0, 1.0, 1.0)), fan.beam)
    grid = VolumeGeometry((1, 48, 48), (1.0, 5.0, 5.0))
    distance = np.hypot(X[::2, ::2] + PIXEL / 2 - x, Y[::2, ::2] - PIXEL / 2 - y)
    disc = math.sqrt(radius**2 - 18**2)
    truth = np.where(distance < disc, 0.0, -1000.0)
    judged = (abs(distance - disc) > 5) & (np.hypot(X, Y)[::2, ::2] < 100)
    single = fbp(replace(fan, y=fan.y - direct), grid, "hann")[0].numpy() / MU_WATER * 1000
    weighted = hu(wfbp(scan, grid, [height], "hann").data)[0] - truth
    errors = [float(np.sqrt((error[judged] ** 2).mean())) for error in (single, weighted)]
    return float((fan.y - direct).square().mean().sqrt()), *errors


def test_a_ball_errs_with_the_feed():
    errors = {feed: ball_errors(feed) for feed in (4.0, 20.0, 32.0)}
    for feed, (data, single, weighted) in errors.items():
        print(f"feed {feed:g} mm: data {data:.4f}, single slice {single:.1f} HU, WFBP {weighted:.1f} HU")
    by_feed = [data for data, _, _ in errors.values()]
    assert by_feed == sorted(by_feed)
    assert by_feed[0] < 0.01  # 1 % of the ball's thickest chord of 0.96
    assert errors[32.0][1] > errors[4.0][1]
    assert max(weighted for _, _, weighted in errors.values()) < 25  # of bins and pixels of 5 mm: 18 HU


def test_half_turns_agree_with_the_right_centre_only():
    spot = scanner(views=240, turns=2.5, bins=184, rows=1, feed=0.0)
    scan = measure_phantom(
        raw_phantom(bead=None), spot, rays_per_bin=3
    )  # bins of a width: no aliasing at edges

    def difference(shift):
        moved = replace(spot, central=(spot.central[0] + shift, spot.central[1]))
        part = to_parallel(replace(scan, spot=moved, beam=moved.beam()))[0]
        half = part.half_turn
        step = float(part.t[1] - part.t[0])
        images = []
        for start in (0, half):
            beam = ParallelBeam(tuple(part.theta[start : start + half]), bins=len(part.t), pitch=step)
            images.append(
                fbp(replace(scan, y=part.y[:, start : start + half], beam=beam, spot=None), filter="hann")
            )
        return float((images[0] - images[1]).square().mean().sqrt()) / MU_WATER * 1000

    right, wrong = difference(0.0), difference(0.5)
    print(f"half turns differ by {right:.1f} HU, with the centre half a bin off by {wrong:.1f} HU")
    assert wrong > 5 * right


BALLS = Phantom(
    (
        Ellipsoid((0.0, 0.0, 0.0), (80.0, 60.0, math.inf), MU_WATER),
        Ellipsoid((35.0, 10.0, 4.0), (14.0, 14.0, 6.0), MU_WATER),
        Ellipsoid((-20.0, 30.0, -5.0), (12.0, 12.0, 5.0), MU_WATER),
        Ellipsoid((-40.0, -20.0, 2.0), (10.0, 10.0, 4.0), MU_WATER),
    )
)


@pytest.fixture(scope="module")
def consistent():
    spot = scanner(views=60, turns=2.0, bins=92, rows=8, feed=12.0, flying="FFSXYZ")
    return measure_phantom(BALLS, spot)


def residual(scan, spot):
    """What 5 steps of CGLS leave of the data, relative."""
    grid = VolumeGeometry((20, 48, 48), (3.0, 4.0, 4.0))
    A = Radon(grid, spot.beam())
    problem = InverseProblem(A, scan.y, Gaussian(1.0))
    x = solve(problem, CGLS(iterations=5)).mean
    return float((A(x) - scan.y).norm() / scan.y.norm())


MUTATIONS = {
    "columns flipped": lambda s: replace(s, mirrored=(True, False)),
    "rows flipped": lambda s: replace(s, mirrored=(False, True)),
    "centre off by half a channel": lambda s: replace(s, central=(s.central[0] + 0.5, s.central[1])),
    "angle reversed": lambda s: replace(s, phi=-s.phi, shift_phi=-s.shift_phi),
    "spot shifts exchanged": lambda s: replace(s, shift_phi=s.shift_z, shift_z=s.shift_phi),
    "spot shifts forgotten": lambda s: replace(
        s, shift_phi=0 * s.phi, shift_z=0 * s.phi, shift_rho=0 * s.phi
    ),
    "spot shifts of the other views": lambda s: replace(
        s, shift_phi=-s.shift_phi, shift_z=-s.shift_z, shift_rho=s.shift_rho[::-1]
    ),
}


def test_every_misread_attribute_leaves_more_of_the_data(consistent):
    right = residual(consistent, consistent.spot)
    print(f"read right: {100 * right:.3f} %")
    for name, mutate in MUTATIONS.items():
        wrong = residual(consistent, mutate(consistent.spot))
        print(f"{name}: {100 * wrong:.3f} %")
        assert wrong > 1.01 * right, name


@pytest.mark.parametrize("mirrored", [(True, False), (False, True), (True, True)])
def test_the_data_tell_the_detector_directions(consistent, mirrored):
    """A set whose columns or rows run the other way is read right all the same, and says so."""
    flipped = consistent.y
    for axis, flip in zip((2, 0), mirrored, strict=True):
        flipped = flipped.flip(axis) if flip else flipped
    central = tuple(
        n - 1 - c if flip else c
        for n, c, flip in zip((92, 8), consistent.spot.central, mirrored, strict=True)
    )
    stored = replace(consistent.spot, central=central)
    scan = orient_detector(replace(consistent, y=flipped, spot=stored, beam=stored.beam()))
    assert scan.spot.mirrored == mirrored
    assert "run against the format" in scan.notes[-1]
    # The same rays; but every second row is compared, and flipped rows are the other half.
    assert inconsistency(scan) == pytest.approx(inconsistency(consistent), rel=0.1)


def test_directions_that_agree_are_kept(consistent):
    assert orient_detector(consistent) is consistent


def test_one_spot_of_a_circle_is_the_parallel_beam_itself():
    """Sorted rays of a circle are what a parallel beam measures."""
    spot = scanner(views=90, turns=1.6, bins=92, rows=1, feed=0.0)
    part = to_parallel(measure_phantom(raw_phantom(bead=None, rods=False), spot))[0]
    radius = torch.tensor(part.t).abs()
    chord = 2 * MU_WATER * (100.0**2 - radius**2).clamp_min(0).sqrt()
    inner = radius < 90
    # A chord of curvature 2 mu R² / (R² - t²)^1.5 between bins 5.7 mm apart: an eighth of it times 5.7².
    curvature = 2 * MU_WATER * 100**2 / (100**2 - 90**2) ** 1.5
    assert float((part.y[0] - chord)[:, inner].abs().max()) < 5.7**2 / 8 * curvature


def test_a_volume_stands_on_the_slices_of_a_series():
    spot = scanner(views=48, turns=2.5, bins=60, rows=8, feed=8.0, z=-25.0)
    scan = measure_phantom(raw_phantom(bead=None, rods=False), spot)
    affine = ((0.0, 0.0, 8.0, -100.0), (0.0, 8.0, 0.0, -100.0), (-3.0, 0.0, 0.0, 26.0), (0.0, 0.0, 0.0, 1.0))
    grid = VolumeGeometry((2, 26, 26), (3.0, 8.0, 8.0), affine)
    series = Volume(torch.zeros(2, 26, 26), grid, "HU")
    # The scanner's axis runs against the patient's: slices at 26 and 23 mm were scanned at -26 and -23 mm.
    found = on_slices_of(series, scan, direction=-1.0)
    assert found.geometry == grid
    assert found.unit == "HU"
    assert abs(float(found.data[:, 12:14, 12:14].mean())) < 5
    with pytest.raises(GeometryError, match="direction=-1"):
        on_slices_of(series, scan)


def test_the_places_of_a_flying_spot_are_seen_in_its_rays():
    scan = measure_phantom(raw_phantom(), scanner(views=24, turns=2, bins=46, rows=4, flying="FFSXYZ"))
    sets = to_parallel(replace(scan, spot=None))
    # The places of `scanner`: 595 mm from the axis, and 5.45 mm further.
    assert [float(part.distance.max()) for part in sets] == pytest.approx([595, 600.45], abs=0.05)


def test_what_rebinning_cannot_do_is_said():
    moving = measure_phantom(raw_phantom(), scanner(views=24, turns=2, bins=46, rows=4, flying="FFSZ"))
    with pytest.raises(GeometryError, match="does not fly"):
        to_fan_slices(moving, [0.0])
    still = measure_phantom(raw_phantom(), scanner(views=24, turns=2, bins=46, rows=4, feed=10.0))
    with pytest.raises(GeometryError, match="rows beyond the detector"):
        to_fan_slices(still, [500.0])
    with pytest.raises(GeometryError, match="not seen from all directions"):
        wfbp(still, VolumeGeometry((1, 16, 16), (1.0, 8.0, 8.0)), [60.0])
    with pytest.raises(GeometryError, match="not seen from all directions"):
        to_parallel_slices(still, [60.0])
    quarter = measure_phantom(raw_phantom(), scanner(views=24, turns=0.3, bins=46, rows=4, feed=0.0))
    with pytest.raises(GeometryError, match="half a turn is needed"):
        to_parallel(quarter)
    rows = [(x + 0.1 * k, *rest) for k, (x, *rest) in enumerate(still.beam.vectors)]
    wobbling = replace(still, spot=None, beam=replace(still.beam, vectors=tuple(rows)))
    with pytest.raises(GeometryError, match="more than 4 ways"):
        to_parallel(wobbling)
    with pytest.raises(GeometryError, match="of a point source"):
        to_parallel(to_fan_slices(still, [0.0]))
    assert isinstance(to_fan_slices(still, [0.0]).beam, FanBeam)
