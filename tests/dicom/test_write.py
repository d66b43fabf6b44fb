"""Derived series: exact round trip, accepted by validators, nothing copied that should not be."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pydicom
import pydicom.fileset
import pytest
import torch

from ctflow.dicom import read_series, write_series
from ctflow.errors import GeometryError, OutputError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume
from tests.dicom.files import cylinder, edit, setting, toy_series
from tests.dicom.validators import tags, validate

REAL = ["abdomen-35", "lidc-two-patients/LIDC-IDRI-0001", "lidc-two-patients/LIDC-IDRI-0002", "empty-uids"]


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
    assert str(header.PatientName) == "CTFLOW^UNNAMED"
    assert list(header.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert torch.equal(read_series(tmp_path / "a").data, cylinder().data)


def test_pixels_that_are_no_squares_keep_their_sides(tmp_path):
    """PixelSpacing is the distance of rows, then of columns (PS3.3 10.7.1.3); SimpleITK says x, y, z."""
    sitk = pytest.importorskip("SimpleITK")
    y, x = torch.meshgrid(torch.arange(24), torch.arange(16), indexing="ij")
    inside = (1.5 * (y - 11.5)) ** 2 + (0.75 * (x - 7.5)) ** 2 < 25
    volume = Volume(
        torch.where(inside, 0.0, -1000.0).repeat(3, 1, 1), VolumeGeometry((3, 24, 16), (2.0, 1.5, 0.75)), "HU"
    )
    written = write_series(volume, tmp_path / "x", like=None, description="oblong")
    header = pydicom.dcmread(written[0])
    assert (header.Rows, header.Columns) == (24, 16)
    assert list(header.PixelSpacing) == [1.5, 0.75]
    assert sitk.ReadImage([str(file) for file in written]).GetSpacing() == pytest.approx((0.75, 1.5, 2.0))
    read = read_series(tmp_path / "x")
    assert read.geometry.spacing == (2.0, 1.5, 0.75)
    assert torch.equal(read.data[read.mask], volume.data[read.mask])


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
    pulled = tmp_path / "out" / "IM0002.dcm"  # named as ours are, from somebody's scanner
    edit(pulled, setting(Manufacturer="Scanners of Utopia"))
    before = pulled.read_bytes()
    with pytest.raises(OutputError, match="other files"):
        write_series(part, tmp_path / "out", like=None, description="x", overwrite=True)
    assert pulled.read_bytes() == before
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
    with pytest.raises(UsageError, match=r"hu_scale is 0\.01; expected 0\.04 to 1"):
        write_series(source, tmp_path / "out", like=source, description="x", hu_scale=0.01)
    with pytest.raises(UsageError, match="content 'mean' is unknown; give image, spread, difference"):
        write_series(source, tmp_path / "out", like=source, description="x", content="mean")
    broken = source.data.clone()
    broken[1, 16, 16] = float("nan")
    with pytest.raises(OutputError, match="1 voxels are not finite"):
        write_series(source.with_data(broken), tmp_path / "out", like=source, description="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.04])
def test_the_scale_bounds_the_rounding(tmp_path, scale):
    volume = cylinder()
    noise = torch.randn(volume.data.shape, generator=torch.Generator().manual_seed(0))
    noisy = volume.with_data(volume.data + 20 * noise)
    written = write_series(noisy, tmp_path / "out", like=None, description="noisy", hu_scale=scale)
    error = read_series(tmp_path / "out").data - noisy.data
    # half a step, and float32's rounding of numbers up to 1100: 6e-5
    assert error.abs().max() <= scale / 2 + 1e-4
    # uniform rounding error has the standard deviation step / sqrt(12); 6144 voxels give it to 2 %
    assert float(error.std()) == pytest.approx(scale / 12**0.5, rel=0.05)
    assert written.clipped == 0
    assert validate(written) == []


def test_uids_are_a_function_of_input_and_parameters(tmp_path):
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")

    def uids(name, **changes):
        settings = {"like": source, "description": "x", "seed_uid": "run 1"} | changes
        header = tags(write_series(source, tmp_path / name, **settings)[0])
        return header.SeriesInstanceUID, header.SOPInstanceUID

    first = uids("a")
    assert uids("b") == first
    changes = [
        {"seed_uid": "run 2"},
        {"seed_uid": None},
        {"hu_scale": 0.5},
        {"content": "difference"},
        {"deidentify": True},
        {"description": "y"},
        {"derivation": "z"},
    ]
    others = [uids(f"c{k}", **change) for k, change in enumerate(changes)]
    assert len({*others, first}) == len(changes) + 1
    assert len({uid for pair in [*others, first] for uid in pair}) == 2 * (len(changes) + 1)


@pytest.mark.parametrize("content", ["spread", "difference"])
def test_what_is_no_picture_says_so(tmp_path, content):
    toy_series(tmp_path / "in")
    source = read_series(tmp_path / "in")
    half = torch.ones_like(source.mask)
    half[:, :16] = False
    values = type(source)(source.data.abs() / 100 + 0.26, source.geometry, "HU", half, source=source.source)
    written = write_series(values, tmp_path / "out", like=source, description="x", content=content)
    header = tags(written[0])
    step = {"spread": 0.1, "difference": 1.0}[content]
    assert list(header.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert "in HU, not CT numbers" in header.DerivationDescription
    assert header.WindowCenterWidthExplanation == content.upper()
    assert float(header.RescaleSlope) == step
    stored = header.pixel_array * float(header.RescaleSlope)
    assert (stored[:16] == 0).all()
    np.testing.assert_allclose(stored[16:], values.data[0, 16:], atol=step / 2 + 1e-6)
    assert validate(written) == []


def test_series_of_one_input_share_a_study_even_without_dicom(tmp_path, monkeypatch):
    hours = iter(datetime(2026, 1, 31, hour) for hour in range(10, 13))
    monkeypatch.setattr("ctflow.dicom.writing.examination._BEGUN", {})  # of other tests in this process
    monkeypatch.setattr("ctflow.dicom.writing.series.datetime", SimpleNamespace(now=lambda: next(hours)))
    volume = cylinder()  # as from NIfTI or a measured sinogram: no header
    one = write_series(volume, tmp_path / "a", like=volume, description="FBP", series_number=1001)
    two = write_series(volume.with_data(volume.data + 1), tmp_path / "b", like=volume, description="TV")
    other = write_series(
        volume, tmp_path / "c", like=volume.with_data(volume.data + 1), description="another input"
    )
    a, b, c = tags(one[0]), tags(two[0]), tags(other[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyTime"):
        assert a[name].value == b[name].value
        assert a[name].value != c[name].value
    assert (a.StudyTime, a.SeriesTime, b.SeriesTime) == ("100000", "100000", "110000")
    assert a.SeriesInstanceUID != b.SeriesInstanceUID
    assert a.SeriesNumber == 1001
    assert a.ImageType[0] == "DERIVED"
    assert validate([*one, *two]) == []


def test_a_source_that_breaks_the_standard_does_not_pass_it_on(tmp_path):
    wrong = {
        "PatientSex": "MALE",
        "PatientAge": "45",
        "PatientBirthDate": "1.2.1960",
        "StudyDate": "2020-01-02",
        "StudyTime": "noon",
        "StudyID": "a study identifier that is too long",
        "BodyPartExamined": "upper abdomen",
        "PatientPosition": "SUPINE",
        "RotationDirection": "clockwise",
        "AccessionNumber": "12\x00",
        "SpacingBetweenSlices": -2.5,
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "",
    }
    gone = ("ReferringPhysicianName", "PositionReferenceIndicator", "AcquisitionNumber", "Laterality")
    files = toy_series(tmp_path / "in")
    with pydicom.config.disable_value_validation():
        for file in files:
            edit(file, setting(**wrong))
            edit(file, lambda header: [header.pop(name, None) for name in gone])
            edit(file, lambda header: header.add(pydicom.DataElement(0x00180060, "LO", "120 kV")))
    source = read_series(tmp_path / "in")
    written = write_series(source, tmp_path / "out", like=source, description="x")
    assert validate(written) == []
    header = tags(written[0])
    assert not {"SpacingBetweenSlices", "BodyPartExamined", "RotationDirection", "PatientAge"} & set(
        header.dir()
    )
    assert header.DeidentificationMethod == "not stated by the source series"
