"""Where portions of work are done: in this process, processes beside it, Dask workers, or Slurm jobs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import numba
import torch

from ctflow.errors import BackendError, CTFlowError, UsageError, WorkerDiedError, suggestion
from ctflow.registry import importing, imports_allowed
from ctflow.system.files import scratch
from ctflow.system.optional import optional_library

logger = logging.getLogger(__name__)

EXECUTORS = ("processes", "dask", "slurm")

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Engine:
    """Which executor does the work; by default this process.

    Args:
        name: "processes", "dask" or "slurm".
        jobs: workers: processes, workers of a local Dask cluster, or Slurm jobs at a time.
        scheduler: address of a Dask scheduler; a local cluster where there is none.
        slurm: parameters of the Slurm job, as submitit names them.

    Raises:
        UsageError: there is no such executor, or another than Dask is given a scheduler.
    """

    name: str = "processes"
    jobs: int = 1
    scheduler: str | None = None
    slurm: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise UsageError(f"there is no executor '{self.name}'; {suggestion(self.name, EXECUTORS)}")
        if self.scheduler is not None and self.name != "dask":
            raise UsageError(f"a scheduler is Dask's and the executor is {self.name}; give --executor dask")

    def __str__(self) -> str:
        if self.here:
            return "this process"
        what = {"processes": "processes", "dask": "Dask workers", "slurm": "Slurm jobs"}[self.name]
        return f"workers of {self.scheduler}" if self.scheduler else f"{self.jobs} {what}"

    @property
    def here(self) -> bool:
        """Whether this process does everything."""
        return self.name == "processes" and self.jobs == 1

    @property
    def threads(self) -> int | None:
        """Threads of a worker on this machine; None where another one decides."""
        beside = self.name == "processes" or (self.name == "dask" and self.scheduler is None)
        return max(1, len(os.sched_getaffinity(0)) // self.jobs) if beside and self.jobs > 1 else None

    def run(
        self, work: Callable[[P], R], portions: Sequence[P], shared: Path | None = None, *, again: int = 0
    ) -> Iterator[R]:
        """Outcomes of the portions, in the order in which they end.

        Args:
            work: does one portion; a function that workers import by its name.
            portions: what to do; workers get pickles, a few at a time on this machine.
            shared: a folder that Slurm's jobs see too; that of temporary files by default.
            again: how many deaths of workers in a row are borne, with no portion ended between them; the
                portions of the dead are done again.

        Raises:
            CTFlowError: what the work raised, as in one process.
            BackendError: the executor's package is not installed, or no scheduler answers.
            UsageError: submitit knows no such parameter of a Slurm job.
            WorkerDiedError: a worker died and nobody took over.
        """
        if self.here:
            yield from map(work, portions)
            return
        task = partial(_done, work, self.threads, imports_allowed())
        left, deaths = dict(enumerate(portions)), 0
        while left:
            try:
                with closing(self._ended(task, dict(left), shared)) as ended:
                    for number, outcome in ended:
                        if isinstance(outcome, CTFlowError):
                            raise outcome
                        del left[number]
                        deaths = 0
                        yield outcome
            except WorkerDiedError as error:
                deaths += 1
                if deaths > again:
                    raise
                logger.warning("%s; what it had not done is done again", error)

    def _ended(
        self, task: Callable[[P], R | CTFlowError], left: dict[int, P], shared: Path | None
    ) -> Generator[tuple[int, R | CTFlowError], None, None]:
        if self.name == "dask":
            return _dask(task, left, self)
        if self.name == "slurm":
            return _slurm(task, left, self, shared)
        return _processes(task, left, self.jobs)


def _done(work: Callable[[P], R], threads: int | None, imports: bool, portion: P) -> R | CTFlowError:
    """Do a portion in a worker; an error is returned, for not every executor carries one that is raised."""
    if threads is not None:
        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.get_num_threads()))
    try:
        with importing(imports):
            return work(portion)
    except CTFlowError as error:
        return error


def _processes(task: Callable[[P], R], left: dict[int, P], jobs: int) -> Generator[tuple[int, R], None, None]:
    spawn = multiprocessing.get_context("spawn")  # torch and ASTRA do not survive a fork
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(jobs, len(left)), spawn, initializer=_obey_parent) as pool:
        try:
            waiting = {pool.submit(task, portion): number for number, portion in left.items()}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except (BrokenProcessPool, KeyboardInterrupt, GeneratorExit) as reason:
            # Nobody waits for what is at work; a pool that breaks while it starts leaves its last worker.
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


def _dask(task: Callable[[P], R], left: dict[int, P], engine: Engine) -> Generator[tuple[int, R], None, None]:
    with optional_library("distributed", "pip install 'ctflow[dask]'"):
        from dask import config  # pyright: ignore[reportMissingImports] (it need not be here)
        from distributed import (  # pyright: ignore[reportMissingImports] (as above)
            Client,
            KilledWorker,
            LocalCluster,
            as_completed,
        )
    # Its advice against large portions is to load the data elsewhere, and nobody else has them.
    quiet = config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    with quiet, ExitStack() as stack:
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
        waiting, numbers, ended = iter(left.items()), dict[object, int](), as_completed()

        def give(most: int) -> None:
            for number, portion in islice(waiting, most):
                # Not pure: a portion that was done for another run may have work to do in this one.
                future = client.submit(task, portion, pure=False)
                numbers[future.key] = number
                ended.add(future)

        # The scheduler of a local cluster is in this process, and would hold a copy of all.
        give(len(left) if engine.scheduler else 2 * engine.jobs)
        try:
            for future in ended:
                outcome = future.result()
                give(1)
                yield numbers.pop(future.key), outcome
        except KilledWorker as error:
            raise _died("Dask worker") from error


def _slurm(
    task: Callable[[P], R], left: dict[int, P], engine: Engine, shared: Path | None
) -> Generator[tuple[int, R], None, None]:
    with optional_library("submitit", "pip install 'ctflow[slurm]'"):
        import submitit  # pyright: ignore[reportMissingImports] (it need not be here)
        from submitit.core import utils  # pyright: ignore[reportMissingImports] (as above)
    with scratch(shared) as folder:
        executor = submitit.AutoExecutor(folder=folder)  # without sbatch: processes of this machine
        try:
            executor.update_parameters(name="ctflow", **engine.slurm)
        except (AssertionError, TypeError, NameError) as error:
            raise UsageError(f"parameters of the Slurm job: {error}") from error
        portions = list(left.items())
        shares = [portions[k :: engine.jobs] for k in range(min(engine.jobs, len(portions)))]
        jobs = executor.map_array(partial(_each, task), shares)
        died = None
        try:
            for job in submitit.helpers.as_completed(jobs, poll_frequency=1):
                try:
                    outcomes = job.result()
                except utils.FailedJobError:
                    raise  # the work's own
                except utils.UncompletedJobError as error:
                    died = error  # the others go on
                else:
                    yield from outcomes
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()
        if died is not None:
            raise _died("Slurm job") from died


def _each(task: Callable[[P], R], share: list[tuple[int, P]]) -> list[tuple[int, R]]:
    return [(number, task(portion)) for number, portion in share]


def _died(worker: str) -> WorkerDiedError:
    return WorkerDiedError(f"a {worker} died before its work was done (killed, or out of memory)")
