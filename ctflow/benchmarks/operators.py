"""Projections on the CPU against ASTRA's: medians of ratios of times taken in turns, float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.benchmarks.bars import Bar, Findings, Row, interleaved, median_ratio
from ctflow.datasets.phantoms import thorax
from ctflow.geometry import Beam, ConeBeam, FanBeam, HelicalBeam, ParallelBeam, VolumeGeometry
from ctflow.linalg import cg
from ctflow.operators import LinearOperator, Radon
from ctflow.registry import find_class, names
from ctflow.system.memory import peak_memory
from ctflow.system.progress import Progress
from ctflow.testing import adjoint_gap

_SLICE = VolumeGeometry((1, 512, 512), (1.0, 0.7, 0.7))
_MEMORY = 2**30  # bytes beyond image and data at 512² × 720


@dataclass(frozen=True)
class Speed:
    """A projection to be timed, both ways.

    Args:
        name: what is projected.
        beam: rays.
        batch: images at a time.
        forward: least ratio of ASTRA's time to ours.
        adjoint: least ratio of ASTRA's time to ours.
        repetitions: turns, and how many when it must be quick.
    """

    name: str
    beam: Beam
    batch: int
    forward: float
    adjoint: float
    repetitions: tuple[int, int] = (9, 3)


# About 80 % of what prototypes reached on two cores; ASTRA computes a batch image by image, in one thread.
SPEEDS = (
    Speed("parallel 512²×60, batch 1", ParallelBeam(60), 1, 2.2, 2.0, (21, 9)),
    Speed("parallel 512²×60, batch 8", ParallelBeam(60), 8, 12, 16),
    Speed("parallel 512²×60, batch 16", ParallelBeam(60), 16, 15, 25),
    Speed("parallel 512²×720, batch 8", ParallelBeam(720), 8, 8, 8, (3, 1)),
    Speed("fan 512²×60, batch 8", FanBeam(60), 8, 10, 14),
)


def measure(quick: bool, progress: Progress) -> Findings:
    """Time the projections, then check adjoints, accuracy and memory."""
    found = Findings()
    found.bars.append(_memory())
    for number, speed in enumerate(SPEEDS):
        progress(number / (len(SPEEDS) + 3), speed.name)
        _time(speed, quick, found)
    progress(1 - 3 / (len(SPEEDS) + 3), "conjugate gradients")
    _time_cg(quick, found)
    progress(1 - 2 / (len(SPEEDS) + 3), "adjoints and accuracy")
    found.bars += [Bar(f"adjoint gap: {name}", adjoint_gap(A), 1e-6, at_most=True) for name, A in every()]
    found.bars += _errors()
    progress(1 - 1 / (len(SPEEDS) + 3), "peers")
    found.rows += _peers(quick)
    progress(1.0, "done")
    return found


def _images(batch: int) -> Tensor:
    return torch.rand(batch, *_SLICE.shape, generator=torch.Generator().manual_seed(0))


def _time(speed: Speed, quick: bool, found: Findings) -> None:
    backends = ["astra", "auto"] + ["joseph"] * (not quick and len(speed.beam.views) <= 60)
    operators = {name: Radon(_SLICE, speed.beam, name) for name in backends}
    x = _images(speed.batch)
    y = operators["auto"](x)
    calls: dict[str, Callable[[], object]] = {}
    for name, A in operators.items():
        A(x[:1])  # build and compile
        A.T(y[:1])
        calls |= {f"{name} forward": partial(A, x), f"{name} adjoint": partial(A.T, y)}
    operators["auto"].T(y)
    times = interleaved(calls, speed.repetitions[quick])
    for call, seconds in times.items():
        name, _, way = call.partition(" ")
        ratio = median_ratio(times[f"astra {way}"], seconds)
        found.rows.append(Row(f"{speed.name}: {way}, {name}", statistics.median(seconds), ratio))
        if name == "auto":
            bound = speed.forward if way == "forward" else speed.adjoint
            found.bars.append(Bar(f"{speed.name}: {way}", ratio, bound))


def _time_cg(quick: bool, found: Findings) -> None:
    """One step, its vector operations and changes of layout included."""
    calls: dict[str, Callable[[], object]] = {}
    for backend in ("astra", "auto"):
        A = Radon(_SLICE, ParallelBeam(60), backend)
        right_side = A.T(A(_images(8)))
        calls[backend] = partial(cg, _normal(A), right_side, 3, 1, 0.0)
    times = interleaved(calls, 3 if quick else 9)
    ratio = median_ratio(times["astra"], times["auto"])
    found.bars.append(Bar("one CG step on AᵀA, 512²×60, batch 8", ratio, 14))
    found.rows += [
        Row(f"one CG step on AᵀA, batch 8, {name}", statistics.median(s), median_ratio(times["astra"], s))
        for name, s in times.items()
    ]


def _normal(A: LinearOperator) -> Callable[[Tensor], Tensor]:
    return lambda x: A.T(A(x))


def every() -> Iterator[tuple[str, LinearOperator]]:
    """A small instance of every operator, and of projections with every beam and backend that a CPU has."""
    for name in sorted(names("operator")):
        operator = find_class("operator", name)
        assert isinstance(operator, type)
        assert issubclass(operator, LinearOperator)
        yield name, operator.example()
    grid = VolumeGeometry((4, 48, 40), (2.0, 1.7, 1.7))
    slices = {
        "parallel": ParallelBeam(30),
        "parallel off centre": ParallelBeam(30, bins=80, axis_offset=4.0, shift_bins=0.25),
        "fan": FanBeam(30, source_axis=150.0, source_detector=250.0),
        "curved fan": FanBeam(30, source_axis=150.0, source_detector=250.0, curved=True),
    }
    for name, beam in slices.items():
        for backend in ("joseph", "matrix", "astra", "torch"):
            yield f"{name} beam, {backend}", Radon(grid, beam, backend)
    volumes = {"cone": ConeBeam(12), "helical": HelicalBeam(12)}
    for name, volume_beam in volumes.items():
        for backend in ("joseph", "torch"):
            yield f"{name} beam, {backend}", Radon(grid, volume_beam, backend)


def _errors() -> Iterator[Bar]:
    """Distance from exact integrals through ellipses, averaged over each bin, relative to ASTRA's."""
    grid, phantom = VolumeGeometry((1, 256, 256), (1.0, 1.4, 1.4)), thorax()
    x = phantom.rasterise(grid).data
    for name, beam in (("parallel", ParallelBeam(60)), ("fan", FanBeam(60))):
        exact = phantom.line_integrals(grid, beam.fitted(grid), rays_per_bin=4)
        ours, theirs = (
            float((Radon(grid, beam, backend)(x) - exact).norm() / exact.norm())
            for backend in ("auto", "astra")
        )
        # The same weights give the same error but for ASTRA's float32 positions: a thousandth.
        yield Bar(f"{name} 256²×60: error against ellipses, %", 100 * ours, 100.1 * theirs, at_most=True)


