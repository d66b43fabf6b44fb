"""Readable though unusual, and refused with advice: the advice, applied to the same input, reads it."""

from __future__ import annotations

import io
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from ctflow.cli import main
from ctflow.dicom import ReadOptions, inspect_folder, read_series
from ctflow.errors import SeriesError, UnreadableError
from tests.dicom.files import cylinder, edit, enhanced, setting, toy_series


def each(change):
    """A spoiler of every slice of a series; `change` takes its place and its header."""

    def spoil(files):
        for k, file in enumerate(files):
            edit(file, lambda dataset, k=k: change(k, dataset))

    return spoil


def at(k, **values):
    return lambda files: edit(files[k], setting(**values))


def lose(*places):
    return lambda files: [files[k].unlink() for k in places]


def shear(k, dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, float(y) + math.tan(math.radians(15)) * float(z), z]


def unmarked(files):
    for file in files:
        file.write_bytes(file.read_bytes()[132:])


def unmarked_without_ending(files):
    unmarked(files)
    for file in files:
        file.rename(file.with_suffix(""))


def doubled(files):
    for k, file in enumerate(files):
        late = shutil.copy(file, file.with_name(f"late{k}.dcm"))
        edit(late, setting(SOPInstanceUID=f"1.2.{k}", TemporalPositionIdentifier=2, RescaleIntercept="7"))
        edit(file, setting(TemporalPositionIdentifier=1))


def other_series(files):
    toy_series(files[0].parent / "other", seed="other")


def both(*spoilers):
    return lambda files: [spoil(files) for spoil in spoilers]


# The input, and the ways that its refusal must advise.
ADVISED = {
    "a gap": (lose(3), ["--fill linear", "--split --series"]),
    "many gaps": (lose(1, 3), ["--fill linear"]),
    "a tilted gantry": (each(shear), ["--tilt resample", "--tilt in-plane"]),
    "a tilt and a gap": (
        both(lambda files: files[3].unlink(), lambda files: each(shear)(sorted(files[0].parent.iterdir()))),
        [
            "--fill linear --tilt resample",
            "--fill linear --tilt in-plane",
            "--tilt resample --split --series",
        ],
    ),
    "phases": (doubled, ["--split --series"]),
    "two series": (other_series, ["--series"]),
    "no marker": (unmarked, ["--force-read"]),
    "no marker, no ending": (unmarked_without_ending, ["--force-read"]),
    "one slice without marker": (lambda files: unmarked(files[5:]), ["--on-bad-file skip", "--force-read"]),
    "an inner slice without marker": (lambda files: unmarked(files[2:3]), ["--force-read"]),
    "an end without position": (at(5, ImagePositionPatient=None), ["--on-bad-file skip"]),
    "a middle without position": (at(3, ImagePositionPatient=None), ["--on-bad-file skip --fill linear"]),
    "an empty middle": (lambda files: files[3].write_bytes(b""), ["--on-bad-file skip --fill linear"]),
    "another spacing": (at(5, PixelSpacing=["1.3", "1.3"]), ["--series"]),
}


def ways(message):
    """The options of every way that a message advises, as they are written."""
    found = re.split(" or by ", re.split("llow it by |hoose one by ", message)[-1])
    return [re.sub(r" \(or .*\)", "", way) for way in found]


@pytest.mark.parametrize("what", ADVISED)
def test_advice_works_on_the_input_that_it_is_given_for(tmp_path, capsys, what):
    spoil, expected = ADVISED[what]
    spoil(toy_series(tmp_path / "toy"))
    convert = ["convert", str(tmp_path / "toy"), str(tmp_path / "x.nii"), "--overwrite"]
    assert main(convert) in (3, 4)
    *progress, said = capsys.readouterr().err.splitlines()
    assert all(line.endswith("% reading") for line in progress)
    assert len(said) < 600
    for words in expected:
        assert any(way.startswith(words) for way in ways(said)), said
    for way in ways(said):
        assert main([*convert, *shlex.split(way)]) == 0, way
        capsys.readouterr()


NO_WAY = {
    "no HU": (each(lambda k, d: setattr(d, "RescaleType", "US")), "RescaleType US"),
    "no slope": (each(lambda k, d: setattr(d, "RescaleSlope", None)), "RescaleSlope or RescaleIntercept is"),
    "no spacing at all": (each(lambda k, d: setattr(d, "PixelSpacing", None)), "PixelSpacing missing"),
    "no rows at all": (each(lambda k, d: setattr(d, "Rows", None)), "Rows missing"),
    "coronal": (
        each(lambda k, d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1])),
        "90.0° off axial",
    ),
    "text in the pixels": (at(0, BurnedInAnnotation="YES"), "burned-in"),
    "two patients": (at(0, PatientID="other"), "2 patients"),
}


