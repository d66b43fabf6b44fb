"""DICOM-CT-PD: what is written is read, in every variant; what cannot be reconstructed is refused."""

import numpy as np
import pydicom
import pytest
import torch

from ctflow.datasets.raw_phantom import measure_phantom, raw_phantom, scanner
from ctflow.dicom import holds_projections, read_projections, write_projections
from ctflow.dicom.projections.tags import CREATOR, TAGS
from ctflow.errors import NoDicomError, OutputError, SeriesError, UnreadableError, UsageError

QUANTUM = 1.5e-4
CANARY = "CANARY^NAME"


@pytest.fixture(scope="module")
def scan():
    spot = scanner(views=18, turns=1.5, bins=46, rows=4, flying="FFSXYZ", z=512.25)
    return measure_phantom(raw_phantom(), spot)


@pytest.fixture
def folder(scan, tmp_path):
    return write_projections(scan, tmp_path / "set")


def edit(folder, change, files="*.dcm"):
    """Apply `change` to the data sets of a written set."""
    for file in sorted(folder.glob(files)):
        header = pydicom.dcmread(file)
        change(header)
        header.save_as(file)
    return folder


def put(name, content):
    group, element, _ = TAGS[name]
    return lambda header: setattr(header[group, element], "value", content)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("columns_first", [False, True])
def test_round_trip(scan, tmp_path, implicit, columns_first):
    path = write_projections(scan, tmp_path / "set", implicit=implicit, columns_first=columns_first)
    back = read_projections(path)
    assert holds_projections(path)
    # Rounded to the nearest quantum, and half a millionth of 4 by float32.
    assert float((back.y - scan.y).abs().max()) < QUANTUM / 2 * 1.01 + 2e-6
    # FL holds 24 bits: 512 mm to 3e-5 mm, an angle of 6 rad on an arm of 1,086 mm to 3e-4 mm.
    assert np.abs(np.array(back.beam.vectors) - np.array(scan.beam.vectors)).max() < 5e-4
    assert back.spot.middle == pytest.approx(scan.spot.middle, abs=1e-4)
    assert torch.allclose(back.photons, scan.photons)
    assert back.mu_water == pytest.approx(0.0192)


def test_views_behind_dangling_links_are_missed(folder):
    last = sorted(folder.iterdir())[-1]
    last.unlink()
    last.symlink_to("/nowhere/annex/object")
    assert holds_projections(folder)
    with pytest.raises(UnreadableError, match="1 of the files cannot be read: link to a file that is not"):
        read_projections(folder)


def test_bytes_of_an_unknown_creator_are_read(folder, scan):
    """Implicit VR with a creator that no dictionary knows leaves bytes."""
    for file in folder.glob("*.dcm"):
        header = pydicom.dcmread(file)
        for group in {tag[0] for tag in TAGS.values()}:
            header[group, 0x10].value = "A VENDOR"
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        header.save_as(file, implicit_vr=True, little_endian=True)
    element = pydicom.dcmread(next(folder.glob("*.dcm")))[0x7031, 0x1003]
    assert isinstance(element.value, bytes)
    back = read_projections(folder)
    assert float((back.y - scan.y).abs().max()) < QUANTUM
    assert np.abs(np.array(back.beam.vectors) - np.array(scan.beam.vectors)).max() < 5e-4


def test_names_do_not_order_the_views(folder, scan):
    for number, file in enumerate(sorted(folder.glob("*.dcm"))):
        file.rename(folder / f"{(number * 7) % 27:03d}-{number}.dcm")
    assert float((read_projections(folder).y - scan.y).abs().max()) < QUANTUM


