"""Blur, downsampling and masks against peers and closed forms; their adjoints are in test_laws.py."""

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch.nn.functional import avg_pool2d, interpolate

from ctflow.errors import GeometryError, ProtocolError
from ctflow.operators.blur import Blur
from ctflow.operators.downsample import Downsample
from ctflow.operators.mask import Mask

# Two float64 evaluations of one short sum differ by rounding only.
ROUNDING = {"rtol": 0, "atol": 1e-12}


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 9.0])  # 9 px: the kernel is wider than the slice
@pytest.mark.parametrize(
    ("boundary", "mode"), [("reflect", "reflect"), ("periodic", "wrap"), ("zero", "constant")]
)
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


def test_average_is_pooling_and_has_a_closed_pseudo_inverse():
    A = Downsample((2, 12, 20), factor=4)
    x, y = image(3, 2, 12, 20), image(2, 3, 5)
    torch.testing.assert_close(A(x), avg_pool2d(x, 4), **ROUNDING)
    torch.testing.assert_close(A(A.T(y)), y / 16, **ROUNDING)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_torchs_antialiased_bicubic(factor):
    x = image(1, 2, 24, 36)
    A = Downsample((2, 24, 36), factor, "bicubic")
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


def test_box_lies_in_the_middle():
    hidden = ~Mask((3, 40, 80), missing=0.25, kind="box").mask
    assert hidden.sum() == 3 * 20 * 40
    assert hidden[:, 10:30, 20:60].all()


@pytest.mark.parametrize(
    ("build", "choices"),
    [
        (lambda: Blur((1, 8, 8), boundary="mirror"), "reflect, periodic, zero"),
        (lambda: Downsample((1, 8, 8), method="nearest"), "average, bicubic"),
        (lambda: Mask((1, 8, 8), kind="stripes"), "random, box"),
    ],
)
def test_unknown_choice_lists_the_choices(build, choices):
    with pytest.raises(ProtocolError, match=choices):
        build()


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: Blur((1, 8, 8), sigma=0.0), ProtocolError, "pixels"),
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
