"""What a series of 512² costs: methods beside TV, reading, starting, a whole run."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.benchmarks.bars import Bar, Figure, Findings, interleaved, median_ratio, one_thread
from ctflow.benchmarks.speed import Calls
from ctflow.dicom import read_series, write_series
from ctflow.experiments.patients import patients
from ctflow.geometry import VolumeGeometry
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.system.files import scratch
from ctflow.system.progress import Progress
from ctflow.training.slices import Slices
from ctflow.volume import Volume

FAST, WHOLE = "sparse-view-60-fast", "sparse-view-60"
_SERIES = 35  # slices of a whole run
_SECONDS = 90.0  # that it may take on two cores
_TO_FIRST = 4.0  # seconds to a run's plan, beyond those of importing torch


@dataclass
class Cost:
    """What a method costs on slices of 512², solved together as in a run.

    Args:
        name: protocol and method.
        core_seconds: processor time of a slice.
        rmse_hu: inside the body.
        psnr: inside the body, dB.
    """

    name: str
    core_seconds: float
    rmse_hu: float
    psnr: float

    def __str__(self) -> str:
        return f"{self.name:<58} {self.core_seconds:>7.1f} core s, {self.rmse_hu:6.1f} HU, {self.psnr:.2f} dB"


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Bars of methods, of reading and starting, and of a run over a series.

    Args:
        quick: four slices in place of eight, 35 to read in place of 275, and no run over a series.
        progress: told the fraction that is done and what comes next.
        data: folder of `Slices`; see `ctflow.experiments.patients`.
    """
    found, folder = Findings(), patients(data)
    large = Slices(folder, "validation", ("512",))
    mm = large.spacings["512"][0]
    alike = large.by_kind["512"][: large.spacings["512"].count(mm)]  # of the first patient
    slices = torch.from_numpy(np.stack(alike[: 4 if quick else 8]).astype(np.float32))
    with one_thread():
        _methods(found, _volume(slices, mm), progress)
    progress(0.7, "a series")
    repeated = slices.repeat(math.ceil(275 / len(slices)), 1, 1)
    with scratch() as place:
        _series(found, _volume(repeated[: _SERIES if quick else 275], mm), place, quick)
    progress(1.0, "done")
    return found


def _volume(hu: Tensor, mm: float) -> Volume:
    """Slices (Z, Y, X) of pixels of `mm`, as far apart as thick ones are, HU."""
    Z, Y, X = hu.shape
    return Volume(hu, VolumeGeometry((Z, Y, X), (5.0, mm, mm)), "HU")


def _methods(found: Findings, volume: Volume, progress: Progress) -> None:
    """Core seconds and error of the fast protocol and of the usual one."""
    costs: dict[str, Cost] = {}
    for protocol in (Protocol.load(FAST), Protocol.load(WHOLE).with_methods(["ms-flow"])):
        measurement = prepare(protocol, volume)
        problem, methods = measurement.problem(0), protocol.methods()
        for label, method in list(methods.items())[1:]:
            title = f"{protocol.name}: {label}"
            progress(0.7 * len(costs) / 5, title)
            prior = measurement.prior("ct-256") if method.needs_prior else None
            started = time.process_time()
            figures = reconstruct(measurement, problem, method, prior).figures
            spent = (time.process_time() - started) / len(volume.data)
            body = figures["body"]
            costs[title] = Cost(title, spent, body["rmse_hu"], body["psnr"])
    found.rows += costs.values()
    fast = costs[f"{FAST}: ms-flow-refinement"]
    tv, flow, conjugate = (costs[f"{WHOLE}: {name}"] for name in ("tv", "ms-flow", "conjugate-refinement"))
    for cost, bound in ((fast, 1.0), (flow, 3.0), (conjugate, 2.0)):
        ratio = cost.core_seconds / tv.core_seconds
        found.bars.append(Bar(f"{cost.name} over TV, core seconds", ratio, bound, at_most=True))
    found.bars.append(Bar(f"{fast.name} over TV, body RMSE", fast.rmse_hu / tv.rmse_hu, 1.0, at_most=True))


def _series(found: Findings, volume: Volume, place: Path, quick: bool) -> None:
    """Reading beside SimpleITK, the time to a run's plan, and a whole run."""
    folder, short = place / "series", place / "short"
    few = _volume(volume.data[:_SERIES], volume.geometry.spacing[2])
    for one, there in ((volume, folder), (few, short)):
        write_series(one, there, like=None, description="Slices of a patient")
    if find_spec("SimpleITK"):
        reader = import_module("SimpleITK").ImageSeriesReader()
        reader.SetFileNames([str(file) for file in sorted(folder.iterdir())])
        calls: Calls = {"ours": partial(read_series, folder), "SimpleITK": reader.Execute}
        times = interleaved(calls, 3, processor=True)
        name = f"reading {len(volume.data)} × 512² over SimpleITK, processor time"
        found.bars.append(Bar(name, median_ratio(times["ours"], times["SimpleITK"]), 1.0, at_most=True))
    else:
        found.rows.append(Figure("reading beside SimpleITK", math.nan, "left out: it is not installed"))
    run = ("-m", "ctflow", "run")
    plan = _spent(*run, WHOLE, str(short), "-o", str(place / "plan"), "--slices", "0:1", "--dry-run")
    name = "to a run's plan, beyond importing torch, core seconds"
    found.bars.append(Bar(name, plan - _spent("-c", "import torch"), _TO_FIRST, at_most=True))
    if not quick:
        started = time.perf_counter()
        _spent(*run, FAST, str(short), "-o", str(place / "run"))
        seconds = time.perf_counter() - started
        name = f"{FAST} of {_SERIES} × 512² with its report, seconds on this machine"
        found.bars.append(Bar(name, seconds, _SECONDS, at_most=True))


def _spent(*arguments: str) -> float:
    """Core seconds of another Python."""

    def now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = now()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return now() - before
