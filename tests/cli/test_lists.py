"""What the command line says of itself: protocols, methods, sources and what is installed."""

import json
import re
import tomllib
from pathlib import Path

from ctflow.cli import main
from ctflow.registry import names
from ctflow.runs.protocol import texts
from ctflow.system.version import full_version

ROOT = Path(__file__).parents[2]


def test_lists_and_texts(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"ctflow {full_version()}")
    assert main(["protocols"]) == 0
    assert "sparse-view-60 " in capsys.readouterr().out
    assert main(["show", "deblur"]) == 0
    assert capsys.readouterr().out.startswith("# ")
    assert main(["methods"]) == 0
    entries = capsys.readouterr().out.strip().split("\n\n")
    assert [entry.split()[0] for entry in entries] == sorted(names("method"))
    assert all(len(entry.splitlines()) == 3 and "no title" not in entry for entry in entries)
    flow = next(entry for entry in entries if entry.split()[0] == "ms-flow")
    assert "needs a prior" in flow
    assert "gradients" not in flow
    assert "Trajectory Stitching" in flow


def test_lists_are_objects_too(capsys):
    assert main(["protocols", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocols"].keys() == texts().keys()
    assert main(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert methods.keys() == names("method").keys()
    assert methods["moment-matching"]["samples_differ_by"] == "posterior"
    assert (methods["dps"]["needs_gradients"], methods["tv"]["needs_prior"]) == (True, False)


def test_cite_prints_one_entry_per_source(capsys):
    assert main(["cite", "sparse-view-60"]) == 0
    entries = re.findall(r"^@\w+\{(\S+),", capsys.readouterr().out, re.MULTILINE)
    assert "vanaarle2016astra" in entries
    assert len(entries) == len(set(entries)) >= 4


def test_doctor_gives_a_remedy_for_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert main(["doctor"]) == 0
    assert "apt-get install dicom3tools" in capsys.readouterr().out


def test_doctor_knows_every_extra_of_a_user(capsys):
    """Those for tests and pages are ours; those of decoders have lines of their own."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert main(["doctor"]) == 0
    said = set(re.findall(r"extra ([a-z0-9-]+)", capsys.readouterr().out))
    assert said == extras - {"conformance", "docs", "test", "dev", "codecs", "dicom-gpl", "gpu"}
