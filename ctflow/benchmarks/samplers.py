"""The flow samplers against each other, against TV and FBP, on slices of patients that no tuning has seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from ctflow.benchmarks.bars import Bar, Findings
from ctflow.benchmarks.perceptual import gmsd
from ctflow.experiments.slices import cases
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.registry import build
from ctflow.runs.measurement import Measurement, prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import Method
from ctflow.system.progress import Progress
from ctflow.units import attenuation_to_hu
from ctflow.volume import Volume

TASKS = {
    "deblurring": "deblur",
    "super-resolution": "super-resolution",
    "inpainting": "inpaint",
    "CT 60": "sparse-view-60",
    "CT 20": "sparse-view-20",
    "fan 60": "sparse-view-60-fan",
    "fan 20": "sparse-view-20-fan",
}
"""Tasks and the protocols that hold their tuned methods."""

_FEW = {"super-resolution", "CT 20"}  # where the conjugate integrator meets ΠGFM and DPS: these take long
_MANY_STEPS = ("pi-gfm", "dps")
_MEASURES = {"PSNR": ("psnr", False), "SSIM": ("ssim", False), "GMSD": ("gmsd", True)}


@dataclass
class Result:
    """One method on one task: a figure for each patient.

    Args:
        task: key of `TASKS`.
        method: name in the protocol, and how many network evaluations it took.
        psnr: dB, range 2000 HU, in the field of view.
        ssim: in the field of view.
        gmsd: gradient magnitude similarity deviation.
        rmse_hu: inside the body.
        nfe: network evaluations.
        backward: backward passes.
        seconds: for one slice, in all, in the network and in the operator.
        peak_mib: memory beyond what was held before.
        gap: best PSNR along the iterations minus the last one, dB, whole slice.
    """

    task: str
    method: str
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    gmsd: list[float] = field(default_factory=list)
    rmse_hu: list[float] = field(default_factory=list)
    nfe: float = 0
    backward: float = 0
    seconds: list[tuple[float, float, float]] = field(default_factory=list)
    peak_mib: float = 0.0
    gap: list[float] = field(default_factory=list)

    def mean(self, measure: str) -> float:
        """Mean over patients of "psnr", "ssim", "gmsd", "rmse_hu" or "gap"."""
        return statistics.fmean(getattr(self, measure))

    @property
    def median_seconds(self) -> float:
        """Median over patients of the time of one slice."""
        return statistics.median(whole for whole, _, _ in self.seconds)

    @property
    def rest(self) -> float:
        """Share of the time that goes into neither the network nor the operator."""
        whole = sum(seconds for seconds, _, _ in self.seconds)
        return 1 - sum(network + operator for _, network, operator in self.seconds) / whole

    def __str__(self) -> str:
        return (
            f"{self.task:<17}{self.method:<14}{self.mean('psnr'):6.2f} dB  SSIM {self.mean('ssim'):.4f}  "
            f"GMSD {self.mean('gmsd'):.4f}  {self.mean('rmse_hu'):6.1f} HU  NFE {self.nfe:>3.0f}  "
            f"{self.median_seconds:6.2f} s  {self.peak_mib:5.0f} MiB"
        )


@dataclass(frozen=True)
class Difference:
    """Mean difference of two methods over patients with its 95 % interval.

    Args:
        name: task, methods and measure.
        mean: mean over patients.
        low: lower end of the bootstrap interval; NaN for one patient.
        high: upper end.
    """

    name: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name:<58} {self.mean:>9.3g}  [{self.low:.3g}, {self.high:.3g}]"


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Run every task with every method that its protocol tunes, and hold the claims against the figures.

    Args:
        quick: 3 patients instead of 10.
        progress: told the fraction that is done and the task.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    volumes = cases("validation", 3 if quick else 10, data)
    found, results = Findings(), {}
    for number, (task, name) in enumerate(TASKS.items()):
        progress(number / len(TASKS), task)
        results[task] = run_task(task, Protocol.load(name), volumes)
        found.rows += list(results[task].values())
    for bars in (_against_flow_dps, _steady, _few_evaluations, _against_tv, _speed):
        found.bars += list(bars(results))
    found.rows += list(_differences(results))
    return found


def run_task(task: str, protocol: Protocol, volumes: list[Volume]) -> dict[str, Result]:
    """Solve one task for every patient with every method of the protocol and of its `tuned` table.

    Args:
        task: its name in the results.
        protocol: measurement and methods.
        volumes: one slice (1, Y, X) of each patient, HU.

    Returns:
        Results by method.
    """
    results: dict[str, Result] = {}
    for seed, volume in enumerate(volumes):
        measurement = prepare(protocol, volume)
        problem, prior = measurement.problem(seed), measurement.prior("ct-256")
        for name, method in _methods(task, protocol, seed):
            result = results.setdefault(name, Result(task, name))
            _add(result, measurement, problem, method, prior)
    return results


def _methods(task: str, protocol: Protocol, seed: int) -> Iterator[tuple[str, Method]]:
    """The slow baselines run where a claim needs them, at 100 evaluations for the first patient only."""
    yield from ((name.removesuffix("-refinement"), method) for name, method in protocol.methods().items())
    for table in protocol.tables.get("tuned", []):
        many = table.get("steps", 0) >= 100
        if table["name"] not in _MANY_STEPS or (task in _FEW and (seed < 1 or not many)):
            suffix = f" {table['steps']}" if table["name"] in _MANY_STEPS else ""
            suffix = " 5" if table["name"] == "conjugate" else suffix
            yield table["name"] + suffix, build("method", table)


def _add(
    result: Result, measurement: Measurement, problem: InverseProblem, method: Method, prior: Prior
) -> None:
    along: list[float] = []
    truth, mu_water = measurement.truth.data, measurement.protocol.mu_water

    def watch(step: int, image: torch.Tensor) -> None:
        error = attenuation_to_hu(image[0, 0], mu_water).clamp(-1000, 1000) - truth.clamp(-1000, 1000)
        along.append(20 * np.log10(2000) - 10 * np.log10(float((error**2).mean())))

    found = reconstruct(measurement, problem, method, prior, watch=watch)
    figures = found.figures
    for key in ("psnr", "ssim", "rmse_hu"):
        getattr(result, key).append(figures[key])
    result.gmsd.append(gmsd(found.volume.data, truth))
    result.nfe, result.backward = figures["network"], figures["backward"]
    result.seconds.append((figures["seconds"], figures["network_seconds"], figures["operator_seconds"]))
    result.peak_mib = max(result.peak_mib, found.peak_memory_bytes / 2**20)
    if along:
        result.gap.append(max(along) - along[-1])


Results = dict[str, dict[str, Result]]


def _against_flow_dps(results: Results) -> Iterator[Bar]:
    for task, by in results.items():
        for name in ("PSNR", "SSIM"):
            key, _ = _MEASURES[name]
            gain = by["ms-flow"].mean(key) - by["flow-dps"].mean(key)
            yield Bar(f"{task}: MS-Flow above FlowDPS, {name}", gain, 0.0)


def _steady(results: Results) -> Iterator[Bar]:
    for task in ("CT 60", "CT 20"):
        gap = results[task]["ms-flow"].mean("gap")
        yield Bar(f"{task}: MS-Flow, best minus final PSNR, dB", gap, 0.1, at_most=True)


def _few_evaluations(results: Results) -> Iterator[Bar]:
    for task in sorted(_FEW):
        for name, peer in results[task].items():
            if name.startswith(_MANY_STEPS):
                for label, (key, small) in _MEASURES.items():
                    gain = _paired(results[task]["conjugate 5"], peer, key).mean() * (-1 if small else 1)
                    yield Bar(f"{task}: C-ΠGFM at 5 NFE against {name}, {label}", float(gain), 0.0)


def _against_tv(results: Results) -> Iterator[Bar]:
    for task, least in (("CT 20", 2.0), ("fan 20", 2.0), ("CT 60", 0.0), ("fan 60", 0.0)):
        by = results[task]
        for name, title, most in (("ms-flow", "MS-Flow", 40), ("conjugate", "C-ΠGFM", 10)):
            yield Bar(f"{task}: {title}, network evaluations", by[name].nfe, most, at_most=True)
            gain = by[name].mean("psnr") - by["tv"].mean("psnr")
            yield Bar(f"{task}: {title} above TV, dB", gain, least)
            if least == 0:
                ratio = by[name].mean("rmse_hu") / by["tv"].mean("rmse_hu")
                yield Bar(f"{task}: {title}, body RMSE over TV's", ratio, 1.0, at_most=True)


def _speed(results: Results) -> Iterator[Bar]:
    by = results["CT 60"]
    for name, title, most in (("conjugate", "C-ΠGFM", 1.0), ("ms-flow", "MS-Flow", 3.0)):
        ratio = by[name].median_seconds / by["tv"].median_seconds
        yield Bar(f"CT 60: {title}'s time over TV's", ratio, most, at_most=True)
        yield Bar(f"CT 60: {title}, time outside network and operator", by[name].rest, 0.1, at_most=True)


def _differences(results: Results) -> Iterator[Difference]:
    for task in ("CT 60", "CT 20", "fan 60", "fan 20"):
        by = results[task]
        for name in ("ms-flow", "conjugate"):
            for peer in ("tv", "fbp"):
                gains = _paired(by[name], by[peer], "psnr")
                low, high = _interval(gains)
                yield Difference(f"{task}: {name} above {peer}, dB", float(gains.mean()), low, high)


def _paired(result: Result, peer: Result, key: str) -> Any:
    """Differences for the patients that both have."""
    both = min(len(getattr(result, key)), len(getattr(peer, key)))
    return np.array(getattr(result, key)[:both]) - np.array(getattr(peer, key)[:both])


def _interval(values: Any) -> tuple[float, float]:
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="percentile")
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
