"""Projections against closed forms: scale, orientation, exact ellipses; and what they refuse."""

import math

import pytest
import torch

from ctflow.datasets.phantoms import disc, thorax
from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Mask, Radon

BACKENDS = ["joseph", "matrix", "astra", "torch"]
BEAMS = [
    ParallelBeam(24),
    ParallelBeam(24, axis_offset=5.0, bins=400, shift_bins=-0.25),
    FanBeam(24),
    FanBeam(24, curved=True, axis_offset=-5.0, bins=400, shift_bins=0.25),
]


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


def square(n: int, pixel: float, slices: int = 1) -> VolumeGeometry:
    return VolumeGeometry((slices, n, n), (3.0, pixel, pixel))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixel", [1.7, 3.0])
@pytest.mark.parametrize("pitch", [None, 0.9, 4.0])
@pytest.mark.parametrize("beam", [ParallelBeam, FanBeam])
def test_disc_of_002_per_mm_and_100_mm_integrates_to_4(beam, pitch, pixel, backend):
    volume = square(128, pixel)
    A = Radon(volume, beam(15, pitch=pitch), backend)
    y = A(disc(100.0, 0.02).rasterise(volume).data)[0]
    middle = (y.shape[-1] - 1) / 2
    centre = (y[:, math.floor(middle)] + y[:, math.ceil(middle)]) / 2
    # An edge is resolved to half a pixel at worst, of 0.02/mm; over the views the errors cancel.
    assert (centre - 4).abs().max() < 0.02 * pixel / 2
    assert abs(float(centre.mean()) - 4) < 4e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beam", BEAMS)
def test_point_off_both_axes_is_seen_where_the_convention_says(beam, backend):
    volume = square(128, 1.5)
    A = Radon(volume, beam, backend)
    image = torch.zeros(volume.shape)
    image[0, 20, 100] = 1  # near the top, to the right
    x, y = (100 - 63.5) * 1.5, (63.5 - 20) * 1.5
    theta = torch.tensor(A.beam.views)
    # The central ray passes by the axis at axis_offset: a point on the axis is seen on the other side.
    seen = x * theta.cos() + y * theta.sin() + beam.axis_offset
    if isinstance(beam, FanBeam):
        # Rays from (D sin θ, -D cos θ), magnified by the point's distance from the source along the axis.
        ahead = beam.source_axis - x * theta.sin() + y * theta.cos()
        seen = beam.source_detector * (torch.atan2(seen, ahead) if beam.curved else seen / ahead)
    data = A(image)[0]
    bins = (torch.arange(data.shape[-1]) - (data.shape[-1] - 1) / 2 + beam.shift_bins) * A.beam.pitch
    centroid = (data * bins).sum(1) / data.sum(1)
    # A pixel casts a shadow of one or two bins whose centroid is quantised: half a bin.
    assert (centroid - seen).abs().max() < 0.5 * A.beam.pitch


@pytest.mark.parametrize("beam", BEAMS)
def test_thorax_agrees_with_its_exact_integrals(beam):
    volume, phantom = square(256, 1.6), thorax()
    x = phantom.rasterise(volume).data
    exact = phantom.line_integrals(volume, beam.fitted(volume), rays_per_bin=4)
    for backend in ("joseph", "astra"):  # the others are held against these below, which is quicker
        error = Radon(volume, beam, backend)(x) - exact
        # Discretisation: 0.7 to 0.9 % of the norm at 256² for every projection model of ASTRA.
        assert error.norm() < 0.01 * exact.norm(), backend


@pytest.mark.parametrize("beam", BEAMS)
def test_backends_agree_on_projection_and_backprojection(beam):
    volume = square(96, 2.0, slices=2)
    x = thorax().rasterise(volume).data.expand(3, *volume.shape)
    ours = Radon(volume, beam, "joseph")
    y = ours(x)
    back = ours.T(y)
    for backend in BACKENDS[1:]:
        A = Radon(volume, beam, backend)
        # For a parallel beam ASTRA's weights are the same, but for its float32 positions.
        same = backend != "astra" or isinstance(beam, ParallelBeam)
        assert (A(x) - y).norm() < (2e-5 if same else 1e-2) * y.norm(), backend
        # Fans get line lengths from ASTRA: as good along a ray, but uneven over the pixels that it passes.
        assert (A.T(y) - back).norm() < (2e-5 if same else 5e-2) * back.norm(), backend


def test_rotating_the_volume_rotates_the_views():
    volume = square(64, 2.0)
    A = Radon(volume, ParallelBeam(8, arc_degrees=360.0))
    x = thorax().rasterise(volume).data
    # Two of eight views are 90°, which is exact on the grid; rot90 turns x towards y.
    turned = A(torch.rot90(x, 1, (-2, -1)))
    # Float32 rounding of another order of summation.
    torch.testing.assert_close(turned, A(x).roll(2, dims=-2), rtol=0, atol=1e-4 * float(turned.max()))


