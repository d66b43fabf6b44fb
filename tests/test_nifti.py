"""NIfTI in and out: every voxel keeps its place in the patient; dcm2niix agrees."""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch

from ctflow import pipeline
from ctflow.cli import main
from ctflow.dicom import read_series
from ctflow.errors import OutputError, SeriesError, UnreadableError
from ctflow.geometry import VolumeGeometry
from ctflow.nifti import is_nifti, read_nifti, write_nifti
from ctflow.protocol import Protocol
from ctflow.volume import Volume
from tests.dicom_files import CANARY, cylinder, plant_canary, toy_series

nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel")


def at(image, points):
    """Values at points in RAS, mm, that coincide with voxels."""
    inverse = np.linalg.inv(image.affine)
    index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    return np.asarray(image.dataobj)[tuple(index.T)]


def placed(volume, indices):
    """Points in RAS, mm, of array indices (k, i, j)."""
    affine = np.array(volume.geometry.affine)
    return (indices @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_round_trip(tmp_path, name):
    volume = cylinder()
    file = write_nifti(volume, tmp_path / name)
    again = read_nifti(file)
    assert is_nifti(file)
    assert torch.equal(again.data, volume.data)
    assert again.geometry.shape == volume.geometry.shape
    np.testing.assert_allclose(again.geometry.affine, volume.geometry.affine, atol=1e-5)
    assert nibabel.load(file).get_data_dtype() == np.int16
    indices = np.random.default_rng(0).integers(0, volume.data.shape, (50, 3))
    assert np.array_equal(at(nibabel.load(file), placed(volume, indices)), volume.data[tuple(indices.T)])


def test_fractions_are_kept_as_floats(tmp_path):
    volume = cylinder()
    volume = volume.with_data(volume.data + 0.25)
    assert torch.equal(read_nifti(write_nifti(volume, tmp_path / "x.nii")).data, volume.data)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SRA"])
def test_any_order_of_axes_is_turned_to_axial_slices(tmp_path, codes):
    volume = cylinder()
    image = nibabel.load(write_nifti(volume, tmp_path / "x.nii"))
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    turned.to_filename(tmp_path / "turned.nii")
    again = read_nifti(tmp_path / "turned.nii")
    assert torch.equal(again.data, volume.data)
    np.testing.assert_allclose(again.geometry.affine, volume.geometry.affine, atol=1e-5)


@pytest.mark.parametrize("name", ["three-slices", "lidc-two-patients/LIDC-IDRI-0002"])
def test_dcm2niix_puts_every_voxel_at_the_same_place(data_dir, tmp_path, name):
    program = shutil.which("dcm2niix", path=f"{_beside_python()}:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("dcm2niix is not installed: pip install dcm2niix")
    folder = data_dir / "dicom" / name
    command = [program, "-z", "n", "-b", "n", "-f", "theirs", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    theirs = nibabel.load(next(tmp_path.glob("theirs*.nii")))
    volume = read_series(folder)
    mine = nibabel.load(write_nifti(volume, tmp_path / "mine.nii"))
    # float32 in the header: 1e-7 of positions of hundreds of mm
    np.testing.assert_allclose(mine.affine, theirs.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(mine.dataobj), np.asarray(theirs.dataobj))
    again = read_nifti(tmp_path / next(tmp_path.glob("theirs*.nii")).name)
    assert torch.equal(again.data, volume.data)
    np.testing.assert_allclose(again.geometry.affine, volume.geometry.affine, atol=1e-3)


def _beside_python():
    import sys
    from pathlib import Path

    return Path(sys.executable).parent


def test_run_takes_a_nifti_volume(tmp_path):
    file = write_nifti(cylinder(), tmp_path / "renamed.dat.nii.gz").rename(tmp_path / "volume")
    changes = ['method={name="fbp"}', 'reference={name="sirt", iterations=2}', "beside=[]"]
    report = pipeline.run(Protocol.load("sparse-view-60").override(changes), file, tmp_path / "out")
    assert set(report.figures["methods"]) == {"fbp", "sirt"}
    written = read_series(tmp_path / "out" / "fbp")
    np.testing.assert_allclose(written.geometry.affine, read_nifti(file).geometry.affine, atol=1e-5)
    assert len(report.figures["provenance"]["input_sha256"]) == 64


def test_convert_writes_no_name_and_nothing_twice(tmp_path, capfd):
    folder = plant_canary(tmp_path / "in", toy_series(tmp_path / "in"))
    out = tmp_path / "out.nii.gz"
    assert main(["convert", str(folder), str(out)]) == 0
    assert CANARY.encode() not in gzip.decompress(out.read_bytes())
    assert torch.equal(read_nifti(out).data, cylinder().data)
    assert main(["convert", str(folder), str(out)]) == 6
    assert main(["convert", str(folder), str(out), "--overwrite"]) == 0
    assert main(["convert", str(folder), str(tmp_path / "out.mha")]) == 6
    for ours in (gzip.compress(b"thesis"), out.read_bytes()[:50]):  # another's, and what is no longer whole
        out.write_bytes(ours)
        assert main(["convert", str(folder), str(out), "--overwrite"]) == 6
        assert out.read_bytes() == ours
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "out.nii.gz"]
    assert CANARY not in "".join(capfd.readouterr())


def shear(affine):
    affine[1, 2] = 0.5
    return affine


@pytest.mark.parametrize(
    ("array", "affine", "words"),
    [
        (np.zeros((4, 4, 4), np.float32), np.eye(4), "expected HU"),
        (np.full((4, 4, 4, 2), -5, np.int16), np.eye(4), "4 dimensions"),
        (np.full((4, 4, 4), -5, np.int16), shear(np.eye(4)), "from perpendicular"),
        (np.full((4, 4), -5, np.int16), np.eye(4), "2 dimensions"),
        (np.full((4, 4, 4), -1e9, np.float32), np.eye(4), "expected HU"),
    ],
)
def test_what_is_no_ct_volume_is_refused(tmp_path, array, affine, words):
    nibabel.Nifti1Image(array, affine).to_filename(tmp_path / "x.nii")
    with pytest.raises(SeriesError, match=words):
        read_nifti(tmp_path / "x.nii")


@pytest.mark.parametrize(
    ("kind", "words"),
    [([("R", "u1"), ("G", "u1"), ("B", "u1")], r"holds colours \(RGB\)"), (np.complex64, "complex numbers")],
)
def test_voxels_that_are_no_numbers_are_called_by_their_name(tmp_path, kind, words):
    array = np.zeros((4, 4, 4), np.dtype(kind))
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "x.nii")
    with pytest.raises(SeriesError, match=words):
        read_nifti(tmp_path / "x.nii")


def test_padding_and_missing_numbers_are_masked(tmp_path):
    volume = cylinder()
    array = volume.data.numpy().transpose(2, 1, 0).copy()
    array[:4, :4] = -3024
    array[16, 16, 2] = np.nan
    nibabel.Nifti1Image(array, np.diag([-1.25, -1.25, 2.5, 1])).to_filename(tmp_path / "x.nii")
    mask = read_nifti(tmp_path / "x.nii").mask
    assert int((~mask).sum()) == 16 * 6 + 1
    assert not mask[2, 16, 16]
    assert not mask[:, :4, :4].any()


def test_truncated_and_lying_files(tmp_path):
    data = write_nifti(cylinder(), tmp_path / "x.nii").read_bytes()
    (tmp_path / "cut.nii").write_bytes(data[:-1000])
    lying = bytearray(data)
    lying[42:48] = b"\xff\x7f" * 3  # 32767³ voxels
    (tmp_path / "lying.nii").write_bytes(lying)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(data)[:-200])
    for name in ("cut.nii", "lying.nii", "cut.nii.gz"):
        with pytest.raises(UnreadableError):
            read_nifti(tmp_path / name)


def test_a_volume_that_leans_keeps_its_affine(tmp_path):
    affine = ((0.0, 0.0, 1.0, 0.0), (0.5, 1.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    volume = Volume(torch.full((3, 4, 5), -7.0), VolumeGeometry((3, 4, 5), (2.0616, 1.0, 1.0), affine), "HU")
    image = nibabel.load(write_nifti(volume, tmp_path / "x.nii"))
    corner = np.array(affine) @ [0, 3, 0, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(image.affine[:, 3], corner, atol=1e-6)
    np.testing.assert_allclose(image.affine[:3, 2], [0, -0.5, 2], atol=1e-6)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_nifti(cylinder(), tmp_path / "file" / "x.nii")


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
        (lambda image: (image.set_qform(None, 0), image.set_sform(None, 0)), "left, right and place"),
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
