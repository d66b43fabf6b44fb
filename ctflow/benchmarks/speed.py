"""What projections and filtered backprojections cost beside peers, by processor time in one thread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from ctflow.benchmarks.against_rtk import against_rtk, inverted
from ctflow.benchmarks.bars import (
    Bar,
    Figure,
    Findings,
    Row,
    exponent,
    interleaved,
    median_ratio,
    one_thread,
)
from ctflow.geometry import ConeBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP, FDK
from ctflow.system.progress import Progress

_SIDE = 512  # pixels
_BATCH = 8
_VIEWS = (60, 720)
_BATCHES = (1, 2, 8, 64)
_SIDES = (128, 192, 256, 384, 512)  # for the exponents, all at 60 views
_SLICES = (4, 8, 16, 32, 64)  # of 128² pixels
_ARCS = (30, 60, 120, 240)  # views of 256² pixels
_CUBES = (32, 48, 64, 96)  # voxels a side of a cone's volume, at 60 views
_GROWTH = 1.1  # an exponent of one, and what caches of several sizes add

Calls = dict[str, Callable[[], object]]


def measure(quick: bool, progress: Progress) -> Findings:
    """Bars of FBP, of the choice of backend and of cones, and how time grows."""
    found, turns = Findings(), 3 if quick else 9
    parts: dict[str, Callable[[int], Iterator[Bar]]] = {
        "FBP over one adjoint": partial(_fbp, found),
        "FBP over peers": partial(_peers, found),
        "backends by batch": partial(_backends, found),
        "growth": partial(_growth, found),
        "cones": partial(_cones, found),
    }
    with one_thread():
        for number, (name, part) in enumerate(parts.items()):
            progress(number / len(parts), name)
            found.bars += part(turns)
    progress(1.0, "done")
    return found


def _slices(side: int, views: int, batch: int, backend: str = "auto") -> tuple[Radon, Tensor]:
    A = Radon(VolumeGeometry((1, side, side), (1.0, 360 / side, 360 / side)), ParallelBeam(views), backend)
    return A, torch.rand(batch, *A.domain_shape, generator=torch.Generator().manual_seed(0))


def _seconds(calls: Calls, turns: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()  # build and compile
    return interleaved(calls, turns, processor=True)


def _problem(A: Radon, x: Tensor) -> InverseProblem:
    return InverseProblem(A, A(x), Gaussian(1.0))


def _fbp(found: Findings, turns: int) -> Iterator[Bar]:
    for views in _VIEWS:
        A, x = _slices(_SIDE, views, _BATCH)
        problem = _problem(A, x)
        times = _seconds(
            {"FBP": partial(inverted, FBP(), problem), "adjoint": partial(A.T, problem.y)}, turns
        )
        name = f"FBP {_SIDE}²×{views}, batch {_BATCH}, over one adjoint"
        found.rows.append(
            Row(name, statistics.median(times["FBP"]), median_ratio(times["adjoint"], times["FBP"]))
        )
        yield Bar(name, median_ratio(times["FBP"], times["adjoint"]), 1.5, at_most=True)


def _peers(found: Findings, turns: int) -> Iterator[Bar]:
    """Peers take the slices of a batch one by one."""
    A, x = _slices(_SIDE, _VIEWS[0], _BATCH)
    theirs, _ = _slices(_SIDE, _VIEWS[0], _BATCH, "astra")
    problem, iradon = _problem(A, x), import_module("skimage.transform").iradon
    degrees = np.degrees(A.beam.views)
    sinograms = problem.y[:, 0].mT.numpy()

    def by_skimage() -> None:
        for sinogram in sinograms:
            iradon(sinogram, degrees, output_size=_SIDE, circle=False)

    calls: Calls = {
        "ours": partial(inverted, FBP(), problem),
        "scikit-image's iradon": by_skimage,
        "ASTRA's backprojection": partial(theirs.T, problem.y),
    }
    times = _seconds(calls, turns)
    for (name, seconds), bound in zip(list(times.items())[1:], (0.05, 0.3), strict=True):
        title = f"FBP {_SIDE}²×{_VIEWS[0]}, batch {_BATCH}, over {name}"
        found.rows.append(Row(name, statistics.median(seconds), median_ratio(times["ours"], seconds)))
        yield Bar(title, median_ratio(times["ours"], seconds), bound, at_most=True)


def _backends(found: Findings, turns: int) -> Iterator[Bar]:
    """`auto` over the best backend, both ways."""
    for batch in _BATCHES:
        calls: Calls = {}
        for backend in ("auto", "joseph", "matrix"):
            A, x = _slices(_SIDE, _VIEWS[0], batch, backend)
            calls |= {f"{backend} forward": partial(A, x), f"{backend} adjoint": partial(A.T, A(x))}
        times = _seconds(calls, turns)
        for way in ("forward", "adjoint"):
            best = min((times[f"{name} {way}"] for name in ("joseph", "matrix")), key=statistics.median)
            name = f"{way} {_SIDE}²×{_VIEWS[0]}, batch {batch}: auto over the best backend"
            for backend in ("joseph", "matrix"):
                taken = times[f"{backend} {way}"]
                row = f"{way} {_SIDE}²×{_VIEWS[0]}, batch {batch}, {backend}"
                found.rows.append(Row(row, statistics.median(taken), median_ratio(best, taken)))
            yield Bar(name, median_ratio(times[f"auto {way}"], best), 1.1, at_most=True)


def _growth(found: Findings, turns: int) -> Iterator[Bar]:
    """Exponents of time, of which one is in proportion."""
    for what, sizes, cases in (
        ("pixels", [side**2 for side in _SIDES], [_slices(side, 60, _BATCH, "joseph") for side in _SIDES]),
        ("slices", _SLICES, [_slices(128, 60, slices, "joseph") for slices in _SLICES]),
        ("views", _ARCS, [_slices(256, views, _BATCH, "joseph") for views in _ARCS]),
        ("voxels", [side**3 for side in _CUBES], [_cube(side) for side in _CUBES]),
    ):
        for way in ("forward", "adjoint", "FDK" if what == "voxels" else "FBP"):
            calls = {str(number): _call(way, *case) for number, case in enumerate(cases)}
            times = [statistics.median(taken) for taken in _seconds(calls, turns).values()]
            found.rows += [
                Row(f"{way} of {n} {what}", seconds, seconds / times[0])
                for n, seconds in zip(sizes, times, strict=True)
            ]
            yield Bar(
                f"exponent of time: {way} against {what}", exponent(sizes, times), _GROWTH, at_most=True
            )


def _cube(side: int) -> tuple[Radon, Tensor]:
    A = Radon(VolumeGeometry((side, side, side), (256 / side, 256 / side, 256 / side)), ConeBeam(60))
    return A, torch.rand(A.domain_shape, generator=torch.Generator().manual_seed(0))


def _call(way: str, A: Radon, x: Tensor) -> Callable[[], object]:
    if way == "forward":
        return partial(A, x)
    if way == "adjoint":
        return partial(A.T, A(x))
    return partial(inverted, FDK() if way == "FDK" else FBP(), _problem(A, x))


def _cones(found: Findings, turns: int) -> Iterator[Bar]:
    bars = against_rtk()
    if not bars:
        found.rows.append(Figure("cones against ITK-RTK", math.nan, "left out: no itk-rtk is installed"))
    yield from bars
