"""Derived series: exact round trip, accepted by validators, nothing copied that should not be."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import torch

from ctflow.dicom import read_series, write_series
from ctflow.errors import GeometryError, OutputError, UsageError
from tests.dicom_files import cylinder, edit, setting, toy_series

REAL = ["abdomen-35", "lidc-two-patients/LIDC-IDRI-0001", "lidc-two-patients/LIDC-IDRI-0002", "empty-uids"]


def validate(written):
    """Errors that dciodvfy and dcentvfy report; an exit status of 0 alone does not mean none."""
    for tool in ("dciodvfy", "dcentvfy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (Debian package dicom3tools) is not installed")
    runs = [["dciodvfy", str(file)] for file in written] + [["dcentvfy", *map(str, written)]]
    errors = []
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, errors="replace", check=False)
        errors += [line for line in done.stderr.splitlines() if line.startswith("Error")]
        errors += [f"{run[0]} returned {done.returncode}"] if done.returncode else []
    return errors


@pytest.mark.parametrize("name", REAL)
def test_real_series_round_trip_and_validate(data_dir, tmp_path, name):
    source = read_series(data_dir / "dicom" / name).slices(1, 9)
    noisy = source.with_data(source.data + 0.3)
    written = write_series(
        noisy, tmp_path / "out", like=source, description="FBP, 60 views", derivation="FBP hann"
    )
    assert [file.name for file in written[:2]] == ["IM0001.dcm", "IM0002.dcm"]
    assert validate(written) == []
    volume = read_series(tmp_path / "out")
    inside = source.mask
    # rounding to whole HU
    assert (volume.data - noisy.data)[inside].abs().max() <= 0.5
    assert (volume.data[~inside] == -1024).all()
    # positions are written to a nanometre
    np.testing.assert_allclose(volume.geometry.affine, source.geometry.affine, atol=1e-6)


def test_phantom_series_validates_and_is_deterministic(tmp_path):
    once, twice = toy_series(tmp_path / "a"), toy_series(tmp_path / "b")
    assert validate(once) == []
    uids = [[pydicom.dcmread(file).SOPInstanceUID for file in files] for files in (once, twice)]
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == 6
    header = pydicom.dcmread(once[0])
    assert (str(header.PatientName), header.PatientID) == ("CTFLOW^PHANTOM", "PHANTOM")
    assert list(header.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert torch.equal(read_series(tmp_path / "a").data, cylinder().data)


def test_other_pixels_never_share_a_uid(tmp_path):
    volume = cylinder()
    uids = set()
    for k, data in enumerate((volume.data, volume.data + 1)):
        written = write_series(
            volume.with_data(data), tmp_path / str(k), like=None, description="toy", seed_uid="toy"
        )
        uids.add(pydicom.dcmread(written[0]).SeriesInstanceUID)
    assert len(uids) == 2


def test_derived_header_says_what_it_is(tmp_path):
    series = toy_series(tmp_path / "toy")
    private = setting(
        PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100", KVP="120", OperatorsName="X"
    )
    for file in series:
        edit(file, private)
        edit(file, lambda d: d.private_block(0x0019, "VENDOR", create=True).add_new(1, "LO", "secret"))
        edit(file, setting(RotationDirection="CW", TableHeight="123.45", ConvolutionKernel="Br38f"))
    source = read_series(tmp_path / "toy")
    written = write_series(
        source, tmp_path / "out", like=source, description="MS-Flow", derivation="60 views"
    )
    derived = [pydicom.dcmread(file) for file in written]
    for k, header in enumerate(derived):
        origin = source.source.headers[k]
        assert list(header.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
        assert header.StudyInstanceUID == origin.StudyInstanceUID
        assert header.FrameOfReferenceUID == origin.FrameOfReferenceUID
        assert header.SeriesInstanceUID != origin.SeriesInstanceUID
        assert header.SourceImageSequence[0].ReferencedSOPInstanceUID == origin.SOPInstanceUID
        assert str(header.PatientName) == "Müller^Jörg"
        assert header.SeriesNumber == 1001
        assert header.DerivationDescription == "60 views; research use; not for diagnosis"
        assert header.RescaleType == "HU"
        assert "ConvolutionKernel" not in header
        assert "OperatorsName" not in header
        assert not [element for element in header if element.tag.is_private]
    for name in ("SeriesInstanceUID", "SeriesDate", "SeriesTime", "SeriesDescription"):
        assert len({str(header[name].value) for header in derived}) == 1
    assert validate(written) == []


def test_decimal_strings_fit_in_16_characters(tmp_path):
    volume = cylinder(3)
    affine = np.array(volume.geometry.affine)
    angle = 0.1234567
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] += [-1 / 3e4, 200 / 3, -1234.56789]
    geometry = type(volume.geometry)(
        volume.geometry.shape, volume.geometry.spacing, tuple(map(tuple, affine))
    )
    turned = type(volume)(volume.data, geometry, "HU")
    written = write_series(turned, tmp_path / "out", like=None, description="turned")
    for element in pydicom.dcmread(written[1]).iterall():
        if element.VR == "DS" and element.value is not None:
            values = [element.value] if element.VM == 1 else element.value
            assert all(len(str(value)) <= 16 for value in values)
    np.testing.assert_allclose(read_series(tmp_path / "out").geometry.affine, affine, atol=1e-6)
    assert validate(written) == []


def test_attenuation_is_written_as_hu_and_clipping_is_told(tmp_path):
    volume = cylinder()
    written = write_series(volume.to_attenuation(), tmp_path / "mu", like=None, description="mu")
    assert written.clipped == 0
    assert torch.equal(read_series(tmp_path / "mu").data, volume.data)
    loud = volume.data.clone()
    loud[0, 16, :3] = torch.tensor([4e4, -4e4, 32767.0])
    written = write_series(volume.with_data(loud), tmp_path / "loud", like=None, description="loud")
    assert written.clipped == 2
    assert "2 voxels clipped" in pydicom.dcmread(written[0]).DerivationDescription
    assert read_series(tmp_path / "loud").data[0, 16, :3].tolist() == [32767.0, -32768.0, 32767.0]


def test_lossy_input_is_told_on_output(data_dir, tmp_path):
    folder = data_dir / "dicom" / "transfer-syntaxes"
    source = read_series(next(folder.glob("*1.2.4.91.dcm")))
    written = write_series(source, tmp_path / "out", like=source, description="derived")
    header = pydicom.dcmread(written[0])
    assert header.LossyImageCompression == "01"
    assert float(header.LossyImageCompressionRatio) > 1
    assert validate(written) == []


def test_output_folder_is_protected(tmp_path):
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")
    with pytest.raises(OutputError, match="exists") as caught:
        write_series(source, tmp_path / "in", like=source, description="x")
    assert caught.value.exit_code == 6
    with pytest.raises(OutputError, match="the input"):
        write_series(source, tmp_path / "in", like=source, description="x", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="other files"):
        write_series(source, tmp_path / "other", like=source, description="x", overwrite=True)
    for slices in (6, 3):
        part = source.slices(0, slices)
        write_series(part, tmp_path / "out", like=part, description="x", overwrite=True)
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "other", "out"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch, interruption):
    save, calls = pydicom.Dataset.save_as, []

    def fails_at_third(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise interruption
        save(self, *args, **kwargs)

    monkeypatch.setattr(pydicom.Dataset, "save_as", fails_at_third)
    with pytest.raises(OutputError if interruption is OSError else interruption):
        toy_series(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_does_not_fit(tmp_path):
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")
    with pytest.raises(GeometryError, match="3 slices and like= has 6"):
        write_series(source.slices(0, 3), tmp_path / "out", like=source, description="x")
    with pytest.raises(UsageError, match="65 characters"):
        write_series(source, tmp_path / "out", like=source, description="x" * 65)
    with pytest.raises(UsageError, match="no DICOM source"):
        write_series(source, tmp_path / "out", like=cylinder(), description="x")
    broken = source.data.clone()
    broken[1, 16, 16] = float("nan")
    with pytest.raises(OutputError, match="1 voxels are not finite"):
        write_series(source.with_data(broken), tmp_path / "out", like=source, description="x")
    assert not (tmp_path / "out").exists()


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
