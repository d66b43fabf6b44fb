"""Where portions of the units run: this process, processes beside it, Dask workers, or Slurm jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

from ctflow.errors import BackendError, StudyError, StudyUnfinishedError
from ctflow.experiments.worker import Portion, run_portion
from ctflow.system.files import scratch
from ctflow.system.optional import optional_library

EXECUTORS = ("processes", "dask", "slurm")


@dataclass(frozen=True)
class Engine:
    """Which executor does the units.

    Args:
        name: "processes", "dask" or "slurm".
        jobs: workers: processes, workers of a local Dask cluster, or Slurm jobs at a time.
        scheduler: address of a Dask scheduler; a local cluster where there is none.
        slurm: parameters of the Slurm job, as submitit names them.
    """

    name: str = "processes"
    jobs: int = 1
    scheduler: str | None = None
    slurm: dict[str, object] = field(default_factory=dict)

    @property
    def threads(self) -> int | None:
        """Threads of a worker on this machine; None where another one decides."""
        here = self.name == "processes" or (self.name == "dask" and self.scheduler is None)
        return max(1, len(os.sched_getaffinity(0)) // self.jobs) if here and self.jobs > 1 else None

    def run(self, portions: Sequence[Portion]) -> Iterator[dict[str, str]]:
        """Outcomes of the portions, in the order in which they end.

        Raises:
            BackendError: the executor's package is not installed, or no scheduler answers.
            StudyError: submitit knows no such parameter of a Slurm job.
            StudyUnfinishedError: a worker died and nobody took over.
            OutputError: the study's folder cannot be written.
        """
        if not portions:
            return iter(())
        if self.name == "dask":
            return _dask(portions, self)
        if self.name == "slurm":
            return _slurm(portions, self)
        return map(run_portion, portions) if self.jobs == 1 else _processes(portions, self.jobs)


def _processes(portions: Sequence[Portion], jobs: int) -> Iterator[dict[str, str]]:
    spawn = multiprocessing.get_context("spawn")  # torch and ASTRA do not survive a fork
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(jobs, len(portions)), spawn, initializer=_obey_parent) as pool:
        try:
            left = {pool.submit(run_portion, portion) for portion in portions}
            while left:
                ended, left = wait(left, return_when=FIRST_COMPLETED)
                yield from [future.result() for future in ended]
        except (BrokenProcessPool, KeyboardInterrupt, GeneratorExit) as reason:
            # Nobody waits for the units at work; a pool that breaks while it starts leaves its last worker.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(reason, BrokenProcessPool):
                raise _died("process") from reason
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _obey_parent() -> None:
    """Leave it to the parent when to stop, and let no worker outlive a parent that was killed."""
    for request in (signal.SIGINT, signal.SIGHUP):  # sent to the whole group of processes
        signal.signal(request, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _dask(portions: Sequence[Portion], engine: Engine) -> Iterator[dict[str, str]]:
    with optional_library("distributed", "pip install 'ctflow[dask]'"):
        from distributed import (  # pyright: ignore[reportMissingImports] (it need not be here)
            Client,
            KilledWorker,
            LocalCluster,
            as_completed,
        )
    with ExitStack() as stack:
        try:
            # A cast: the annotation of dashboard_address knows no None, which means none.
            cluster = cast("Callable[..., LocalCluster]", LocalCluster)
            address = engine.scheduler or stack.enter_context(
                cluster(n_workers=engine.jobs, threads_per_worker=1, dashboard_address=None)
            )
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise BackendError(
                f"no Dask scheduler answers at {engine.scheduler}; start one, or check it"
            ) from error
        try:
            # Not pure: a portion that was done for another run may have units to do in this one.
            for future in as_completed(client.map(run_portion, portions, pure=False)):
                yield future.result()
        except KilledWorker as error:
            raise _died("Dask worker") from error


def _slurm(portions: Sequence[Portion], engine: Engine) -> Iterator[dict[str, str]]:
    with optional_library("submitit", "pip install 'ctflow[slurm]'"):
        import submitit  # pyright: ignore[reportMissingImports] (it need not be here)
        from submitit.core import utils  # pyright: ignore[reportMissingImports] (as above)
    with scratch(portions[0].out) as folder:
        executor = submitit.AutoExecutor(folder=folder)  # without sbatch: processes of this machine
        try:
            executor.update_parameters(name="ctflow", **engine.slurm)
        except (AssertionError, TypeError, NameError) as error:
            raise StudyError(f"[slurm]: {error}") from error
        shared = [portions[k :: engine.jobs] for k in range(min(engine.jobs, len(portions)))]
        jobs = executor.map_array(_run_portions, shared)
        died = None
        try:
            for job in submitit.helpers.as_completed(jobs, poll_frequency=1):
                try:
                    yield job.result()
                except (utils.UncompletedJobError, utils.FailedJobError) as error:
                    died = error  # the others go on
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()
        if died is not None:
            raise _died("Slurm job") from died


def _run_portions(portions: Sequence[Portion]) -> dict[str, str]:
    return {unit: status for portion in portions for unit, status in run_portion(portion).items()}


def _died(worker: str) -> StudyUnfinishedError:
    return StudyUnfinishedError(
        f"a {worker} died before its units were done (killed, or out of memory); those that are done are "
        "kept: go on with --resume, with fewer --jobs if memory was short"
    )
