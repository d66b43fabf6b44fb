"""Volumes on the CPU: matched, to scale, where the beam says, and what ASTRA says on a GPU."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.geometry import (
    ConeBeam,
    FanBeam,
    HelicalBeam,
    ParallelBeam,
    ParallelBeam3D,
    VectorBeam,
    VolumeGeometry,
)
from ctflow.operators import Radon
from ctflow.operators._indexed_rays import index_rays
from ctflow.operators._upright import UprightProjector, upright
from ctflow.operators._volume import AnyRayProjector, JosephVolumeProjector
from ctflow.testing import adjoint_gap, check_operator
from ctflow.testing._finding import white_noise
from tests.geometry.orbits import ball, centroid, chords, seen

GANTRY = {"source_axis": 150.0, "source_detector": 260.0}


def panel(t: float) -> tuple[float, ...]:
    """Source, middle, step along a row and step across, of a view of an orbit that wobbles."""
    sine, cosine = math.sin(t), math.cos(t)
    source, middle = (150 * sine, -150 * cosine, 9 * t - 20), (-90 * sine, 90 * cosine, 3.0)
    return (*source, *middle, 4 * cosine, 4 * sine, 0.2, -0.1, 0.3, 3.5)


BEAMS = {
    "parallel": ParallelBeam3D(7, rows=8, row_pitch=2.2),
    "cone": ConeBeam(7, **GANTRY),
    "curved cone, quarter bin off": ConeBeam(7, curved=True, shift_bins=0.25, axis_offset=1.5, **GANTRY),
    "helix": HelicalBeam(14, feed=9.0, **GANTRY),
    "helix with a flat panel": HelicalBeam(14, feed=-9.0, curved=False, **GANTRY),
    "wobbling": VectorBeam(tuple(panel(t) for t in (0.1, 1.2, 2.7, 4.4)), bins=14, rows=12),
}
SMALL = VolumeGeometry((5, 12, 10), (3.0, 2.0, 2.0))


@pytest.fixture(params=["joseph", "torch", "warp"])
def backend(request):
    if request.param == "warp":
        pytest.importorskip("warp", reason="warp-lang is not installed")
    return request.param


@pytest.fixture(params=BEAMS.values(), ids=BEAMS)
def beam(request):
    return request.param


def gap_in_float64(A: Radon) -> float:
    x, y = (white_noise(shape, dtype=torch.float64) for shape in (A.domain_shape, A.range_shape))
    Ax = A(x)
    return float(abs((Ax * y).sum() - (x * A.T(y)).sum()) / (Ax.norm() * y.norm()))


@pytest.mark.parametrize(
    ("kind", "backend"), [("parallel", "joseph"), ("wobbling", "torch"), ("helix", "joseph")]
)
def test_operator_obeys_every_law(kind, backend):
    check_operator(Radon(VolumeGeometry((3, 6, 5), (3.0, 3.0, 3.0)), BEAMS[kind], backend))


def test_derivatives_are_the_operator(beam, backend):
    for operator in (Radon(SMALL, beam, backend), Radon(SMALL, beam, backend).T):
        x = white_noise(operator.domain_shape, 1, dtype=torch.float64).requires_grad_()
        assert gradcheck(operator, (x,), fast_mode=True)


def test_forward_and_adjoint_are_matched(beam, backend):
    A = Radon(SMALL, beam, backend)
    assert adjoint_gap(A) < 1e-6
    # Sums of some hundred products in float64; measured 1e-17.
    assert gap_in_float64(A) < 1e-12


def test_every_weight_is_the_same_number_both_ways(beam, backend):
    volume = VolumeGeometry((3, 5, 4), (3.0, 2.0, 2.0))
    A = Radon(volume, beam, backend)
    forward = A(torch.eye(60, dtype=torch.float64).reshape(60, *A.domain_shape)).flatten(1)
    size = forward.shape[1]
    adjoint = A.T(torch.eye(size, dtype=torch.float64).reshape(size, *A.range_shape)).flatten(1)
    assert forward.max() > 1
    # One unit in the last place of mm where the compiler fuses a product and a sum in one direction only.
    torch.testing.assert_close(adjoint, forward.T, rtol=0, atol=1e-15)


def test_wide_and_narrow_batches_agree(beam, backend):
    A = Radon(SMALL, beam, backend)
    x = white_noise(A.domain_shape, 2, 3, dtype=torch.float64)  # six volumes of five slices go ray by ray
    loop = torch.stack([torch.stack([A(image) for image in row]) for row in x])
    torch.testing.assert_close(A(x), loop, rtol=0, atol=1e-12)  # rounding of values near 10


def test_result_does_not_depend_on_the_number_of_threads(beam):
    A = Radon(SMALL, beam, "joseph")
    x, y = white_noise(A.domain_shape), white_noise(A.range_shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = A(x), A.T(y)
        torch.set_num_threads(3)
        together = A(x), A.T(y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


def test_upright_panels_have_the_weights_of_single_rays(beam):
    rays = index_rays(SMALL, beam.fitted(SMALL).rays())
    if not upright(rays):
        assert isinstance(beam, VectorBeam)
        return
    quick, ray_by_ray = UprightProjector(SMALL, rays), AnyRayProjector(SMALL, rays)
    x, y = (white_noise((3, *shape), dtype=torch.float64) for shape in (SMALL.shape, quick.data_shape))
    # Rounding of values near 10 and, backward, near 100.
    torch.testing.assert_close(quick.forward(x), ray_by_ray.forward(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(quick.adjoint(y), ray_by_ray.adjoint(y), rtol=0, atol=1e-11)


def test_rays_that_cross_more_slices_than_rows_go_one_by_one():
    thin = VolumeGeometry((200, 12, 10), (0.2, 2.0, 2.0))
    A = Radon(thin, ConeBeam(7, **GANTRY), "joseph")
    assert not upright(index_rays(thin, A.beam.rays()))
    assert adjoint_gap(A) < 1e-6


def test_upright_vectors_are_the_cone_that_they_describe():
    cone = ConeBeam(7, bins=14, pitch=4.0, rows=12, row_pitch=4.0, **GANTRY).fitted(SMALL)
    rays = cone.rays()
    vectors = np.concatenate([rays.source, rays.centre, rays.u, rays.v], 1)
    described = VectorBeam(tuple(map(tuple, vectors.tolist())), bins=14, rows=12)
    assert upright(index_rays(SMALL, described.fitted(SMALL).rays()))
    x = white_noise(SMALL.shape, dtype=torch.float64)
    # The same rays after a round trip of their vectors: rounding of values near 10.
    torch.testing.assert_close(Radon(SMALL, described)(x), Radon(SMALL, cone)(x), rtol=0, atol=1e-12)


# Analytic phantoms


ORBITS = {
    "parallel": ParallelBeam3D(9, bins=48, pitch=2.0, rows=40, row_pitch=2.0),
    "cone": ConeBeam(9, bins=48, pitch=4.0, rows=50, row_pitch=4.0, **GANTRY),
    "helix": HelicalBeam(18, bins=48, pitch=4.0, rows=30, row_pitch=4.0, feed=40.0, **GANTRY),
}


@pytest.mark.parametrize("kind", ORBITS)
def test_ball_off_centre_converges_to_its_chords(kind):
    centre, radius, mu, errors = (9.0, -6.0, 5.0), 22.0, 0.02, []
    for n in (12, 24, 48):
        volume = VolumeGeometry((n, n, n), (72 / n, 72 / n, 72 / n))
        A = Radon(volume, ORBITS[kind], "joseph")
        exact = mu * chords(A.beam, A.range_shape, centre, radius)
        errors.append(float((A(ball(volume, centre, radius, mu)) - exact).norm() / exact.norm()))
    # Voxels and interpolation blur the edge over a voxel h, where a chord is about sqrt(8 R h) long; over the
    # L2 norm of all chords that is of the order h / R, first order in h.
    assert errors[0] / errors[2] > 3.5
    assert errors[2] < 0.5 * (72 / 48) / radius


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (6.0, 4.0, 4.0), (3.0, 5.0, 5.0)])
@pytest.mark.parametrize("pitch", [9.0, 30.0])
@pytest.mark.parametrize("kind", [ParallelBeam3D, ConeBeam, HelicalBeam])
def test_ball_of_002_per_mm_and_100_mm_integrates_to_4(kind, pitch, spacing, backend):
    shape = tuple(math.ceil(208 / d) for d in spacing)
    volume = VolumeGeometry(shape, spacing)
    size = {"bins": 2 * math.ceil(210 / pitch) + 1, "pitch": pitch, "row_pitch": pitch}
    # A helix that hardly turns: its source stays at the height of the middle.
    beam = kind(5, **size, rows=size["bins"], **({"arc_degrees": 1.0} if kind is HelicalBeam else {}))
    A = Radon(volume, beam, backend)
    y = A(ball(volume, (0.0, 0.0, 0.0), 100.0, 0.02))
    middle = y[A.range_shape[0] // 2, :, A.range_shape[2] // 2]
    # The edge is resolved to half a voxel at worst, of 0.02/mm, at either end of the ray.
    assert (middle - 4).abs().max() < 0.02 * max(spacing) / 2
    assert abs(float(middle.mean()) - 4) < 0.02


# Orientation and symmetry


@pytest.mark.parametrize(
    "beam",
    [
        ParallelBeam3D(12, pitch=0.7, row_pitch=0.7),
        ConeBeam(12, pitch=1.2, row_pitch=1.2, **GANTRY),
        ConeBeam(12, pitch=1.2, row_pitch=1.2, curved=True, **GANTRY),
        HelicalBeam(12, pitch=1.2, row_pitch=1.2, rows=120, feed=20.0, arc_degrees=360.0, **GANTRY),
    ],
    ids=["parallel", "cone", "curved cone", "helix"],
)
def test_point_off_all_axes_is_seen_where_the_convention_says(beam, backend):
    volume = VolumeGeometry((14, 22, 20), (2.5, 2.0, 2.0))
    A = Radon(volume, beam, backend)
    image = torch.zeros(volume.shape, dtype=torch.float64)
    image[11, 3, 16] = 1.0  # high, near the top, to the right
    bins, rows = seen(A.beam, ((16 - 9.5) * 2.0, (10.5 - 3) * 2.0, (11 - 6.5) * 2.5))
    y = A(image)
    # A voxel's shadow is three to seven bins wide; sampled there, its centroid is off by a tenth of a bin.
    assert (centroid(y, A.beam.pitch, 2) - bins).abs().max() < 0.15 * A.beam.pitch
    assert (centroid(y, A.beam.row_pitch, 0) - rows).abs().max() < 0.15 * A.beam.row_pitch


def test_parallel_volume_is_parallel_slices(backend):
    volume = VolumeGeometry((4, 24, 20), (3.0, 2.0, 2.0))
    x = white_noise(volume.shape)
    y = Radon(volume, ParallelBeam3D(11), backend)(x)
    slices = Radon(volume, ParallelBeam(11), "astra")(x)
    # ASTRA computes its weights in float32; at 45° neither axis leads, and 11 views avoid it.
    torch.testing.assert_close(y, slices, rtol=0, atol=2e-5 * float(slices.abs().max()))


def test_middle_row_of_a_cone_through_a_prism_is_a_fan(backend):
    volume = VolumeGeometry((6, 24, 20), (3.0, 2.0, 2.0))
    slice_ = white_noise((1, 24, 20), dtype=torch.float64)
    cone = Radon(volume, ConeBeam(11, rows=9, row_pitch=5.0, **GANTRY), backend)
    fan = Radon(volume.slices(0, 1), FanBeam(11, **GANTRY), "joseph")
    # The same rays at z = 0, between two equal slices: rounding of values near 100.
    torch.testing.assert_close(cone(slice_.expand(6, -1, -1))[4:5], fan(slice_), rtol=0, atol=1e-11)


def test_helix_that_has_turned_once_sees_what_lies_one_feed_higher(backend):
    volume = VolumeGeometry((12, 12, 10), (2.0, 2.0, 2.0))
    A = Radon(volume, HelicalBeam(16, rows=9, row_pitch=3.0, feed=8.0, **GANTRY), backend)
    x = torch.zeros(volume.shape, dtype=torch.float64)
    x[3:7] = white_noise((4, 12, 10), dtype=torch.float64)
    # Two turns of eight views; a feed of four slices. Rounding of values near 100.
    torch.testing.assert_close(A(x.roll(4, 0))[:, 8:], A(x)[:, :8], rtol=0, atol=1e-11)


def test_point_wanders_over_the_rows_of_a_helix_against_the_feed(backend):
    volume = VolumeGeometry((24, 12, 12), (2.0, 2.0, 2.0))
    beam = HelicalBeam(8, rows=40, row_pitch=2.0, feed=16.0, arc_degrees=360.0, **GANTRY)
    x = torch.zeros(volume.shape)
    x[11:13, 5:7, 5:7] = 1.0  # around the origin
    rows = centroid(Radon(volume, beam, backend)(x), 2.0, 0)
    step = 16.0 / 8 * GANTRY["source_detector"] / GANTRY["source_axis"]
    # The centroid of eight voxels over 7 rows, each of which is sampled at one height.
    torch.testing.assert_close(rows, -step * (torch.arange(8) - 3.5), rtol=0, atol=0.1)


# Choices and refusals


def test_volumes_are_served_on_the_cpu_and_the_backend_is_named():
    A = Radon(SMALL, BEAMS["cone"])
    assert A.backend == "joseph"
    assert torch.equal(
        A(torch.ones(SMALL.shape)), Radon(SMALL, BEAMS["cone"], "joseph")(torch.ones(SMALL.shape))
    )
    assert Radon(SMALL, BEAMS["cone"], "torch").backend == "torch"


def test_unusable_images_are_refused(beam, backend):
    A = Radon(SMALL, beam, backend)
    x = torch.zeros(SMALL.shape)
    with pytest.raises(GeometryError, match=r"expects \(\*batch, 5, 12, 10\)"):
        A(x.movedim(0, -1))
    with pytest.raises(BackendError, match=r"float32 or float64.*x\.float\(\)"):
        A(x.int())
    x[2, 3, 4] = math.nan
    with pytest.raises(UsageError, match="expects finite values"):
        A(x)
    with pytest.raises(UsageError, match="expects finite values"):
        A.T(torch.full(A.range_shape, math.inf))


def test_joseph_refuses_other_devices(beam):
    with pytest.raises(BackendError, match=r"on the CPU and was given.*\.cpu\(\)"):
        JosephVolumeProjector(SMALL, beam.fitted(SMALL)).forward(torch.zeros(1, *SMALL.shape, device="meta"))


# On a GPU


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ORBITS)
def test_astra_on_cuda_agrees(kind, device):
    volume = VolumeGeometry((48, 48, 48), (1.5, 1.5, 1.5))
    here, there = Radon(volume, ORBITS[kind], "joseph"), Radon(volume, ORBITS[kind], "astra")
    x = ball(volume, (9.0, -6.0, 5.0), 22.0, 0.02).float()
    y, z = here(x), there(x.to(device))
    # ASTRA steps and interpolates alike, with texture fractions of eight bits: half a percent.
    assert z.is_cuda
    assert (z.cpu() - y).norm() < 5e-3 * y.norm()
    # Its back projection interpolates on the panel instead: agreement to discretisation, 1.6 % (see above).
    back = here.T(y)
    assert (there.T(y.to(device)).cpu() - back).norm() < 0.03 * back.norm()


@pytest.mark.gpu
def test_torch_on_cuda_is_matched_and_agrees(beam, device):
    here, there = Radon(SMALL, beam, "joseph"), Radon(SMALL, beam, "torch")
    x, y = (
        white_noise(here.domain_shape, dtype=torch.float64),
        white_noise(here.range_shape, dtype=torch.float64),
    )
    Ax, back = there(x.to(device)), there.T(y.to(device))
    assert Ax.is_cuda
    assert back.is_cuda
    # Rounding of float64, summed in another order.
    torch.testing.assert_close(Ax.cpu(), here(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(back.cpu(), here.T(y), rtol=0, atol=1e-11)
