"""The loop of a clinic with a real PACS: pull, reconstruct, push, find; alone on a loopback of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dicom.files import toy_series

pytest.importorskip("pynetdicom", reason="pynetdicom (the extra `pacs`) is not installed")

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


def test_pull_reconstruct_push_find(alone, tmp_path):
    series = toy_series(tmp_path / "series")
    command = [*alone, sys.executable, "-m", "tests.dicom.orthanc_loop", str(series[0].parent), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert [counts[key] for key in ("pushed", "get", "move", "derived")] == [6, 6, 6, 3]
    assert counts["get equal"]
    assert counts["move equal"]
    assert counts["derived equal"]
    assert counts["result pushed"] == 6  # two methods, three slices each
    assert sorted(counts["found"].values()) == [3, 3, 6]
    assert counts["found"][counts["source uid"]] == 6
    assert counts["found"][counts["derived uid"]] == 3
