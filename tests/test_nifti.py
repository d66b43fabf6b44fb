"""NIfTI in and out: every voxel keeps its place in the patient; dcm2niix agrees."""

from __future__ import annotations

import gzip
import shutil
import subprocess

import numpy as np
import pytest
import torch

from ctflow.cli import main
from ctflow.dicom import read_series
from ctflow.errors import OutputError, SeriesError, UnreadableError
from ctflow.geometry import VolumeGeometry
from ctflow.nifti import is_nifti, read_nifti, write_nifti
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.volume import Volume
from tests.dicom.files import CANARY, cylinder, plant_canary, toy_series

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
