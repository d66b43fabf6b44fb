"""The loop of a clinic with a real PACS: pull, reconstruct, push, find; alone on a loopback of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from tests.dicom.files import toy_series

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
ROOT = Path(__file__).resolve().parents[2]
# A network namespace: Orthanc 1.10 listens on every address, whatever its settings say.
ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def alone():
    """The words that run a command in a network namespace with nothing but a loopback."""
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc (Debian package orthanc) is not installed")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine allows no network namespace (unshare -rn), where Orthanc would be alone")
    return ALONE


def looped(words, module, series, folder):
    """What a loop of the tests prints, in a network of its own."""
    command = [*words, sys.executable, "-m", f"tests.dicom.{module}", str(series[0].parent), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pull_reconstruct_push_find(alone, tmp_path):
    pytest.importorskip("pynetdicom", reason="pynetdicom (the extra `pacs`) is not installed")
    counts = looped(alone, "orthanc_loop", toy_series(tmp_path / "series"), tmp_path)
    assert [counts[key] for key in ("pushed", "get", "move", "derived")] == [6, 6, 6, 3]
    assert counts["get equal"]
    assert counts["move equal"]
    assert counts["derived equal"]
    assert counts["result pushed"] == 6  # two methods, three slices each
    assert sorted(counts["found"].values()) == [3, 3, 6]
    assert counts["found"][counts["source uid"]] == 6
    assert counts["found"][counts["derived uid"]] == 3


def test_dicomweb_push_find_pull(alone, tmp_path):
    pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra `dicomweb`) is not installed")
    if not Path(PLUGIN).exists():
        pytest.skip("Orthanc's plugin (Debian package orthanc-dicomweb) is not installed")
    series = toy_series(tmp_path / "series")
    counts = looped(alone, "dicomweb_loop", series, tmp_path)
    header = pydicom.dcmread(series[0])
    row = {"study": str(header.StudyInstanceUID), "series": str(header.SeriesInstanceUID)}
    assert [counts[key] for key in ("refused", "gone")] == [10, 10]
    assert [counts[key] for key in ("pushed", "pulled", "compressed pulled")] == [7, 6, 1]
    assert counts["equal"]
    assert counts["compressed equal"]
    for key in ("series", "study", "date", "patient-id"):
        assert counts[f"by {key}"] == [{**row, "modality": "CT", "images": 6}]
    assert counts["nothing"] == []
    assert counts["study level"] == [{"study": row["study"]}]
    assert [found["patient_name"] for found in counts["personal"]] == ["CTFLOW^UNNAMED"]
