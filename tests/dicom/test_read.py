"""Real series: which are accepted, where their voxels stand, what is masked, what every codec yields."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import torch

from ctflow.dicom import ReadOptions, read_series, write_series
from ctflow.dicom.reading import decoders
from ctflow.errors import CTFlowError, DecoderError, SeriesError
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume
from tests.dicom.files import edit, setting

# folder: slices and (z, y, x) spacing in mm, from the files' own positions
ACCEPTED = {
    "abdomen-35": (35, 5.0),
    "empty-uids": (20, 2.0),
    "gantry-tilt/philips": (28, 5.0),
    "lidc-two-patients/LIDC-IDRI-0001": (16, 2.5),
    "lidc-two-patients/LIDC-IDRI-0002": (12, 1.25),
    "three-slices": (3, 1.0),
}
REFUSED = {
    "gantry-tilt/ge": ["sheared by 18.50°", "18.5° off axial", "varies from 1.08 to 7.00 mm"],
    "gantry-tilt/philips/S1000": ["localizer"],
    "gantry-tilt/philips/S4010": ["Secondary Capture"],
    "lidc-two-patients": ["2 patients", "2 usable volumes", "3000566", "3000522", "--series"],
    "reformats/sagittal": ["90.0° off axial"],
    "transfer-syntaxes": ["at one position, z = 4.70 mm"],
    "refusals/gantrytilting": ["sheared by 14.00°"],
    "refusals/notavolume": ["4 images at one position, z = 61.50 mm"],
    "refusals/slicecount": ["Modality MR, expected CT"],
    "refusals/sliceorientation": ["Modality MR, expected CT"],
    "refusals/sliceincrement/001": ["gap after z = 28.11 mm", "10.00 mm away, expected 5.00 mm"],
    "refusals/sliceincrement/002": ["sheared by 15.50°", "gap after z = -51.14 mm"],
}
REFERENCE = "CTImage.dcm"
LOSSLESS = ["1.2.840.10008.1.2", "1.2.1", "1.2.2", "1.2.1.99", "1.2.5", "4.57", "4.70", "4.80", "4.90"]
# RMS error in HU: one stored step of the 8-bit copy (slope 32.12), the bound of the near-lossless coder, and
# the largest error anywhere of the wavelet copy
LOSSY = {"4.50": 32.12, "4.81": 1.0, "4.91": 5.0}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts_and_places_every_slice(data_dir, name):
    volume = read_series(data_dir / "dicom" / name)
    slices, step = ACCEPTED[name]
    assert volume.geometry.shape == (slices, 512, 512)
    assert volume.geometry.spacing[0] == pytest.approx(step, abs=1e-3)
    affine = np.array(volume.geometry.affine)
    for k, header in enumerate(volume.source.headers):
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        dy, dx = (float(value) for value in header.PixelSpacing)
        corner = np.array(header.ImagePositionPatient, float) + 7 * dy * column + 11 * dx * row
        # 0.01 mm: the identity that a sheared or averaged stack breaks by tens of millimetres
        assert np.abs(affine[:3] @ [k, 7, 11, 1] - corner).max() < 0.01
    assert volume.unit == "HU"
    assert volume.data.dtype == torch.float32
    assert volume.to_attenuation().data.min() >= 0


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_every_reason(data_dir, name):
    with pytest.raises(SeriesError) as caught:
        read_series(data_dir / "dicom" / name)
    assert caught.value.exit_code == 3
    for reason in REFUSED[name]:
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_series_is_chosen_by_number_or_hash(data_dir):
    both = data_dir / "dicom" / "lidc-two-patients"
    by_number = read_series(both, series="3000522")
    by_hash = read_series(both, series="52f7ce84")
    assert by_number.source.sha256 == by_hash.source.sha256
    assert by_number.data.shape[0] == 12
    assert any("series 3000566" in line for line in by_number.source.skipped)
    with pytest.raises(SeriesError, match="no series 5"):
        read_series(both, series="5")


def test_order_of_files_does_not_matter(data_dir):
    found = sorted((data_dir / "dicom" / "three-slices").rglob("*.dcm"))
    found += sorted((data_dir / "dicom" / "gantry-tilt/philips").rglob("I*"))
    shuffled = random.Random(3).sample(found, len(found))
    volumes = [read_series(order, series="201") for order in (found, shuffled)]
    assert volumes[0].source.sha256 == volumes[1].source.sha256
    assert torch.equal(volumes[0].data, volumes[1].data)
    assert volumes[0].geometry == volumes[1].geometry


def disc(size: int = 512) -> torch.Tensor:
    axis = torch.arange(size) - (size - 1) / 2
    return torch.hypot(axis[:, None], axis[None, :]) <= size / 2


def test_slices_closer_than_a_millimetre_stand_by_their_positions(tmp_path):
    """Slices of 0.3 mm whose instance numbers and UIDs run otherwise: only the positions know the order."""
    order = [4, 1, 6, 0, 3, 7, 2, 5]
    geometry = VolumeGeometry((8, 16, 16), (0.3, 1.0, 1.0))
    hu = torch.arange(8.0)[:, None, None].expand(geometry.shape).contiguous()
    files = write_series(Volume(hu, geometry, "HU"), tmp_path / "x", like=None, description="thin")
    for number, file in zip(order, files, strict=True):
        edit(file, setting(InstanceNumber=number, SOPInstanceUID=f"1.2.3.{number}"))
    volume = read_series(tmp_path / "x", options=ReadOptions(unit="HU"))  # a ramp is no patient
    assert volume.data[:, 8, 8].tolist() == list(range(8))
    assert volume.geometry.spacing[0] == pytest.approx(0.3)


@pytest.mark.parametrize("patient", ["0001", "0002"])
def test_mask_is_the_disc_whether_the_padding_tag_is_right_or_wrong(data_dir, patient):
    volume = read_series(data_dir / "dicom" / "lidc-two-patients" / f"LIDC-IDRI-{patient}")
    assert torch.equal(volume.mask, disc().expand_as(volume.mask))
    # 0001 stores -1024 outside (-2048 HU) although its tag says 63536, which is -2000; values stay as read
    assert volume.data.min() == {"0001": -2048, "0002": -3024}[patient]
    assert volume.data[volume.mask].min() >= -1100


def test_reconstructed_corners_are_kept(data_dir):
    volume = read_series(data_dir / "dicom" / "gantry-tilt/philips/S2010")
    assert volume.mask.all()


def test_padding_inside_the_disc_is_masked(data_dir):
    volume = read_series(data_dir / "dicom" / "abdomen-35")
    assert not (volume.mask & ~disc()).any()
    assert 0 < int((disc() & ~volume.mask[0]).sum()) < 1000
    assert (volume.data[~volume.mask] == -3024).all()


def syntax_file(folder: Path, tail: str) -> Path:
    return next(
        file for file in sorted(folder.glob("CTImage.dcm_*.dcm")) if file.name.endswith(f"{tail}.dcm")
    )


@pytest.mark.parametrize("tail", LOSSLESS)
def test_lossless_codecs_agree_bit_for_bit(data_dir, tail):
    folder = data_dir / "dicom" / "transfer-syntaxes"
    reference = read_series(folder / REFERENCE)
    volume = read_series(syntax_file(folder, "_" + tail if tail[0] == "1" and "840" in tail else "." + tail))
    assert torch.equal(volume.data, reference.data)
    assert torch.equal(volume.mask, reference.mask)
    assert not volume.source.lossy


@pytest.mark.parametrize("tail", LOSSY)
def test_lossy_codecs_are_close_and_flagged(data_dir, tail):
    folder = data_dir / "dicom" / "transfer-syntaxes"
    volume = read_series(syntax_file(folder, "." + tail))
    assert volume.source.lossy
    assert any("lossy" in warning for warning in volume.source.warnings)
    # without the ringing of the 8-bit copy at the rim of the disc, where a filling of -3500 HU ends
    kept = volume.mask & (volume.data >= -1100)
    inside = (volume.data - read_series(folder / REFERENCE).data)[kept]
    assert inside.square().mean().sqrt() <= LOSSY[tail]


@pytest.mark.parametrize(
    ("tail", "advice"),
    [
        ("4.51", r"ctflow\[dicom-gpl\]"),
        ("4.53", "Explicit VR Little Endian"),
        ("4.55", "Explicit VR Little Endian"),
    ],
)
def test_missing_decoder_says_what_to_install(data_dir, tail, advice):
    with pytest.raises(DecoderError, match=advice) as caught:
        read_series(syntax_file(data_dir / "dicom" / "transfer-syntaxes", "." + tail))
    assert caught.value.exit_code == 5
    assert "1.2.840.10008.1.2." + tail in str(caught.value)


def test_package_that_is_not_installed_is_named(data_dir, monkeypatch):
    monkeypatch.setattr(decoders, "get_decoder", lambda syntax: SimpleNamespace(is_available=False))
    with pytest.raises(DecoderError, match=r"JPEG-LS Lossless .*pip install 'ctflow\[codecs\]'"):
        read_series(syntax_file(data_dir / "dicom" / "transfer-syntaxes", ".4.80"))


@pytest.mark.parametrize("name", ["abdomen-35", "lidc-two-patients/LIDC-IDRI-0002"])
def test_slices_agree_with_simpleitk(data_dir, name):
    itk = pytest.importorskip("SimpleITK")
    volume = read_series(data_dir / "dicom" / name)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in volume.source.files])
    image = reader.Execute()
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), volume.data.numpy())
    affine = np.array(volume.geometry.affine)
    for index in [(0, 0, 0), (511, 3, 4), (7, 500, volume.data.shape[0] - 1)]:
        x, y, z = index
        # SimpleITK keeps its direction cosines to double precision; 1e-3 mm is its own rounding of spacing
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), affine[:3] @ [z, y, x, 1], atol=1e-3
        )


def test_highdicom_reads_the_same_volume(data_dir):
    highdicom = pytest.importorskip("highdicom")
    volume = read_series(data_dir / "dicom" / "abdomen-35")
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in volume.source.files])
    mine = np.array(volume.geometry.affine)
    # highdicom may run along the other direction: compare voxel by position
    flip = np.sign(theirs.affine[2, 0]) != np.sign(mine[2, 0])
    array = theirs.array[::-1] if flip else theirs.array
    np.testing.assert_array_equal(array, volume.data.numpy())
    first = theirs.affine @ [34 if flip else 0, 0, 0, 1]
    np.testing.assert_allclose(first[:3], mine[:3, 3], atol=1e-6)


def test_whole_data_folder_is_one_refusal(data_dir):
    with pytest.raises(CTFlowError) as caught:
        read_series(data_dir / "dicom")
    assert isinstance(caught.value, SeriesError)
    assert len(caught.value.reasons) > 10
