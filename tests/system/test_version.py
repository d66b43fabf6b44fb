"""What names the software: every byte of the code counts, and every output says which code it was."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

import ctflow
from ctflow.datasets.synthetic import toy_volume
from ctflow.recon.fbp import FBP
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.system import version
from tests.experiments.test_study import PROTOCOL
from tests.house.test_floors import ROOT, sources


@pytest.fixture
def source_of(monkeypatch):
    """The hash of files given by name and content."""

    def found(folder: Path, files: dict[str, str], *parts: str) -> str:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        monkeypatch.setattr(version, "_sources", lambda: {name: folder / name for name in files})
        version.source_sha256.cache_clear()
        return version.source_sha256(*parts)

    yield found
    monkeypatch.undo()
    version.source_sha256.cache_clear()


def test_every_file_that_a_wheel_installs_is_in_the_hash():
    names = {path.as_posix().removeprefix("ctflow/") for path in sources()} | {"__init__.py"}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "protocols").glob("*.toml")}
    assert names | shipped <= set(version._sources())


def test_every_byte_counts_and_every_name(tmp_path, source_of):
    files = {"a.py": "x = 1\n", "operators/b.py": "y = 2\n", "geometry/c.py": "z = 3\n"}
    whole = source_of(tmp_path, files)
    assert source_of(tmp_path, dict(reversed(files.items()))) == whole
    for name, text in files.items():
        assert source_of(tmp_path, files | {name: text + "#"}) != whole
    assert source_of(tmp_path, files | {"d.py": ""}) != whole
    # What moves from the end of one file to the beginning of the next is another code.
    assert source_of(tmp_path, {"a": "12", "b": "3"}) != source_of(tmp_path, {"a": "1", "b": "23"})


def test_a_part_of_the_code_is_its_folders_alone(tmp_path, source_of):
    files = {"a.py": "x = 1\n", "operators/b.py": "y = 2\n", "geometry/c.py": "z = 3\n"}
    part = source_of(tmp_path, files, "operators", "a.py")
    assert source_of(tmp_path, files | {"geometry/c.py": "z = 4\n"}, "operators", "a.py") == part
    assert source_of(tmp_path, files | {"operators/b.py": "y = 4\n"}, "operators", "a.py") != part
    assert source_of(tmp_path, files | {"a.py": "x = 4\n"}, "operators", "a.py") != part


def test_the_release_is_the_tag_of_git(tmp_path):
    """At a tag its name; behind it, and without git, one that no release has."""

    def git(*words: str) -> None:
        named = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True)

    def release() -> str:
        command = [sys.executable, "-W", "ignore", "-m", "hatchling", "version"]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert release() == "0.1.dev0"
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "0.3.0")
    assert release() == "0.3.0"
    git("commit", "--allow-empty", "-m", "two")
    assert release() == "0.3.1.dev1"


def test_a_stale_release_is_said(tmp_path, monkeypatch):
    """Only code that lies where its wheel put it has kept its release."""

    class Installed:
        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(version, "distribution", lambda name: Installed())
    assert version.is_checkout()  # an editable install: nothing lies there
    (tmp_path / "ctflow").mkdir()
    (tmp_path / "ctflow" / "__init__.py").touch()
    assert version.is_checkout()  # another installation lies there
    monkeypatch.setattr(ctflow, "__file__", str(tmp_path / "ctflow" / "__init__.py"))
    assert not version.is_checkout()


@dataclass
class Elsewhere:
    """A method that is none of ctflow's."""


def test_code_from_elsewhere_has_a_hash_of_its_own():
    assert version.outside_sha256(FBP) == ""
    assert len(version.outside_sha256(Elsewhere)) == 64
    assert version.outside_sha256(Elsewhere) != version.outside_sha256(json.loads)


def test_every_output_of_a_run_says_its_code(tmp_path):
    protocol = Protocol.parse("tiny", PROTOCOL)
    pipeline.run(protocol, toy_volume(1, 48), tmp_path / "out")
    full = f"{ctflow.__version__}+{version.source_sha256()[:12]}"
    for name in ("report.json", "fbp.json"):
        provenance = json.loads((tmp_path / "out" / name).read_text())["provenance"]
        assert {"ctflow": provenance["ctflow"], **provenance["libraries"]} == version.software()
        assert provenance["ctflow"] == full
    assert full in (tmp_path / "out" / "report.html").read_text()
    header = pydicom.dcmread(next((tmp_path / "out" / "fbp").iterdir()))
    assert header.SoftwareVersions == full
    assert full in header.DerivationDescription
