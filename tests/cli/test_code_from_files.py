"""A file is data: it chooses among registered classes, and imports nothing unless asked from outside."""

import importlib
import json
import sys

import numpy as np
import pytest

from ctflow.cli import main
from ctflow.errors import ProtocolError, StudyError, UsageError
from ctflow.experiments import Study, run_study
from ctflow.experiments.executors import Engine
from ctflow.experiments.report import write_report
from ctflow.rawdata.geometry_file import read_sinogram
from ctflow.registry import build, find_class, importing, names
from ctflow.runs.protocol import Protocol
from ctflow.solving import build_method
from tests.experiments.small_study import SMALL, written
from tests.runs.test_protocol import SMALL as PROTOCOL

OWN = '''"""A class of one's own, which leaves a mark where it is imported."""
import pathlib
from dataclasses import dataclass

from ctflow.geometry import ParallelBeam
from ctflow.noise import Gaussian
from ctflow.recon import CGLS

pathlib.Path(__file__).with_name("imported").touch()


class Louder(Gaussian):
    pass


@dataclass(frozen=True)
class Mine(CGLS):
    iterations: int = 2


class Bent(ParallelBeam):
    pass


class Silent:
    needs_prior, cost, paper = False, "nothing", ""
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a module `own_classes` that can be imported; nothing stays imported."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(filter(None, sys.path))}")
    yield folder
    sys.modules.pop("own_classes", None)


def imported(own):
    return "own_classes" in sys.modules or (own / "imported").exists()


KINDS = {
    "noise": 'noise={name="own_classes:Louder", sigma=0.1}',
    "method": 'method={name="own_classes:Mine"}',
    "reference": 'reference={name="own_classes:Mine"}',
    "beside": 'beside=[{name="own_classes:Mine"}]',
    "tuned": 'tuned=[{name="own_classes:Mine"}]',
    "geometry": 'geometry={name="own_classes:Bent", angles=9}',
    "operator": 'operator={name="own_classes:Mine"}',
}


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("by", ["set", "file"])
def test_a_protocol_imports_nothing(own, tmp_path, capsys, change, by):
    path = tmp_path / "p.toml"
    protocol = Protocol.parse("p", PROTOCOL)
    path.write_text((protocol.override([change]) if by == "file" else protocol).dump())
    setting = ["--set", change] if by == "set" else []
    assert main(["run", str(path), str(tmp_path), "--dry-run", *setting]) == 2
    message = capsys.readouterr().err
    assert "own_classes:" in message
    assert "--allow-imports" in message
    assert not imported(own)


def test_no_command_that_reads_a_protocol_or_a_study_imports(own, tmp_path, capsys):
    path = tmp_path / "p.toml"
    path.write_text(Protocol.parse("p", PROTOCOL).override([KINDS["method"]]).dump())
    study = tmp_path / "s.toml"
    study.write_text(
        'protocols = ["p.toml"]\ncases = [{ phantoms = [0] }]\n[methods.x]\nname = "own_classes:Mine"'
    )
    out = str(tmp_path / "out")
    for words in (
        ["cite", str(path)],
        ["study", "run", str(study), "-o", out],
        ["study", "run", str(study), "-o", out, "--dry-run"],
        ["study", "unit", "0", str(study), "-o", out],
    ):
        assert main(words) == 2
        assert "--allow-imports" in capsys.readouterr().err
    assert not imported(own)
    assert not (tmp_path / "out").exists()


def test_a_geometry_file_imports_nothing(own, tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((9, 32), np.float32))
    file = tmp_path / "y.toml"
    file.write_text(
        'units = { length = "mm", angle = "degrees" }\ndata = "y.npy"\n'
        'geometry = { name = "own_classes:Bent", pitch = 1.0 }\n'
    )
    with pytest.raises(UsageError, match="--allow-imports"):
        read_sinogram(file)
    assert not imported(own)
    with importing(True):
        assert type(read_sinogram(file).beam).__name__ == "Bent"


def test_a_finished_study_imports_nothing_for_its_report(own, tmp_path):
    out = tmp_path / "out"
    run_study(written(tmp_path, SMALL), out)
    plan = json.loads((out / "plan.json").read_text())
    plan["methods"]["fbp"]["name"] = "own_classes:Mine"
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ProtocolError, match="--allow-imports"):
        write_report(out)
    assert not imported(own)


def test_the_flag_lets_one_command_import_and_no_later_one(own, tmp_path, capsys):
    path = tmp_path / "p.toml"
    path.write_text(Protocol.parse("p", PROTOCOL).override([KINDS["method"]]).dump())
    assert main(["cite", str(path), "--allow-imports"]) == 0
    assert "hestenes1952" in capsys.readouterr().out
    assert main(["cite", str(path), "--allow-imports", "--no-such-option"]) == 2
    assert main(["cite", str(path)]) == 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("noise", "subprocess:Popen"),
        ("noise", "builtins:print"),
        ("noise", "own_classes:Mine"),
        ("noise", "os:system"),
        ("geometry", "builtins:open"),
        ("geometry", "own_classes:Louder"),
        ("method", "own_classes:Bent"),
        ("method", "subprocess:run"),
        ("operator", "own_classes:Mine"),
        ("operator", "own_classes"),
        ("method", "own_classes:"),
        ("method", ":Mine"),
        ("method", "no_such_module:Mine"),
        ("method", "own_classes:Nobody"),
        ("prior", "own_classes:Mine"),
    ],
)
def test_what_is_imported_must_be_of_the_kind(own, kind, name, tmp_path):
    with importing(True), pytest.raises(ProtocolError):
        build(kind, {"name": name, "args": ["touch", str(tmp_path / "x")]})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name", ["_base", "-circular", "__init__", "circular-beam", "../geometry", "Beam", ""]
)
def test_what_is_private_has_no_name(name):
    for kind in ("geometry", "operator", "method", "noise"):
        with pytest.raises(ProtocolError):
            find_class(kind, name)


def test_a_name_must_be_a_text():
    for name in (5, ["tv"], True):
        with pytest.raises(ProtocolError, match="put it in quotes"):
            build("method", {"name": name})


def test_a_method_that_cannot_be_called_is_refused(own):
    with importing(True), pytest.raises(ProtocolError, match="cannot be called with a problem"):
        build_method({"name": "own_classes:Silent"})


def test_an_installed_package_adds_names_by_its_entry_points(own):
    info = own / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ctflow.method]\nmine = own_classes:Mine\ntv = own_classes:Mine\nmisfit = own_classes:Louder\n"
        "absent = own_classes:Nobody\n"
    )
    importlib.invalidate_caches()
    assert names("method")["mine"] == "own_classes:Mine"
    assert not imported(own)  # a list of names needs no import
    assert build("method", {"name": "mine", "iterations": 3}).iterations == 3
    assert find_class("method", "tv").__module__ == "ctflow.recon.tv"  # a packaged name is never replaced
    for name in ("misfit", "absent"):
        with pytest.raises(ProtocolError, match=f"'{name}'"):
            find_class("method", name)
    with pytest.raises(ProtocolError, match="did you mean 'mine'"):
        find_class("method", "minee")


def test_a_study_of_own_classes_runs_in_workers_shards_and_again(own, tmp_path):
    text = SMALL + '[methods.own]\nname = "own_classes:Mine"\n'
    with pytest.raises(StudyError, match="--allow-imports"):
        written(tmp_path, text)
    out = str(tmp_path / "out")
    run = ["study", "run", str(tmp_path / "small.toml"), "-o", out]
    assert main([*run, "--shard", "1/2", "--allow-imports"]) == 9
    assert main([*run, "--resume"]) == 2
    assert main([*run, "--resume", "--allow-imports", "--jobs", "2"]) == 0
    units = [json.loads(path.read_text()) for path in (tmp_path / "out" / "units").glob("*/unit.json")]
    assert [unit["status"] for unit in units] == ["done"] * 9
    assert main(["study", "report", out]) == 2
    assert main(["study", "report", out, "--allow-imports"]) == 0


def test_a_worker_may_import_only_what_its_task_may(own, tmp_path):
    with importing(True):
        study = written(tmp_path, SMALL + '[methods.own]\nname = "own_classes:Mine"\n')
    with pytest.raises(ProtocolError, match="--allow-imports"):
        run_study(study, tmp_path / "out", engine=Engine(jobs=2))


@pytest.mark.parametrize(
    "table",
    [
        'slurm_setup = ["touch x"]',
        'slurm_srun_args = ["x"]',
        'slurm_python = "x"',
        "slurm_additional_parameters = { wrap = 1 }",
        'slurm_partition = "a\\ntouch x"',
        'slurm_partition = "a\' ; touch x"',
        'timeout_min = ["touch x"]',
    ],
)
def test_a_slurm_job_takes_no_commands_from_a_file(tmp_path, table):
    text = SMALL + f"[slurm]\n{table}\n"
    with pytest.raises(StudyError, match="could run commands"):
        written(tmp_path, text)
    with importing(True):
        assert Study.load(tmp_path / "small.toml").slurm
    assert (
        written(tmp_path, SMALL + '[slurm]\nslurm_partition = "gpu"\ntimeout_min = 5\n').slurm["timeout_min"]
        == 5
    )


@pytest.mark.parametrize("flag", [[], ["--allow-imports"]])
def test_a_program_is_never_run(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    change = 'noise={name="subprocess:Popen", args=["touch", "x"]}'
    assert main(["run", "sparse-view-60", ".", "--dry-run", "--set", change, *flag]) == 2
    assert not list(tmp_path.iterdir())
