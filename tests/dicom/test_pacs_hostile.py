"""A PACS that sends something else than was asked for, or never ends: nothing of it is kept, status 10."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom (the extra `pacs`) is not installed")

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE

from ctflow.cli import main
from ctflow.cli.pacs import _address
from ctflow.dicom.pacs import LISTEN, Peer, Query, find, pull, push
from ctflow.dicom.pacs import callback as listening
from ctflow.dicom.pacs.inbox import Inbox
from ctflow.dicom.pacs.quota import Quota
from ctflow.errors import PacsError, UsageError
from tests.dicom.archive import HOST, archive
from tests.dicom.files import toy_series
from tests.dicom.test_pacs import free_port, uid_of


@pytest.fixture
def series(tmp_path):
    return toy_series(tmp_path / "series", slices=3)


@pytest.fixture
def pacs(series):
    with archive() as held:
        push(held.peer(), series)
        yield held


def pulled(pacs, series, tmp_path, by="get", **options):
    port = free_port()
    pacs.destinations["CTFLOW"] = port
    peer = pacs.peer(timeout_s=options.pop("timeout_s", 5.0))
    try:
        return pull(peer, tmp_path / "out", uid_of(series), by=by, listen=(HOST, port), **options)
    finally:
        kept = {entry.name for entry in tmp_path.iterdir()} - {"series", "other"}
        assert kept <= {"out"}  # nothing half-written stays


def changed(item, **values):
    """The image with other values."""
    for name, value in values.items():
        setattr(item, name, value)
    return item


SPOILT: dict[str, Callable[[list[pydicom.Dataset]], list[pydicom.Dataset]]] = {
    "sent twice": lambda items: [*items, items[0]],
    "more than were announced": lambda items: [
        *items,
        changed(deepcopy(items[0]), SOPInstanceUID=generate_uid()),
    ],
    "of another study or series": lambda items: [changed(items[0], StudyInstanceUID="1.2.3"), *items[1:]],
    "cut short or damaged": lambda items: [changed(items[0], PixelData=items[0].PixelData[:-2]), *items[1:]],
}


@pytest.mark.parametrize("by", ["get", "move"])
@pytest.mark.parametrize("reason", SPOILT)
def test_what_was_not_announced_is_not_taken(pacs, series, tmp_path, by, reason):
    pacs.spoil = SPOILT[reason]
    with pytest.raises(PacsError, match=f"1 {reason}") as caught:
        pulled(pacs, series, tmp_path, by)
    assert caught.value.exit_code == 10
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [None, 0])
def test_a_pacs_that_does_not_count_is_held_to_its_own_answers(pacs, series, tmp_path, count):
    pacs.count = lambda number: count
    assert pulled(pacs, series, tmp_path) == 3
    (tmp_path / "out").rename(tmp_path / "other")
    pacs.spoil = lambda items: [*items, items[0]]
    with pytest.raises(PacsError, match="1 sent twice"):
        pulled(pacs, series, tmp_path)


@pytest.mark.parametrize("by", ["get", "move"])
def test_progress_stays_below_the_whole(pacs, series, tmp_path, by):
    pacs.count, seen = lambda number: 2, []
    with pytest.raises(PacsError, match="1 more than were announced"):
        pulled(pacs, series, tmp_path, by, progress=lambda fraction, what: seen.append(fraction))
    assert seen
    assert max(seen) <= 1


def test_a_stranger_is_turned_away_and_the_pull_goes_on(pacs, series, tmp_path):
    """By its AE title: it calls from the PACS' own address, with an image of the series."""
    foreign, answers = pydicom.dcmread(series[0]), []
    foreign.PatientName = "STRANGER"

    def meanwhile(port):
        stranger = AE("STRANGER")
        stranger.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        link = stranger.associate(HOST, port, ae_title="CTFLOW")
        answers.append(link.is_rejected)

    pacs.meanwhile = meanwhile
    assert pulled(pacs, series, tmp_path, "move") == 3
    assert answers == [True]
    assert b"STRANGER" not in b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())


def test_another_address_is_turned_away(pacs, series, tmp_path, monkeypatch):
    monkeypatch.setattr(listening, "_addresses", lambda host: {listening._plain("127.0.0.9")})
    with pytest.raises(PacsError, match=r"could not send the images|not pulled"):
        pulled(pacs, series, tmp_path, "move", timeout_s=1.0)
    assert not (tmp_path / "out").exists()


def test_addresses_of_a_listener():
    assert LISTEN == ("127.0.0.1", 11113)
    texts = ("104", "10.0.0.5", "10.0.0.5:104", "[::1]:104", "::1", "[::1]", "ct.local", ":104")
    assert [_address(text) for text in texts] == [
        ("127.0.0.1", 104),
        ("10.0.0.5", 11113),
        ("10.0.0.5", 104),
        ("::1", 104),
        ("::1", 11113),
        ("::1", 11113),
        ("ct.local", 11113),
        ("127.0.0.1", 104),
    ]
    for text in ("", "a:0", "a:70000", "a:b"):
        with pytest.raises(UsageError, match="--listen ADDRESS"):
            _address(text)
    assert str(listening._plain("::ffff:10.0.0.5")) == "10.0.0.5"
    with pytest.raises(UsageError, match=r"cannot call back on the loopback.*--listen ADDRESS"):
        listening.check_reachable(Peer("A", "192.0.2.1", 104), LISTEN)
    listening.check_reachable(Peer("A", "192.0.2.1", 104), ("0.0.0.0", 11113))


