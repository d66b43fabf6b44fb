"""Slices that would vanish: refused with count and cause, or left out by request and said everywhere."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pydicom
import pytest
import torch

from ctflow.cli import main
from ctflow.dicom import ReadOptions, inspect_folder, read_series, write_series
from ctflow.dicom.reading.files import read_headers
from ctflow.dicom.reading.inputs import listing
from ctflow.errors import CTFlowError, NoDicomError, SeriesError, UnreadableError
from tests.dicom.files import cylinder, edit, enhanced, setting, toy_series

SKIP = ReadOptions(on_bad_file="skip")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere/annex/object")


def packed(file: Path) -> None:
    file.with_suffix(".dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def headless(file: Path) -> None:
    """No marker, no ending and no group that could be read, but the UID of the series further on."""
    data = file.read_bytes()
    file.unlink()
    file.with_suffix("").write_bytes(b"\xff" * 200 + data[200:])


def swallowed(file: Path) -> None:
    """A length so wrong that one element holds what followed it."""
    data = file.read_bytes()
    place = data.index(b"\x08\0\x05\0CS") + 6
    file.write_bytes(data[:place] + b"\xff\xff" + data[place + 2 :])


def spelt_wrong(file: Path) -> None:
    """The kind of object damaged, no series, no position: nothing but its place says that it is a slice."""
    edit(file, setting(SOPClassUID="1.2.840.10\x1408.5", SeriesInstanceUID="", ImagePositionPatient=None))


def unplaced(**values: object):
    return lambda file: edit(file, setting(**values))


# What befalls the last slice: what the refusal and, with --on-bad-file skip, the warning say.
LOST = {
    "no position": (unplaced(ImagePositionPatient=None), "ImagePositionPatient missing"),
    "no orientation": (unplaced(ImageOrientationPatient=None), "ImageOrientationPatient missing"),
    "no spacing": (unplaced(PixelSpacing=None), "PixelSpacing missing"),
    "no rows": (unplaced(Rows=None), "Rows missing"),
    "two positions": (
        unplaced(ImagePositionPatient=[0, 0, 1, 0, 0, 2]),
        "ImagePositionPatient without sensible",
    ),
    "absurd spacing": (unplaced(PixelSpacing=[1e9, 1e9]), "PixelSpacing without sensible"),
    "colours": (unplaced(SamplesPerPixel=3), "RGB page"),
    "an unknown object": (unplaced(SOPClassUID="1.2.3"), "an unknown kind of image"),
    "an empty file": (emptied, "empty file (file #6)"),
    "a packed file": (packed, "gzip file (file #6)"),
    "a link to nowhere": (dangling, "link to a file that is not there (1)"),
    "a wrong length": (swallowed, "damaged header (file #6)"),
    "a damaged class and no series": (spelt_wrong, "an unknown kind of image"),
    "a damaged start": (headless, "its start is damaged (file #6)"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_lost_slice_is_an_error_or_a_warning(tmp_path, what):
    lose, words = LOST[what]
    lose(toy_series(tmp_path / "toy")[5])
    with pytest.raises((SeriesError, UnreadableError)) as caught:
        read_series(tmp_path / "toy")
    assert "1 file " in str(caught.value)
    assert words in str(caught.value)
    assert str(caught.value).endswith("allow it by --on-bad-file skip")
    listed = inspect_folder(tmp_path / "toy")
    assert words in " ".join(reason for entry in listed for reason in entry.reasons)
    assert any(entry.usable for entry in listed) == isinstance(caught.value, UnreadableError)
    volume = read_series(tmp_path / "toy", options=SKIP)
    assert torch.equal(volume.data, cylinder().data[:5])
    (warning,) = volume.source.warnings
    assert words.split(" (")[0] in warning
    assert warning.startswith("1 file ")


def test_what_was_left_out_is_said_in_every_output(tmp_path, capsys):
    dangling(toy_series(tmp_path / "toy")[5])
    out, skip = tmp_path / "out", ["--on-bad-file", "skip"]
    fbp = ["--set", 'method={name="fbp"}', "--set", 'reference={name="fbp"}', "--set", "beside=[]"]
    assert main(["run", "sparse-view-60", str(tmp_path / "toy"), "-o", str(out), *fbp]) == 4
    assert main(["convert", str(tmp_path / "toy"), str(tmp_path / "x.nii")]) == 4
    assert "1 file cannot be read: link" in capsys.readouterr().err
    said = "1 file skipped: link to a file that is not there"
    assert main(["convert", str(tmp_path / "toy"), str(tmp_path / "x.nii"), *skip]) == 0
    assert f"warning: {said}\n" in capsys.readouterr().err
    assert main(["run", "sparse-view-60", str(tmp_path / "toy"), "-o", str(out), *fbp, *skip, "--json"]) == 0
    printed = capsys.readouterr()
    assert f"warning: {said}\n" in printed.err
    assert said in json.loads(printed.out)["warnings"]
    assert said in json.loads((out / "report.json").read_text())["warnings"]
    assert said in json.loads((out / "fbp.json").read_text())["warnings"]
    assert said in (out / "report.html").read_text()
    for file in (out / "fbp").iterdir():
        assert said in pydicom.dcmread(file).DerivationDescription


def test_a_derivation_holds_what_fits_and_says_that_there_is_more(tmp_path):
    toy_series(tmp_path / "toy")
    volume = read_series(tmp_path / "toy")
    volume.source.warnings.extend(f"remark number {k}" for k in range(100))
    files = write_series(volume, tmp_path / "out", like=volume, description="x", derivation="y" * 850)
    text = pydicom.dcmread(files[0]).DerivationDescription
    assert len(text) <= 1024  # ST, PS3.5 table 6.2-1
    assert "remark number 0" in text
    assert text.endswith("(more in the report)")


def test_one_loss_does_not_hide_another(tmp_path):
    series = toy_series(tmp_path / "toy")
    dangling(series[5])
    edit(series[4], setting(PixelSpacing=None))
    series[0].write_bytes(series[0].read_bytes()[:-500])  # its pixels
    shutil.copy(series[2], series[2].with_name("again.dcm"))
    volume = read_series(tmp_path / "toy", options=SKIP)
    assert torch.equal(volume.data, cylinder().data[1:4])
    assert volume.source.warnings == [
        "1 file skipped: link to a file that is not there",
        "1 exact copies of slices dropped",
        "1 file of the series left out: PixelSpacing missing",
        "1 file skipped: damaged pixels",
    ]


def test_links_are_followed_once_and_in_no_circle(tmp_path):
    files = toy_series(tmp_path / "elsewhere")
    folder = tmp_path / "in" / "toy"
    folder.mkdir(parents=True)
    for file in files[:3]:
        shutil.move(file, folder)
    (folder / "rest").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(listing(folder)) == 6
    assert torch.equal(read_series(folder).data, cylinder().data)


def test_a_file_and_a_folder_without_rights_are_counted(tmp_path, monkeypatch):
    files = toy_series(tmp_path / "toy")
    (tmp_path / "toy" / "closed").mkdir()
    real_open, real_iterdir = Path.open, Path.iterdir

    def refuse(self, *args, **kwargs):
        if self == files[5]:
            raise PermissionError(13, "Permission denied")
        return real_open(self, *args, **kwargs)

    def closed(self):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real_iterdir(self)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(UnreadableError, match=r"2 files cannot be read: cannot be opened, Permission denied"):
        read_series(tmp_path / "toy")
    volume = read_series(tmp_path / "toy", options=SKIP)
    assert volume.data.shape[0] == 5
    assert volume.source.warnings == ["2 files skipped: cannot be opened, Permission denied"]


def test_a_member_of_an_archive_that_fails_its_checksum(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in toy_series(tmp_path / "toy"):
            archive.write(file, file.name)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rfind(b"PK\x03\x04") + 1500] ^= 1  # in the last slice
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UnreadableError, match=r"1 file cannot be read: damaged in the archive \(1\)"):
        read_series(tmp_path / "a.zip")
    volume = read_series(tmp_path / "a.zip", options=SKIP)
    assert torch.equal(volume.data, cylinder().data[:5])
    assert volume.source.warnings == ["1 file skipped: damaged in the archive"]


def test_frames_without_a_place_are_counted(tmp_path):
    file = enhanced(toy_series(tmp_path / "toy"), tmp_path / "e" / "x.dcm")
    edit(file, lambda d: d.PerFrameFunctionalGroupsSequence[5].pop("PlanePositionSequence"))
    with pytest.raises(SeriesError, match="1 file of the series left out: ImagePositionPatient missing"):
        read_series(file)
    assert read_series(file, options=SKIP).data.shape[0] == 5


def test_what_is_beside_the_chosen_volume_is_warned_of(tmp_path):
    series = toy_series(tmp_path / "in" / "a", seed="a")
    for file in toy_series(tmp_path / "in" / "b", slices=4, seed="b")[1:3]:
        file.unlink()  # a gap
        break
    for file in (tmp_path / "in" / "b").iterdir():
        edit(file, setting(SeriesNumber=2, PatientID=pydicom.dcmread(series[0]).PatientID))
    volume = read_series(tmp_path / "in")
    assert volume.data.shape[0] == 6
    assert volume.source.warnings == ["1 other CT series here cannot be used; ctflow inspect says why"]
    edit(series[5], setting(PixelSpacing=["1.3", "1.3"]))
    name = next(entry.uid for entry in inspect_folder(tmp_path / "in") if entry.slices == 5)
    volume = read_series(tmp_path / "in", series=name)
    assert volume.source.warnings == ["1 file of the same series left out: pixel spacing differs"]


def test_a_slice_without_series_is_told_apart(tmp_path):
    series = toy_series(tmp_path / "toy")
    edit(series[5], setting(SeriesInstanceUID=""))
    with pytest.raises(SeriesError, match="2 usable volumes"):
        read_series(tmp_path / "toy")
    name = next(entry.uid for entry in inspect_folder(tmp_path / "toy") if entry.slices == 5)
    volume = read_series(tmp_path / "toy", series=name)
    assert volume.source.warnings == [
        "1 file here without SeriesInstanceUID; none was taken as a slice of it"
    ]


CLUTTER = {
    "._IM0001.dcm": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100),
    "__MACOSX/._IM0001.dcm": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100),
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(50),
    "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50),
    "desktop.ini": b"[.ShellClassInfo]\r\n",
    "README": b"nothing to see\n",
    "tags.json": b"{}",
    "tags.xml": "<a/>".encode("utf-16"),
    "page.jpg": b"\xff\xd8\xff\xe0" + bytes(50),
    "notes.txt": b"",
}


@pytest.mark.parametrize("pack", [False, True])
def test_what_computers_leave_beside_slices_is_no_damage(tmp_path, pack):
    toy_series(tmp_path / "toy")
    for name, content in CLUTTER.items():
        (tmp_path / "toy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "toy" / name).write_bytes(content)
    source = tmp_path / "toy"
    if pack:
        source = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    volume = read_series(source)
    assert torch.equal(volume.data, cylinder().data)
    assert volume.source.warnings == []
    assert volume.source.skipped == [f"{len(CLUTTER)} files skipped: not DICOM images"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c", r"7z archive: 1\); unpack it"),
        (b"Rar!\x1a\x07", r"rar archive: 1\); unpack it"),
        (bytes(257) + b"ustar\x0000", r"tar archive: 1\); unpack it"),
        (b"\x1f\x8b\x08\0", r"gzip file: 1\); unpack it"),
        (b"PK\x03\x04" + bytes(60), r"zip archive: 1\); unpack it"),
        (b"\xff\xd8\xff\xe0", r"JPEG picture: 1\); give the folder"),
        (bytes(344) + b"n+1\0", r"NIfTI file: 1\); give it to ctflow run"),
        (b"/annex/objects/MD5E-s1", r"pointer of git-annex: 1\); fetch"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"pointer of Git LFS: 1\); fetch"),
    ],
)
def test_what_is_no_dicom_is_called_by_its_name(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NoDicomError, match=words):
        read_series(tmp_path / "x")


def test_a_damaged_file_is_told_by_what_it_is(tmp_path):
    series = toy_series(tmp_path / "toy")
    series[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    series[5].write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    found = read_headers(listing(tmp_path / "toy"))
    assert found.lost == {"pointer of Git LFS": [1], "JPEG picture": [6]}
    assert found.others == Counter()


def test_messages_about_hundreds_of_files_stay_short(tmp_path):
    for file in toy_series(tmp_path / "toy", slices=18):
        for k in range(10):
            dangling(Path(shutil.copy(file, file.with_name(f"{k}-{file.name}"))))
            emptied(Path(shutil.copy(file, file.with_name(f"e{k}-{file.name}"))))
    with pytest.raises(CTFlowError) as caught:
        read_series(tmp_path / "toy")
    assert "link to a file that is not there (180)" in str(caught.value)
    assert " and 175 more" in str(caught.value)
    assert len(str(caught.value)) < 400
