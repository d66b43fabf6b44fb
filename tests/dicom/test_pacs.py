"""A PACS on the loopback: what goes in comes out, refusals say what to do, and no patient is named."""

from __future__ import annotations

import logging
import socket

import pydicom
import pytest
import torch

pytest.importorskip("pynetdicom", reason="pynetdicom (the extra `pacs`) is not installed")

from ctflow.cli import main
from ctflow.dicom import read_series
from ctflow.dicom.pacs import Peer, Query, Tls, find, pull, push
from ctflow.errors import NoDicomError, OutputError, PacsError, UsageError
from tests.dicom.archive import HOST, archive
from tests.dicom.files import CANARY, edit, plant_canary, setting, toy_series


@pytest.fixture
def series(tmp_path):
    return toy_series(tmp_path / "series")


@pytest.fixture
def pacs(series):
    with archive() as held:
        push(held.peer(), series)
        yield held


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def uid_of(files):
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


@pytest.mark.parametrize("by", ["get", "move"])
def test_what_was_pushed_is_pulled(pacs, series, tmp_path, by):
    port = free_port()
    pacs.destinations["CTFLOW"] = port
    seen = []
    images = pull(
        pacs.peer(),
        tmp_path / "out",
        uid_of(series),
        by=by,
        listen=(HOST, port),
        progress=lambda *state: seen.append(state),
    )
    assert images == 6
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"IM000{k}.dcm" for k in range(1, 7)
    ]
    there, back = read_series(tmp_path / "series"), read_series(tmp_path / "out")
    assert torch.equal(there.data, back.data)
    assert there.geometry == back.geometry
    assert there.source.sha256 == back.source.sha256
    assert all(0 <= fraction <= 1 and what == "pulling" for fraction, what in seen)


def test_compressed_images_travel_as_they_are(data_dir):
    folder = data_dir / "dicom" / "transfer-syntaxes"
    # JPEG 2000 lossless and lossy, JPEG-LS near-lossless, JPEG baseline and extended: each has its own UID
    tails = ("CT1_J2KR", "CT2_J2KR", "4.91.dcm", "4.81.dcm", "4.50.dcm", "1.2.4.51.dcm")
    files = [next(file for file in folder.iterdir() if file.name.endswith(tail)) for tail in tails]
    sent = [pydicom.dcmread(file) for file in files]
    with archive() as held:
        assert push(held.peer(), files) == 6
        assert set(held.syntaxes) == {str(item.file_meta.TransferSyntaxUID) for item in sent}
        pixels = {item.SOPInstanceUID: item.PixelData for item in held.held()}
        assert pixels == {item.SOPInstanceUID: item.PixelData for item in sent}


def test_what_the_archive_cannot_take_is_told(data_dir):
    folder = data_dir / "dicom" / "transfer-syntaxes"
    files = [next(folder.glob("*1.2.4.53.dcm")), next(folder.glob("*1.2.4.91.dcm"))]
    with (
        archive() as held,
        pytest.raises(PacsError, match="took 1 of 2 objects: 1 × the PACS takes no object"),
    ):
        push(held.peer(), files)


def test_find_lists_series_and_studies(pacs, series, tmp_path):
    other = toy_series(tmp_path / "other", slices=3, seed="other")
    push(pacs.peer(), other)
    header = pydicom.dcmread(other[0])
    expected = {
        "study": str(header.StudyInstanceUID),
        "series": uid_of(other),
        "modality": "CT",
        "images": 3,
    }
    assert find(pacs.peer(), Query(patient_id=header.PatientID)) == [expected]
    assert find(pacs.peer(), Query(study=header.StudyInstanceUID)) == [expected]
    assert find(pacs.peer(), Query(series=expected["series"])) == [expected]
    assert find(pacs.peer(), Query(series=expected["series"], modality="MR")) == []
    assert len(find(pacs.peer(), Query(date=header.StudyDate))) == 2
    studies = find(pacs.peer(), Query(date=header.StudyDate), level="study")
    assert {row["study"] for row in studies} == {
        str(pydicom.dcmread(files[0]).StudyInstanceUID) for files in (series, other)
    }


def test_personal_data_are_asked_for_on_request_only(pacs):
    date = pacs.held()[0].StudyDate
    find(pacs.peer(), Query(date=date))
    assert all("PatientName" not in keys and "StudyDescription" not in keys for keys in pacs.asked)
    row = find(pacs.peer(), Query(date=date), personal=True)[0]
    assert row["patient_name"] == "CTFLOW^UNNAMED"
    assert row["series_description"] == "toy"


@pytest.mark.parametrize("by", ["get", "move"])
def test_a_part_of_a_series_is_not_kept(pacs, series, tmp_path, by):
    port = free_port()
    pacs.destinations["CTFLOW"], pacs.lose = port, 2
    with pytest.raises(PacsError, match=r"4 of 6 images .* arrived; an incomplete series is not kept"):
        pull(pacs.peer(), tmp_path / "out", uid_of(series), by=by, listen=(HOST, port))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["series"]


def test_an_image_that_was_not_asked_for_is_refused(pacs, series, tmp_path):
    pacs.foreign = pydicom.dcmread(toy_series(tmp_path / "other", seed="other")[0])
    with pytest.raises(PacsError, match=r"6 images arrived and 1 failed"):
        pull(pacs.peer(), tmp_path / "out", uid_of(series))
    assert not (tmp_path / "out").exists()


def test_refused_objects_are_counted_with_the_reason(series):
    with archive() as held:
        held.refuse = lambda number: 0xA700 if number in (2, 5) else 0
        with pytest.raises(PacsError, match=r"took 4 of 6 objects: 2 × the PACS is out of resources.*0xa700"):
            push(held.peer(), series)
        held.refuse = lambda number: 0xB000  # stored, with a remark
        assert push(held.peer(), series) == 6


