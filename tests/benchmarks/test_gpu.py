"""`ctflow doctor --gpu`, rehearsed: the CPU against itself, and against a GPU that is not there."""

import json
import math
from pathlib import Path

import pytest
import torch

from ctflow.benchmarks import gpu
from ctflow.benchmarks.bars import Bar, Findings
from ctflow.benchmarks.gpu import Comparison, Failure, examine, without_folders
from ctflow.cli import main
from ctflow.geometry import VolumeGeometry
from ctflow.priors import GaussianPrior
from tests.pretended import pretended


@pytest.fixture
def small(monkeypatch):
    """Two beams, three methods, 16² pixels, a prior without a network, and no times."""
    prior = GaussianPrior(torch.logspace(0, -2, 32), mean=-0.3)
    monkeypatch.setattr(gpu, "_SIDE", 16)
    monkeypatch.setattr(gpu, "_GRID", VolumeGeometry((2, 12, 10), (2.0, 6.8, 6.8)))
    monkeypatch.setattr(gpu, "_SPEEDS", ())
    monkeypatch.setattr(gpu, "_BEAMS", {name: gpu._BEAMS[name] for name in ("fan", "cone")})
    monkeypatch.setattr(gpu, "names", lambda kind: ["conjugate", "fdk", "sirt"])
    monkeypatch.setattr(gpu, "_prior", lambda method, A, device: prior if method.needs_prior else None)


def silent(fraction, what):
    """Progress that nobody sees."""


def test_the_cpu_agrees_with_itself(small):
    found = examine("cpu", silent)
    assert [row for row in found.rows if isinstance(row, Failure)] == []
    assert found.missed == []
    assert [row.name for row in found.rows if isinstance(row, Comparison)] == ["conjugate", "fdk", "sirt"]
    # Every exact backend has a bar for its adjoint; ASTRA's are told without one.
    gaps = {bar.name for bar in found.bars if bar.name.startswith("adjoint gap")}
    assert {"adjoint gap: fan beam, matrix on cpu", "adjoint gap: cone beam, torch on cpu"} <= gaps
    assert not any("astra" in name for name in gaps)


def test_what_fails_on_a_gpu_is_a_row_and_the_next_check_is_made(small, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda module: False)
    monkeypatch.setattr("ctflow.operators.radon.installed", lambda module: False)
    with pretended("cuda:1"):
        found = examine("cuda:1", silent)
    failed = {row.name: row.reason for row in found.rows if isinstance(row, Failure)}
    # There is no driver for ASTRA to find; tensor operations do without.
    assert failed.keys() == {"fan beam, astra on cuda", "cone beam, astra on cuda"}
    assert all(reason.startswith("BackendError: ") for reason in failed.values())
    assert found.missed == []
    assert "sirt: cuda against cpu" in {bar.name for bar in found.bars}


def test_what_there_is_no_time_for_is_named(small, monkeypatch):
    monkeypatch.setattr(gpu, "_SECONDS", -1.0)
    found = examine("cpu", silent)
    assert found.bars == []
    assert "sirt" in {row.name for row in found.rows}
    assert {row.reason for row in found.rows} == {"not reached in time"}


def test_an_error_names_no_user_and_no_folder():
    home = f"{Path.home()}/a study/libx.so"
    error = OSError(f"cannot load '/srv/of jane/libx.so', {home} or C:\\Users\\jane\\x.dll,\n nor ~/jane/y")
    told = without_folders(error)
    assert told.startswith("OSError: cannot load a file,")
    for private in ("jane", "srv", "Users", str(Path.home())):
        assert private not in told
    assert "x.dll, nor y" in told


def test_findings_are_json_whatever_was_measured():
    found = Findings([Bar("gap", math.inf, 1.0, at_most=True)], [Comparison("sirt", math.nan, 1.0, 1.0, 0.0)])
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["bars"][0] == {"name": "gap", "value": None, "bound": 1.0, "holds": False}
    assert told["rows"][0]["difference"] is None


def test_the_command_writes_one_file_that_can_be_sent(small, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert main(["doctor", "--gpu", "--device", "cpu", "--json", str(file)]) == 0
    assert "bars hold" in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert json.loads(text).keys() == {"bars", "rows", "machine", "device"}
    for private in (Path.home(), tmp_path, Path.cwd()):
        assert str(private) not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["doctor", "--gpu"]) == 7
    assert "device 'cuda' is not on this machine" in capsys.readouterr().err


def test_figures_of_the_installation_are_not_kept(tmp_path, capsys):
    assert main(["doctor", "--json", str(tmp_path / "x.json")]) == 2
    assert "give --gpu" in capsys.readouterr().err