def _memory() -> Bar:
    """Beyond image and data, tables of the rays included; measured first, while the heap holds no holes."""
    x = _images(8)
    small = Radon(VolumeGeometry((1, 16, 16), (1.0, 1.0, 1.0)), ParallelBeam(4))
    small.T(small(x[..., :16, :16]))  # compile
    A = Radon(_SLICE, ParallelBeam(720))
    with peak_memory() as held:
        y = A(x)
        back = A.T(y)
    extra = held["bytes"] - y.nbytes - back.nbytes
    return Bar("parallel 512²×720, batch 8: extra memory, GiB", extra / 2**30, _MEMORY / 2**30, at_most=True)


def _peers(quick: bool) -> Iterator[Row]:
    """Forward projections of other packages where they are installed; scales and axes differ from ours."""
    repetitions = 1 if quick else 5
    degrees = np.linspace(0, 180, 60, endpoint=False)
    reference = Radon(_SLICE, ParallelBeam(60), "astra")
    x = _images(1)
    reference(x)
    for name, call in (*_skimage(degrees), *_deepinv(degrees)):
        times = interleaved({"astra": partial(reference, x), name: partial(call, x)}, repetitions)
        ratio = median_ratio(times["astra"], times[name])
        yield Row(f"parallel 512²×60, batch 1: forward, {name}", statistics.median(times[name]), ratio)


Peer = tuple[str, Callable[[Tensor], object]]


def _skimage(degrees: NDArray[np.floating[Any]]) -> Iterator[Peer]:
    radon = import_module("skimage.transform").radon
    yield "scikit-image", lambda x: radon(x[0, 0].numpy(), degrees, circle=False)


def _deepinv(degrees: NDArray[np.floating[Any]]) -> Iterator[Peer]:
    try:
        tomography = import_module("deepinv.physics").Tomography
    except (ImportError, RuntimeError):  # absent, or its torchvision was built for another torch
        return
    A = tomography(torch.from_numpy(degrees).float(), _SLICE.shape[2], circle=False, normalize=False)
    yield "deepinv Tomography", A.A
