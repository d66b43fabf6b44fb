"""A zip archive, a DICOMDIR and a folder hold the same series, by content; dangerous ones are refused."""

from __future__ import annotations

import gc
import os
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from ctflow.cli import main
from ctflow.dicom import ReadOptions, inspect_folder, read_series
from ctflow.errors import CTFlowError, NoDicomError, UnreadableError
from tests.dicom.files import CANARY, edit, plant_canary, setting, toy_series

PROTOCOL = "low-dose"
PLAN = ["--dry-run", "--set", 'method={name="fbp"}', "--set", "beside=[]"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "series"
    toy_series(folder)
    return folder


def dicomdir(files, target):
    """Copy files into a file-set of pydicom's, whose folder for staging is closed by its collection."""
    directory = FileSet()
    for file in files:
        directory.add(file)
    directory.write(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del directory
        gc.collect()


def zipped(folder, target, names="sub/{}"):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.writestr(names.format(file.name), file.read_bytes())
        archive.writestr("notes.txt", "no image")
    return target


def test_zip_folder_list_and_dicomdir_are_one_series(toy, tmp_path):
    dicomdir(toy.iterdir(), tmp_path / "media")
    (tmp_path / "media" / "DICOMDIR").rename(tmp_path / "media" / "anything")  # told by content
    archive = zipped(toy, tmp_path / "series.data")
    expected = read_series(toy).source.sha256
    for source in (archive, tmp_path / "media" / "anything", tmp_path / "media", sorted(toy.iterdir())):
        assert read_series(source).source.sha256 == expected
    assert inspect_folder(archive)[0].slices == 6
    assert read_series(archive).source.skipped == ["1 file skipped: not DICOM images"]


def test_dicomdir_that_names_missing_files(toy, tmp_path):
    dicomdir(toy.iterdir(), tmp_path / "media")
    media = tmp_path / "media"
    files = [file for file in media.rglob("*") if file.is_file() and file.name != "DICOMDIR"]
    max(files, key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2])).unlink()
    with pytest.raises(
        UnreadableError, match="1 file cannot be read: missing of those that the DICOMDIR names"
    ):
        read_series(media / "DICOMDIR")
    volume = read_series(media / "DICOMDIR", options=ReadOptions(on_bad_file="skip"))
    assert volume.data.shape[0] == 5
    assert volume.source.warnings == [
        "1 file skipped: missing of those that the DICOMDIR names, give the folder that holds them"
    ]


def test_real_dicomdir_whose_files_lie_elsewhere(data_dir):
    with pytest.raises(UnreadableError, match="give the folder"):
        read_series(data_dir / "dicom/gantry-tilt/philips/S2010/DIRFILE")


def test_dicomdir_that_climbs_is_refused(toy, tmp_path):
    dicomdir([next(toy.iterdir())], tmp_path / "media")

    def climb(dataset):
        dataset.DirectoryRecordSequence[-1].ReferencedFileID = ["..", "..", "secret"]

    edit(tmp_path / "media" / "DICOMDIR", climb)
    with pytest.raises(UnreadableError, match="outside its own folder"):
        read_series(tmp_path / "media" / "DICOMDIR")


