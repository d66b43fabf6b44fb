"""A PACS by DICOMweb that answers something else than was asked, or refuses: nothing of it is kept."""

from __future__ import annotations

import gzip
import json
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra `dicomweb`) is not installed")

from ctflow.dicom.pacs import Query, find, push
from ctflow.dicom.pacs.quota import Quota
from ctflow.dicom.pacs.web_client import _limited
from ctflow.errors import PacsError, UsageError
from tests.dicom.web_archive import (
    DICOM_JSON,
    multipart,
    pacs,
    pulled,
    retrieved,
    series,
    uid_of,
    web_archive,
    written,
)

__all__ = ["pacs", "series"]  # fixtures


def test_a_pacs_that_does_not_count_is_held_to_its_own_list(pacs, series, tmp_path):
    pacs.count = lambda number: None
    pacs.answer = retrieved(lambda parts: multipart(parts[1:]))
    with pytest.raises(PacsError, match="2 of 3 images of the series arrived"):
        pulled(pacs, series, tmp_path)
    pacs.answer = lambda request, good: good
    assert pulled(pacs, series, tmp_path) == 3


def test_a_pacs_that_ignores_pages_is_asked_twice(pacs, series):
    whole = {}

    def answer(request, good):
        return whole.setdefault("answer", good)

    pacs.answer = answer
    assert len(find(pacs.peer(), Query(series=uid_of(series)))) == 1
    assert len(pacs.asked) == 2


SPOILT = {
    "2 of 3 images of the series arrived": lambda parts: multipart(parts[1:]),
    "1 sent twice": lambda parts: multipart([*parts, parts[0]]),
    "1 cut short or damaged": lambda parts: multipart([parts[0][:-2], *parts[1:]]),
    "2 of 3 images .*1 cut short or damaged": lambda parts: multipart([*parts[:2], b"<html>"]),
    "1 of another study": lambda parts: multipart([parts[0], parts[1].replace(b"1.2.826", b"1.2.827")]),
    "cut off": lambda parts: (200, multipart(parts)[1] | {"Content-Length": "9999999"}, multipart(parts)[2]),
    "cut off.": lambda parts: (
        200,
        {"Content-Type": multipart(parts)[1]["Content-Type"], "Transfer-Encoding": "chunked"},
        b"ffffff\r\n" + multipart(parts)[2],
    ),
    "no such series": lambda parts: (404, {}, b""),
    "does not speak DICOMweb": lambda parts: (200, {"Content-Type": "text/html"}, b"<html>"),
    "failed .HTTP status 500.": lambda parts: (500, {}, b"a trace"),
}


@pytest.mark.parametrize("said", SPOILT)
def test_a_series_that_is_not_what_was_asked_is_not_kept(pacs, series, tmp_path, said):
    pacs.answer = retrieved(SPOILT[said])
    with pytest.raises(PacsError, match=said.rstrip(".") if said.startswith("cut") else said):
        pulled(pacs, series, tmp_path)
    assert not (tmp_path / "out").exists()


def test_more_than_is_accepted_ends_the_pull(pacs, series, tmp_path):
    with pytest.raises(PacsError, match="--max-gb"):
        pulled(pacs, series, tmp_path, most_bytes=10_000)
    assert not (tmp_path / "out").exists()


def test_a_query_that_is_answered_without_end_is_cut(pacs, series, monkeypatch):
    monkeypatch.setattr("ctflow.dicom.pacs.web_services._LONGEST_ANSWER", 1000)
    pacs.answer = lambda request, good: (200, good[1], b"[" + b" " * 100_000)
    with pytest.raises(PacsError, match="longer than is accepted"):
        find(pacs.peer(), Query(series=uid_of(series)))


def test_what_unpacks_to_more_than_is_accepted_is_cut(pacs, series, monkeypatch):
    monkeypatch.setattr("ctflow.dicom.pacs.web_services._LONGEST_ANSWER", 50_000)
    packed = gzip.compress(b"[" + b" " * 10**7 + b"]")
    assert len(packed) < 50_000
    pacs.answer = lambda request, good: (200, good[1] | {"Content-Encoding": "gzip"}, packed)
    with pytest.raises(PacsError, match="longer than is accepted"):
        find(pacs.peer(), Query(series=uid_of(series)))


