"""The flow samplers against each other, TV and FBP, each patient with the numbers that others chose."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from ctflow.benchmarks.bars import Bar, Findings
from ctflow.benchmarks.perceptual import gmsd
from ctflow.errors import UsageError
from ctflow.experiments.protocol_tuning import best_changes, label_of, read_log
from ctflow.experiments.slices import numbered
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.registry import nested
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import Method, build_method
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
    "limited angle": "limited-angle",
}
"""Tasks and the protocols that hold their tuned methods."""

_LOG = read_log(Path(__file__).with_name("tuning.jsonl"))
"""Every trial of every method on validation patients, as `ctflow tune --split validation` writes it."""

_MANY_STEPS = ("pi-gfm", "dps", "ddrm")  # where a protocol has them, C-ΠGFM meets them; they take long
_CONTROLS = tuple(f"{name}refinement" for name in ("", "flow-dps + ", "pi-gfm + ", "conjugate + "))
_LEAST = {"CT 20": 0.2, "limited angle": 0.2, "CT 60": 0.0}  # dB of MS-Flow + refinement above its controls
_ABOVE_TV = {"CT 20": 1.5, "fan 20": 1.5, "CT 60": 1.0, "fan 60": 1.0}  # dB


@dataclass
class Result:
    """One method on one task: a figure for each patient.

    Args:
        task: key of `TASKS`.
        name: method, " + refinement" where it has one.
        psnr: dB, range 2000 HU, inside the body.
        ssim: inside the body.
        gmsd: gradient magnitude similarity deviation, whole slice.
        rmse_hu: inside the body.
        nfe: network evaluations.
        backward: backward passes.
        seconds: for one slice, in all, in the network and in the operator.
        peak_mib: memory beyond what was held before.
        gap: best PSNR along the iterations minus the last one, dB, inside the body.
    """

    task: str
    name: str
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
            f"{self.task:<17}{self.name:<23}NFE {self.nfe:>3.0f}  {self.mean('psnr'):6.2f} dB  "
            f"SSIM {self.mean('ssim'):.4f}  GMSD {self.mean('gmsd'):.4f}  {self.mean('rmse_hu'):6.1f} HU  "
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


def measure(
    quick: bool, progress: Progress, data: Path | None = None, task: Sequence[str] = tuple(TASKS)
) -> Findings:
    """Run every task with every method that its protocol tunes, and hold the claims against the figures.

    Args:
        quick: 3 patients instead of 9.
        progress: told the fraction that is done and the task.
        data: folder of slices; see `ctflow.experiments.patients`.
        task: which of `TASKS`; bars of the others are left out.

    Raises:
        UsageError: there is no such task.
    """
    if unknown := set(task) - TASKS.keys():
        raise UsageError(f"there is no task '{sorted(unknown)[0]}'; give {', '.join(TASKS)}")
    volumes = dict(numbered("validation", 3 if quick else 9, data))
    found, results = Findings(), {}
    for number, name in enumerate(task):
        progress(number / len(task), name)
        results[name] = run_task(name, Protocol.load(TASKS[name]), volumes)
        found.rows += list(results[name].values())
    for bars in (_against_flow_dps, _against_controls, _steady, _few_evaluations, _against_tv, _speed):
        found.bars += list(bars(results))
    found.rows += list(_differences(results))
    return found


def run_task(task: str, protocol: Protocol, volumes: dict[int, Volume]) -> dict[str, Result]:
    """Solve one task for every patient with every method of the protocol and of its `tuned` table.

    Args:
        task: its name in the results.
        protocol: measurement and methods.
        volumes: one slice (1, Y, X) of each validation patient, HU, by the patient's number.

    Returns:
        Results by name and number of network evaluations, "ms-flow 16".
    """
    results: dict[str, Result] = {}
    for number, (patient, volume) in enumerate(volumes.items()):
        measurement = prepare(protocol, volume)
        problem, prior = measurement.problem(patient), measurement.prior("ct-256")
        tables: list[dict[str, Any]] = [*protocol.method_tables().values(), *protocol.tables.get("tuned", [])]
        for table in tables:
            if number == 0 or table["name"] not in _MANY_STEPS or table["steps"] < 100:  # which take long
                label, method = label_of(table), build_method(crossfitted(protocol.name, table, patient))
                key = " ".join([label, *(str(count) for count in _evaluations(method))])
                _add(results.setdefault(key, Result(task, label)), measurement, problem, method, prior)
    return results


def crossfitted(protocol: str, table: dict[str, Any], patient: int) -> dict[str, Any]:
    """A method's table with the numbers that the other half of the tuning's patients chose.

    Args:
        protocol: its name.
        table: of the method; returned as it is where the log has no trials.
        patient: number of a validation patient; the halves are the even and the odd ones.
    """
    mine = [line for line in _LOG if line["protocol"] == protocol]
    others = {line["patient"] for line in mine if (line["patient"] - patient) % 2}
    return nested({**table, **best_changes(mine, protocol, label_of(table), others)})


def _evaluations(method: Method) -> tuple[int, ...]:
    """The network evaluations that a method with a prior states."""
    stated = getattr(method, "evaluations", None)
    return stated[:1] if stated else ()


def _add(
    result: Result, measurement: Measurement, problem: InverseProblem, method: Method, prior: Prior
) -> None:
    along: list[float] = []
    truth, mu_water = measurement.truth.data, measurement.protocol.mu_water
    body = torch.from_numpy(measurement.masks[1])

    def watch(step: int, image: torch.Tensor) -> None:
        error = attenuation_to_hu(image[0, 0], mu_water).clamp(-1000, 1000) - truth.clamp(-1000, 1000)
        along.append(20 * np.log10(2000) - 10 * np.log10(float((error[body] ** 2).mean())))

    found = reconstruct(measurement, problem, method, prior, watch=watch)
    figures = found.figures
    result.psnr.append(figures["body"]["psnr"])
    result.ssim.append(figures["body"]["ssim"])
    result.rmse_hu.append(figures["rmse_hu"])
    result.gmsd.append(gmsd(found.volume.data, truth))
    result.nfe, result.backward = figures["network"], figures["backward"]
    result.seconds.append((figures["seconds"], figures["network_seconds"], figures["operator_seconds"]))
    result.peak_mib = max(result.peak_mib, found.peak_memory_bytes / 2**20)
    if along:
        result.gap.append(max(along) - along[-1])


Results = dict[str, dict[str, Result]]


def _best(by: dict[str, Result], names: tuple[str, ...], nfe: float, key: str = "psnr") -> float:
    """The best mean of those methods at a number of network evaluations."""
    return max(one.mean(key) for one in by.values() if one.name in names and one.nfe == nfe)


def _against_flow_dps(results: Results) -> Iterator[Bar]:
    for task, by in results.items():
        ours = by["ms-flow 16"]
        for title, key in (("PSNR", "psnr"), ("SSIM", "ssim")):
            gain = ours.mean(key) - _best(by, ("flow-dps",), ours.nfe, key)
            yield Bar(f"{task}: MS-Flow above FlowDPS at 16 NFE, {title}", gain, 0.0)


def _against_controls(results: Results) -> Iterator[Bar]:
    for task in filter(results.__contains__, _LEAST):
        by, least = results[task], _LEAST[task]
        control = _best(by, _CONTROLS, 16)
        for name, title in (("ms-flow", "MS-Flow"), ("ms-flow + refinement", "MS-Flow + refinement")):
            gain = _best(by, (name,), 16) - control
            yield Bar(f"{task}: {title} above the best control at 16 NFE, dB", gain, least)


def _steady(results: Results) -> Iterator[Bar]:
    for task, by in results.items():
        gap = by["ms-flow 16"].mean("gap")
        yield Bar(f"{task}: MS-Flow, best minus final PSNR, dB", gap, 0.1, at_most=True)


def _few_evaluations(results: Results) -> Iterator[Bar]:
    for task, by in results.items():
        for name, peer in by.items():
            if peer.name in _MANY_STEPS:
                gain = _paired(by["conjugate 5"], peer, "psnr").mean()
                yield Bar(f"{task}: C-ΠGFM at 5 NFE above {name}, dB", float(gain), 0.0)


def _against_tv(results: Results) -> Iterator[Bar]:
    for task in filter(results.__contains__, _ABOVE_TV):
        gain = results[task]["ms-flow 16"].mean("psnr") - results[task]["tv"].mean("psnr")
        yield Bar(f"{task}: MS-Flow above TV, dB", gain, _ABOVE_TV[task])


def _speed(results: Results) -> Iterator[Bar]:
    if "CT 60" not in results:
        return
    by = results["CT 60"]
    ratio = by["ms-flow 16"].median_seconds / by["tv"].median_seconds
    yield Bar("CT 60: MS-Flow's time over TV's", ratio, 3.0, at_most=True)
    yield Bar("CT 60: MS-Flow, time outside network and operator", by["ms-flow 16"].rest, 0.1, at_most=True)


def _differences(results: Results) -> Iterator[Difference]:
    for task in filter(results.__contains__, _ABOVE_TV):
        by = results[task]
        for peer in ("tv", "fbp"):
            gains = _paired(by["ms-flow 16"], by[peer], "psnr")
            low, high = interval(gains)
            yield Difference(f"{task}: MS-Flow above {peer}, dB", float(gains.mean()), low, high)


def _paired(result: Result, peer: Result, key: str) -> Any:
    """Differences for the patients that both have."""
    both = min(len(getattr(result, key)), len(getattr(peer, key)))
    return np.array(getattr(result, key)[:both]) - np.array(getattr(peer, key)[:both])


def interval(values: Any) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over patients, in the values' unit; NaN for one patient."""
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="percentile")
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