def event(file, uid=None, sop_class=None):
    """A C-STORE request that brings a file under this UID and class."""
    header = pydicom.dcmread(file, stop_before_pixels=True)
    request = SimpleNamespace(
        AffectedSOPInstanceUID=header.SOPInstanceUID if uid is None else uid,
        AffectedSOPClassUID=sop_class or header.SOPClassUID,
    )
    link = SimpleNamespace(dul=SimpleNamespace(socket=object()))
    return SimpleNamespace(request=request, assoc=link, encoded_dataset=file.read_bytes)


@pytest.mark.parametrize(
    ("reason", "uid", "sop_class"),
    [
        ("without a UID of digits and dots, 64 at most", "../../x", None),
        ("without a UID of digits and dots, 64 at most", "1." + "2" * 63, None),
        ("without a UID of digits and dots, 64 at most", "1.2\n", None),
        ("without a UID of digits and dots, 64 at most", "", None),
        ("not the object that was announced", "1.2.3", None),
        ("no CT image", None, MRImageStorage),
    ],
)
def test_a_request_that_lies_is_refused(series, tmp_path, reason, uid, sop_class):
    header = pydicom.dcmread(series[0])
    folder = tmp_path / "inbox"
    folder.mkdir()
    inbox = Inbox(folder, header.StudyInstanceUID, header.SeriesInstanceUID, 3, Quota(1.0))
    assert inbox.take(event(series[0], uid, sop_class)) != 0
    assert inbox.refused == Counter([reason])
    assert list(folder.iterdir()) == []
    assert inbox.take(event(series[1])) == 0
    inbox.close()
    assert inbox.take(event(series[2])) != 0
    assert [file.name for file in folder.iterdir()] == ["IM0001.dcm"]


def test_bytes_are_bounded(pacs, series, tmp_path):
    with pytest.raises(PacsError, match=r"of 3 images .* more or longer messages than are accepted"):
        pulled(pacs, series, tmp_path, most_bytes=6000)


def test_bytes_of_a_move_are_bounded(pacs, series, tmp_path):
    port = free_port()
    pacs.destinations["CTFLOW"] = port
    words = ("--by", "move", "--listen", str(port), "--max-gb", "0.001", "--timeout", "5")
    pacs.spoil = lambda items: [changed(items[0], PixelData=bytes(2**20)), *items[1:]]
    who = f"ARCHIVE@{HOST}:{pacs.port}"
    assert main(["pacs", "pull", who, uid_of(series), "-o", str(tmp_path / "out"), *words]) == 10
    assert not (tmp_path / "out").exists()


def server_of(act):
    """A port behind which `act` has the connection, in a thread of its own."""
    server = socket.create_server((HOST, 0))

    def serve():
        with server, server.accept()[0] as connection:
            connection.recv(2**16)
            act(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return Peer("ROGUE", HOST, server.getsockname()[1], timeout_s=0.5), thread


def test_half_a_message_does_not_hang():
    gone = threading.Event()
    peer, thread = server_of(lambda connection: (connection.send(b"\2\0\0\0\1\0"), gone.wait(30)))
    with pytest.raises(PacsError, match="closed the connection before it answered, or was silent"):
        find(peer, Query(series="1.2"))
    gone.set()
    thread.join(10)


def test_a_message_that_claims_gigabytes_is_not_read():
    sent = []

    def flood(connection):
        connection.send(b"\2\0\xff\xff\xff\xff")
        try:
            while sum(sent) < 2**28:
                sent.append(connection.send(bytes(2**16)))
        except OSError:
            return

    peer, thread = server_of(flood)
    with pytest.raises(PacsError):
        find(peer, Query(series="1.2"))
    thread.join(10)
    assert sum(sent) < 2**26


def test_an_answer_for_another_series_is_overlooked(pacs, series, tmp_path, monkeypatch):
    push(pacs.peer(), toy_series(tmp_path / "other", slices=1, seed="other"))
    monkeypatch.setattr(pacs, "matching", lambda keys: pacs.held())  # it overlooks every key
    assert [row["series"] for row in find(pacs.peer(), Query(series=uid_of(series)))] == [uid_of(series)]
    assert pacs.asked


def test_a_query_without_an_end_ends(pacs, series, monkeypatch):
    monkeypatch.setattr("ctflow.dicom.pacs.query._MOST_ANSWERS", 1)
    push(pacs.peer(), toy_series(Path(series[0]).parents[1] / "other", slices=1, seed="other"))
    date = pacs.held()[0].StudyDate
    with pytest.raises(PacsError, match="no end after 1 answers"):
        find(pacs.peer(), Query(date=date), level="study")
