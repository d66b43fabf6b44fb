"""Blur, downsampling and masks against peers and closed forms; their adjoints are in test_testing.py."""

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch.nn.functional import avg_pool2d, interpolate

from ctflow.errors import GeometryError, ProtocolError
from ctflow.operators.blur import Blur
from ctflow.operators.convolution import Convolution
from ctflow.operators.downsample import Downsample
from ctflow.operators.mask import Mask
from ctflow.operators.motion_blur import MotionBlur
from ctflow.registry import build

# Two float64 evaluations of one short sum differ by rounding only.
ROUNDING = {"rtol": 0, "atol": 1e-12}


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SCIPY = {"reflect": "reflect", "periodic": "wrap", "zero": "constant"}


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 9.0])  # 9 px: the kernel is wider than the slice
@pytest.mark.parametrize(("boundary", "mode"), SCIPY.items())
def test_blur_is_scipys(sigma, boundary, mode):
    x = image(2, 19, 24)
    peer = ndimage.gaussian_filter(x.numpy(), sigma, mode=mode, truncate=4.0, axes=(1, 2))
    np.testing.assert_allclose(Blur((2, 19, 24), sigma, boundary)(x).numpy(), peer, **ROUNDING)


def test_reflecting_blur_is_self_adjoint_and_diagonal_in_the_cosine_basis():
    A = Blur((1, 16, 16), sigma=1.7)
    torch.testing.assert_close(A.R, A.R.mT, **ROUNDING)
    basis = fft.idct(np.eye(16), type=2, norm="ortho", axis=0)
    spectrum = basis.T @ A.R.numpy() @ basis
    np.testing.assert_allclose(spectrum, np.diag(np.diag(spectrum)), **ROUNDING)
    assert spectrum[0, 0] == pytest.approx(1, abs=1e-12)  # the mean is kept
    # Continuous Gaussian at frequency pi/16; truncation at four sigma and sampling change it below 1e-3.
    assert spectrum[1, 1] == pytest.approx(np.exp(-0.5 * (1.7 * np.pi / 16) ** 2), abs=1e-3)


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (7, 1), (23, 31)])  # the last is wider than the slice
@pytest.mark.parametrize(("boundary", "mode"), SCIPY.items())
def test_convolution_is_scipys(sides, boundary, mode):
    x, kernel = image(2, 9, 14), image(*sides)
    peer = np.stack([ndimage.convolve(one, kernel.numpy(), mode=mode) for one in x.numpy()])
    # Fourier transforms: rounding of the largest sum, here some dozens.
    np.testing.assert_allclose(Convolution((2, 9, 14), kernel, boundary)(x).numpy(), peer, rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", SCIPY)
def test_convolution_with_a_gaussian_is_the_blur(boundary):
    g = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    g = torch.from_numpy(np.outer(g, g) / g.sum() ** 2)
    x = image(1, 20, 30)
    A = Convolution((1, 20, 30), g, boundary)
    torch.testing.assert_close(A(x), Blur((1, 20, 30), 1.5, boundary)(x), **ROUNDING)


def test_a_point_that_moves_along_x_leaves_a_box():
    x = torch.zeros(1, 9, 15, dtype=torch.float64)
    x[0, 4, 7] = 1
    y = MotionBlur((1, 9, 15), length=5)(x)
    assert y[0, 4, 5:10].tolist() == pytest.approx([0.2] * 5, abs=1e-12)
    assert float(y.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 135.0, 200.0])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_motion_has_the_variance_of_its_places_along_its_direction(angle, length):
    x = torch.zeros(1, 41, 41, dtype=torch.float64)
    x[0, 20, 20] = 1
    y = MotionBlur((1, 41, 41), length, angle, "zero")(x)[0]
    place = torch.arange(41.0, dtype=torch.float64) - 20
    up, right = -place[:, None], place[None]
    theta = np.deg2rad(angle)
    along = right * np.cos(theta) + up * np.sin(theta)
    across = up * np.cos(theta) - right * np.sin(theta)
    assert float((y * along).sum()) == pytest.approx(0, abs=1e-9)
    # Places a pixel apart: (length² - 1) / 12; sharing among pixels adds at most 1/4 along either axis.
    extra = float((y * along**2).sum()) - (length**2 - 1) / 12
    assert -1e-9 <= extra <= 0.5
    assert float((y * across**2).sum()) <= 0.5


def test_average_is_pooling_and_has_a_closed_pseudo_inverse():
    A = Downsample((2, 12, 20), factor=4)
    x, y = image(3, 2, 12, 20), image(2, 3, 5)
    torch.testing.assert_close(A(x), avg_pool2d(x, 4), **ROUNDING)
    torch.testing.assert_close(A(A.T(y)), y / 16, **ROUNDING)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_strided_keeps_one_pixel_of_a_block(factor):
    A = Downsample((2, 16, 24), factor, "strided")
    x, y = image(3, 2, 16, 24), image(*A.range_shape)
    assert torch.equal(A(x), x[..., ::factor, ::factor])
    assert torch.equal(A(A.T(y)), y)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_is_torchs_antialiased_bicubic(factor):
    x = image(1, 2, 24, 48)
    A = Downsample((2, 24, 48), factor, "bicubic")
    peer = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    torch.testing.assert_close(A(x), peer, **ROUNDING)


