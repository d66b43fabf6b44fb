"""Stored values to CT numbers: every way of storing them, padding, vendors' texts, time and memory."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import torch

from ctflow.dicom import inspect_folder, read_series, write_series
from ctflow.dicom.reading.codestream import coded_size
from ctflow.dicom.reading.decoders import decoder_table
from ctflow.dicom.reading.decoding import decode
from ctflow.dicom.reading.files import read_headers
from ctflow.dicom.reading.padding import radius_map
from ctflow.errors import SeriesError, UnreadableError
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume
from tests.dicom.files import cylinder, edit, setting, toy_series

ENCODED = ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", *ENCODED])
@pytest.mark.parametrize(("bits", "signed"), [(12, 0), (13, 1), (14, 0), (16, 0), (16, 1)])
def test_stored_values_survive_every_coder(tmp_path, syntax, bits, signed):
    file = toy_series(tmp_path / "toy")[0]
    lowest = -(1 << (bits - 1)) if signed else 0
    stored = np.random.default_rng(bits).integers(lowest, lowest + (1 << bits), (32, 32))
    dataset = pydicom.dcmread(file)
    setting(BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)(dataset)
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    if syntax in ENCODED:
        dataset.compress(syntax)
        dataset.save_as(file)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(file, implicit_vr=syntax.endswith("1.2"), little_endian=True)
    assert np.array_equal(read_series(file).data[0].numpy(), stored)


@pytest.mark.parametrize("name", ["CT1_J2KR", "CT2_J2KR"])
def test_real_signed_wavelets_are_lossless(data_dir, name):
    """Both cover the CT range; a sign lost in the codestream would make air tens of thousands of HU."""
    volume = read_series(data_dir / "dicom/transfer-syntaxes" / name)
    assert -3100 < volume.data.min() < volume.data.max() < 4096
    assert not volume.source.lossy


def test_wrong_transfer_syntax_in_the_header(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    edit(file, lambda d: setattr(d.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2.1"))
    data = file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)
    file.write_bytes(data)
    with pytest.raises(
        UnreadableError, match="TransferSyntaxUID missing or wrong, as the pixels are not compressed"
    ):
        read_series(file)


def test_more_pixels_than_the_header_says_are_no_image(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    edit(file, lambda d: setattr(d, "PixelData", d.PixelData * 2))
    with pytest.raises(UnreadableError, match="hold 2048 bytes more"):
        read_series(file)


def test_pixels_end_where_their_element_does(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    before = read_series(file).data
    edit(file, lambda d: d.add_new(0xFFFCFFFC, "OB", bytes(100)))
    assert torch.equal(read_series(file).data, before)


def test_pixels_of_an_unknown_kind_are_those_of_words(tmp_path):
    """Gateways write UN for what they do not know; in little endian the bytes are the same."""
    file = toy_series(tmp_path / "toy")[0]
    before = read_series(file).data
    data = file.read_bytes()
    assert data.count(b"\xe0\x7f\x10\0OW\0\0") == 1
    file.write_bytes(data.replace(b"\xe0\x7f\x10\0OW\0\0", b"\xe0\x7f\x10\0UN\0\0"))
    assert torch.equal(read_series(file).data, before)


def test_headers_do_not_keep_the_pixels(tmp_path):
    (item,) = read_headers(toy_series(tmp_path / "toy")[:1]).slices
    decode(item)
    assert "PixelData" not in item.header


def test_a_file_that_changes_between_header_and_pixels(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    (item,) = read_headers([file]).slices
    edit(file, setting(SeriesDescription="longer than it was"))
    with pytest.raises(UnreadableError, match="file #1: it has changed since its header was read"):
        decode(item)


def test_steep_and_fractional_slopes(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    edit(file, setting(RescaleSlope="0.244140625", RescaleIntercept="-1.5"))
    torch.testing.assert_close(read_series(file).data, cylinder().data[:1] * 0.244140625 - 1.5)
    edit(file, setting(RescaleSlope="1e30"))
    with pytest.raises(SeriesError, match="absurd"):
        read_series(file)


def test_texts_of_vendors(tmp_path):
    """Many-valued kernels (Siemens), signed decimal strings (GE), private groups, a number as bytes (CTP)."""
    series = toy_series(tmp_path / "toy")
    for file in series:
        edit(file, setting(ConvolutionKernel=["Br38f", "3"], GantryDetectorTilt="+18.5", KVP="120.0 "))
        edit(file, lambda d: d.private_block(0x0013, "CTP", create=True).add_new(0x10, "UN", b"Project\0"))
        edit(file, setting(ImageType=["ORIGINAL ", "PRIMARY", " AXIAL"], SpacingBetweenSlices="-5"))
    (listed,) = inspect_folder(tmp_path / "toy")
    assert (listed.kvp, listed.kernel, listed.thickness_mm) == (120, "Br38f/3", 2.5)
    volume = read_series(tmp_path / "toy")
    assert volume.geometry.spacing == (2.5, 1.25, 1.25)  # the tags for tilt and spacing are not believed
    assert not any("tilt" in warning for warning in volume.source.warnings)
    (tmp_path / "out").mkdir()
    written = write_series(volume, tmp_path / "out" / "x", like=volume, description="x")
    assert not [element for element in pydicom.dcmread(written[0]) if element.tag.is_private]


def test_patient_position_does_not_turn_anything(tmp_path):
    series = toy_series(tmp_path / "toy")
    before = read_series(tmp_path / "toy")
    for file in series:
        edit(file, setting(PatientPosition="FFP"))
    after = read_series(tmp_path / "toy")
    assert after.geometry == before.geometry
    assert torch.equal(after.data, before.data)


def test_lossy_flag_without_a_lossy_syntax_is_carried_on(tmp_path):
    series = toy_series(tmp_path / "toy")
    edit(series[2], setting(LossyImageCompression="01"))
    volume = read_series(tmp_path / "toy")
    assert volume.source.lossy
    assert any("lossy" in warning for warning in volume.source.warnings)


def test_noise_below_air_of_our_own_export_is_not_padding(tmp_path):
    """FBP of few views scatters air far below -1100 HU; scattered values are no filling."""
    generator = torch.Generator().manual_seed(0)
    geometry = VolumeGeometry((3, 64, 64), (2.0, 1.0, 1.0))
    hu = -1000 + 300 * torch.randn((3, 64, 64), generator=generator)
    axis = torch.arange(64) - 31.5
    disc = (torch.hypot(axis[:, None], axis[None, :]) <= 32).expand(3, 64, 64)
    write_series(Volume(hu, geometry, "HU", disc), tmp_path / "x", like=None, description="noise")
    volume = read_series(tmp_path / "x")
    assert volume.data.min() < -1500
    assert torch.equal(volume.mask, disc)


def test_every_decoder_of_the_matrix_is_installed_but_the_gpl_one():
    missing = {decoder.uid for decoder in decoder_table() if not decoder.plugins}
    assert missing <= {"1.2.840.10008.1.2.4.51"}
    assert {decoder.uid[18:] for decoder in decoder_table()} >= {
        "5",
        "4.50",
        "4.57",
        "4.70",
        "4.80",
        "4.90",
        "4.201",
    }


@pytest.mark.parametrize(
    ("tag", "diameter"), [(None, 40.0), (30.0, 30.0), (80.0, 80.0), (9.0, 40.0), (100.0, 40.0)]
)
def test_the_field_of_view_is_the_tags_where_the_pixels_allow_it(tag, diameter):
    """40 × 48 pixels of 1 mm: a tag below a quarter of the one or above twice the other contradicts them."""
    header = pydicom.Dataset()
    header.Rows, header.Columns, header.PixelSpacing = 40, 48, [1.0, 1.0]
    if tag:
        header.ReconstructionDiameter = tag
    assert radius_map(header)[20, 24] == pytest.approx(0.5**0.5 / (diameter / 2))
    assert radius_map(header)[0, 24] == pytest.approx(math.hypot(19.5, 0.5) / (diameter / 2))


def test_the_size_of_a_wavelet_stream_is_its_canvas_less_its_offset():
    """ISO 15444-1 A.5.1: image area from (XOsiz, YOsiz) to (Xsiz, Ysiz)."""
    siz = struct.pack(">HHHIIIIIIIIH", 0xFF51, 41, 0, 50, 40, 7, 8, 50, 40, 0, 0, 1) + b"\x0f\x01\x01"
    tile = struct.pack(">HHHIBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93)  # one, without data
    assert coded_size(b"\xff\x4f" + siz + tile + b"\xff\xd9") == (32, 43, 1)


MEASURE = """
import resource, sys
from ctflow.dicom import read_series
read_series(sys.argv[2])  # imports, decoders
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, seen = peak(), []
volume = read_series(sys.argv[1], progress=seen.append)
print(peak() - before, volume.data.numel() * 5 / 2**20, len(seen), seen[-1])
assert seen == sorted(seen)
"""


def test_memory_is_that_of_the_volume(tmp_path):
    """Beside voxels (4 bytes) and mask (1 byte) no more than a few slices and the headers are held."""
    size, slices = 256, 96
    rng = np.random.default_rng(0)
    geometry = VolumeGeometry((slices, size, size), (1.0, 1.0, 1.0))
    noise = torch.from_numpy(rng.integers(-1000, 1000, (slices, size, size)).astype(np.float32))
    series = write_series(Volume(noise, geometry, "HU"), tmp_path / "x", like=None, description="noise")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x"), str(series[0])]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    used, needed, calls, last = map(float, printed)
    # headers take 70 KiB each in pydicom; doubled voxels would add 24 MiB
    assert used < needed + slices * 0.08 + 10
    assert (calls, last) == (2 * slices, 1.0)
