"""What each effect of a scanner costs each method."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.benchmarks.bars import Figure, Findings
from ctflow.evidence.discs import invented
from ctflow.experiments.slices import numbered
from ctflow.problem import InverseProblem
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.scanner import correct_scatter, scatter_share
from ctflow.system.progress import Progress

EFFECTS = {
    "ideal": "",
    "finer object": "fine = 2, rays = 3",
    "turn": "exposure_degrees = 1.0",
    "cross-talk": "crosstalk = 0.03",
    "scatter": "scatter = 0.05",
    "rings": "gain_error = 0.003",
    "spectrum": "kvp = 120",
    "movement": "movement = [2.0, 0.0]",
    "metal": "metal = 8.0, metal_at = [40.0, -30.0], kvp = 120",
    "scanner": "fine = 2, rays = 3, exposure_degrees = 0.25, crosstalk = 0.015, scatter = 0.02, "
    "gain_error = 0.001, kvp = 120",
}
"""Keywords of `ctflow.Scanner` by what they add; the last is all of them at the size that scanners have."""


@dataclass
class Loss:
    """A method under an effect: figures for each patient.

    Args:
        protocol: its name.
        effect: key of `EFFECTS`; "taken off" where the data's own scatter share was, see `scatter_share`.
        method: as reports name it.
        rmse_hu: inside the body, see `Measurement.masks`.
        bias_hu: mean error there.
        largest_hu: largest mean error over a disc of 8 mm there, see `invented`.
        ideal_hu: RMSE of the ideal scanner.
    """

    protocol: str
    effect: str
    method: str
    rmse_hu: list[float] = field(default_factory=list)
    bias_hu: list[float] = field(default_factory=list)
    largest_hu: list[float] = field(default_factory=list)
    ideal_hu: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        error, ideal = statistics.fmean(self.rmse_hu), statistics.fmean(self.ideal_hu)
        return (
            f"{self.protocol:<16}{self.effect:<20}{self.method:<24}{error:7.1f} HU  ({error / ideal:5.2f} of "
            f"ideal)  bias {statistics.fmean(self.bias_hu):+6.1f} HU, 8 mm off by up to "
            f"{statistics.fmean(self.largest_hu):5.0f} HU"
        )


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Run the methods of the sparse protocols on the data of scanners.

    Args:
        quick: one patient, and 60 views alone; else three, and 20 views too.
        progress: told the fraction that is done and the effect.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    names = ["sparse-view-60"] if quick else ["sparse-view-60", "sparse-view-20"]
    jobs = [
        (name, place, volume, effect)
        for name in names
        for place, volume in numbered("validation", 1 if quick else 3, data)
        for effect in EFFECTS
    ]
    losses: dict[tuple[str, str, str], Loss] = {}
    shares: list[Figure] = []
    for done, (name, place, volume, effect) in enumerate(jobs):
        progress(done / len(jobs), f"{name}, {effect}")
        protocol = Protocol.load(name).override([f"scanner={{ {EFFECTS[effect]} }}"])
        measurement = prepare(protocol, volume)
        problem = measurement.problem(place)
        problems = {effect: problem}
        if "scatter" in EFFECTS[effect]:
            share = scatter_share(problem, mu_water=protocol.mu_water)
            shares.append(Figure(f"{name}, {effect}, patient {place}: share of scatter", share, "found"))
            problems[f"{effect}, taken off"] = correct_scatter(problem, share, mu_water=protocol.mu_water)
        for what, measured in problems.items():
            for method, error, largest in _errors(measurement, measured):
                loss = losses.setdefault((name, what, method), Loss(name, what, method))
                loss.largest_hu.append(largest)
                loss.rmse_hu.append(float(error.square().mean().sqrt()))
                loss.bias_hu.append(float(error.mean()))
                loss.ideal_hu.append(losses[name, "ideal", method].rmse_hu[len(loss.rmse_hu) - 1])
    return Findings(rows=[*losses.values(), *shares])


def _errors(measurement: Measurement, problem: InverseProblem) -> Iterator[tuple[str, Tensor, float]]:
    """Every method of the protocol, its errors inside the body, HU, and the largest mean over a disc."""
    prior, grid = measurement.prior("ct-256"), measurement.truth.geometry
    body = measurement.masks[1]
    for name, method in measurement.protocol.methods().items():
        hu = reconstruct(measurement, problem, method, prior).volume.data
        error = hu - measurement.truth.data
        discs = invented(error[0].double().numpy(), body[0], grid)
        yield name, error[torch.from_numpy(body)], float(np.abs(discs).max())