def test_bicubic_keeps_linear_ramps_inside():
    A = Downsample((1, 8, 40), factor=4, method="bicubic")
    ramp = torch.arange(40.0, dtype=torch.float64).expand(1, 8, 40)
    centres = 4 * torch.arange(10.0, dtype=torch.float64) + 1.5
    torch.testing.assert_close(A(ramp)[0, 0, 2:-2], centres[2:-2], **ROUNDING)  # the outer two see the edge


def test_random_mask_is_a_projection_with_the_share_asked_for():
    A = Mask((1, 100, 100), missing=0.3, seed=4)
    x = image(1, 100, 100)
    assert torch.equal(A(A(x)), A(x))
    assert torch.equal(A(x)[A.mask], x[A.mask])
    # Binomial: the share of 10⁴ pixels has a standard deviation of 0.0046; five of them.
    assert float((~A.mask).float().mean()) == pytest.approx(0.3, abs=0.023)
    assert torch.equal(A.mask, Mask((1, 100, 100), missing=0.3, seed=4).mask)
    assert not torch.equal(A.mask, Mask((1, 100, 100), missing=0.3, seed=5).mask)


@pytest.mark.parametrize(("kind", "axis"), [("columns", -1), ("views", -2)])
def test_lines_are_lost_whole(kind, axis):
    hidden = ~Mask((2, 500, 600), missing=0.2, kind=kind, seed=2).mask
    lines = hidden.all(-3 - axis).all(0)
    assert torch.equal(hidden, (lines[:, None] if kind == "views" else lines).expand_as(hidden))
    # Binomial: the share of 500 lines has a standard deviation of 0.018; four of them.
    assert float(lines.float().mean()) == pytest.approx(0.2, abs=0.07)


def test_box_lies_in_the_middle():
    hidden = ~Mask((3, 40, 80), missing=0.25, kind="box").mask
    assert hidden.sum() == 3 * 20 * 40
    assert hidden[:, 10:30, 20:60].all()


@pytest.mark.parametrize(
    ("build", "choices"),
    [
        (lambda: Blur((1, 8, 8), boundary="mirror"), "reflect, periodic, zero"),
        (lambda: Convolution((1, 8, 8), [[1.0]], "mirror"), "reflect, periodic, zero"),
        (lambda: MotionBlur((1, 8, 8), boundary="mirror"), "reflect, periodic, zero"),
        (lambda: Downsample((1, 8, 8), method="nearest"), "average, bicubic, strided"),
        (lambda: Mask((1, 8, 8), kind="stripes"), "random, box, columns, views"),
    ],
)
def test_unknown_choice_lists_the_choices(build, choices):
    with pytest.raises(ProtocolError, match=choices):
        build()


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: Blur((1, 8, 8), sigma=0.0), ProtocolError, "pixels"),
        (lambda: Blur((1, 8, 8), sigma=float("inf")), ProtocolError, "pixels"),
        (lambda: Convolution((1, 8, 8), [[1.0, 1.0]]), ProtocolError, "1 × 2 and must be odd × odd"),
        (lambda: Convolution((1, 8, 8), [1.0, 1.0, 1.0]), ProtocolError, "odd × odd"),
        (lambda: Convolution((1, 8, 8), [["a"]]), ProtocolError, "not a matrix of numbers"),
        (lambda: Convolution((1, 8, 8), [[float("nan")]]), ProtocolError, "finite weights"),
        (lambda: Convolution((8, 8), [[1.0]]), GeometryError, "one slice has Z = 1"),
        (lambda: MotionBlur((1, 8, 8), length=0), ProtocolError, "whole number"),
        (lambda: MotionBlur((1, 8, 8), length=2.5), ProtocolError, "whole number"),
        (lambda: MotionBlur((1, 8, 8), angle_degrees=float("nan")), ProtocolError, "finite"),
        (lambda: Downsample((1, 8, 8), factor=2.0), ProtocolError, "whole number"),
        (lambda: Blur((8, 8)), GeometryError, "one slice has Z = 1"),
        (lambda: Mask((8, 8)), GeometryError, "one slice has Z = 1"),
        (lambda: Downsample((1, 8, 10), factor=4), GeometryError, "choose a divisor"),
        (lambda: Downsample((1, 8, 8), factor=0), ProtocolError, "positive"),
        (lambda: Mask((1, 8, 8), missing=1.0), ProtocolError, "0 <= missing < 1"),
    ],
)
def test_impossible_numbers_are_refused_with_advice(build, error, says):
    with pytest.raises(error, match=says):
        build()


@pytest.mark.parametrize(
    "table",
    [
        {"name": "blur", "sigma": 1.5, "boundary": "periodic"},
        {"name": "convolution", "kernel": [[0, 1, 0], [1, 4, 1], [0, 1, 0]]},
        {"name": "motion-blur", "length": 7, "angle_degrees": 45},
        {"name": "downsample", "factor": 8, "method": "strided"},
        {"name": "mask", "kind": "views", "missing": 0.3},
    ],
)
def test_a_protocol_reaches_them_by_name(table):
    A = build("operator", {**table, "shape": (1, 16, 16)})
    assert A(torch.ones(1, 16, 16)).shape == A.range_shape
