"""Derived series as other readers see them, and what they say of where they come from."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.fileset
import pytest
import torch

from ctflow.dicom import ReadOptions, read_series, write_series
from ctflow.dicom.writing.parametric_map import write_parametric_map
from tests.dicom.files import cylinder, edit, enhanced, setting, toy_series
from tests.dicom.validators import tags, validate


def test_simpleitk_and_highdicom_read_the_export(tmp_path):
    itk, highdicom = pytest.importorskip("SimpleITK"), pytest.importorskip("highdicom")
    written = toy_series(tmp_path / "out")
    volume = cylinder()
    reader = itk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in written])
    image = reader.Execute()
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), volume.data.numpy())
    np.testing.assert_allclose(image.GetOrigin(), np.array(volume.geometry.affine)[:3, 3], atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), volume.geometry.spacing[::-1], atol=1e-6)
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in written])
    flip = theirs.affine[2, 0] < 0
    np.testing.assert_array_equal(theirs.array[::-1] if flip else theirs.array, volume.data.numpy())


def test_another_grid_says_that_places_have_changed(tmp_path):
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")
    affine = np.array(source.geometry.affine)
    affine[:3, 3] += [3, 0, 0]
    moved = type(source.geometry)(source.geometry.shape, source.geometry.spacing, tuple(map(tuple, affine)))
    shifted = type(source)(source.data, moved, "HU")
    written = write_series(shifted, tmp_path / "out", like=source, description="x")
    same = write_series(source, tmp_path / "same", like=source, description="x")
    places = [tags(files[0]).SourceImageSequence[0].SpatialLocationsPreserved for files in (written, same)]
    assert places == ["NO", "YES"]


def test_a_slice_that_was_filled_in_lies_where_no_source_does(tmp_path):
    files = toy_series(tmp_path / "in")
    files[2].unlink()
    source = read_series(tmp_path / "in", options=ReadOptions(fill="linear"))
    written = write_series(source, tmp_path / "out", like=source, description="x")
    places = [tags(file).SourceImageSequence[0].SpatialLocationsPreserved for file in written]
    assert places == ["YES", "YES", "NO", "YES", "YES", "YES"]


def test_dcm2niix_reads_the_export(tmp_path):
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcm2niix (pip install dcm2niix) is not installed")
    nibabel = pytest.importorskip("nibabel")
    toy_series(tmp_path / "in")
    (tmp_path / "nii").mkdir()
    command = [program, "-z", "n", "-f", "out", "-o", str(tmp_path / "nii"), str(tmp_path / "in")]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = (tmp_path / "nii").glob("*.nii")
    image, volume = nibabel.load(file), cylinder()
    # NIfTI counts (x, y, z) from right, anterior and inferior; rows run the other way
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0)[:, ::-1], volume.data.numpy())
    np.testing.assert_allclose(image.header.get_zooms(), volume.geometry.spacing[::-1], atol=1e-5)


def test_a_file_set_takes_the_export_and_reads_back(tmp_path):
    written = toy_series(tmp_path / "in")
    files = pydicom.fileset.FileSet()
    for file in written:
        files.add(file)
    files.write(tmp_path / "set")
    found = pydicom.fileset.FileSet(tmp_path / "set" / "DICOMDIR")
    back = sorted((item.load() for item in found), key=lambda header: header.InstanceNumber)
    assert [header.PixelData for header in back] == [tags(file).PixelData for file in written]
    with warnings.catch_warnings():  # pydicom closes a file-set's folder for staging by its collection alone
        warnings.simplefilter("ignore", ResourceWarning)
        del files, found
        gc.collect()


def test_a_parametric_map_holds_the_numbers(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")
    written = write_series(source, tmp_path / "out", like=source, description="mean", seed_uid="run")
    spread = source.with_data(torch.rand(source.data.shape, generator=torch.Generator().manual_seed(1)))
    write_parametric_map(
        spread, tmp_path / "map.dcm", of=written, description="SD", meaning="posterior standard deviation"
    )
    assert validate([tmp_path / "map.dcm"]) == []
    found = highdicom.imread(tmp_path / "map.dcm").get_volume(apply_real_world_transform=True)
    values = np.where(source.mask.numpy(), spread.data.numpy(), 0)
    # frames follow their places, up or down
    flip = found.affine[2, 0] * np.array(source.geometry.affine)[2, 0] < 0
    np.testing.assert_array_equal(found.array[::-1] if flip else found.array, values)
    header, image = tags(tmp_path / "map.dcm"), tags(written[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert header[name].value == image[name].value
    assert (header.SeriesDescription, header.ContentDescription) == ("SD", "posterior standard deviation, HU")
    write_parametric_map(spread, tmp_path / "again.dcm", of=written, description="SD")
    assert tags(tmp_path / "again.dcm").SOPInstanceUID == header.SOPInstanceUID


def test_frames_of_an_enhanced_source_are_referenced(tmp_path):
    (tmp_path / "in").mkdir()
    source = read_series(enhanced(toy_series(tmp_path / "toy"), tmp_path / "in" / "enhanced.dcm"))
    written = write_series(source, tmp_path / "out", like=source, description="x")
    frames = [tags(file).SourceImageSequence[0].ReferencedFrameNumber for file in written]
    assert sorted(frames) == [1, 2, 3, 4, 5, 6]
    assert validate(written) == []


def test_a_repaired_source_is_written_whole(tmp_path):
    toy_series(tmp_path / "in")[2].unlink()
    source = read_series(tmp_path / "in", options=ReadOptions(fill="linear"))
    written = write_series(source, tmp_path / "out", like=source, description="x")
    assert len(written) == 6
    assert validate(written) == []


def test_series_attributes_come_from_the_first_slice(tmp_path):
    files = toy_series(tmp_path / "in")
    for k, file in enumerate(files):
        edit(file, setting(PatientWeight=str(70 + k), StudyTime=f"1200{k:02d}", ExposureTime=str(500 + k)))
    source = read_series(tmp_path / "in")
    written = write_series(source, tmp_path / "out", like=source, description="x")
    headers = [tags(file) for file in written]
    assert len({header.PatientWeight for header in headers}) == 1
    assert [int(header.ExposureTime) for header in headers] == [500, 501, 502, 503, 504, 505]
    assert validate(written) == []
