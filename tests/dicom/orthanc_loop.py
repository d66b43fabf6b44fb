"""A real PACS, from pull to find: `python -m tests.dicom.orthanc_loop SERIES FOLDER`, in its own network.

Prints one JSON object of counts. `test_orthanc.py` starts it where nothing outside can reach Orthanc.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pydicom

from ctflow.cli import main
from ctflow.dicom import read_series

DICOM_PORT, HTTP_PORT, OUR_PORT = 14242, 18042, 11113
PACS = f"ORTHANC@127.0.0.1:{DICOM_PORT}"
PROTOCOL = """# FBP of sixty views
geometry = { name = "parallel-beam", angles = 60 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "fbp", filter = "hann" }
reference = { name = "fbp" }
"""


@contextmanager
def orthanc(folder: Path, changes: Mapping[str, object] = MappingProxyType({})) -> Iterator[int]:
    """Orthanc with an empty store; stopped by its process, its exit status is printed by the caller."""
    settings: dict[str, object] = {
        "Name": "loop",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "DicomAet": "ORTHANC",
        "DicomPort": DICOM_PORT,
        "HttpPort": HTTP_PORT,
        "RemoteAccessAllowed": False,
        "DicomModalities": {"ctflow": ["CTFLOW", "127.0.0.1", OUR_PORT]},
        "Plugins": [],
        **changes,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        server = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            wait(DICOM_PORT, server)
            yield server.pid
        finally:
            server.terminate()
            server.wait()


def wait(port: int, server: subprocess.Popen) -> None:
    """Return when the port answers; fail when its server has ended."""
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise ConnectionError("Orthanc ended before its port answered")


def ctflow(*words: str) -> dict:
    """The JSON that a command prints; its status must be 0."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([*words, "--json"])
    if status:
        raise SystemExit(f"ctflow {words[0]} {words[1]} returned {status}")
    return json.loads(printed.getvalue())


def loop(series: Path, folder: Path) -> dict:
    """Push a series, pull it both ways, reconstruct it, push the result and find it; what was counted."""
    (folder / "loop.toml").write_text(PROTOCOL)
    source = read_series(series)
    uid = str(source.source.headers[0].SeriesInstanceUID)
    study = str(source.source.headers[0].StudyInstanceUID)
    counts = {"pushed": ctflow("pacs", "push", PACS, str(series))["pushed"]}
    for by in ("get", "move"):
        words = ("--by", by, "--listen", f"127.0.0.1:{OUR_PORT}", "--timeout", "60")
        counts[by] = ctflow("pacs", "pull", PACS, uid, "-o", str(folder / by), *words)["pulled"]
        counts[f"{by} equal"] = read_series(folder / by).source.sha256 == source.source.sha256
    ctflow(
        "run", str(folder / "loop.toml"), str(folder / "get"), "-o", str(folder / "out"), "--slices", "0:3"
    )
    counts["result pushed"] = ctflow("pacs", "push", PACS, str(folder / "out"))["pushed"]
    found = ctflow("pacs", "find", PACS, "--study", study)["series"]
    counts["found"] = {row["series"]: row["images"] for row in found}
    derived = pydicom.dcmread(folder / "out" / "fbp-2" / "IM0001.dcm").SeriesInstanceUID
    counts["derived"] = ctflow("pacs", "pull", PACS, derived, "-o", str(folder / "back"))["pulled"]
    there, back = read_series(folder / "out" / "fbp-2"), read_series(folder / "back")
    counts["derived equal"] = there.source.sha256 == back.source.sha256
    return counts | {"source uid": uid, "derived uid": str(derived)}


if __name__ == "__main__":
    work = Path(sys.argv[2])
    with orthanc(work):
        result = loop(Path(sys.argv[1]), work)
    print(json.dumps(result))
