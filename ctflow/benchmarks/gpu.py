"""A GPU against the CPU in five minutes: adjoints, agreement of backends, every method, times, memory.

Everything is computed from phantoms, and only figures, versions and the hardware's name are kept: what is
found on a machine that a developer does not have can be sent to them.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctflow.benchmarks.bars import Bar, Figure, Findings, interleaved
from ctflow.datasets.phantoms import thorax
from ctflow.errors import GeometryError
from ctflow.geometry import Beam, ConeBeam, FanBeam, HelicalBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Poisson
from ctflow.operators import Radon
from ctflow.priors import FlowPrior, Prior
from ctflow.problem import InverseProblem, simulate
from ctflow.registry import build, names
from ctflow.solving import Method, Solution, solve
from ctflow.system.devices import available_device, device_name
from ctflow.system.memory import peak_memory
from ctflow.system.optional import installed
from ctflow.system.progress import Progress
from ctflow.testing import adjoint_gap
from ctflow.testing._finding import white_noise

_SECONDS = 240.0  # after which nothing is begun, so that the last check ends within five minutes
_GRID = VolumeGeometry((4, 48, 40), (2.0, 1.7, 1.7))
_SIDE = 64  # pixels of the slice that every method reconstructs
_SPEEDS = ((60, 1), (60, 8), (60, 32), (720, 8))  # views and slices at 512²
_BEAMS: dict[str, Beam] = {
    "parallel": ParallelBeam(30),
    "fan": FanBeam(30, source_axis=150.0, source_detector=250.0),
    "curved fan": FanBeam(30, source_axis=150.0, source_detector=250.0, curved=True),
    "cone": ConeBeam(12),
    "helical": HelicalBeam(12),
}
# Rounding of float32 in another order; a network's convolutions are TF32 on recent GPUs, and a method of many
# steps carries that on.
_GAP, _AGREE, _SAME = 1e-6, 1e-5, 2e-2


@dataclass(frozen=True)
class Comparison:
    """A method on the CPU and on the device.

    Args:
        name: the method.
        difference: norm of the images' difference over that of the image, dimensionless.
        cpu_seconds: time on the CPU.
        seconds: time on the device, in a second run.
        peak_mib: memory that the device held at most beyond what it held before, MiB; NaN if unknown.
    """

    name: str
    difference: float
    cpu_seconds: float
    seconds: float
    peak_mib: float

    def __str__(self) -> str:
        times = f"{self.cpu_seconds:8.2f} s on the CPU {self.seconds:8.2f} s here {self.peak_mib:8.1f} MiB"
        return f"{self.name:<24} {times}   off by {self.difference:.2g}"


@dataclass(frozen=True)
class Failure:
    """A check that could not be made.

    Args:
        name: the check.
        reason: the error's class and first line, without folders; or that there was no time.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name:<58} {self.reason}"


def examine(device: str, progress: Progress) -> Findings:
    """Compare a device with the CPU. What fails is a row of the findings, and the next check is made.

    Args:
        device: "cuda" or "cuda:1"; "cpu" compares the CPU with itself.
        progress: told the fraction that is done and what comes next.

    Raises:
        BackendError: this machine does not have the device.
    """
    chosen, found = available_device(device), Findings()
    end = time.monotonic() + _SECONDS
    checks = [*_projections(chosen), *_speeds(chosen), *_methods(chosen)]
    for number, (name, check) in enumerate(checks):
        progress(number / len(checks), name)
        if time.monotonic() > end:
            found.rows.append(Failure(name, "not reached in time"))
            continue
        try:
            check(found)
        except Exception as error:  # whatever a driver or a library raises is what is looked for
            found.rows.append(Failure(name, without_folders(error)))
    progress(1.0, "done")
    return found


def hardware(device: str) -> dict[str, Any]:
    """Name, memory and CUDA of a device, for the findings."""
    chosen = torch.device(device)
    told: dict[str, Any] = {"name": device_name(device), "cuda": torch.version.cuda}
    if chosen.type == "cuda":
        of = torch.cuda.get_device_properties(chosen)
        told |= {"memory_gib": of.total_memory / 2**30, "capability": f"{of.major}.{of.minor}"}
        told |= {"gpus": torch.cuda.device_count(), "warp": installed("warp")}
    return told


