"""What objects say of themselves is a line, and in a notebook a line with pictures that hold the voxels."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import ctflow as ct
from ctflow.system.notebook import spaced, thumbnails


@pytest.fixture(scope="module")
def volume() -> ct.Volume:
    hu = torch.linspace(-1000, 400, 6 * 8 * 10).reshape(6, 8, 10)
    return ct.Volume(hu, ct.VolumeGeometry((6, 8, 10), (3.0, 1.5, 1.5)), "HU")


@pytest.fixture(scope="module")
def problem(volume) -> ct.InverseProblem:
    mu = volume.to_attenuation()
    A = ct.Radon(mu.geometry, ct.ParallelBeam(angles=9))
    return ct.simulate(A, mu, ct.Gaussian(sigma=0.1), seed=0)


def test_a_volume_says_shape_spacing_and_hu(volume):
    assert repr(volume) == "<Volume of 6 × 8 × 10 voxels of 3 × 1.5 × 1.5 mm (z, y, x), -1000 to 400 HU>"
    # mu_water (1 + 400 / 1000)
    assert repr(volume.to_attenuation()).endswith("(z, y, x), 0 to 0.02688 1/mm (-1000 to 400 HU)>")


def test_problems_operators_priors_and_solutions_say_a_line(problem):
    found = ct.solve(problem, ct.CGLS(iterations=2))
    for one in (problem, problem.A, problem.A.T, ct.FlowPrior.load("ct-256"), found, ct.Blur.example()):
        assert re.fullmatch(r"<[^\n]{10,200}>", repr(one))
        assert " object at 0x" not in repr(one)
    assert repr(problem.A).startswith("<Radon (6, 8, 10) -> (6, 9, ")
    blur = ct.Blur.example()
    assert repr(blur @ blur.T).startswith("<Blur @ Blur.T (")
    assert "'ct-256', -1000 to 1500 HU, pixels of" in repr(ct.FlowPrior.load("ct-256"))
    assert "1 of (6, 8, 10)" in repr(found)


def test_an_operator_that_is_half_built_can_be_shown():
    class Half(ct.LinearOperator):
        pass

    assert repr(Half()) == "<Half unknown -> unknown>"


def test_thumbnails_hold_the_voxels_in_their_window(volume):
    page = volume._repr_html_()
    pictures = [base64.b64decode(text) for text in re.findall(r"base64,([\w+/=]+)", page)]
    assert "http" not in page
    assert len(pictures) == len(spaced(6)) == 3
    grey = np.asarray(Image.open(io.BytesIO(pictures[1])))
    hu = volume.data[spaced(6)[1]].numpy()
    assert grey == pytest.approx(np.clip((hu + 160) / 400, 0, 1) * 255, abs=0.5)  # the rounding of a byte


def test_thumbnails_escape_texts_and_bear_any_image():
    page = thumbnails("<b>", [("<i>", torch.full((3, 4), float("nan")))], (0.0, 0.0), "HU")
    assert "&lt;b&gt;" in page
    assert "&lt;i&gt;" in page
    large = thumbnails("x", [("y", torch.rand(500, 1000))], (0.0, 1.0), "HU")
    (text,) = re.findall(r"base64,([\w+/=]+)", large)
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (192, 96)


def test_a_solution_shows_its_mean(problem):
    assert ct.solve(problem, ct.CGLS(iterations=2))._repr_html_().count("<img") == 3


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (35, [5, 17, 29])])
def test_slices_are_spaced(count, chosen):
    assert spaced(count) == chosen
