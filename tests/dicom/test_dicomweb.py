"""A PACS by DICOMweb that answers something else than was asked, or refuses: nothing of it is kept."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
import torch

pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra `dicomweb`) is not installed")

from ctflow.cli import main
from ctflow.dicom import read_series
from ctflow.dicom.pacs import Query, Tls, WebPeer, find, peer_at, pull, push
from ctflow.errors import PacsError, UsageError
from tests.dicom.files import CANARY, plant_canary, toy_series
from tests.dicom.web_archive import DICOM_JSON, multipart, web_archive, written


@pytest.fixture
def series(tmp_path):
    return toy_series(tmp_path / "series", slices=3)


@pytest.fixture
def pacs(series):
    with web_archive(series) as held:
        yield held


def uid_of(files):
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


def pulled(pacs, series, tmp_path, **options):
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


def test_what_is_held_is_pulled_and_pushed(pacs, series, tmp_path):
    assert pulled(pacs, series, tmp_path) == 3
    there, back = read_series(tmp_path / "series"), read_series(tmp_path / "out")
    assert torch.equal(there.data, back.data)
    assert there.source.sha256 == back.source.sha256
    assert [file.read_bytes() for file in sorted((tmp_path / "out").iterdir())] == [
        body for _, body in pacs.files
    ]
    assert push(pacs.peer(), series) == 3
    sent = [request.body for request in pacs.asked if request.method == "POST"]
    assert len(sent) == 3
    assert all(pydicom.dcmread(file).PixelData in body for file, body in zip(series, sent, strict=True))


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


def test_what_the_pacs_refuses_to_store_is_counted_with_the_reason(pacs, series):
    def failed(status, code, **more):
        item = {"00081155": {"vr": "UI", "Value": ["1.2.3"]}, "00081197": {"vr": "US", "Value": [code]}}
        del item["00081155"]
        return (
            status,
            {"Content-Type": f"{DICOM_JSON}; charset=utf-8"},
            written({"00081198": {"vr": "SQ", "Value": [item]}}),
        )

    def answer(request, good):
        number = len(pacs.asked)
        if number == 1:
            return failed(409, 0xA700)
        return failed(202, 0xC122) if number == 2 else good

    pacs.answer = answer
    with pytest.raises(PacsError, match=r"took 1 of 3 objects") as caught:
        push(pacs.peer(), series)
    assert "1 × the PACS is out of resources; free space there and try again (reason 0xa700)" in str(
        caught.value
    )
    assert "in this transfer syntax; convert it to Explicit VR (reason 0xc122)" in str(caught.value)
    pacs.answer = lambda request, good: (200, good[1], b"{}")
    with pytest.raises(PacsError, match="took 0 of 3 objects: 3 × the PACS did not say that it stored"):
        push(pacs.peer(), series)
    pacs.answer = lambda request, good: good if len(pacs.asked) == 7 else (403, {}, b"")
    with pytest.raises(PacsError, match="took 1 of 3 objects: 2 × the PACS does not allow this"):
        push(pacs.peer(), series)
    assert len(pacs.asked) == 8  # the third is not tried


def test_nobody_there_is_told(pacs, series):
    query = Query(series=uid_of(series))
    with pytest.raises(PacsError, match="nothing listens on port 1 "):
        find(WebPeer("http://127.0.0.1:1/dicom-web"), query)
    with pytest.raises(PacsError, match=r"does not speak TLS on this port"):
        find(WebPeer(f"https://127.0.0.1:{pacs.port}/dicom-web"), query)
    pacs.answer = lambda request, good: (200, good[1] | {"Content-Length": "999"}, b"")
    with pytest.raises(PacsError, match="cut off"):
        find(pacs.peer(), query)


def test_tls_trusts_whom_we_say(certificates, series, tmp_path, monkeypatch):
    trusted = Tls(certificates / "ca.pem", certificates / "cert.pem", certificates / "key.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
    query = Query(series=uid_of(series))
    with web_archive(series, trusted.context(server=True)) as held:
        assert pulled(held, series, tmp_path, peer={"tls": trusted}) == 3
        named = replace(trusted, name="archive.example")
        assert len(find(held.peer(tls=named), query)) == 1
        for tls in (Tls(), Tls(trusted.authority, name="other.example")):
            with pytest.raises(PacsError, match="certificate of the PACS is not trusted"):
                find(held.peer(tls=tls), query)
        with pytest.raises(PacsError, match="give --tls-cert where it asks"):
            find(held.peer(tls=Tls(trusted.authority)), query)
        with pytest.raises(PacsError, match="https"):
            find(held.peer(url=f"http://127.0.0.1:{held.port}/dicom-web"), query)


def test_a_pacs_that_is_silent_is_left(pacs, series):
    go_on = threading.Event()
    pacs.answer = lambda request, good: (go_on.wait(60), good)[1]
    try:
        with pytest.raises(PacsError, match=r"silent or slow for 0\.2 s"):
            find(pacs.peer(timeout_s=0.2), Query(series=uid_of(series)))
    finally:
        go_on.set()


def test_neither_patients_nor_secrets_are_told(series, tmp_path, caplog, capsys, monkeypatch):
    folder = plant_canary(tmp_path / "series", series)
    monkeypatch.setenv("CTFLOW_PACS_PASSWORD", "a-password")
    caplog.set_level(logging.DEBUG)
    with web_archive(list(folder.iterdir())) as pacs:
        url = f"http://127.0.0.1:{pacs.port}/dicom-web"
        who = ("--user", "a-reader")
        assert main(["pacs", "find", url, "--patient-id", CANARY, *who]) == 0
        assert main(["pacs", "push", url, str(folder), *who]) == 0
        pacs.answer = lambda request, good: (401, {}, CANARY.encode())
        assert main(["pacs", "find", url, "--patient-id", CANARY, *who]) == 10
        asked = pacs.asked[0]
    assert asked.headers["Authorization"] == "Basic YS1yZWFkZXI6YS1wYXNzd29yZA=="
    assert asked.headers["Host"] == f"127.0.0.1:{pacs.port}"
    assert "PatientName" not in str(asked.keys)
    told = caplog.text + "".join(capsys.readouterr())
    assert "refuses the token or password (401)" in told
    for word in (CANARY, "a-password", "YS1yZWFk"):
        assert word not in told


def test_neither_environment_nor_netrc_speak_for_us(pacs, series, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "secret"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert pulled(pacs, series, tmp_path) == 3
    assert all("Authorization" not in request.headers for request in pacs.asked)


REFUSED = {
    ("--aet", "CTFLOW"): "--aet is for TITLE@HOST:PORT",
    ("--tls-ca", "ca.pem"): "does not encrypt",
    ("--token-file", "missing"): "token file cannot be read",
    ("--token-file", "secret", "--user", "a"): "not both",
    ("--user", "a"): "--password-file FILE, or set CTFLOW_PACS_PASSWORD",
    ("--user", "a:b", "--password-file", "secret"): "without a colon",
    ("--password-file", "secret"): "give --user",
    ("--token-file", "secret"): "holds no bearer token",
}


@pytest.mark.parametrize("options", REFUSED)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CTFLOW_PACS_PASSWORD", raising=False)
    Path("secret").write_text("no token, but words\n")
    assert main(["pacs", "find", "http://127.0.0.1:1/dicom-web", "--study", "1.2", *options]) == 2
    said = capsys.readouterr().err
    assert REFUSED[options] in " ".join(said.split())
    assert "but words" not in said


def test_ways_to_pull_and_to_be_let_in_belong_to_their_protocol(tmp_path, capsys):
    words = ["pacs", "pull", "http://127.0.0.1:1/dicom-web", "1.2", "-o", str(tmp_path / "out")]
    for option in (("--by", "get"), ("--listen", "127.0.0.1")):
        assert main([*words, *option]) == 2
        assert "--by and --listen are for TITLE@HOST:PORT" in capsys.readouterr().err
    assert main(["pacs", "find", "A@127.0.0.1:1", "--study", "1.2", "--user", "a"]) == 2
    assert "are for a web address" in capsys.readouterr().err
    with pytest.raises(UsageError, match="does not call back"):
        pull(WebPeer("http://127.0.0.1:1/dicom-web"), tmp_path / "out", "1.2", by="move")


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https://host:port/dicom-web",
        "https://[::1/dicom-web",
        "https://host/dicom-web?key=a",
        "https://host/dicom web",
        "ftp://host/dicom-web",
        "https://host:0/",
    ],
)
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(UsageError, match="not understood"):
        WebPeer(url)


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="--user NAME") as caught:
        WebPeer("https://reader:a-password@host/dicom-web")
    assert "a-password" not in str(caught.value)
    assert "a-password" not in repr(WebPeer("https://host", authorization="Basic a-password"))


def test_ports_and_trust_go_by_the_scheme():
    peer = WebPeer("https://host/dicom-web/")
    assert (peer.url, peer.host, peer.port, peer.tls) == ("https://host/dicom-web", "host", 443, Tls())
    assert (WebPeer("http://[::1]").port, WebPeer("http://[::1]:8042").host) == (80, "::1")


def test_secrets_come_from_files_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("a-token.b==\r\n")
    monkeypatch.setenv("CTFLOW_PACS_PASSWORD", "ä:b")
    assert peer_at("HTTPS://host", token_file=tmp_path / "secret").authorization == "Bearer a-token.b=="
    assert peer_at("https://host", user="a").authorization == "Basic YTrDpDpi"
    filed = peer_at("https://host", user="a", password_file=tmp_path / "secret")
    assert filed.authorization == "Basic YTphLXRva2VuLmI9PQ=="
