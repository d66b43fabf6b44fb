"""Volumes: geometry against closed forms and ITK-RTK, and cones over the series of patients."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ctflow import metrics
from ctflow.benchmarks.against_rtk import accuracy_against_rtk, against_rtk, inverted
from ctflow.benchmarks.bars import Bar, Figure, Findings, interleaved, one_thread
from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.experiments.patients import patients
from ctflow.geometry import Beam, ConeBeam, HelicalBeam, ParallelBeam3D, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.priors import Coupled, FlowPrior
from ctflow.problem import InverseProblem
from ctflow.recon import FDK
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.samplers import ConjugateIntegrator, MSFlow
from ctflow.solving import Method
from ctflow.system.progress import FractionProgress, Progress
from ctflow.units import attenuation_to_hu
from ctflow.volume import Volume

_SLICE_MM = 4.0  # between the slices of the series that the prior's data hold
_SIDE, _SLICES = 128, 12  # of the volumes
_GIB = 2**30
_FAN = "fan, slice by slice"

_GRID = VolumeGeometry((41, 64, 64), (3.0, 3.0, 3.0))  # holds all of the ellipsoids
_BEAMS: dict[str, Beam] = {
    "cone": ConeBeam(160, bins=68, pitch=5.0, source_axis=600.0, source_detector=1000.0),
    "curved cone": ConeBeam(160, bins=68, pitch=5.0, curved=True, source_axis=600.0, source_detector=1000.0),
    "half fan": ConeBeam(
        160, bins=44, pitch=5.0, shift_bins=12.0, displaced=True, source_axis=600.0, source_detector=1000.0
    ),
    "short scan": ConeBeam(
        100, bins=68, pitch=5.0, arc_degrees=220.0, source_axis=600.0, source_detector=1000.0
    ),
    "helix": HelicalBeam(360, feed=30.0, arc_degrees=1620.0, source_axis=600.0, source_detector=1000.0),
    "parallel panel": ParallelBeam3D(100),
}
_PARTS = Phantom(
    (
        Ellipsoid((0.0, 0.0, 0.0), (85.0, 70.0, 60.0), 0.02),
        Ellipsoid((40.0, 20.0, 5.0), (20.0, 14.0, 12.0), 0.006),
        Ellipsoid((-30.0, -25.0, -8.0), (15.0, 22.0, 12.0), -0.01),
    )
)


@dataclass
class Result:
    """A method on a series.

    Args:
        series: its number among the validation patients.
        views: number of views.
        name: the method, and what is different about it.
        rmse_hu: inside the body.
        between_hu: RMSE of the differences between neighbouring slices, inside the body.
        coronal_ssim: mean structural similarity of the coronal planes through the body.
        ends_hu: largest bias of the first and last slice, inside the body.
    """

    series: int
    views: int
    name: str
    rmse_hu: float
    between_hu: float
    coronal_ssim: float
    ends_hu: float

    def __str__(self) -> str:
        return (
            f"series {self.series}, {self.views} views  {self.name:<28}{self.rmse_hu:6.1f} HU, "
            f"between slices {self.between_hu:6.1f} HU, coronal SSIM {self.coronal_ssim:.4f}, "
            f"ends {self.ends_hu:+.1f} HU"
        )


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Bars of geometry, time, patients and memory.

    Args:
        quick: one series in place of two, and no memory of the conjugate integrator, which takes an hour.
        progress: told the fraction that is done and what comes next.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    found = Findings()
    progress(0.0, "geometry")
    rtk = accuracy_against_rtk(_PARTS, Radon(_GRID, _BEAMS["cone"]))
    found.bars += [*_geometry(found), *rtk, *against_rtk()]
    found.rows += _rates()
    runs = [(number, views) for number in range(1 if quick else 2) for views in (60, 30)]
    for done, (number, views) in enumerate(runs):
        start, share = 0.1 + 0.7 * done / len(runs), 0.7 / len(runs)
        part = _part(progress, start, share, f"series {number}, {views} views")
        found.rows += _patient(number, views, data, part)
    found.bars += _patients(found)
    progress(0.8, "memory")
    found.bars += list(_memory(("MS-Flow",) if quick else ("MS-Flow", "conjugate")))
    return found


def _part(progress: Progress, start: float, share: float, what: str) -> FractionProgress:
    return lambda fraction: progress(start + share * fraction, what)


def _geometry(found: Findings) -> Iterator[Bar]:
    """Adjoint gaps, errors against analytic ellipsoids, and the half fan beside the full one."""
    x = _PARTS.rasterise(_GRID).data
    seeds = torch.Generator().manual_seed(0)
    for name, beam in _BEAMS.items():
        A = Radon(_GRID, beam)
        u = torch.randn(A.domain_shape, generator=seeds)
        v = torch.randn(A.range_shape, generator=seeds)
        forward, back = A(u), A.T(v)
        gap = abs(_dot(forward, v) - _dot(u, back)) / (float(forward.norm()) * float(v.norm()))
        yield Bar(f"{name}: adjoint gap", gap, 1e-6, at_most=True)
        exact = _PARTS.line_integrals(_GRID, A.beam, rays_per_bin=4)
        error = float((A(x) - exact).norm() / exact.norm())
        found.rows.append(Figure(f"{name}: error against ellipsoids", error, "relative"))
    full, half = (_fdk(_BEAMS[name]) for name in ("cone", "half fan"))
    places = (torch.arange(64) - 31.5) * 3.0
    inside = torch.hypot(places[:, None], places) < 90
    apart = float((full - half)[16:25, inside].square().mean().sqrt())
    yield Bar("FDK: half fan against full fan, HU", apart, 10.0, at_most=True)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _fdk(beam: Beam) -> Tensor:
    """FDK of exact line integrals, HU."""
    A = Radon(_GRID, beam)
    y = _PARTS.line_integrals(_GRID, A.beam, rays_per_bin=4)
    return attenuation_to_hu(inverted(FDK(), InverseProblem(A, y, Gaussian(1.0))))


def _rates() -> Iterator[Figure]:
    """What the time of any volume can be told from: of a cone and of the prior, in one thread."""
    grid, views, side = VolumeGeometry((128, 128, 128), (2.0, 2.0, 2.0)), 60, 256
    A, prior = Radon(grid, ConeBeam(views)), FlowPrior.load("ct-256")
    x = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    y, noisy = A(x), torch.rand(1, side, side, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: A(x),
        "adjoint": lambda: A.T(y),
        "prior": lambda: prior.denoise(noisy, 0.5),
    }
    with one_thread(), torch.no_grad():
        for call in calls.values():
            call()  # compile
        seconds = {name: statistics.median(t) for name, t in interleaved(calls, 3, processor=True).items()}
    for way in ("forward", "adjoint"):
        rate = math.prod(grid.shape) * views / seconds[way]
        yield Figure(f"cone, {way}: voxels × views", rate, "a second and core")
    yield Figure("prior: pixels", side**2 / seconds["prior"], "a second and core")


def series(number: int, data: Path | None = None) -> Volume:
    """The middle of a validation series: 28 slices of 128², HU.

    Args:
        number: of the series that hold so many, in the order of the index.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    folder = patients(data)
    entries = [
        entry
        for entry in json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if entry["split"] == "validation" and entry["kind"] == "256"
        if entry["slices"] >= 28 and not math.isnan(entry["pixel_spacing_mm"])
    ]
    with np.load(folder / entries[number]["file"]) as archive:
        stack = archive["hu"]
    first = (len(stack) - 28) // 2
    fine = torch.from_numpy(stack[first : first + 28].astype(np.float32))
    times = fine.shape[-1] // _SIDE
    hu, mm = avg_pool2d(fine[:, None], times)[:, 0], times * entries[number]["pixel_spacing_mm"]
    return Volume(hu, VolumeGeometry((28, _SIDE, _SIDE), (_SLICE_MM, mm, mm)), "HU")


