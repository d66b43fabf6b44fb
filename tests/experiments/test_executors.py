"""Studies beyond one process: Dask with a worker killed, submitit's local executor, Snakemake."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from filelock import FileLock

from ctflow.errors import BackendError, UsageError
from ctflow.experiments import run_study
from ctflow.experiments.cases import cases
from ctflow.experiments.executors import Engine
from ctflow.experiments.plan import Planner
from ctflow.experiments.store import Store
from tests.experiments.small_study import SMALL, figures, lines, written

LONGER = SMALL.replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]").replace("iterations = 2", "iterations = 40")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where an extra is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def each_done_once(out: Path, number: int) -> bool:
    """Whether the manifest has one line for every unit, and all are there."""
    found = figures(out)
    return len(found) == number and Counter(line["unit"] for line in lines(out)) == Counter(found.keys())


@needs("distributed")
@pytest.mark.filterwarnings("ignore")  # Dask's, of a worker that was killed
def test_dask_does_every_unit_once_though_a_worker_is_killed(tmp_path):
    from distributed import Client, LocalCluster

    study, out = written(tmp_path, LONGER), tmp_path / "out"
    last = Planner(study, cases(study, {})).test({})[-1]
    store = Store(out)
    store.create()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))
        # Its case cannot be kept, and the study not end, before the worker is dead.
        held = FileLock(out / "locks" / f"cases-{last.truth}.lock", thread_local=False)
        held.acquire()
        killer = threading.Thread(target=kill_when_units_are_there, args=(victim, out, held))
        killer.start()
        found = run_study(study, out, resume=True, engine=Engine("dask", 2, cluster.scheduler_address))
        killer.join()
    assert found.whole
    assert each_done_once(out, 12)


def kill_when_units_are_there(pid: int, out: Path, held: FileLock) -> None:
    """Kill a process in the middle of the study, then release what holds the study up."""
    while sum(1 for _ in out.glob("units/*/unit.json")) < 2:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    held.release()


@needs("distributed")
@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_does_not_answer_is_said(tmp_path):
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(BackendError, match="answers"),
    ):
        run_study(written(tmp_path, SMALL), tmp_path / "out", engine=Engine("dask", 2, "tcp://127.0.0.1:9"))


@needs("submitit")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    shutil.which("sbatch") is not None, reason="there is a real Slurm; this is the local executor"
)
def test_submitit_does_every_unit_once(tmp_path):
    study, out = written(tmp_path, SMALL), tmp_path / "out"
    assert run_study(study, out, engine=Engine("slurm", 2, slurm={"timeout_min": 600})).whole
    assert each_done_once(out, 6)
    assert not list(out.glob(".slurm*"))  # pickles, with paths in them
    with pytest.raises(UsageError, match="partitions"):
        run_study(study, tmp_path / "other", engine=Engine("slurm", 2, slurm={"partitions": "gpu"}))


@needs("snakemake")
def test_snakemake_runs_the_shards(tmp_path):
    written(tmp_path, SMALL)
    snakefile = files("ctflow.experiments") / "examples" / "Snakefile"
    settings = ["study=small.toml", "out=out", "shards=2"]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(snakefile),
        "--cores",
        "1",
        "--config",
        *settings,
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, capture_output=True)
    assert each_done_once(tmp_path / "out", 6)


@pytest.mark.skipif(shutil.which("nextflow") is None, reason="nextflow is not installed")
def test_nextflow_runs_the_shards(tmp_path):
    written(tmp_path, SMALL)
    script = files("ctflow.experiments") / "examples" / "main.nf"
    options = ["--study", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--shards", "2"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["nextflow", "run", str(script), *options]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, capture_output=True)
    assert each_done_once(tmp_path / "out", 6)
