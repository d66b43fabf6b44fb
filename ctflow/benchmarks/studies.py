"""What a study costs beyond its computing, and what a second worker saves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numba
import torch

from ctflow.benchmarks.bars import Bar, Figure, Findings, Row
from ctflow.datasets.synthetic import toy_volume
from ctflow.experiments import Study, run_study
from ctflow.experiments.executors import Engine
from ctflow.runs.preparation import prepare
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import build_method
from ctflow.system.files import scratch
from ctflow.system.progress import Progress

_TEXT = """# A second of work for every case.
protocols = ["sparse-view-60"]
cases = [{ phantoms = %s, size = 128, slices = 1 }]
[methods.fbp]
[methods.sirt]
iterations = 600
"""


def measure(quick: bool = False, progress: Progress = lambda fraction, what: None) -> Findings:
    """Overhead over a bare loop in processor time, and two processes against one in wall time.

    Args:
        quick: 8 units in place of 40.
        progress: told the fraction that is done and what comes next.
    """
    cases = 4 if quick else 20
    with scratch() as out:
        study = Study.parse("bench", _TEXT % list(range(cases)), out)
        progress(0.0, "bare loop")
        _bare(study, 1)  # what is loaded and compiled once counts for neither
        started = time.process_time()
        _bare(study, cases)
        bare = time.process_time() - started
        progress(0.3, "one worker")
        alone = _run(study, out / "one", 1)
        progress(0.5, "one worker, one thread")
        with _one_thread():
            single = _run(study, out / "single", 1)
        progress(0.8, "two workers")
        shared = _run(study, out / "two", 2)
    rows: list[Row | Figure] = [
        Figure("bare loop", bare, "s of processor time"),
        Figure("study without its report", alone.processor, "s of processor time"),
        Figure("one worker on all cores", alone.wall, "s"),
        Figure("one worker on one thread", single.wall, "s"),
        Figure("two workers on two cores", shared.wall, "s"),
    ]
    bars = [
        Bar(f"overhead, {2 * cases} units", alone.processor / bare - 1, 0.05, at_most=True),
        Bar("two workers over one, one thread each", shared.wall / single.wall, 0.6, at_most=True),
    ]
    return Findings(bars, rows)


@dataclass
class _Clock:
    """Seconds until the last unit has ended; the report, which comes then, is no part of the loop."""

    wall: float = 0.0
    processor: float = 0.0


def _run(study: Study, out: Path, jobs: int) -> _Clock:
    clock, wall, processor = _Clock(), time.perf_counter(), time.process_time()

    def lap(fraction: float, stage: str) -> None:
        clock.wall, clock.processor = time.perf_counter() - wall, time.process_time() - processor

    run_study(study, out, engine=Engine(jobs=jobs), progress=lap)
    return clock


@contextmanager
def _one_thread() -> Iterator[None]:
    """What a worker of several has: no method spreads over the cores by itself."""
    threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        numba.set_num_threads(threads[1])


def _bare(study: Study, cases: int) -> None:
    """What the study computes, in a plain loop that keeps nothing."""
    methods = [build_method(method.table) for method in study.methods.values()]
    for seed in range(cases):
        measurement = prepare(study.protocols["sparse-view-60"], toy_volume(1, 128, seed))
        problem = measurement.problem(0)
        for method in methods:
            reconstruct(measurement, problem, method)
