"""Executors do every portion, whatever befalls a worker, and raise what the work raised."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest

from ctflow.errors import ProtocolError, SeriesError, UsageError, WorkerDiedError
from ctflow.registry import importing, imports_allowed
from ctflow.system.executors import Engine

SPREADING = [
    Engine(jobs=2),
    pytest.param(
        Engine("dask", 2),
        marks=[
            pytest.mark.skipif(
                importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
            ),
            pytest.mark.filterwarnings("ignore"),  # its own, of a worker that was killed
        ],
    ),
    pytest.param(
        Engine("slurm", 2, slurm={"timeout_min": 600}),
        marks=[
            pytest.mark.skipif(
                importlib.util.find_spec("submitit") is None or shutil.which("sbatch") is not None,
                reason="submitit is not installed, or there is a real Slurm",
            ),
            pytest.mark.filterwarnings("ignore"),
        ],
    ),
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize(
    ("engine", "threads"),
    [
        (Engine(jobs=1), None),
        (Engine(jobs=2), 4),
        (Engine(jobs=3), 2),
        (Engine(jobs=20), 1),
        (Engine("dask", 2), 4),
        (Engine("dask", 2, "tcp://host:1"), None),
        (Engine("slurm", 2), None),
    ],
)
def test_workers_of_one_machine_share_its_cores(engine, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert engine.threads == threads


def dying_once(portion: tuple[Path, int]) -> int:
    """The square of a number; one worker kills itself, the first that finds no note of it."""
    folder, number = portion
    if number == 3:
        try:
            (folder / "died").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("engine", [*SPREADING[:1], *SPREADING[2:]])  # Dask's scheduler does this itself
def test_the_portion_of_a_killed_worker_is_done_again(engine, tmp_path):
    portions = [(tmp_path, number) for number in range(8)]
    assert sorted(engine.run(dying_once, portions, again=1)) == [number**2 for number in range(8)]
    assert (tmp_path / "died").exists()


def dying(number: int) -> int:
    """Kill the worker, whoever it is."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_workers_that_die_one_after_the_other_are_said():
    with pytest.raises(WorkerDiedError, match="a process died"):
        list(Engine(jobs=2).run(dying, range(4), again=1))


def refusing(number: int) -> int:
    """Raise errors with and without arguments of their own."""
    raise SeriesError(["slices lack"], "send all") if number else ProtocolError(f"{imports_allowed()}")


@pytest.mark.parametrize("engine", SPREADING)
def test_what_the_work_raises_is_raised_here(engine, tmp_path):
    with pytest.raises(SeriesError, match="Send all") as caught:
        list(engine.run(refusing, [1], tmp_path))
    assert caught.value.reasons == ["slices lack"]
    with importing(True), pytest.raises(ProtocolError, match="True"):
        list(engine.run(refusing, [0], tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_executor_is_refused():
    with pytest.raises(UsageError, match="did you mean 'slurm'"):
        Engine("slrum")
    with pytest.raises(UsageError, match="--executor dask"):
        Engine("processes", 2, "tcp://host:1")
