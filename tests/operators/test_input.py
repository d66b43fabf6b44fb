"""What an operator refuses: every message holds what was expected, what came, and what to do."""

import warnings

import numpy as np
import pytest
import torch

from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Blur, Mask, Radon
from ctflow.problem import InverseProblem

BLUR = Blur((2, 6, 8), sigma=1.0)
RADON = Radon(VolumeGeometry((2, 6, 8), (1.0, 1.0, 1.0)), ParallelBeam(5))
HOLE = torch.ones(2, 6, 8).index_fill(1, torch.tensor(3), torch.nan)


@pytest.mark.parametrize("A", [BLUR, RADON], ids=["blur", "radon"])
@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(6, 8), GeometryError, r"\(\*batch, 2, 6, 8\) and was given \(6, 8\)"),
        (torch.zeros(6, 8, 2), GeometryError, "axes are in another order; use x.permute"),
        (torch.zeros(2, 6, 9), GeometryError, "resample or crop"),
        (torch.zeros(2, 6, 8, dtype=torch.float16), BackendError, r"float16; give x.float\(\)"),
        (torch.zeros(2, 6, 8, dtype=torch.int16), BackendError, r"int16; give x.float\(\)"),
        (torch.zeros(2, 6, 8, dtype=torch.complex64), BackendError, "float32 or float64"),
        (np.zeros((2, 6, 8)), UsageError, r"tensor and was given ndarray; give torch.as_tensor\(x\)"),
        (HOLE, UsageError, "finite values and was given 16 that are NaN or infinite, of 96; fill"),
        (HOLE.nan_to_num(torch.inf), UsageError, "finite"),
    ],
)
def test_images_are_refused(A, x, error, says):
    with pytest.raises(error, match=says):
        A(x)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(2, 9, 12, device="meta"), r"hold none; move the tensor.*\.to\('cpu'\)"),
        (torch.ones(2, 9, 12).to_sparse(), r"torch.sparse_coo; give x.to_dense\(\)"),
        (torch.ones(2, 9, 12) * 1j, r"complex64; apply it to x.real and to x.imag"),
        (torch.ones(2, 9, 12) > 0, r"bool; give x.float\(\)"),
        (torch.ones(2, 9, 12).bfloat16(), r"bfloat16; give x.float\(\)"),
    ],
)
def test_tensors_without_plain_values_are_refused(x, says):
    with pytest.raises(BackendError, match=f"Blur.*{says}"):
        Blur((2, 9, 12))(x)


def test_a_nested_tensor_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype, it says
        parts = torch.nested.nested_tensor([torch.ones(2, 9, 12)] * 2)
    with pytest.raises(BackendError, match=r"given a nested tensor; give torch\.stack\(x\.unbind\(\)\)"):
        Blur((2, 9, 12))(parts)
    assert Blur((2, 9, 12))(torch.stack(parts.unbind())).shape == (2, 2, 9, 12)


def test_data_are_refused_by_the_adjoint_under_its_name():
    y = torch.zeros(RADON.range_shape)
    with pytest.raises(UsageError, match="expects finite values"):
        RADON.T(y / 0)
    with pytest.raises(GeometryError, match=r"Radon\.T expects"):
        RADON.T(y[..., :-1])
    with pytest.raises(BackendError, match=r"Radon\.T expects float32"):
        RADON.T(y.long())


def test_a_composition_names_the_part_that_refuses():
    with pytest.raises(UsageError, match="Blur expects finite"):
        (Mask((2, 6, 8)) @ BLUR)(HOLE)
    with pytest.raises(GeometryError, match="cannot compose"):
        Mask((2, 6, 9)) @ BLUR


def test_huge_values_that_are_finite_pass():
    x = torch.full((2, 6, 8), 3e38)  # their sum is infinite
    assert Mask((2, 6, 8), missing=0.0)(x).equal(x)


@pytest.mark.parametrize(
    ("y", "W", "says"),
    [
        (HOLE, None, "data of a problem must be finite"),
        (torch.ones(2, 6, 8), HOLE, "weights of a problem must be finite"),
        (torch.ones(2, 6, 8), torch.tensor(-1.0), "clamp them at 0"),
    ],
)
def test_problems_are_refused(y, W, says):
    with pytest.raises(UsageError, match=says):
        InverseProblem(BLUR, y, Gaussian(1.0), W)


def test_an_image_on_another_device_is_refused():
    problem = InverseProblem(BLUR, torch.zeros(2, 6, 8), Gaussian(1.0))
    for ask in (problem.gradient, problem.data_fit, problem.residual):
        with pytest.raises(BackendError, match=r"data are on cpu and the image on meta; give x\.to"):
            ask(torch.zeros(2, 6, 8, device="meta"))


@pytest.mark.parametrize("factor", [1j, torch.tensor(1j), float("nan"), torch.inf, "2", None, torch.ones(2)])
def test_operators_are_multiplied_by_real_numbers(factor):
    with pytest.raises(
        UsageError, match=r"multiplied by real, finite numbers and not by .*; give one number"
    ):
        factor * BLUR


@pytest.mark.parametrize("factor", [2, np.float32(2), np.float64(2), torch.tensor(2.0), True + True])
def test_real_numbers_of_every_library_multiply(factor):
    x = torch.ones(BLUR.domain_shape)
    assert torch.equal((factor * BLUR)(x), 2 * BLUR(x))
    assert (factor * BLUR).norm() == 2 * BLUR.norm()


@pytest.mark.parametrize(
    "variance", [0.0, -1.0, float("nan"), torch.tensor(-1.0), torch.tensor([1.0, torch.nan])]
)
def test_a_variance_is_positive(variance):
    x = torch.ones(2, *BLUR.domain_shape)
    with pytest.raises(UsageError, match=r"variances? .*(be above 0|not be negative)"):
        BLUR.prox(x, BLUR(x), torch.ones(()), variance)