@pytest.mark.parametrize("what", NO_WAY)
def test_no_option_is_advised_where_none_helps(tmp_path, what):
    spoil, words = NO_WAY[what]
    spoil(toy_series(tmp_path / "toy"))
    with pytest.raises(SeriesError, match=re.escape(words)) as caught:
        read_series(tmp_path / "toy")
    assert "No option makes one volume of these files" in str(caught.value)
    assert "--" not in str(caught.value)


def placed(step, digits):
    return each(lambda k, d: setattr(d, "ImagePositionPatient", [0, 0, round(step * k, digits)]))


@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (0.625, 2), (0.33, 1), (2.6, 0), (1.25, 1)])
def test_rounded_positions_are_an_even_stack(tmp_path, step, digits):
    files = toy_series(tmp_path / "toy", slices=20)
    placed(step, digits)(files)
    volume = read_series(tmp_path / "toy")
    assert volume.geometry.shape[0] == 20
    # Both ends are half a rounding off at most.
    assert volume.geometry.spacing[0] == pytest.approx(step, abs=10**-digits / 19)
    assert torch.equal(volume.data, cylinder(20).data)
    files[7].unlink()
    with pytest.raises(SeriesError, match=r"gap after .*\(1 missing\)"):
        read_series(tmp_path / "toy")
    filled = read_series(tmp_path / "toy", options=ReadOptions(fill="linear"))
    assert filled.geometry.shape[0] == 20
    assert any("slices 7 of 20" in warning for warning in filled.source.warnings)


@pytest.mark.parametrize(
    "z", [[0, 5, 10, 16, 20, 25], [0, 1, 2, 4, 5, 6], [0, 0.6, 1.3, 1.9, 2.9, 3.1], [0, 2.5, 5, 8, 10, 12.5]]
)
def test_uneven_positions_are_not_taken_for_rounded_ones(tmp_path, z):
    each(lambda k, d: setattr(d, "ImagePositionPatient", [0, 0, z[k]]))(toy_series(tmp_path / "toy"))
    with pytest.raises(SeriesError, match=r"varies from|gap after"):
        read_series(tmp_path / "toy")


def own_frame(k, dataset):
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", str(k)])


