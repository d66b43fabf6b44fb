"""Spoiled series: the class, the exit code and the words of every refusal; no patient in any of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch

from ctflow.dicom import inspect_folder, read_series, write_series
from ctflow.errors import CTFlowError, NoDicomError, OutputError, SeriesError, UnreadableError
from ctflow.volume import Volume
from tests.dicom.files import CANARY, cylinder, edit, plant_canary, setting, toy_series


def shear(dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, float(y) + 0.2 * float(z), z]


def every(change):
    return lambda series: [edit(file, change) for file in series]


def at(k, change):
    return lambda series: edit(series[k], change)


def truncate(series):
    series[2].write_bytes(series[2].read_bytes()[:-500])


def cut_header(series):
    series[0].write_bytes(series[0].read_bytes()[:600])


def text(series):
    series[1].write_text("dear radiologist")


def copy_elsewhere(series):
    double = series[2].with_name("double.dcm")
    shutil.copy(series[2], double)
    edit(double, lambda d: setattr(d, "PixelData", bytes(len(d.PixelData))))


SPOILED = {
    "missing slice": (
        lambda s: s[3].unlink(),
        SeriesError,
        "gap after z = -1.25 mm.*5.00 mm away, expected 2.50 mm",
    ),
    "uneven": (
        at(3, setting(ImagePositionPatient=["-19.375", "-19.375", "1.7"])),
        SeriesError,
        "varies from 2.05",
    ),
    "aside": (
        at(3, setting(ImagePositionPatient=["-18", "-19.375", "1.25"])),
        SeriesError,
        "displaced by 1.38 mm",
    ),
    "tilt": (every(shear), SeriesError, "sheared by 11.31°"),
    "two patients": (at(4, setting(PatientID="other")), SeriesError, "2 patients"),
    "duplicate": (copy_elsewhere, SeriesError, "2 images at one position, z = -1.25 mm"),
    "pixel spacing": (at(5, setting(PixelSpacing=["1.3", "1.3"])), SeriesError, "pixel spacing varies"),
    "not HU": (every(setting(RescaleType="US")), SeriesError, "RescaleType US, expected HU"),
    "no rescale": (at(0, lambda d: d.pop("RescaleSlope")), SeriesError, "RescaleSlope .* missing"),
    "burned in": (at(0, setting(BurnedInAnnotation="YES")), SeriesError, "burned-in"),
    "RGB page": (every(setting(SamplesPerPixel=3)), SeriesError, "RGB page"),
    "MR": (every(setting(Modality="MR")), SeriesError, "Modality MR, expected CT"),
    "coronal": (every(setting(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), SeriesError, "90.0° off axial"),
    "text": (text, UnreadableError, "file #2"),
    "cut header": (cut_header, UnreadableError, "file #1"),
    "truncated": (truncate, UnreadableError, "file #3"),
    "no pixels": (at(5, lambda d: d.pop("PixelData")), UnreadableError, "file #6"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_series_are_refused(tmp_path, what):
    spoil, kind, words = SPOILED[what]
    spoil(toy_series(tmp_path / "toy"))
    with pytest.raises(kind, match=words) as caught:
        read_series(tmp_path / "toy")
    assert caught.value.exit_code == {SeriesError: 3, UnreadableError: 4}[kind]
    inspect_folder(tmp_path / "toy")  # never raises


def test_all_reasons_come_at_once(tmp_path):
    series = toy_series(tmp_path / "toy")
    series[3].unlink()
    for file in (*series[:3], *series[4:]):
        edit(file, shear)
    edit(series[0], setting(BurnedInAnnotation="YES"))
    with pytest.raises(SeriesError) as caught:
        read_series(tmp_path / "toy")
    for word in ("gap", "sheared", "burned-in"):
        assert any(word in reason for reason in caught.value.reasons)


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_no_dicom(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("no image")
    with pytest.raises(NoDicomError) as caught:
        read_series(tmp_path)
    assert caught.value.exit_code == 2
    assert inspect_folder(tmp_path) == []
    with pytest.raises(NoDicomError):
        read_series(tmp_path / "nowhere")


def test_exact_copies_are_dropped_with_a_note(tmp_path):
    series = toy_series(tmp_path / "toy")
    alone = read_series(tmp_path / "toy")
    shutil.copy(series[2], tmp_path / "toy" / "again.dcm")
    volume = read_series(tmp_path / "toy")
    assert volume.source.sha256 == alone.source.sha256
    assert volume.source.warnings == ["1 exact copies of slices dropped"]


def test_localizer_inside_the_series_is_left_out(tmp_path):
    series = toy_series(tmp_path / "toy")
    shutil.copy(series[0], tmp_path / "toy" / "scout.dcm")
    edit(tmp_path / "toy" / "scout.dcm", setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER "]))
    volume = read_series(tmp_path / "toy")
    assert volume.data.shape[0] == 6
    assert volume.source.skipped == ["1 file skipped: localizer, expected axial slices"]


def test_one_slice_is_a_volume_as_deep_as_it_is_thick(tmp_path):
    series = toy_series(tmp_path / "toy")
    volume = read_series(series[2])
    assert volume.geometry.shape == (1, 32, 32)
    assert volume.geometry.spacing == (2.5, 1.25, 1.25)


def test_rescale_is_applied_slice_by_slice(tmp_path):
    series = toy_series(tmp_path / "toy")
    plain = read_series(tmp_path / "toy").data
    edit(series[3], setting(RescaleSlope="0.5", RescaleIntercept="-8"))
    with pytest.raises(SeriesError, match="RescaleSlope or RescaleIntercept changes within the series"):
        read_series(tmp_path / "toy")
    stored = ((plain[3] + 8) * 2).numpy().astype("<i2")
    edit(series[3], setting(PixelData=stored.tobytes()))
    assert torch.equal(read_series(tmp_path / "toy").data, plain)


def test_padding_range_is_compared_before_rescale(tmp_path):
    def padded(dataset):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(32, 32).copy()
        stored[15, 15:18] = [-2000, -1990, -1980]
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000 with the wrong sign
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1990)

    series = toy_series(tmp_path / "toy")
    for file in series:
        edit(file, padded)
    mask = read_series(tmp_path / "toy").mask[0]
    assert mask[15, 14:19].tolist() == [True, False, False, True, True]


def test_no_message_names_a_patient(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    said = []
    for what, (spoil, _, _) in SPOILED.items():
        folder = plant_canary(tmp_path / what / "toy", toy_series(tmp_path / what / "toy"))
        spoil(sorted(folder.iterdir()))
        with pytest.raises(CTFlowError) as caught:
            read_series(folder)
        said += [
            str(caught.value),
            json.dumps([dataclasses.asdict(entry) for entry in inspect_folder(folder)]),
        ]
    folder = plant_canary(tmp_path / "good", toy_series(tmp_path / "good"))
    volume = read_series(folder)
    written = write_series(volume, tmp_path / "out", like=volume, description="derived")
    with pytest.raises(OutputError) as refused:
        write_series(volume, folder, like=volume, description="derived", overwrite=True)
    source = volume.source
    said += [
        repr(volume),
        repr(source),
        str(source.warnings),
        str(source.skipped),
        source.sha256,
        str(refused.value),
    ]
    said += [
        json.dumps([dataclasses.asdict(entry) for entry in inspect_folder(folder)]),
        *(f.name for f in written),
    ]
    said += [caplog.text, *capfd.readouterr()]
    assert not [text for text in said if CANARY in text]


def test_inspection_is_json_and_says_what_read_series_does(tmp_path):
    toy_series(tmp_path / "toy")
    (tmp_path / "toy" / "z.dcm").write_text("text")
    series, damaged = inspect_folder(tmp_path)
    assert json.loads(json.dumps(dataclasses.asdict(series)))["spacing_mm"] == [2.5, 1.25, 1.25]
    assert (series.modality, series.slices, series.usable, series.series_number) == ("CT", 6, True, 1)
    assert (damaged.slices, damaged.usable, damaged.uid) == (1, False, "")
    assert "#7" in damaged.reasons[0]


def test_source_is_sliced_with_the_volume(tmp_path):
    toy_series(tmp_path / "toy")
    volume = read_series(tmp_path / "toy")
    part = volume.slices(2, 4)
    assert [int(header.InstanceNumber) for header in part.source.headers] == [3, 4]
    assert part.source.sha256 != volume.source.sha256
    assert isinstance(part, Volume)
    assert torch.equal(part.data, cylinder().data[2:4])
