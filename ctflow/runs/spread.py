"""A run's slices spread over workers: what travels to them, and what comes back."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.errors import BackendError, UsageError
from ctflow.operators import LinearOperator
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.runs.measurement import Measurement, loaded_prior, slice_seed
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import Images, Reconstruction, evaluated, solve_all, solves_at_once
from ctflow.runs.unknown import Unknown
from ctflow.solving import Method
from ctflow.system.devices import available_device
from ctflow.system.executors import Engine
from ctflow.system.progress import Progress
from ctflow.system.version import changes, software

_DEATHS = 2  # of workers in a row that end nothing; a third one says that memory is short

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Task:
    """What all portions of a run share; a worker builds operator and prior from it, once.

    Args:
        protocol: says operator, noise and methods.
        unknown: what one solve is for.
        spacing: pixel spacing, mm.
        prior: name or file of the flow prior; "" where no method needs one.
        prior_sha256: hash of its weights.
        samples: images that a random method draws.
        device: where the methods run.
        code: versions of ctflow and of the libraries of the process that gave the task.
    """

    protocol: Protocol
    unknown: Unknown
    spacing: float
    prior: str
    prior_sha256: str
    samples: int
    device: str
    code: dict[str, str] = field(default_factory=software)

    @cached_property
    def A(self) -> LinearOperator:
        """Operator of one solve."""
        return self.protocol.operator(self.unknown.grid, self.unknown.beam)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """By name."""
        return self.protocol.methods()

    @cached_property
    def flow_prior(self) -> Prior:
        """The prior, on the device.

        Raises:
            BackendError: the worker's file is another than that of the process that gave the task.
        """
        prior = loaded_prior(self.protocol, self.prior, self.spacing, self.device)
        if prior.sha256 != self.prior_sha256:
            raise BackendError(
                f"a worker's file of the prior has SHA-256 {prior.sha256[:12]} and this process's has "
                f"{self.prior_sha256[:12]}; give both the same file"
            )
        return prior


@dataclass(frozen=True)
class Portion:
    """Some slices for one method; it can be pickled.

    Args:
        task: the run's `Task`, pickled, so that a worker knows it again.
        method: name of the method.
        start: number of the first slice among those of the run.
        seeds: of every slice.
        y: data (slices, *range of one), dimensionless for CT.
        W: their weights, as those of a problem.
    """

    task: bytes
    method: str
    start: int
    seeds: list[int]
    y: Array
    W: Array


@dataclass(frozen=True)
class Solved:
    """What came of a portion: `Images` as arrays, which every executor carries.

    Args:
        method: name of the method.
        start: number of the first slice among those of the run.
        mean: over the samples, (slices, *A.domain_shape), 1/mm.
        deviation: standard deviation over the samples, like `mean`; None for a single one.
        cost: counts and seconds in all, mean residual per datum.
        peak_memory_bytes: memory held at most by the worker beyond what it held before.
    """

    method: str
    start: int
    mean: Array
    deviation: Array | None
    cost: dict[str, float]
    peak_memory_bytes: float

    def images(self, device: torch.device) -> Images:
        """The same as tensors, the mean on a device, 1/mm, shaped as the arrays."""
        deviation = None if self.deviation is None else torch.tensor(self.deviation)
        return Images(torch.tensor(self.mean, device=device), deviation, self.cost, self.peak_memory_bytes)


def solve_portion(portion: Portion) -> Solved:
    """Solve the slices of a portion, in whichever process this is.

    Raises:
        BackendError: other software, another prior or another device is here than where the run began.
    """
    task = _task(portion.task)
    if changed := changes(task.code, software()):
        raise BackendError(
            f"a worker has other software than this process: {changed}; install the same on both"
        )
    device, method = available_device(task.device), task.methods[portion.method]
    y, W = (torch.tensor(values, device=device) for values in (portion.y, portion.W))
    found = solve_all(
        InverseProblem(task.A, y, task.protocol.noise(), W),
        method,
        task.flow_prior if method.needs_prior else None,
        samples=task.samples,
        seeds=portion.seeds,
    )
    deviation = None if found.deviation is None else found.deviation.numpy()
    mean = found.mean.cpu().numpy()
    return Solved(portion.method, portion.start, mean, deviation, found.cost, found.peak_memory_bytes)


@lru_cache(maxsize=1)
def _task(pickled: bytes) -> Task:
    """The task of the last portions, with its operator and its prior."""
    task = pickle.loads(pickled)
    assert isinstance(task, Task)
    return task


def refuse_volume(measurement: Measurement, engine: Engine) -> None:
    """Refuse to spread what is solved for as one volume.

    Raises:
        UsageError: rays, or the protocol's coupling, join the slices.
    """
    slices = measurement.unknown.grid.shape[0]
    if engine.here or slices == 1:
        return
    beam = measurement.unknown.beam
    why = "its coupling joins" if beam is None or beam.flat else f"rays of its {type(beam).__name__} cross"
    raise UsageError(
        f"protocol '{measurement.protocol.name}' is solved for as one volume of {slices} slices, since {why} "
        "slices, and one volume cannot be spread over workers; leave out --executor and --jobs, or take a "
        "protocol of fans or parallel beams without coupling"
    )


def reconstruct_spread(
    measurement: Measurement,
    problem: InverseProblem,
    methods: Mapping[str, Method],
    prior: tuple[str, Prior | None],
    engine: Engine,
    *,
    samples: int,
    seed: int,
    shared: Path | None,
    progress: Progress,
) -> dict[str, Reconstruction]:
    """Solve all slices with every method on the workers of an engine; the same images as in one process.

    A portion is what one process solves together, so that a batch's rounding is the same too. The portion of
    a worker that dies is done again.

    Args:
        measurement: what was measured, slice by slice.
        problem: its data, as of `Measurement.problem`.
        methods: by name.
        prior: name or file of the flow prior, and the prior, None where no method needs one.
        engine: where the methods run.
        samples: images that a random method draws; their mean is evaluated.
        seed: of the methods.
        shared: a folder that all workers see.
        progress: called as progress(fraction, method).

    Returns:
        Images and figures by method, HU.

    Raises:
        WorkerDiedError: workers died one after the other.
        BackendError: no executor, or a worker has other software.
    """
    name, loaded = prior
    task = Task(
        measurement.protocol,
        measurement.unknown,
        measurement.grid.spacing[2],
        "" if loaded is None else _absolute(name),
        "" if loaded is None else loaded.sha256,
        samples,
        measurement.device,
    )
    portions = _portions(measurement, problem, methods, task, seed)
    found: dict[str, list[Solved]] = {method: [] for method in methods}
    slices, done = measurement.solves * len(methods), 0
    for solved in engine.run(solve_portion, portions, shared, again=_DEATHS):
        found[solved.method].append(solved)
        done += len(solved.mean)
        progress(done / slices, solved.method)
    device = problem.y.device
    return {
        method: evaluated(
            measurement,
            Images.joined([one.images(device) for one in sorted(parts, key=lambda one: one.start)]),
        )
        for method, parts in found.items()
    }


def _absolute(name: str) -> str:
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


def _portions(
    measurement: Measurement, problem: InverseProblem, methods: Mapping[str, Method], task: Task, seed: int
) -> list[Portion]:
    pickled, first = pickle.dumps(task), measurement.first
    data = InverseProblem(problem.A, problem.y.cpu(), problem.noise, problem.W.cpu())
    portions = []
    for name, method in methods.items():
        size = solves_at_once(problem, method, task.samples)
        for start in range(0, measurement.solves, size):
            part = data.part(slice(start, start + size))
            seeds = [slice_seed(seed, first + start + k) for k in range(len(part.y))]
            portions.append(Portion(pickled, name, start, seeds, part.y.numpy(), part.W.numpy()))
    return portions
