"""Whether the intervals of posterior samples hold the truth, by tissue, before and after calibration."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctflow.benchmarks.bars import Bar
from ctflow.benchmarks.inserted import Patient
from ctflow.benchmarks.shown import Invented, Tally
from ctflow.evidence.conformal import Calibration, Posterior, calibrate
from ctflow.metrics import HU_CLASSES
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.samplers import MomentMatching
from ctflow.system.progress import FractionProgress

LEVEL = 0.9
SAMPLES = 8
METHOD = "moment-matching"


@dataclass(frozen=True)
class Covered:
    """Shares of the body's voxels whose interval holds the truth, means over patients.

    Args:
        task: key of the bench's tasks.
        method: as the protocol's report names it.
        patients: their number.
        ratio: root mean square of the samples' standard deviation over the error of a sample that is drawn
            from the posterior; 1 where they are.
        before: by class of CT numbers and for "all", with intervals that no other patient has widened.
        after: the same, calibrated on the other patients.
    """

    task: str
    method: str
    patients: int
    ratio: float
    before: dict[str, float]
    after: dict[str, float]

    def __str__(self) -> str:
        shares = "  ".join(
            f"{name} {self.before[name]:.3f} -> {self.after[name]:.3f}" for name in self.before
        )
        return (
            f"{self.task:<9}{self.method:<22}{LEVEL:.0%} intervals hold, nominal -> calibrated: {shares};  "
            f"SD over error {self.ratio:.2f}, {self.patients} patients"
        )

    def bars(self) -> Iterator[Bar]:
        """Its bars: within 5 % of the level before, in every tissue within 3 % after."""
        off = abs(self.before["all"] - LEVEL)
        yield Bar(f"{self.task}: nominal 90 % intervals, off by", off, 0.05, at_most=True)
        for name in filter("all".__ne__, self.after):
            off = abs(self.after[name] - LEVEL)
            yield Bar(f"{self.task}: calibrated 90 % intervals, {name}, off by", off, 0.03, at_most=True)


def run_posterior(
    task: str, protocol: Protocol, patients: Sequence[Patient], progress: FractionProgress
) -> tuple[Covered, Invented]:
    """Draw samples of every patient's slice, without lesions: eight images of each lesion would take hours.

    Args:
        task: its name in the results.
        protocol: measurement.
        patients: slices, two or more.
        progress: told the fraction that is done.

    Returns:
        How well the samples' intervals hold, and what their mean invents.
    """
    posteriors: list[Posterior] = []
    tally = Tally()
    for seed, patient in enumerate(patients):
        measurement = prepare(protocol, patient.volume)
        prior, problem = measurement.prior("ct-256"), measurement.problem(seed)
        found = reconstruct(measurement, problem, MomentMatching(), prior, samples=SAMPLES)
        assert found.spread is not None  # of several samples
        truth, mean, sd = (v.data.double().numpy() for v in (measurement.truth, found.volume, found.spread))
        body = measurement.masks[1]
        posteriors.append(Posterior(truth, mean, sd, body))
        tally.psnr.append(found.figures["body"]["psnr"])
        tally.add(patient, body[0], mean[0], {})
        progress((seed + 1) / len(patients))
    return covered(task, METHOD, posteriors), tally.inventions(task, f"{METHOD} × {SAMPLES}")


def covered(task: str, method: str, posteriors: Sequence[Posterior]) -> Covered:
    """Coverage of the intervals of `SAMPLES` samples a patient, each calibrated on all others.

    Args:
        task: its name in the results.
        method: name of the method.
        posteriors: of two patients or more, one each.

    Raises:
        UsageError: there is one patient alone.
    """
    nominal = Calibration.uncalibrated(SAMPLES, LEVEL)
    before = [nominal.coverage(patient) for patient in posteriors]
    others = [[*posteriors[:k], *posteriors[k + 1 :]] for k in range(len(posteriors))]
    after = [
        calibrate(rest, LEVEL).coverage(patient) for rest, patient in zip(others, posteriors, strict=True)
    ]
    # The mean of n draws is off by √(1 + 1 / n) standard deviations of one.
    ratios = [
        (1 + 1 / SAMPLES) ** 0.5
        * float(((p.sd[p.mask] ** 2).mean() / ((p.truth - p.mean)[p.mask] ** 2).mean()) ** 0.5)
        for p in posteriors
    ]
    return Covered(task, method, len(posteriors), statistics.fmean(ratios), _means(before), _means(after))


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    known = [name for name in ("all", *HU_CLASSES) if any(name in row for row in rows)]
    return {name: statistics.fmean(row[name] for row in rows if name in row) for name in known}