def test_unknown_titles_and_ports_say_what_to_do(pacs, series, tmp_path):
    query = Query(series=uid_of(series))
    with pytest.raises(PacsError, match="not called 'OTHER'; give its AE title") as caught:
        find(pacs.peer(title="OTHER"), query)
    assert caught.value.exit_code == 10
    with archive(require_calling_aet=["FRIEND"]) as strict:
        with pytest.raises(PacsError, match="does not know 'CTFLOW'; register"):
            find(strict.peer(), query)
        assert find(strict.peer(calling="FRIEND"), query) == []
    port = free_port()
    with pytest.raises(PacsError, match=f"nothing listens on port {port}"):
        find(pacs.peer(port=port), query)
    with pytest.raises(PacsError, match="has no address"):
        find(pacs.peer(host="no-such-host.invalid"), query)
    with pytest.raises(PacsError, match="no such series"):
        pull(pacs.peer(), tmp_path / "out", "1.2.3")
    with pytest.raises(PacsError, match="AE title as a destination; register it there, or use --by get"):
        pull(pacs.peer(), tmp_path / "out", uid_of(series), by="move", listen=(HOST, free_port()))
    assert not (tmp_path / "out").exists()


def test_silence_ends(series):
    with socket.socket() as deaf:
        deaf.bind((HOST, 0))
        deaf.listen()
        peer = Peer("DEAF", HOST, deaf.getsockname()[1], timeout_s=0.5)
        with pytest.raises(PacsError, match=r"silent for 0\.5 s; if it wants TLS give --tls"):
            push(peer, series)


def test_requests_that_cannot_be_meant(pacs, series, tmp_path):
    with pytest.raises(UsageError, match="lists the whole archive"):
        Query()
    for text in ("ARCHIVE", "@host:1", "A@host", "A@:11", "A@host:0", "A@host:x", "SEVENTEEN_LETTERS@h:1"):
        with pytest.raises(UsageError):
            Peer.parse(text)
    peer = Peer.parse("A@[::1]:104")
    assert (peer.title, peer.host, peer.port) == ("A", "::1", 104)
    with pytest.raises(OutputError, match="exists"):
        pull(pacs.peer(), tmp_path / "series", uid_of(series))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoDicomError, match="no DICOM object to send"):
        push(pacs.peer(), tmp_path / "empty")
    edit(series[2], setting(SOPInstanceUID=""))
    with pytest.raises(UsageError, match="file #3 has no SOP class or instance UID"):
        push(pacs.peer(), series)


def test_tls_both_ways(certificates, series, tmp_path):
    trusted = Tls(certificates / "ca.pem", certificates / "cert.pem", certificates / "key.pem")
    query = Query(series=uid_of(series))
    with archive(trusted.context(server=True)) as held:
        assert push(held.peer(tls=trusted), series) == 6
        assert pull(held.peer(tls=trusted), tmp_path / "out", uid_of(series)) == 6
        with pytest.raises(PacsError, match="certificate of the PACS is not trusted"):
            find(held.peer(tls=Tls()), query)
        with pytest.raises(PacsError, match="not trusted"):
            find(held.peer(tls=Tls(trusted.authority, name="other.example")), query)
        with pytest.raises(PacsError, match="--tls-cert where it asks for a certificate"):
            find(held.peer(tls=Tls(trusted.authority)), query)
        with pytest.raises(PacsError, match="if it wants TLS give --tls"):
            find(held.peer(timeout_s=1), query)
        with pytest.raises(UsageError, match="receiving with TLS needs a certificate"):
            Tls(trusted.authority).context(server=True)
    with archive() as plain, pytest.raises(PacsError, match=r"does not speak TLS|within 1 s"):
        find(plain.peer(tls=trusted, timeout_s=1), query)
    with pytest.raises(UsageError, match="cannot be read"):
        Tls(tmp_path / "nothing.pem").context()


def test_the_commands_name_no_patient(tmp_path, caplog, capfd):
    """Everything that a patient's name could reach: stdout, stderr, logs, file names, messages."""
    caplog.set_level(logging.DEBUG)
    folder = plant_canary(tmp_path / "series", toy_series(tmp_path / "series"))
    files = sorted(folder.iterdir())
    uid = uid_of(files)
    with archive() as held:
        who = f"ARCHIVE@{HOST}:{held.port}"
        assert main(["pacs", "push", who, str(folder)]) == 0
        assert main(["pacs", "find", who, "--patient-id", CANARY]) == 0
        assert main(["pacs", "find", who, "--patient-id", CANARY, "--level", "study", "--json"]) == 0
        assert main(["pacs", "pull", who, uid, "-o", str(tmp_path / "out"), "--json"]) == 0
        held.refuse = lambda number: 0x0110
        assert main(["pacs", "push", who, str(folder)]) == 10
        assert main(["pacs", "find", f"OTHER@{HOST}:{held.port}", "--patient-id", CANARY]) == 10
        assert main(["pacs", "pull", who, uid, "-o", str(folder)]) == 6
        assert main(["pacs", "pull", who, uid, "-o", str(files[0] / "out")]) == 6
        written = capfd.readouterr()
        assert "6 objects pushed" in written.out
        assert uid in written.out
        assert "took 0 of 6 objects" in written.err
        for text in (written.out, written.err, caplog.text):
            assert CANARY not in text
        assert not [file for file in (tmp_path / "out").iterdir() if CANARY in file.name]
        assert main(["pacs", "find", who, "--patient-id", CANARY, "--show-phi"]) == 0
        assert CANARY in capfd.readouterr().out  # the search above can find it
