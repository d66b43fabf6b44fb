"""A PACS by DICOMweb: what goes in comes out, and neither patients nor secrets are told."""

from __future__ import annotations

import logging
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
from tests.dicom.files import CANARY, plant_canary
from tests.dicom.web_archive import DICOM_JSON, pacs, pulled, series, uid_of, web_archive, written

__all__ = ["pacs", "series"]  # fixtures


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
