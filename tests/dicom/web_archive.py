"""A small DICOMweb server of the standard library in this process, which misbehaves on request."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from ctflow.dicom.pacs import WebPeer, pull
from tests.dicom.files import toy_series

BOUNDARY = "a-boundary"
DICOM_JSON = "application/dicom+json"
Answer = tuple[int, dict[str, str], bytes]
_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality")


class WebArchive:
    """What a PACS holds and how it misbehaves.

    Args:
        answer: called with a request (method, path, keys, headers, body) and the answer that it would get;
            gives another one.
        count: how many images it says that a series has.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = [(pydicom.dcmread(file), file.read_bytes()) for file in files]
        self.answer: Callable[[SimpleNamespace, Answer], Answer] = lambda request, answer: answer
        self.count: Callable[[int], Any] = lambda number: number
        self.asked: list[SimpleNamespace] = []
        self.port, self.scheme = 0, "http"

    def peer(self, **changes: Any) -> WebPeer:
        """How to call this archive."""
        return WebPeer(
            **({"url": f"{self.scheme}://127.0.0.1:{self.port}/dicom-web", "timeout_s": 20.0} | changes)
        )

    def good(self, request: SimpleNamespace) -> Answer:
        """The answer of a PACS that behaves."""
        place = re.fullmatch(r"/dicom-web(?:/studies/([^/]+))?(?:/series/([^/]+))?/(\w+)", request.path)
        if request.method == "POST":
            stored = [{"00081155": {"vr": "UI", "Value": [uid_in(request.body)]}}]
            return 200, {"Content-Type": DICOM_JSON}, written({"00081199": {"vr": "SQ", "Value": stored}})
        if place is None or place[3] not in ("studies", "series", "instances"):
            series = request.path.split("/")[-1]
            parts = [body for item, body in self.files if item.SeriesInstanceUID == series]
            return multipart(parts) if parts else (404, {}, b"")
        asked = {"StudyInstanceUID": place[1], "SeriesInstanceUID": place[2], **request.keys}
        items = [
            item
            for item, _ in self.files
            if all(item[key].value == asked[key] for key in _KEYS if asked.get(key))
        ]
        unique = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        groups: dict[str, list[pydicom.Dataset]] = {}
        for item in items:
            groups.setdefault(item[unique[place[3]]].value, []).append(item)
        rows = [self.row(group) for group in groups.values()][int(asked.get("offset", 0)) :]
        return 200, {"Content-Type": DICOM_JSON}, written(rows)

    def row(self, group: list[pydicom.Dataset]) -> dict[str, Any]:
        answer = pydicom.Dataset()
        for key in (*_KEYS, "PatientName"):
            setattr(answer, key, group[0][key].value)
        if self.count(len(group)) is not None:
            answer.NumberOfSeriesRelatedInstances = self.count(len(group))
        return answer.to_json_dict()


def uid_in(body: bytes) -> str:
    """SOP Instance UID of the one object of a multipart body."""
    part = body.partition(b"\r\n\r\n")[2]
    found = re.search(rb"\x08\x00\x18\x00UI..([0-9.]+)", part, re.DOTALL)
    return found[1].decode() if found else ""


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


def multipart(parts: list[bytes]) -> Answer:
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    start = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return (
        200,
        {"Content-Type": kind},
        b"".join(start + part for part in parts) + f"\r\n--{BOUNDARY}--".encode(),
    )


@contextmanager
def web_archive(files: list[Path], context: ssl.SSLContext | None = None) -> Iterator[WebArchive]:
    """A running archive on a free port of the loopback; it is stopped at the end."""
    held = WebArchive(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            keys = {key: values[0] for key, values in parse_qs(address.query).items()}
            body = self.body()
            request = SimpleNamespace(
                method=self.command, path=address.path, keys=keys, headers=dict(self.headers), body=body
            )
            held.asked.append(request)
            status, headers, body = held.answer(request, held.good(request))
            self.send_response(status)
            for name, text in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        do_POST = do_GET  # noqa: N815

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = b""
            while size := int(self.rfile.readline(), 16):
                pieces += self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
            return pieces

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
    if context is not None:
        held.scheme = "https"
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    held.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def uid_of(files):
    """Series Instance UID of the first."""
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


def pulled(pacs, series, tmp_path, **options):
    """Pull into `out`; whatever happens, nothing half-written stays."""
    peer = pacs.peer(**options.pop("peer", {}))
    try:
        return pull(peer, tmp_path / "out", uid_of(series), **options)
    finally:
        assert {entry.name for entry in tmp_path.iterdir()} <= {"series", "other", "out", "secret"}


def retrieved(change):
    """Misbehaviour of the retrieval alone: `change` gets the parts of the answer."""

    def answer(request, good):
        if "multipart" not in good[1].get("Content-Type", ""):
            return good
        parts = [part.partition(b"\r\n\r\n")[2] for part in good[2].split(b"\r\n--a-boundary")[1:-1]]
        return change(parts)

    return answer


@pytest.fixture
def series(tmp_path):
    return toy_series(tmp_path / "series", slices=3)


@pytest.fixture
def pacs(series):
    with web_archive(series) as held:
        yield held
