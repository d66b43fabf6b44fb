"""A run spread over workers gives the pixels of one process, though a worker is killed."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import BackendError, UsageError
from ctflow.runs import reconstruction, spread
from ctflow.runs import run as pipeline
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.spread import Portion, Solved, solve_portion
from ctflow.system.executors import Engine
from tests.system.test_executors import SPREADING

PROTOCOL = Protocol.parse(
    "small",
    """# A small one.
geometry = { name = "fan-beam", angles = 30 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "ddnm", steps = 4 }
beside = [{ name = "tv", iterations = 5 }]
reference = { name = "fbp" }
""",
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Of this process and of workers: how many there are changes the rounding of a network."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_at_once(monkeypatch):
    """Two slices of 64² are solved together, with two samples each."""
    monkeypatch.setattr(reconstruction, "_LANES", 1)
    monkeypatch.setattr(reconstruction, "_FEW_PIXELS", 2 * 2 * 64 * 64)


def dying_once(folder: Path, portion: Portion) -> Solved:
    """Solve a portion; the first worker that comes to the last slices kills itself."""
    if portion.start == 4 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return solve_portion(portion)


def done(out: Path | None = None, **options):
    """The whole report on five slices, and how far it said it was."""
    told: list[tuple[float, str]] = []
    report = pipeline.run(
        PROTOCOL,
        toy_volume(7, 64),
        out,
        slices=(2, 7),
        seed=3,
        samples=2,
        progress=lambda fraction, name: told.append((fraction, name)),
        **options,
    )
    return report, told


@pytest.mark.parametrize("engine", SPREADING)
def test_the_pixels_are_those_of_one_process(engine, two_at_once, tmp_path):
    (alone, _), (spread_out, told) = done(), done(tmp_path / "out", engine=engine)
    assert list(spread_out.volumes) == list(alone.volumes)
    for name, volume in alone.volumes.items():
        assert torch.equal(spread_out.volumes[name].data, volume.data)
    assert torch.equal(spread_out.spreads["ddnm"].data, alone.spreads["ddnm"].data)
    for name, figures in alone.figures["methods"].items():
        found = spread_out.figures["methods"][name]
        assert {k: found[k] for k in found if "seconds" not in k} == {
            k: figures[k] for k in figures if "seconds" not in k
        }
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert told[-1][0] == pytest.approx(1)
    assert {name for _, name in told} == {"fbp", "tv", "ddnm"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_portion_of_a_killed_worker_is_done_again(two_at_once, monkeypatch, tmp_path):
    alone, _ = done()
    monkeypatch.setattr(spread, "solve_portion", partial(dying_once, tmp_path))
    again, _ = done(engine=Engine(jobs=2))
    assert (tmp_path / "died").exists()
    for name, volume in alone.volumes.items():
        assert torch.equal(again.volumes[name].data, volume.data)


@pytest.mark.parametrize(
    ("name", "reason"), [("cbct-60", "rays of its ConeBeam cross"), ("helical-120", "HelicalBeam cross")]
)
def test_what_is_solved_as_a_volume_is_not_spread(name, reason):
    for call in (pipeline.run, pipeline.plan):
        with pytest.raises(UsageError, match=f"{reason} slices.*leave out --executor"):
            call(Protocol.load(name), toy_volume(8, 32), engine=Engine(jobs=2))
    coupled = Protocol.load("sparse-view-60").override(["coupling=0.5"])
    with pytest.raises(UsageError, match="its coupling joins"):
        pipeline.run(coupled, toy_volume(8, 32), engine=Engine("dask", 2))


def test_a_worker_with_other_software_or_another_prior_refuses(two_at_once):
    measurement = prepare(PROTOCOL, toy_volume(2, 64))
    problem, methods = measurement.problem(0), PROTOCOL.methods()
    code = {"ctflow": "0.0.1"}
    for changed, match in (({"code": code}, "other software"), ({"prior_sha256": "0" * 64}, "SHA-256")):
        task = spread.Task(
            PROTOCOL,
            measurement.unknown,
            1.0,
            **{"prior": "ct-256", "prior_sha256": "", **changed},
            samples=1,
            device="cpu",
        )
        portion = spread._portions(measurement, problem, methods, task, 0)[-1]
        with pytest.raises(BackendError, match=match):
            solve_portion(portion)