def without_folders(error: Exception) -> str:
    """An error in a line that names neither a user nor a folder, as its message may."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    quoted = re.sub(r"""(['"])[^'"]*[/\\][^'"]*\1""", "a file", text.replace(str(Path.home()), "~"))
    return re.sub(r"[^\s'\"(]*[/\\]", "", quoted)[:200]


Check = Callable[[Findings], None]


def _projections(device: torch.device) -> Iterator[tuple[str, Check]]:
    """Adjoint gaps of every backend on both devices, and how far each is from the compiled one on the CPU."""
    places = dict.fromkeys([torch.device("cpu"), device])
    for beam_name, beam in _BEAMS.items():
        for place in places:
            for backend in _backends(beam, place):
                name = f"{beam_name} beam, {backend} on {place.type}"
                yield name, partial(_projected, name, beam, backend, place)


def _backends(beam: Beam, place: torch.device) -> list[str]:
    found = ["torch", *(["warp"] if installed("warp") else []), *(["matrix"] if beam.flat else [])]
    cpu = place.type == "cpu"
    return [*found, *(["joseph"] if cpu else []), *(["astra"] if beam.flat or not cpu else [])]


def _projected(name: str, beam: Beam, backend: str, place: torch.device, found: Findings) -> None:
    A, reference = Radon(_GRID, beam, backend).to(place), Radon(_GRID, beam, "joseph")
    x, y = white_noise(A.domain_shape, 2), white_noise(A.range_shape, 2)
    gap = adjoint_gap(A)
    apart = [_apart(A(x.to(place)), reference(x)), _apart(A.T(y.to(place)), reference.T(y))]
    if backend == "astra":  # other weights in fans, and on a GPU no exact transpose: it is told, and no bar
        found.rows.append(Figure(f"adjoint gap: {name}", gap, "of |A x| |y|"))
        found.rows.append(Figure(f"off joseph: {name}", max(apart), "of the norm"))
        return
    found.bars.append(Bar(f"adjoint gap: {name}", gap, _GAP, at_most=True))
    found.bars.append(Bar(f"off joseph: {name}", max(apart), _AGREE, at_most=True))


def _apart(found: Tensor, reference: Tensor) -> float:
    return float((found.cpu() - reference).norm() / reference.norm())


def _methods(device: torch.device) -> Iterator[tuple[str, Check]]:
    problems = list(_problems())
    for name in names("method"):
        yield name, partial(_compared, name, problems, device)


def _problems() -> Iterator[InverseProblem]:
    """A slice of a chest by parallel rays; volumes by a cone and a helix, for methods that invert these."""
    # Views so few that their data have the spectrum that DDRM needs; pixels that the prior knows.
    for slices, beam in ((1, ParallelBeam(10)), (8, ConeBeam(10)), (8, HelicalBeam(10))):
        grid = VolumeGeometry((slices, _SIDE, _SIDE), (2.5, 2.5, 2.5))
        x = thorax().rasterise(grid).data
        yield simulate(Radon(grid, beam, "joseph"), x[None], Poisson(1e5))


def _compared(name: str, problems: list[InverseProblem], device: torch.device, found: Findings) -> None:
    method = build("method", {"name": name})
    assert isinstance(method, Method)
    problem, here = _first_solution(method, problems)
    A = problem.A
    assert isinstance(A, Radon)
    moved = InverseProblem(
        Radon(A.volume, A.beam).to(device), problem.y.to(device), problem.noise, problem.W.to(device)
    )
    prior = _prior(method, A, device)
    solve(moved, method, prior)  # compiles, and fills what is kept
    there = solve(moved, method, prior)
    apart = _apart(there.mean, here.mean)
    cost = here.stats["seconds"], there.stats["seconds"], there.peak_memory_bytes / 2**20
    found.rows.append(Comparison(name, apart, *cost))
    found.bars.append(Bar(f"{name}: {device.type} against cpu", apart, _SAME, at_most=True))


def _first_solution(method: Method, problems: list[InverseProblem]) -> tuple[InverseProblem, Solution]:
    """The first problem whose beam the method inverts, and what it makes of it on the CPU."""
    for problem in problems[:-1]:
        try:
            return problem, solve(problem, method, _prior(method, problem.A, torch.device("cpu")))
        except GeometryError:
            continue
    return problems[-1], solve(problems[-1], method)


def _prior(method: Method, A: object, device: torch.device) -> Prior | None:
    assert isinstance(A, Radon)
    return FlowPrior.load("ct-256", spacing=A.volume.spacing[2]).to(device) if method.needs_prior else None


def _speeds(device: torch.device) -> Iterator[tuple[str, Check]]:
    """Times of projections at 512², beside the bytes that the device moves in a large copy."""
    yield "copy", partial(_copied, device)
    for views, slices in _SPEEDS:
        for backend in (b for b in _backends(ParallelBeam(views), device) if b != "joseph"):
            name = f"{slices} × 512² by {views} views, {backend}"
            yield name, partial(_timed, name, views, slices, backend, device)


def _copied(device: torch.device, found: Findings) -> None:
    x = torch.ones(2**26, device=device)
    seconds = interleaved({"copy": partial(_done, device, x.clone)}, 5)["copy"]
    found.rows.append(Figure("a copy of 256 MiB", 2 * x.nbytes / statistics.median(seconds) / 1e9, "GB/s"))


def _timed(name: str, views: int, slices: int, backend: str, device: torch.device, found: Findings) -> None:
    A = Radon(VolumeGeometry((slices, 512, 512), (1.0, 0.7, 0.7)), ParallelBeam(views), backend)
    x = torch.ones(A.domain_shape, device=device)
    y = A(x)
    A.T(y)
    with peak_memory(device) as held:
        times = interleaved(
            {"forward": partial(_done, device, A, x), "adjoint": partial(_done, device, A.T, y)}, 5
        )
    for way, seconds in times.items():
        found.rows.append(Figure(f"{name}: {way}", 1e3 * statistics.median(seconds), "ms"))
    found.rows.append(Figure(f"{name}: peak memory", held["bytes"] / 2**20, "MiB"))


def _done(device: torch.device, call: Callable[..., object], *arguments: Tensor) -> None:
    """Call, and wait until the device has ended."""
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
