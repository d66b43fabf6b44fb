"""Projections of slices in tensor operations alone: matched, to scale, and what every other backend says."""

import math

import pytest
import torch

from ctflow.datasets.phantoms import disc, thorax
from ctflow.errors import BackendError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Radon
from ctflow.operators._torch import TorchProjector
from ctflow.testing import adjoint_gap, check_operator
from ctflow.testing._finding import white_noise

GANTRY = {"source_axis": 300.0, "source_detector": 500.0}
BEAMS = {
    "parallel": ParallelBeam(11),
    "parallel, axis and detector off": ParallelBeam(11, axis_offset=2.3, shift_bins=0.25),
    "fan": FanBeam(11, **GANTRY),
    "curved fan": FanBeam(11, curved=True, **GANTRY),
}
STACK = VolumeGeometry((2, 24, 20), (3.0, 1.7, 1.7))


@pytest.fixture(params=BEAMS.values(), ids=BEAMS)
def beam(request):
    return request.param


@pytest.mark.parametrize("kind", ["parallel", "curved fan"])
def test_operator_obeys_every_law(kind):
    check_operator(Radon(VolumeGeometry((2, 6, 5), (3.0, 2.0, 2.0)), BEAMS[kind], "torch"))


def test_forward_and_adjoint_are_matched(beam):
    A = Radon(STACK, beam, "torch")
    assert adjoint_gap(A) < 1e-6
    x, y = (white_noise(shape, dtype=torch.float64) for shape in (A.domain_shape, A.range_shape))
    Ax = A(x)
    # Sums of some hundred products in float64; measured 1e-17.
    assert abs((Ax * y).sum() - (x * A.T(y)).sum()) < 1e-12 * Ax.norm() * y.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_josephs_method(beam, dtype):
    A, B = Radon(STACK, beam, "torch"), Radon(STACK, beam, "joseph")
    x, y = white_noise(A.domain_shape, 3, dtype=dtype), white_noise(A.range_shape, 3, dtype=dtype)
    # The same weights, summed in another order: rounding of values near 100.
    bound = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(A(x), B(x), rtol=0, atol=bound)
    torch.testing.assert_close(A.T(y), B.T(y), rtol=0, atol=bound)


def test_astra_agrees(beam):
    volume = VolumeGeometry((1, 128, 128), (3.0, 2.8, 2.8))
    x = thorax().rasterise(volume).data
    y, z = (Radon(volume, beam, backend)(x) for backend in ("torch", "astra"))
    # Parallel beams in ASTRA follow Joseph too; fans there measure lengths in pixels: discretisation.
    assert (y - z).norm() < (2e-5 if isinstance(beam, ParallelBeam) else 0.01) * z.norm()


@pytest.mark.parametrize("beam", [ParallelBeam(20), FanBeam(20)], ids=["parallel", "fan"])
def test_thorax_agrees_with_its_exact_integrals_as_well_as_astra_does(beam):
    volume, phantom = VolumeGeometry((1, 256, 256), (3.0, 1.6, 1.6)), thorax()
    A = Radon(volume, beam, "torch")
    exact = phantom.line_integrals(volume, A.beam, rays_per_bin=4)
    x = phantom.rasterise(volume).data
    ours, theirs = ((B(x) - exact).norm() for B in (A, Radon(volume, beam, "astra")))
    # Two models of one integral; both are discretisation away from it, within a few per cent of each other.
    assert ours < 1.1 * theirs
    assert ours < 0.01 * exact.norm()


@pytest.mark.parametrize("pixel", [1.7, 3.0])
@pytest.mark.parametrize("pitch", [None, 0.9, 4.0])
@pytest.mark.parametrize("kind", [ParallelBeam, FanBeam])
def test_disc_of_002_per_mm_and_100_mm_integrates_to_4(kind, pitch, pixel):
    volume = VolumeGeometry((1, 128, 128), (3.0, pixel, pixel))
    y = Radon(volume, kind(7, pitch=pitch), "torch")(disc(100.0, 0.02).rasterise(volume).data)[0]
    middle = (y.shape[-1] - 1) / 2
    centre = (y[:, math.floor(middle)] + y[:, math.ceil(middle)]) / 2
    # An edge is resolved to half a pixel at worst, of 0.02/mm.
    assert (centre - 4).abs().max() < 0.02 * pixel / 2


@pytest.mark.parametrize("beam", [*BEAMS.values(), ConeBeam(5, **GANTRY)], ids=[*BEAMS, "cone"])
def test_little_memory_gives_the_same(beam):
    fitted = beam.fitted(STACK)
    whole, pieces = TorchProjector(STACK, fitted), TorchProjector(STACK, fitted, max_bytes=2**16)
    x, y = white_noise(whole.image_shape, 2), white_noise(whole.data_shape, 2)
    number = sum(1 for _ in pieces._walks(x.flatten(1).T))
    assert number > 3 * sum(1 for _ in whole._walks(x.flatten(1).T))
    # A voxel adds in the order of the pieces; a ray is summed as before.
    torch.testing.assert_close(pieces.forward(x), whole.forward(x))
    torch.testing.assert_close(pieces.adjoint(y), whole.adjoint(y), rtol=0, atol=1e-3)


def test_pieces_keep_within_their_memory():
    pieces = TorchProjector(STACK, ParallelBeam(60).fitted(STACK), max_bytes=2**18)
    image = white_noise((529, 8))
    for rays, voxels, weights in pieces._walks(image):
        held = 2 * (voxels.nbytes + weights.nbytes) + 8 * weights.nbytes + rays.nbytes
        assert held <= 2**18


def test_half_precision_is_refused():
    with pytest.raises(BackendError, match=r"float32 and float64.*x\.float\(\)"):
        TorchProjector(STACK, ParallelBeam(5).fitted(STACK)).forward(torch.zeros(1, 24, 20).half())


@pytest.mark.gpu
def test_it_stays_on_the_gpu_and_agrees(beam):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    A = Radon(STACK, beam, "torch")
    x, y = (
        white_noise(A.domain_shape, 2, dtype=torch.float64),
        white_noise(A.range_shape, 2, dtype=torch.float64),
    )
    Ax, back = A(x.cuda().requires_grad_()), A.T(y.cuda())
    assert Ax.is_cuda
    assert Ax.requires_grad
    assert back.is_cuda
    # Rounding of values near 100; the adjoint adds in whatever order the device takes.
    torch.testing.assert_close(Ax.detach().cpu(), A(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(back.cpu(), A.T(y), rtol=0, atol=1e-11)