def test_slices_are_measured_one_by_one():
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = Radon(square(32, 2.0, slices=3), ParallelBeam(9))(x)
    # The sparse product of one column is another routine than that of several.
    for k in range(3):
        torch.testing.assert_close(whole[k : k + 1], Radon(square(32, 2.0), ParallelBeam(9))(x[k : k + 1]))


def test_auto_goes_by_device_and_size_and_says_so(monkeypatch):
    A = Radon(square(512, 0.8), ParallelBeam(720))
    assert A.backend == "joseph"
    assert Radon(square(512, 0.8), ParallelBeam(60)).backend == "matrix"
    assert Radon(square(512, 0.8), ParallelBeam(60), max_matrix_bytes=2**28).backend == "joseph"
    monkeypatch.setattr("ctflow.operators._base.available_device", torch.device)  # here or not
    assert A.to("cuda").backend in ("warp", "torch")
    assert Radon(square(32, 2.0), ParallelBeam(9), "matrix").to("cuda").backend == "matrix"


def test_oblong_pixels_are_refused():
    with pytest.raises(GeometryError, match=r"square pixels.*resample"):
        Radon(VolumeGeometry((1, 32, 32), (3.0, 1.0, 1.1)), ParallelBeam(9))


@pytest.mark.parametrize(
    ("beam", "backend"), [(ParallelBeam(9), "matlab"), (ConeBeam(9), "matrix"), (FanBeam(9), "")]
)
def test_unknown_backends_are_refused(beam, backend):
    with pytest.raises(BackendError, match="there are auto, joseph, matrix, astra, torch"):
        Radon(square(32, 2.0), beam, backend)


def test_astra_refuses_float64_rather_than_rounding():
    with pytest.raises(BackendError, match="float32"):
        Radon(square(32, 2.0), ParallelBeam(9), "astra")(torch.zeros(1, 32, 32, dtype=torch.float64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cone_without_a_gpu_says_what_it_needs():
    A = Radon(square(32, 2.0, slices=4), ConeBeam(9), "astra")
    with pytest.raises(BackendError, match="CUDA device"):
        A(torch.zeros(4, 32, 32))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beam", BEAMS)
def test_gpu_agrees_with_cpu(beam, backend, device):
    A = Radon(square(128, 1.5, slices=2), beam, backend)
    x = thorax().rasterise(A.volume).data
    # ASTRA's CUDA rays interpolate textures with 8-bit fractions: below half a percent.
    y = A(x)
    assert (A(x.to(device)).cpu() - y).norm() < 5e-3 * y.norm()
    assert (A.T(y.to(device)).cpu() - A.T(y)).norm() < 5e-3 * A.T(y).norm()


@pytest.mark.gpu
def test_middle_row_of_a_cone_is_a_fan(device):
    volume = square(128, 1.5, slices=9)
    x = thorax().rasterise(volume.slices(4, 5)).data
    cone = Radon(volume, ConeBeam(24, rows=9))(x.expand(9, -1, -1).contiguous().to(device)).cpu()
    fan = Radon(volume.slices(4, 5), FanBeam(24))(x)
    assert (cone[4:5] - fan).norm() < 1e-2 * fan.norm()  # as above, and another model of the rays


@pytest.mark.parametrize("beam", [ParallelBeam(12), FanBeam(12), ConeBeam(12, bins=90, rows=6)])
def test_coarser_pixels_have_the_same_rays(beam):
    """A smooth object is the same line integrals on pixels of twice the side."""
    grid = square(64, 2.0, slices=4)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = (0.02 * torch.exp(-4 * (x**2 + 2 * (y - 0.2) ** 2))).expand(4, 64, 64)
    A = Radon(grid, beam)
    coarse = (3.0 * A).coarsened(5.9)
    means = torch.nn.functional.avg_pool2d(image, 2)
    assert coarse.domain_shape == (4, 32, 32)
    assert coarse.range_shape == A.range_shape
    # The widths of the pixels blur by their second moments, of which the coarse ones have four times as much.
    assert (coarse(means) - 3 * A(image)).abs().max() < 0.02 * 3 * A(image).abs().max()
    assert A.coarsened(4.0) is A.coarsened(5.9)  # its weights are made once for all slices
    assert A.coarsened(3.9) is A
    assert A.coarsened(7.0).domain_shape == (4, 32, 32)  # 64 is no multiple of 3
    sparse = Mask(A.range_shape, missing=0.5) @ A
    torch.testing.assert_close(sparse.coarsened(4.0)(means), sparse.left(A.coarsened(4.0)(means)))
    with pytest.raises(UsageError, match="Mask has no coarser pixels"):
        Mask((1, 8, 8), missing=0.5).coarsened(2.0)
