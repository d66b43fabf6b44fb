"""The command line: stdout is for results, stderr for one-line errors, and the exit status says which."""

import errno
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol

LONG = "a" * 300  # a file system's names have 255 bytes

FAST = ["--set", 'method={name="tv", iterations=5}', "--set", "beside=[]", "--set", "geometry.angles=20"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return str(write_toy_series(tmp_path_factory.mktemp("toy") / "series", slices=2, size=64))


def run(series, *options):
    return main(["run", "sparse-view-60", series, *FAST, *map(str, options)])


def test_a_run_prints_a_table_and_nothing_else(series, tmp_path, capsys):
    assert run(series, "-o", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "RMSE [HU]" in printed.out
    assert re.search(r"^\s*tv\s+\d", printed.out, re.MULTILINE)
    assert "%" in printed.err
    report = tmp_path / "out" / "report.html"
    assert report.is_file()
    assert printed.out.endswith(f"report: {report}\n")


def test_json_is_one_object(series, tmp_path, capsys):
    assert run(series, "-o", tmp_path / "out", "--json", "--slices", "0:1", "--seed", 7) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"rmse_hu", "psnr", "ssim", "seconds"} <= set(figures["methods"]["tv"])
    assert figures["provenance"]["seed"] == 7
    assert main(["compare", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_dry_run_writes_nothing(series, tmp_path, capsys):
    assert run(series, "-o", tmp_path / "out", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "20 views" in plan
    assert "fbp, tv" in plan
    assert "0:2 of 2" in plan
    assert list(tmp_path.iterdir()) == []
    assert run(series, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["plan"]["methods"] == "fbp, tv"


def test_a_missed_threshold_keeps_the_output_and_fails(series, tmp_path, capsys):
    assert run(series, "-o", tmp_path / "out", "--set", "accept.rmse_hu=1", "--slices", "0:1") == 8
    assert "rmse_hu" in capsys.readouterr().err
    assert (tmp_path / "out" / "tv" / "IM0001.dcm").is_file()
    assert main(["compare", str(tmp_path / "out"), "--against", "fbp"]) == 8
    assert "vs fbp" in capsys.readouterr().out


def test_overwrite_replaces_an_earlier_run(series, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(series, "-o", out, "--slices", "0:1") == 0
    before = (out / "report.json").read_text()
    assert run(series, "-o", out, "--slices", "0:1") == 6
    assert (out / "report.json").read_text() == before
    assert run(series, "-o", out, "--slices", "1:2", "--overwrite") == 0
    assert json.loads((out / "report.json").read_text())["provenance"]["slices"] == "1:2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_what_a_run_wrote_is_overwritten(series, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(series, "-o", out, "--slices", "0:1") == 0
    own = sorted(out.rglob("*"))
    foreign = {
        out / "notes.txt": b"seen by Dr Who",
        out / "fbp" / "IM0002.dcm": b"\0" * 128 + b"DICM",
        out / "tv" / "segmentation.nii": b"",
        out / "viewer" / "notes.js": b"",
    }
    for path, content in foreign.items():
        path.write_bytes(content)
        assert run(series, "-o", out, "--overwrite", "--dry-run") == 6
        assert path.read_bytes() == content
        path.unlink()
    # An earlier output may be an input, but not of the run that replaces it.
    assert run(str(out / "fbp"), "-o", out, "--overwrite") == 6
    assert run(str(out / "fbp"), "-o", out / "fbp", "--overwrite") == 6
    assert run(series, "-o", series, "--overwrite") == 6
    (tmp_path / "linked").symlink_to("out")
    assert run(series, "-o", tmp_path / "linked", "--overwrite") == 6
    assert main(["demo", "-o", str(out)]) == 6
    assert "expected to replace an earlier demo" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == own


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_appears_while_a_run_computes_is_kept(series, tmp_path, monkeypatch, overwrite):
    out, reconstruct = tmp_path / "out", pipeline.reconstruct

    def meanwhile(*arguments, **keywords):
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("years of work")
        assert run(series, "-o", out, "--slices", "0:1", *overwrite) == 6
        return reconstruct(*arguments, **keywords)

    monkeypatch.setattr(pipeline, "reconstruct", meanwhile)
    assert run(series, "-o", out, "--slices", "0:1", *overwrite) == 6
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_an_output_within_the_input_is_no_part_of_it(tmp_path):
    series = str(write_toy_series(tmp_path / "series", slices=2, size=64))
    assert run(series, "-o", tmp_path / "series" / "out", "--slices", "0:1") == 0
    figures = json.loads((tmp_path / "series" / "out" / "report.json").read_text())
    assert figures["provenance"]["skipped_files"] == []


def test_of_two_runs_into_one_folder_the_second_is_refused_at_once(series, tmp_path, monkeypatch, capsys):
    out, reconstruct, statuses = tmp_path / "out", pipeline.reconstruct, []

    def second(*arguments, **keywords):
        monkeypatch.undo()
        statuses.extend(run(series, "-o", out, "--slices", "1:2", *more) for more in ([], ["--overwrite"]))
        return reconstruct(*arguments, **keywords)

    monkeypatch.setattr(pipeline, "reconstruct", second)
    assert run(series, "-o", out, "--slices", "0:1") == 0
    assert statuses == [6, 6]
    assert capsys.readouterr().err.count("another run of ctflow") == 2
    assert json.loads((out / "report.json").read_text())["provenance"]["slices"] == "0:1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_energy_sets_the_attenuation_of_water(series, tmp_path, capsys):
    assert run(series, "-o", tmp_path / "out", "--energy-kev", "60", "--json") == 0
    # NIST: 0.2059 cm²/g at 60 keV.
    assert json.loads(capsys.readouterr().out)["provenance"]["mu_water_per_mm"] == pytest.approx(0.02059)


def test_demo_replaces_the_last_demo(tmp_path, monkeypatch, capsys):
    small = Protocol.load("sparse-view-60").override(FAST[1::2])
    monkeypatch.setattr(Protocol, "load", lambda name: small)
    toy = functools.partial(write_toy_series, slices=1, size=64)
    monkeypatch.setattr("ctflow.datasets.synthetic.write_toy_series", toy)
    for _ in range(2):
        assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_inspect_lists_series(series, capsys):
    assert main(["inspect", series, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["series"]
    assert (found["slices"], found["usable"]) == (2, True)
    assert (found["rows"], found["columns"], found["kvp"]) == (64, 64, None)
    assert main(["inspect", series]) == 0
    assert "usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run", "sparse-view60", "x", "-o", "y"], 2, "did you mean 'sparse-view-60'"),
        (["run", "sparse-view-60", "x"], 2, "-o FOLDER"),
        (
            ["run", "sparse-view-60", "x", "-o", "y", "--set", "method.stats=3"],
            2,
            "did you mean 'states'",
        ),
        (["run", "sparse-view-60", "x", "-o", "y", "--slices", "4"], 2, "--slices 10:14"),
        (["run", "sparse-view-60", "x", "-o", "y", "--slices", "-1:4"], 2, "--slices 10:14"),
        (
            ["run", "sparse-view-60", "x", "-o", "y", "--methods", "fbp,tv,msflow"],
            2,
            "did you mean 'ms-flow'",
        ),
        (["run", "sparse-view-60", "x", "-o", "y", "--methods", "fbp,,tv"], 2, "no method is named ''"),
        (["run", "sparse-view-60", "x", "-o", "y", "--methods", "tv,fbp,tv"], 2, "named twice"),
        (
            ["run", "sparse-view-60", "x", "-o", "y", "--methods", "fbp"],
            2,
            "the reference itself; name another beside it",
        ),
        (["run", "sparse-view-60", "x", "-o", "y", "--set", "noise.photons=abc"], 2, "must be a number"),
        (["priors", "ct-257"], 2, "did you mean 'ct-256'"),
        (["run", LONG, "x", "-o", "y"], 2, "give a shorter one"),
        (["run", "sparse-view-60", LONG, "-o", "y"], 2, "give a shorter one"),
        (["run", "sparse-view-60", "x", "-o", LONG], 6, "too long"),
        (["priors", LONG], 2, "give a shorter one"),
        (["tune", "sparse-view-60", "--log", f"{LONG}/x"], 2, "give a shorter one"),
        (["study", "run", LONG, "-o", "y"], 2, "give a shorter one"),
        (["run", "sparse-view-60", "no such folder", "-o", "y"], 2, "no such path"),
        (["runn"], 2, "run"),
        (["run", "sparse-view-60"], 2, "SOURCE"),
        (["compare", "no such folder"], 2, "report.json"),
        (["inspect", "no such folder"], 2, "no such path"),
    ],
)
def test_bad_requests(*, words, status, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == status
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def fail_with(error):
    def fails(*arguments, **keywords):
        raise error

    return fails


def test_slices_may_leave_an_end_open(series, capsys):
    for given, used in (("1:", "1:2 of 2"), (":1", "0:1 of 2"), (":", "0:2 of 2")):
        assert run(series, "--dry-run", "--slices", given) == 0
        assert used in capsys.readouterr().out
    assert run(series, "--dry-run", "--slices", "2:") == 3
    assert "do not lie in 0:2" in capsys.readouterr().err


def test_methods_are_chosen_by_name(series, capsys):
    words = ["run", "sparse-view-60", series, "--dry-run", "--json", "--methods"]
    for given, used in (("tv,fbp", "tv, fbp"), ("sirt", "fbp, sirt"), ("sirt, tv, cgls", "sirt, tv, cgls")):
        assert main([*words, given]) == 0
        assert json.loads(capsys.readouterr().out)["plan"]["methods"] == used


def test_the_folder_of_a_study_is_no_run(tmp_path, capsys):
    (tmp_path / "report.json").write_text('{"methods": {}, "cases": []}', encoding="utf-8")
    assert main(["compare", str(tmp_path)]) == 2
    assert "ctflow study report" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_wherever_it_is_met(number, series, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ctflow.runs.run.reconstruct", fail_with(OSError(number, "CANARY", "CANARY")))
    assert run(series, "-o", tmp_path / "out") == 6
    said = capsys.readouterr().err.splitlines()[-1]
    assert "more space than the disk" in said
    assert "CANARY" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_behind_stdout_is_said():
    command = [sys.executable, "-m", "ctflow", "protocols"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("error: the output needs more space")
    assert done.stderr.count("\n") == 1


def test_a_stdout_of_ascii_takes_what_is_printed(series, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    made = ["run", "sparse-view-60", series, *FAST, "-o", str(tmp_path / "out")]
    for words in (made, ["compare", str(tmp_path / "out")], ["methods"], ["--help"]):
        command = [sys.executable, "-m", "ctflow", *words]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr.count(b"error")) == (0, 0)
        assert done.stdout.isascii()


def test_ctrl_c_is_one_line_and_leaves_nothing(series, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ctflow.runs.run.reconstruct", fail_with(KeyboardInterrupt()))
    assert run(series, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err == "error: interrupted; nothing incomplete was written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_one_line_without_its_text(series, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ctflow.runs.run.reconstruct", fail_with(ZeroDivisionError("CANARY")))
    assert run(series, "-o", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError")
    assert "CANARY" not in said  # an error's text may quote a patient
    assert list(tmp_path.iterdir()) == []
    assert run(series, "-o", tmp_path / "out", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_log_that_is_a_folder_is_refused(tmp_path, capsys):
    assert main(["tune", "sparse-view-60", "--log", str(tmp_path)]) == 6
    assert "name a file" in capsys.readouterr().err
