"""Multi-frame CT gives the volume that its frames as single files give, whatever order they have."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import DeflatedExplicitVRLittleEndian, LegacyConvertedEnhancedCTImageStorage

from ctflow.dicom import inspect_folder, read_series, write_series
from ctflow.errors import SeriesError, UnreadableError
from tests.dicom.files import coded, cylinder, edit, enhanced, item, setting, toy_series


def test_enhanced_frames_are_placed_and_rescaled_one_by_one(tmp_path):
    series = toy_series(tmp_path / "classic")
    order = [4, 0, 5, 1, 3, 2]
    volume = read_series(enhanced(series, tmp_path / "e" / "one"), progress=lambda fraction: None)
    shuffled = read_series(enhanced(series, tmp_path / "s" / "one", order))
    assert volume.geometry == shuffled.geometry == read_series(tmp_path / "classic").geometry
    for k in range(6):
        # slope 2 and an intercept of the frame's number in the file, by `enhanced`
        assert torch.equal(volume.data[k], cylinder().data[k] * 2 + k)
        assert torch.equal(shuffled.data[k], cylinder().data[k] * 2 + order.index(k))
    assert [int(header.InstanceNumber) for header in shuffled.source.headers] == [2, 4, 6, 5, 1, 3]
    (summary,) = inspect_folder(tmp_path / "e")
    assert (summary.usable, summary.slices, summary.spacing_mm) == (True, 6, (2.5, 1.25, 1.25))


def test_legacy_converted_gives_the_classic_volume(tmp_path):
    legacy = pytest.importorskip("highdicom.legacy")
    series = toy_series(tmp_path / "classic")
    classic = [pydicom.dcmread(file) for file in series]
    for number, dataset in enumerate(classic):
        dataset.InstanceNumber = 6 - number
        dataset.RescaleIntercept = str(number)
    converted = legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=classic,
        series_instance_uid="1.2.3",
        series_number=1,
        sop_instance_uid="1.2.4",
        instance_number=1,
    )
    converted.save_as(tmp_path / "converted")
    volume = read_series(tmp_path / "converted")
    expected = cylinder().data + torch.arange(6)[:, None, None]
    assert torch.equal(volume.data, expected)
    assert volume.geometry == read_series(tmp_path / "classic").geometry


def test_compressed_frames(tmp_path):
    file = enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one")
    plain = read_series(file)
    coded(file, "1.2.840.10008.1.2.4.80")  # JPEG-LS lossless
    assert torch.equal(read_series(file).data, plain.data)


def test_frames_without_a_number_of_samples(tmp_path):
    file = enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one")
    plain = read_series(file)
    edit(file, lambda dataset: dataset.pop("SamplesPerPixel"))
    assert torch.equal(read_series(file).data, plain.data)


def test_time_points_of_an_enhanced_file_are_refused_and_split(tmp_path):
    series = toy_series(tmp_path / "classic")
    file = enhanced([*series, *series], tmp_path / "e" / "one")

    def time(dataset):
        for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.FrameContentSequence[0].TemporalPositionIndex = 1 + k // 6

    edit(file, time)
    with pytest.raises(SeriesError, match="2 images at one position"):
        read_series(file)


@pytest.mark.parametrize("frames", [1, 7, 2**31 - 1])
def test_number_of_frames_that_lies(tmp_path, frames):
    file = enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one")
    edit(file, lambda d: setattr(d, "NumberOfFrames", frames))
    with pytest.raises(UnreadableError):
        read_series(file)


def test_frames_that_are_not_there(tmp_path):
    file = enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one")

    def more(dataset):
        dataset.PerFrameFunctionalGroupsSequence.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=[-19.375, -19.375, 8.75])],
                PixelValueTransformationSequence=[item(RescaleSlope="1", RescaleIntercept="0")],
                CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
            )
        )
        dataset.NumberOfFrames = 7

    edit(file, more)
    with pytest.raises(UnreadableError, match="missing, truncated"):
        read_series(file)


def fewer_frames(dataset):
    dataset.NumberOfFrames = 5
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:5]


def cut_and_padded(dataset):
    """What is missing could be read from the padding behind it."""
    frame = 2 * dataset.Rows * dataset.Columns
    dataset.PixelData = dataset.PixelData[:-frame]
    dataset.add_new("DataSetTrailingPadding", "OB", b"\0" * 2 * frame)


@pytest.mark.parametrize(
    "spoil",
    [
        setting(Rows=31),
        setting(Columns=16, Rows=63),
        setting(BitsAllocated=8, BitsStored=8, HighBit=7),
        fewer_frames,
        cut_and_padded,
        lambda dataset: setattr(dataset, "PixelData", dataset.PixelData + b"\0\0"),
    ],
)
@pytest.mark.parametrize("kind", ["enhanced", "legacy", "classic", "deflated"])
def test_pixel_data_are_as_long_as_rows_columns_and_frames_say(tmp_path, spoil, kind):
    series = toy_series(tmp_path / "classic")
    if kind != "classic":
        enhanced(series, series[0])
    for file in series[1:]:
        file.unlink()
    if kind == "legacy":
        edit(series[0], setting(SOPClassUID=LegacyConvertedEnhancedCTImageStorage))
    if kind == "deflated":
        edit(series[0], lambda d: setattr(d.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian))
    assert len(read_series(series[0]).data) == (1 if kind == "classic" else 6)
    if kind == "classic" and spoil is fewer_frames:
        spoil = setting(NumberOfFrames=1, Rows=30)
    edit(series[0], spoil)
    with pytest.raises(UnreadableError):
        read_series(series[0])


def test_one_byte_pads_an_odd_length(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    stored = (np.arange(31 * 31) // 31).astype("u1")
    edit(file, setting(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, Rows=31, Columns=31))
    edit(file, setting(PixelData=stored.tobytes() + b"\0"))
    assert np.array_equal(read_series(file).data.numpy().ravel(), stored)
    edit(file, setting(PixelData=stored.tobytes() + b"\0\0\0"))
    with pytest.raises(UnreadableError, match="hold 3 bytes more"):
        read_series(file)


def test_export_of_a_multi_frame_volume(tmp_path):
    volume = read_series(enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one"))
    write_series(volume, tmp_path / "out", like=volume, description="again")
    again = read_series(tmp_path / "out")
    assert torch.equal(again.data[volume.mask], volume.data[volume.mask])
    assert np.allclose(again.geometry.affine, volume.geometry.affine, atol=1e-6)
