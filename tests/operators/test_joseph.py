"""Kernels on the fly: exact transposes for any rays, alike in every width, thread and precision."""

import numpy as np
import pytest
import torch

from ctflow.errors import BackendError
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Radon, _joseph
from ctflow.operators._simd import LANES, widths

VOLUME = VolumeGeometry((1, 40, 28), (3.0, 1.5, 1.5))
BEAMS = {
    "parallel": ParallelBeam(16, arc_degrees=360.0),
    "coarse bins": ParallelBeam(7, pitch=4.0),
    "fine bins": ParallelBeam(7, pitch=0.3),
    "off centre": ParallelBeam(9, bins=61, axis_offset=3.1, shift_bins=0.25),
    "one view along the rows": ParallelBeam([np.pi / 2]),
    "fan": FanBeam(16, source_axis=60.0, source_detector=100.0),
    "curved fan": FanBeam(16, source_axis=60.0, source_detector=100.0, curved=True),
    # The source passes close by: rays through one row run both ways from it.
    "close fan": FanBeam(32, source_axis=38.0, source_detector=70.0),
}


def projector(beam):
    return _joseph.JosephSliceProjector(VOLUME, beam.fitted(VOLUME))


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(beam):
    """All weights in float64, from the definition: (views · bins, Y · X)."""
    rays = _joseph.lines(VOLUME, beam.fitted(VOLUME))
    start, slope, scale, steep = (
        table.reshape(-1, 1, 1) for table in (rays.start, rays.slope, rays.scale, rays.steep)
    )
    i, j = np.arange(40)[:, None], np.arange(28)
    distance = np.where(steep, start + i * slope - j, start + j * slope - i)
    return torch.from_numpy(scale * np.maximum(0, 1 - np.abs(distance))).flatten(1)


@pytest.mark.parametrize("name", BEAMS)
def test_kernels_are_josephs_weights_and_their_transpose(name):
    P, matrix = projector(BEAMS[name]), dense(BEAMS[name])
    x, y = draw(2, *P.image_shape), draw(2, *P.data_shape, seed=1)
    # Float64 rounding of positions of up to a hundred pixels, times hundreds of terms.
    torch.testing.assert_close(P.forward(x).flatten(1), x.flatten(1) @ matrix.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(P.adjoint(y).flatten(1), y.flatten(1) @ matrix, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BEAMS)
def test_single_precision_is_matched_too(name):
    P = projector(BEAMS[name])
    x, y = draw(5, *P.image_shape, dtype=torch.float32), draw(5, *P.data_shape, dtype=torch.float32, seed=1)
    image, back = P.forward(x).double(), P.adjoint(y).double()
    gap = ((image * y).sum() - (x * back).sum()).abs() / (image.norm() * y.double().norm())
    assert gap < 1e-7  # float32 rounding; measured 3e-9 and below
    exact = P.forward(x.double())
    assert (image - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_any_size_is_its_images_one_by_one(dtype):
    P = projector(BEAMS["fan"])
    x, y = draw(21, *P.image_shape, dtype=dtype), draw(21, *P.data_shape, dtype=dtype)
    # The same sums in the same order; a compiler may fuse a product and a sum in one width only.
    close = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
    for apply, stack in ((P.forward, x), (P.adjoint, y)):
        one_by_one = torch.cat([apply(one[None]) for one in stack])
        scale = one_by_one.abs().max()
        for batch in (2, 4, 7, 16, 21):
            torch.testing.assert_close(apply(stack[:batch]) / scale, one_by_one[:batch] / scale, **close)
        assert apply(stack[:0]).shape == one_by_one[:0].shape


@pytest.mark.parametrize("batch", range(1, 50))
def test_widths_hold_the_batch_and_waste_little(batch):
    cut = widths(batch)
    assert set(cut) <= set(LANES)
    assert batch <= sum(cut) < batch + LANES[-1] / 2


def test_threads_change_nothing():
    P, before = projector(BEAMS["close fan"]), torch.get_num_threads()
    x, y = draw(3, *P.image_shape), draw(3, *P.data_shape)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((P.forward(x), P.adjoint(y)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", ["off centre", "curved fan"])
def test_derivatives(name):
    A = Radon(VOLUME, BEAMS[name], "joseph")
    x = draw(*A.domain_shape).requires_grad_()
    assert torch.autograd.gradcheck(A, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(A.T, (draw(*A.range_shape).requires_grad_(),), fast_mode=True)


def test_a_strided_image_is_the_image():
    P = projector(BEAMS["parallel"])
    x = draw(28, 40, 3).permute(2, 1, 0)
    assert torch.equal(P.forward(x), P.forward(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_other_numbers_are_refused(dtype):
    with pytest.raises(BackendError, match=r"float32 and float64 on the CPU and was given.*pass x\.float"):
        projector(BEAMS["fan"]).forward(torch.zeros(1, 40, 28, dtype=dtype))