def _patient(number: int, views: int, data: Path | None, progress: FractionProgress) -> Iterator[Result]:
    """The protocol's methods, and its main method without coupling, and slice by slice on fans."""
    protocol, volume = Protocol.load(f"cbct-{views}"), series(number, data)
    chosen = ((28 - _SLICES) // 2, (28 + _SLICES) // 2)
    cone = prepare(protocol, volume, slices=chosen)
    main = protocol.main
    flat = protocol.override(['geometry.name="fan-beam"', 'reference={name="fbp"}'])
    flat.tables.pop("coupling", None)
    fan = prepare(flat, volume, slices=chosen)
    jobs: list[tuple[str, Measurement, Method, bool]] = [
        *((name, cone, method, True) for name, method in protocol.methods().items()),
        (f"{main}, uncoupled", cone, protocol.methods()[main], False),
        (_FAN, fan, protocol.methods()[main], False),
    ]
    for done, (name, measurement, method, coupled) in enumerate(jobs):
        progress(done / len(jobs))
        prior = measurement.prior("ct-256")
        if isinstance(prior, Coupled) and not coupled:
            prior = prior.prior
        hu = reconstruct(measurement, measurement.problem(number), method, prior).volume.data
        yield _judged(number, views, name, hu, measurement)


def _judged(number: int, views: int, name: str, hu: Tensor, measurement: Measurement) -> Result:
    truth, body = measurement.truth.data, torch.from_numpy(measurement.masks[1])
    error = hu - truth
    both = body[1:] & body[:-1]
    upright = (values.transpose(0, 1) for values in (hu, truth, *map(torch.from_numpy, measurement.masks)))
    similar = metrics.evaluate(*upright)["body"]["ssim"]
    ends = [float(error[k][body[k]].mean()) for k in (0, -1)]
    return Result(
        number,
        views,
        name,
        float(error[body].square().mean().sqrt()),
        float(error.diff(dim=0)[both].square().mean().sqrt()),
        similar,
        max(ends, key=abs),
    )


def _patients(found: Findings) -> Iterator[Bar]:
    """Flow methods beside TV and beside slice by slice, means over the series."""
    rows = [row for row in found.rows if isinstance(row, Result)]
    for views in (60, 30):
        main = Protocol.load(f"cbct-{views}").main

        def mean(name: str, figure: str, views: int = views) -> float:
            return statistics.fmean(
                getattr(row, figure) for row in rows if (row.views, row.name) == (views, name)
            )

        ratio = mean(main, "rmse_hu") / mean("tv", "rmse_hu")
        yield Bar(f"cone, {views} views: {main} over TV in 3D, body RMSE", ratio, 0.85, at_most=True)
        between = mean(main, "between_hu") / mean(_FAN, "between_hu")
        yield Bar(f"cone, {views} views: between slices, over slice by slice", between, 0.7, at_most=True)
        similar = mean(main, "coronal_ssim") - mean(_FAN, "coronal_ssim")
        yield Bar(f"cone, {views} views: coronal SSIM above slice by slice", similar, 0.0)
        ends = max(abs(row.ends_hu) for row in rows if (row.views, row.name) == (views, main))
        yield Bar(f"cone, {views} views: bias of end slices, HU", ends, 10.0, at_most=True)


def _memory(names: Sequence[str]) -> Iterator[Bar]:
    """Peak memory of 64 slices of 512² from 60 views; it does not depend on the number of steps."""
    grid = VolumeGeometry((64, 512, 512), (2.5, 0.8, 0.8))
    hu = _PARTS.rasterise(VolumeGeometry((64, 512, 512), (1.5, 0.35, 0.35)), supersampling=1).data
    volume = Volume(attenuation_to_hu(hu), grid, "HU")
    measurement = prepare(Protocol.load("cbct-60"), volume, slices=(8, 56))
    problem, prior = measurement.problem(0), measurement.prior("ct-256")
    methods: dict[str, Method] = {
        "MS-Flow": MSFlow(states=1, sweeps=1, prox_iterations=1),
        "conjugate": ConjugateIntegrator(steps=1),
    }
    for name in names:
        peak = reconstruct(measurement, problem, methods[name], prior).peak_memory_bytes / _GIB
        slices = measurement.unknown.grid.shape[0]
        yield Bar(
            f"cone, {slices} slices of 512², 60 views: peak memory of {name}, GiB", peak, 4.0, at_most=True
        )
