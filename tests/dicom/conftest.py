"""What several tests of a PACS need."""

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority, and a key and certificate of this host that descend from it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates of this test, is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2"
    )
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=archive")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:archive.example")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    openssl("x509", "-req", "-in", "request.pem", "-out", "cert.pem", *sign)
    return folder