def test_weights_are_the_photons_that_arrived(scan):
    ray = scan.weights[2, 5, 20]
    assert float(ray) == pytest.approx(float(scan.photons[0, 20] * torch.exp(-scan.y[2, 5, 20])))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("LogFlag", "NO", "not logarithms"),
        ("NumberofSpectra", 2, "2 spectra"),
        ("DetectorShape", "FLAT", "not a cylinder"),
        ("DetectorShape", "SPHERICAL", "SPHERICAL"),
        ("TypeofProjectionGeometry", "PARALLEL", "one source"),
        ("TypeofProjectionData", "TOPOGRAM", "neither a circle nor a helix"),
        ("WaterAttenuationCoefficient", "0.19", "attenuation of water"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(folder, name, content, said):
    with pytest.raises(SeriesError, match=said):
        read_projections(edit(folder, put(name, content)))


def test_all_reasons_are_given_at_once(folder):
    def broken(header):
        put("LogFlag", "NO")(header)
        put("DetectorShape", "FLAT")(header)

    with pytest.raises(SeriesError) as caught:
        read_projections(edit(folder, broken))
    assert len(caught.value.reasons) == 2


def test_a_lost_view_is_named(folder):
    (folder / "view000010.dcm").unlink()
    with pytest.raises(SeriesError, match="jumps after view 9"):
        read_projections(folder)


def test_exchanged_views_are_refused(folder):
    a, b = folder / "view000010.dcm", folder / "view000014.dcm"
    edit(folder, lambda header: setattr(header, "InstanceNumber", 14), a.name)
    edit(folder, lambda header: setattr(header, "InstanceNumber", 10), b.name)
    with pytest.raises(SeriesError, match="jumps"):
        read_projections(folder)


def test_two_detectors_are_not_one_scan(folder):
    edit(folder, put("DetectorElementAxialSpacing", 1.0), "view000003.dcm")
    with pytest.raises(SeriesError, match="row_pitch change"):
        read_projections(folder)


def test_an_image_that_is_no_detector_is_refused(folder):
    edit(folder, put("NumberofDetectorRows", 5))
    with pytest.raises(UnreadableError, match="46 × 4 does not fit 5 rows"):
        read_projections(folder)


def test_damaged_files_are_typed_and_nameless(folder):
    edit(folder, lambda header: setattr(header, "PatientName", CANARY))
    file = folder / "view000007.dcm"
    whole = file.read_bytes()
    renamed = file.rename(folder / "view000007 CANARY.dcm")
    for length in range(200, len(whole), len(whole) // 7):
        renamed.write_bytes(whole[:length])
        with pytest.raises((UnreadableError, SeriesError)) as caught:
            read_projections(folder)
        assert "CANARY" not in str(caught.value)


def _padded_at_the_end(header):
    """A column short; what follows could be read in its place."""
    lost = 2 * header.Columns
    header.PixelData = header.PixelData[:-lost]
    header.add_new("DataSetTrailingPadding", "OB", b"\0" * 4 * lost)


def _twelve_bits(header):
    header.BitsStored, header.HighBit = 12, 11


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda header: setattr(header, "PixelData", header.PixelData + b"\0\0"), "hold 2 bytes more"),
        (_padded_at_the_end, "bytes fewer"),
        (_twelve_bits, "others are in use"),
    ],
)
def test_pixels_that_contradict_their_header_are_damage(folder, spoil, words):
    with pytest.raises(UnreadableError, match=f"file #7: .*{words}"):
        read_projections(edit(folder, spoil, "view000007.dcm"))


def test_nothing_and_too_much(folder, scan, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoDicomError):
        read_projections(tmp_path / "empty")
    with pytest.raises(NoDicomError):
        read_projections(tmp_path / "absent")
    with pytest.raises(OutputError):
        write_projections(scan, folder)
    with pytest.raises(UsageError, match="65,535"):
        write_projections(scan, tmp_path / "fine", quantum=1e-5)
    assert not (tmp_path / "fine").exists()


def test_a_lacking_attribute_is_named(folder):
    def without(header):
        del header[TAGS["ConstantRadialDistance"][:2]]

    with pytest.raises(SeriesError, match="lack ConstantRadialDistance"):
        read_projections(edit(folder, without))


def test_every_private_group_is_reserved(folder):
    header = pydicom.dcmread(next(folder.glob("*.dcm")))
    assert {header[group, 0x10].value for group in {tag[0] for tag in TAGS.values()}} == {CREATOR}


def test_photons_lie_at_the_element_that_the_format_names():
    """DICOM-CT-PD user manual: (7033,1065), one 32-bit float for each detector column."""
    assert TAGS["PhotonStatistics"] == (0x7033, 0x1065, "FL")