@pytest.mark.parametrize("name", ["../{}", "/etc/{}", "a/../../{}", "..\\{}", "C:/{}"])
def test_zip_that_climbs_is_refused(toy, tmp_path, name):
    archive = zipped(toy, tmp_path / "a.zip", name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnreadableError, match="leads outside"):
        read_series(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.dcm", "w") as member:
        for _ in range(80):
            member.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 17
    with pytest.raises(UnreadableError, match="claims 1 files of 80 MiB"):
        read_series(bomb)


def test_zip_that_lies_about_its_sizes_is_refused(toy, tmp_path):
    archive = zipped(toy, tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(signature)
        data[at + offset : at + offset + 4] = struct.pack("<I", 10)  # says 10 bytes, holds thousands
    archive.write_bytes(data)
    with pytest.raises(UnreadableError, match="damaged"):
        read_series(archive)


def test_damaged_and_encrypted_zips(toy, tmp_path):
    data = zipped(toy, tmp_path / "a.zip").read_bytes()
    middle = len(data) // 2
    (tmp_path / "flipped.zip").write_bytes(data[:middle] + bytes(64) + data[middle + 64 :])
    locked = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.find(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    (tmp_path / "cut.zip").write_bytes(data[:middle])
    for name, words in (("flipped", "damaged in the archive"), ("locked", "is encrypted")):
        with pytest.raises(UnreadableError, match=words):
            read_series(tmp_path / f"{name}.zip")
    with pytest.raises(CTFlowError):  # without its directory it is no archive at all
        read_series(tmp_path / "cut.zip")


def test_zip_inside_a_zip_is_not_opened(toy, tmp_path):
    inner = zipped(toy, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    with pytest.raises(NoDicomError):
        read_series(tmp_path / "outer.zip")


def test_deflated_bomb_is_refused(toy, tmp_path):
    file = shutil.copy(next(toy.iterdir()), tmp_path / "x.dcm")
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(file)
    assert read_series(file).data.shape == (1, 32, 32)
    whole = Path(file).read_bytes()
    meta = whole[: 144 + struct.unpack_from("<I", whole, 140)[0]]  # behind the group's length
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    header = b"\x08\x00\x08\x00UN\0\0" + struct.pack("<I", 200 << 20)
    (tmp_path / "x.dcm").write_bytes(meta + coder.compress(header + bytes(200 << 20)) + coder.flush())
    with pytest.raises(UnreadableError, match="file #1"):
        read_series(tmp_path / "x.dcm")


def test_no_container_names_a_patient(tmp_path, capfd):
    folder = plant_canary(tmp_path / "in", toy_series(tmp_path / "in"))
    archive = zipped(folder, tmp_path / f"{CANARY}.zip", CANARY + "/{}")
    broken = tmp_path / f"{CANARY}-2.zip"
    broken.write_bytes(archive.read_bytes()[:-300] + bytes(20) + archive.read_bytes()[-280:])
    climbing = zipped(folder, tmp_path / f"{CANARY}-3.zip", f"../{CANARY}/{{}}")
    for source in (archive, broken, climbing, tmp_path / f"{CANARY}-none"):
        main(["inspect", str(source)])
        main(["run", PROTOCOL, str(source), *PLAN])
        main(["convert", str(source), str(tmp_path / "x.nii.gz"), "--overwrite"])
    printed = capfd.readouterr()
    assert "6 slices" in printed.out
    assert CANARY not in printed.out + printed.err


def test_names_play_no_part(toy, tmp_path):
    for number, file in enumerate(toy.iterdir()):
        shutil.copy(file, tmp_path / f"{os.urandom(3).hex()}.{['txt', 'zip', 'nii', 'x', '', 'jpg'][number]}")
    assert read_series(tmp_path).source.sha256 == read_series(toy).source.sha256


def test_canary_in_every_text_of_the_header(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "toy")

    def plant(dataset):
        for element in dataset:
            if element.VR in ("LO", "SH", "ST", "LT", "PN", "AE") and element.keyword != "ConvolutionKernel":
                element.value = CANARY

    for file in folder.iterdir():
        edit(file, plant)
    said = [str(inspect_folder(folder))]
    edit(sorted(folder.iterdir())[2], setting(Modality=CANARY, RescaleType=CANARY))
    said.append(str(inspect_folder(folder)))
    edit(sorted(folder.iterdir())[3], setting(SOPClassUID=CANARY, ImageType=[CANARY] * 3))
    said.append(str(inspect_folder(folder)))
    with pytest.raises(CTFlowError) as caught:
        read_series(folder)
    assert CANARY not in " ".join([*said, str(caught.value)])
