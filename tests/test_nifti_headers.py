"""NIfTI headers are believed where they agree with themselves; lengths become mm."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch

from ctflow.errors import SeriesError, UnreadableError
from ctflow.nifti import is_nifti, read_nifti

nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel")


def disc_image(path, affine=None, change=lambda image: None, array=None):
    """A water disc, 64 × 64 × 6 voxels of 4 × 4 × 3 mm, with a header as `change` leaves it."""
    x, y = np.mgrid[:64, :64] - 31.5
    hu = np.repeat(np.where(np.hypot(x, y) < 24, 0, -1000)[:, :, None], 6, axis=2).astype(np.int16)
    affine = np.diag([4.0, 4.0, 3.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(hu if array is None else array(hu), affine)
    change(image)
    nibabel.save(image, path)
    return path


def poke(path, offset, kind, *values):
    """Numbers written over a header in the file, where nibabel would correct them."""
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1.0), ("unknown", 1.0)]
)
def test_lengths_become_mm(tmp_path, unit, factor):
    affine = np.diag([4 * factor, 4 * factor, 3 * factor, 1])
    affine[:3, 3] = np.array([10, 20, 30]) * factor
    file = disc_image(tmp_path / "x.nii", affine, lambda image: image.header.set_xyzt_units(unit, "sec"))
    volume = read_nifti(file)
    assert volume.geometry.spacing == pytest.approx((3, 4, 4), rel=1e-6)
    # The corner turns from right and anterior to left and posterior.
    corner = np.array(volume.geometry.affine)[:3] @ [0, 63, 63, 1]
    np.testing.assert_allclose(corner, [-10, -20, 30], rtol=1e-5)
    said = any("taken as 4 × 4 × 3 mm" in warning for warning in volume.source.warnings)
    assert said == (unit != "mm")


@pytest.mark.parametrize(
    ("unit", "factor"), [("meter", 1.0), ("micron", 1.0), ("mm", 1e-3), ("unknown", 1e-3)]
)
def test_lengths_that_no_scanner_has(tmp_path, unit, factor):
    affine = np.diag([4 * factor, 4 * factor, 3 * factor, 1])
    file = disc_image(tmp_path / "x.nii", affine, lambda image: image.header.set_xyzt_units(unit))
    with pytest.raises(SeriesError, match=f"unit of length is '{unit}', expected 0.005 to 50 mm"):
        read_nifti(file)


FLIP, SHIFT = np.diag([-4.0, 4.0, 3.0, 1.0]), np.diag([4.0, 4.0, 3.0, 1.0])
SHIFT[0, 3] = 30.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.set_qform(FLIP, 1), "2 voxels apart"),
        (lambda image: (image.set_qform(None, 0), image.set_sform(None, 0)), "left, right and position"),
        (lambda image: image.set_sform(np.diag([4.0, 4.0, 0.0, 1.0]), 1), "places no voxel"),
    ],
)
def test_forms_that_contradict_each_other(tmp_path, change, words):
    with pytest.raises(SeriesError, match=words):
        read_nifti(disc_image(tmp_path / "x.nii", change=change))


def test_a_shifted_qform_is_said(tmp_path):
    file = disc_image(tmp_path / "x.nii", change=lambda image: image.set_qform(SHIFT, 1))
    assert "place the volume 30 apart" in " ".join(read_nifti(file).source.warnings)


def test_a_qform_alone_places_the_volume(tmp_path):
    def only_qform(image):
        image.set_qform(FLIP, 1)
        image.set_sform(None, 0)
        image.header.set_xyzt_units("mm")

    volume = read_nifti(disc_image(tmp_path / "x.nii", change=only_qform))
    assert np.array(volume.geometry.affine)[0, 2] == pytest.approx(4.0)  # columns already run to the left
    assert len(volume.source.warnings) == 1


@pytest.mark.parametrize(
    ("offset", "kind", "values", "words"),
    [
        (80, "<f", (2.0,), "pixdim says voxels of 2 × 4 × 3 and the affine of 4 × 4 × 3"),
        (112, "<2f", (0.0, -1024.0), "scl_slope 0 and scl_inter -1024"),
        (112, "<2f", (math.inf, 0.0), "scl_slope inf"),
        (112, "<2f", (2.0, 0.0), None),
        (72, "<h", (8,), "bitpix is 8 and the type of the voxels has 16 bits"),
        (123, "<B", (5,), "unit of length has code 5"),
        (344, "<4s", (b"ni1\0",), "header of a pair"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, offset, kind, values, words):
    file = poke(disc_image(tmp_path / "x.nii"), offset, kind, *values)
    assert is_nifti(file)
    with pytest.raises(SeriesError, match=words):
        read_nifti(file)


@pytest.mark.parametrize(
    ("offset", "kind", "values"), [(42, "<h", (63,)), (46, "<h", (5,)), (70, "<2h", (2, 8))]
)
def test_bytes_behind_the_last_voxel_are_a_lie(tmp_path, offset, kind, values):
    """A width, depth or type that is too small moves every voxel after the first."""
    with pytest.raises(UnreadableError, match="bytes follow the last voxel"):
        read_nifti(poke(disc_image(tmp_path / "x.nii"), offset, kind, *values))


@pytest.mark.parametrize(
    ("offset", "kind", "values"),
    [
        (112, "<2f", (0.0, 0.0)),  # slope 0 is "not scaled"
        (112, "<2f", (math.nan, math.nan)),
        (80, "<3f", (0.0, 0.0, 0.0)),  # pixdim not stated
        (124, "<2f", (10.0, 0.0)),  # cal_max and cal_min are for display
    ],
)
def test_what_a_header_may_leave_out(tmp_path, offset, kind, values):
    plain = read_nifti(disc_image(tmp_path / "x.nii"))
    volume = read_nifti(poke(tmp_path / "x.nii", offset, kind, *values))
    assert torch.equal(volume.data, plain.data)
    assert volume.geometry == plain.geometry


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (lambda hu: np.zeros(hu.shape, RGB), r"colours \(RGB\)"),
        (lambda hu: hu.astype(np.complex64), "complex numbers"),
        (lambda hu: np.full(hu.shape, np.nan, np.float32), "no voxel holds a measured value"),
        (lambda hu: hu.view(np.uint16), "none lies below 0"),
        (lambda hu: (hu / 1000).astype(np.float32), "they span only -1 to 0"),
    ],
)
def test_voxels_that_are_no_ct_numbers(tmp_path, array, words):
    with pytest.raises(SeriesError, match=words):
        read_nifti(disc_image(tmp_path / "x.nii", array=array))


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", "<f8", "<i4"])
def test_every_type_of_real_numbers(tmp_path, kind):
    volume = read_nifti(disc_image(tmp_path / "x.nii", array=lambda hu: hu.astype(kind)))
    assert torch.equal(volume.data, read_nifti(disc_image(tmp_path / "y.nii")).data)


def test_missing_voxels_and_intents_are_said(tmp_path):
    def spoilt(hu):
        hu = hu.astype(np.float32)
        hu[3, 3, 3], hu[4, 4, 4] = np.nan, np.inf
        return hu

    file = disc_image(tmp_path / "x.nii", change=lambda image: image.header.set_intent("label"), array=spoilt)
    said = " ".join(read_nifti(file).source.warnings)
    assert "2 voxels are NaN or infinite" in said
    assert "intent (label)" in said