@pytest.mark.parametrize(
    ("change", "frames"),
    [
        (own_frame, 6),
        (lambda k, d: own_frame(k // 2 if k < 2 else k, d), 5),
        (lambda k, d: setattr(d, "FrameOfReferenceUID", None), 1),
        (lambda k, d: k or setattr(d, "FrameOfReferenceUID", None), 2),
    ],
)
def test_frames_of_reference_that_unite_nothing_part_nothing(tmp_path, change, frames):
    each(change)(toy_series(tmp_path / "toy"))
    volume = read_series(tmp_path / "toy")
    assert torch.equal(volume.data, cylinder().data)
    words = f"{frames} frames of reference in one series (de-identified?): taken as one"
    assert volume.source.warnings == [words] * (frames > 1)


def test_two_frames_of_reference_are_two_volumes(tmp_path):
    each(lambda k, d: own_frame(k // 3, d))(toy_series(tmp_path / "toy"))
    with pytest.raises(SeriesError, match="frame of reference varies within one series"):
        read_series(tmp_path / "toy")


SYNTAXES = {"implicit": (True, True), "explicit": (False, True), "big endian": (False, False)}


def encoded(dataset, told, encoding):
    """A file whose data set is encoded in one way and whose file meta tells another, or none."""
    implicit, little = SYNTAXES[encoding]
    body = pydicom.Dataset()
    body.update({element.tag: element for element in dataset})
    if not little:
        body.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if told:
        meta.TransferSyntaxUID = told
    start, rest = io.BytesIO(), io.BytesIO()
    write_file_meta_info(start, meta, enforce_standard=False)
    body.save_as(rest, implicit_vr=implicit, little_endian=little)
    return bytes(128) + b"DICM" + start.getvalue() + rest.getvalue()


@pytest.mark.parametrize("encoding", SYNTAXES)
@pytest.mark.parametrize("told", [None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_encoding_is_told_from_the_bytes(tmp_path, told, encoding):
    for file in toy_series(tmp_path / "toy"):
        file.write_bytes(encoded(pydicom.dcmread(file), told, encoding))
    volume = read_series(tmp_path / "toy")
    assert torch.equal(volume.data, cylinder().data)
    assert inspect_folder(tmp_path / "toy")[0].usable
    words = "TransferSyntaxUID is missing or wrong: the encoding was told from the bytes"
    swapped = told is not None and (told == ExplicitVRBigEndian) != (encoding == "big endian")
    assert volume.source.warnings == [words] * (told is None or swapped)


def test_frames_of_an_irregular_file_are_read_too(tmp_path):
    file = enhanced(toy_series(tmp_path / "toy"), tmp_path / "e" / "x.dcm")
    expected = read_series(file).data
    file.write_bytes(encoded(pydicom.dcmread(file), None, "explicit"))
    assert torch.equal(read_series(file).data, expected)
    unmarked([file])
    assert torch.equal(read_series(file, options=ReadOptions(force=True)).data, expected)


@pytest.mark.parametrize("compressed", [True, False])
def test_pixels_that_contradict_the_transfer_syntax_are_refused_by_their_cause(tmp_path, compressed):
    for file in toy_series(tmp_path / "toy"):
        dataset = pydicom.dcmread(file)
        if compressed:
            dataset.compress("1.2.840.10008.1.2.5")
        dataset.save_as(file)
        wrong = "1.2.840.10008.1.2.1" if compressed else "1.2.840.10008.1.2.5"
        data = file.read_bytes()
        right = str(dataset.file_meta.TransferSyntaxUID).encode()
        for uid in (right, wrong.encode()):
            assert len(uid) in (17, 19)
        length = len(right) + len(right) % 2
        place = data.index(b"\x02\x00\x10\x00UI")
        meta = int.from_bytes(data[140:144], "little") + 20 - length
        new = b"\x02\x00\x10\x00UI\x14\x00" + wrong.encode().ljust(20, b"\0")
        data = data[:140] + meta.to_bytes(4, "little") + data[144:place] + new + data[place + 8 + length :]
        file.write_bytes(data)
    with pytest.raises(UnreadableError, match="TransferSyntaxUID missing or wrong, as the pixels"):
        read_series(tmp_path / "toy")


@pytest.mark.parametrize(("name", "form"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floating_point_pixels_are_refused_by_their_cause(tmp_path, name, form):
    for file in toy_series(tmp_path / "toy"):
        dataset = pydicom.dcmread(file)
        values = np.frombuffer(dataset.PixelData, "<i2").astype(form)
        del dataset.PixelData
        setattr(dataset, name, values.tobytes())
        dataset.BitsAllocated = 8 * values.itemsize
        dataset.save_as(file)
    with pytest.raises((SeriesError, UnreadableError), match="floating-point pixels"):
        read_series(tmp_path / "toy")


@pytest.mark.parametrize("name", ["Modality", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"])
def test_an_empty_tag_that_others_make_up_for_is_a_warning(tmp_path, name):
    each(lambda k, d: setattr(d, name, None))(toy_series(tmp_path / "toy"))
    volume = read_series(tmp_path / "toy")
    assert torch.equal(volume.data, cylinder().data)
    assert "empty" in volume.source.warnings[0]


def test_places_count_and_no_other_tag_does(tmp_path):
    each(
        lambda k, d: setting(
            SliceLocation=-k, InstanceNumber=9 - k, SpacingBetweenSlices=7, SliceThickness=5
        )(d)
    )(toy_series(tmp_path / "toy"))
    volume = read_series(tmp_path / "toy")
    assert torch.equal(volume.data, cylinder().data)
    assert volume.geometry.spacing[0] == 2.5


def test_a_preamble_may_be_the_start_of_a_tiff(tmp_path, capsys):
    file = toy_series(tmp_path / "toy")[0]
    file.write_bytes(b"II*\0\x08\0\0\0".ljust(128, b"\0") + file.read_bytes()[128:])
    assert read_series(file).data.shape[0] == 1
    assert (
        main(
            [
                "run",
                "sparse-view-60",
                str(file),
                "--dry-run",
                "--set",
                "beside=[]",
                "--set",
                'method={name="fbp"}',
            ]
        )
        == 0
    )
    assert "1 slice" in capsys.readouterr().out


def test_the_path_is_the_series_even_where_its_name_is_another(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    assert read_series(file.rename(Path(tmp_path, "x.nii.gz"))).data.shape[0] == 1
