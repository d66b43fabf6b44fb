"""Extensions of MS-Flow against it at equal network evaluations, and operators with a number not told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from ctflow.benchmarks.bars import Figure, Findings
from ctflow.benchmarks.extensions import (
    NO_LATENT,
    Balanced,
    Discrepancy,
    Multistep,
    Stochastic,
    Uncalibrated,
)
from ctflow.benchmarks.samplers import interval
from ctflow.blind import Family, find_parameter
from ctflow.experiments.slices import cases
from ctflow.geometry import ParallelBeam
from ctflow.operators import Blur, LinearOperator, Radon
from ctflow.problem import InverseProblem, simulate
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.samplers import MSFlow
from ctflow.system.progress import Progress
from ctflow.volume import Volume

TASKS = {"CT 20": "sparse-view-20", "CT 60": "sparse-view-60"}
"""Tasks and their protocols."""

VARIANTS: dict[str, MSFlow] = {
    "ms-flow": MSFlow(16, 1),
    "stochastic": Stochastic(16, 1),
    "balanced penalties": Balanced(16, 1),
    "discrepancy principle": Discrepancy(16, 1),
    "second order": Multistep(16, 1),
    "uncalibrated variance": Uncalibrated(16, 1),
}
"""One sweep of 16 evaluations each; their numbers were chosen on validation patients 3 and 6 of 9."""

_REFERENCE = "ms-flow"


@dataclass(frozen=True)
class Unknown:
    """An operator with one number that is not told.

    Args:
        protocol: the measurement.
        what: the number, "axis" in bins or "width" of the blur in pixels.
        true: its value in the data.
        low: bounds of the search.
        high: bounds of the search.
    """

    protocol: str
    what: str
    true: float
    low: float
    high: float

    def operator(self, measurement: Measurement, value: float) -> LinearOperator:
        """The measurement's operator with another value of the number."""
        if self.what == "width":
            return Blur(measurement.grid.shape, value)
        radon = cast(Radon, measurement.A)
        beam = replace(cast(ParallelBeam, radon.beam), shift_bins=value)
        return Radon(radon.volume, beam, "joseph")  # keeps no table on disk for every value

    def family(self, measurement: Measurement, seed: int) -> Family:
        """Data of the true value, and the problem that every other value makes of them."""
        A = self.operator(measurement, self.true)
        y = simulate(A, measurement.mu.data, measurement.noise, seed).y[None]
        problem = InverseProblem(A, y, measurement.noise)
        return lambda value: replace(problem, A=self.operator(measurement, value))


UNKNOWN = {
    "CT 20, axis": Unknown("sparse-view-20", "axis", 1.7, -4.0, 4.0),
    "CT 60, axis": Unknown("sparse-view-60", "axis", 1.7, -4.0, 4.0),
    "deblurring, width": Unknown("deblur", "width", 2.0, 0.5, 4.0),
}
"""Tasks whose operator is known but for one number."""


@dataclass
class Result:
    """One variant on one task: a figure for each patient.

    Args:
        task: key of `TASKS` or `UNKNOWN`.
        name: variant, or what was known.
        psnr: dB, range 2000 HU, inside the body.
        rmse_hu: inside the body.
        evaluations: network evaluations.
        seconds: for one slice.
        gain: dB above MS-Flow, for blind tasks above MS-Flow that knows the number.
        low: lower end of the gain's 95 % bootstrap interval over patients; NaN for one.
        high: upper end.
    """

    task: str
    name: str
    psnr: list[float] = field(default_factory=list)
    rmse_hu: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gain: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def add(self, measurement: Measurement, problem: InverseProblem, method: MSFlow, spent: int = 0) -> None:
        """Run a method on one patient; `spent` evaluations came before it."""
        prior = measurement.prior("ct-256")
        found = reconstruct(measurement, problem, method, prior)  # pyright: ignore[reportArgumentType] (class variables are read as properties are)
        self.psnr.append(found.figures["body"]["psnr"])
        self.rmse_hu.append(found.figures["rmse_hu"])
        self.evaluations.append(found.figures["network"] + spent)
        self.seconds.append(found.figures["seconds"])

    def compare(self, reference: Result) -> None:
        """Fill in the gain over another result for the same patients."""
        gains = np.array(self.psnr) - np.array(reference.psnr)
        self.gain, (self.low, self.high) = float(gains.mean()), interval(gains)

    def __str__(self) -> str:
        psnr, rmse = statistics.fmean(self.psnr), statistics.fmean(self.rmse_hu)
        return (
            f"{self.task:<18}{self.name:<23}NFE {statistics.fmean(self.evaluations):>4.1f}  {psnr:6.2f} dB  "
            f"{rmse:6.1f} HU  {statistics.median(self.seconds):6.2f} s  "
            f"{self.gain:+6.2f} dB [{self.low:+.2f}, {self.high:+.2f}]"
        )


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Run MS-Flow, its extensions, and MS-Flow behind `find_parameter`; there are no bars.

    Args:
        quick: 3 patients instead of 9.
        progress: told the fraction that is done and the task.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    volumes = cases("validation", 3 if quick else 9, data)
    found = Findings()
    for number, task in enumerate([*TASKS, *UNKNOWN]):
        progress(number / (len(TASKS) + len(UNKNOWN)), task)
        if task in TASKS:
            found.rows += extensions(task, Protocol.load(TASKS[task]), volumes)
        else:
            found.rows += blind(task, UNKNOWN[task], volumes)
    found.rows.append(Figure("latent MS-Flow", math.nan, NO_LATENT))
    return found


def extensions(task: str, protocol: Protocol, volumes: list[Volume]) -> list[Result]:
    """Every variant on one task.

    Args:
        task: its name in the results.
        protocol: measurement.
        volumes: one slice (1, Y, X) of each patient, HU.
    """
    results = {name: Result(task, name) for name in VARIANTS}
    for seed, volume in enumerate(volumes):
        measurement = prepare(protocol, volume)
        problem = measurement.problem(seed)
        for name, method in VARIANTS.items():
            results[name].add(measurement, problem, method)
    for result in results.values():
        result.compare(results[_REFERENCE])
    return list(results.values())


def blind(task: str, unknown: Unknown, volumes: list[Volume]) -> Iterator[Result | Figure]:
    """MS-Flow that knows the number, that takes the middle of its bounds, and that has it found.

    Args:
        task: its name in the results.
        unknown: the number.
        volumes: one slice (1, Y, X) of each patient, HU.
    """
    known, middle, searched = (Result(task, name) for name in ("known", "middle of the bounds", "found"))
    errors = []
    for seed, volume in enumerate(volumes):
        measurement = prepare(Protocol.load(unknown.protocol), volume)
        family = unknown.family(measurement, seed)
        found = find_parameter(family, measurement.prior("ct-256"), unknown.low, unknown.high)
        errors.append(abs(found.value - unknown.true))
        known.add(measurement, family(unknown.true), MSFlow())
        middle.add(measurement, family((unknown.low + unknown.high) / 2), MSFlow())
        searched.add(measurement, family(found.value), MSFlow(), found.evaluations)
    for result in (known, middle, searched):
        result.compare(known)
        yield result
    unit = "bins" if unknown.what == "axis" else "pixels"
    yield Figure(f"{task}: largest error of the number found", max(errors), unit)