def test_an_answer_that_trickles_has_an_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ctflow.dicom.pacs.web_client.time", SimpleNamespace(monotonic=lambda: now[0]))

    def read1(size, decode_content):
        now[0] += 9.0  # less than the longest wait for any one piece
        return b"a"

    pieces = _limited(SimpleNamespace(read1=read1), Quota(10.0), 2**20)
    assert next(pieces) == b"a"
    with pytest.raises(TimeoutError):
        next(pieces)


ANSWERS = {
    "does not speak DICOMweb": [
        (200, {"Content-Type": "text/html"}, b"<html>a page</html>"),
        (200, {"Content-Type": DICOM_JSON}, b"<html>a page</html>"),
        (200, {"Content-Type": DICOM_JSON}, b"7"),
        (200, {"Content-Type": DICOM_JSON}, b"[" * 100_000),
        (404, {}, b"nothing here"),
    ],
    "cannot be read": [
        (200, {"Content-Type": DICOM_JSON}, b"[1]"),
        (200, {"Content-Type": DICOM_JSON}, b'[{"0020000E": {"vr": "UI"}}]'),
        (200, {"Content-Type": DICOM_JSON}, b'[{"0020000E": {"vr": "UI", "Value": ["../../etc"]}}]'),
    ],
    "asks who we are .401.": [(401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")],
    "does not allow this": [(403, {}, b"")],
    "busy": [(503, {}, b"")],
    "not followed": [(302, {"Location": "/dicom-web/other"}, b"")],
}


@pytest.mark.parametrize(("said", "answer"), [(said, one) for said, many in ANSWERS.items() for one in many])
def test_an_answer_that_is_none_is_told(pacs, series, said, answer):
    pacs.answer = lambda request, good: answer
    with pytest.raises(PacsError, match=said) as caught:
        find(pacs.peer(), Query(series=uid_of(series)))
    assert caught.value.exit_code == 10
    assert len(pacs.asked) == 1  # no failure is repeated


def test_a_study_uid_with_path_parts_reaches_no_address(pacs, series, tmp_path):
    def answer(request, good):
        rows = json.loads(good[2])
        rows[0]["0020000D"]["Value"] = ["../../../admin"]
        return 200, good[1], written(rows)

    pacs.answer = answer
    with pytest.raises(PacsError, match="cannot be read"):
        pulled(pacs, series, tmp_path)
    with pytest.raises(UsageError, match="digits and dots"):
        find(pacs.peer(), Query(study="1.2/../../admin"))
    assert all("admin" not in request.path for request in pacs.asked)


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirection_gets_neither_the_token_nor_the_images(pacs, series, tmp_path, status):
    peer = {"authorization": "Bearer a-token"}
    with web_archive(series) as other:
        pacs.answer = lambda request, good: (
            status,
            {"Location": f"http://localhost:{other.port}{request.path}"},
            b"",
        )
        with pytest.raises(PacsError, match="not followed"):
            pulled(pacs, series, tmp_path, peer=peer)
        with pytest.raises(PacsError, match="not followed"):
            push(pacs.peer(**peer), series)
        assert other.asked == []
    assert all(request.headers["Authorization"] == "Bearer a-token" for request in pacs.asked)


def test_a_pacs_that_is_silent_is_left(pacs, series):
    go_on = threading.Event()
    pacs.answer = lambda request, good: (go_on.wait(60), good)[1]
    try:
        with pytest.raises(PacsError, match=r"silent or slow for 0\.2 s"):
            find(pacs.peer(timeout_s=0.2), Query(series=uid_of(series)))
    finally:
        go_on.set()


def test_a_series_whose_study_nobody_names_is_not_pulled(pacs, series, tmp_path):
    def answer(request, good):
        rows = json.loads(good[2])
        for row in rows:
            del row["0020000D"]
        return 200, good[1], written(rows)

    pacs.answer = answer
    with pytest.raises(PacsError, match="give its UID with --study"):
        pulled(pacs, series, tmp_path)
    pacs.answer = lambda request, good: (404, {}, b"")
    with pytest.raises(PacsError, match="give --study, or"):
        pulled(pacs, series, tmp_path)
