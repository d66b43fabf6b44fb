"""Whether a method keeps lesions and invents none, on slices of patients that no training has seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ctflow.benchmarks.bars import Bar, Findings
from ctflow.benchmarks.calibration import run_posterior
from ctflow.benchmarks.inserted import Floats, Kind, Patient, place_lesions
from ctflow.benchmarks.shown import Invented, Shown, Skipped, Tally
from ctflow.evidence.detectability import auc, ideal
from ctflow.experiments.slices import cases
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.runs.kept_lesions import key_of
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import Method
from ctflow.system.progress import FractionProgress, Progress

TASKS = {"60 views": "sparse-view-60", "20 views": "sparse-view-20"}
"""Tasks and their protocols."""

_TUNED = ["refinement", "flow-dps"]  # from the protocols' `tuned` tables, beside what they run themselves
_ALIKE = {"60 views": ("sparse-view-60-fast",)}  # protocols of the same measurement: their own methods


@dataclass(frozen=True)
class Measured:
    """What was run, so that a report of the same finds its figures.

    Args:
        task: key of `TASKS`.
        method: as the protocol's report names it, or another protocol of the same measurement.
        views: number of views.
        main: whether it is the protocol's own method.
        key: see `ctflow.runs.kept_lesions.key_of`.
    """

    task: str
    method: str
    views: int
    main: bool
    key: str

    def __str__(self) -> str:
        return f"{self.task:<9}{self.method:<22}{self.views} views, {self.key[:12]}"


@dataclass
class Result:
    """One task with all its methods.

    Args:
        task: key of `TASKS`.
        main: the protocol's own method.
        tallies: by name of the method.
        bounds: by kind, AUC of the ideal observer of the data for every lesion.
    """

    task: str
    main: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    bounds: dict[Kind, list[float]] = field(default_factory=dict)

    @cached_property
    def shown(self) -> list[Shown]:
        """What every method shows of every kind of lesion."""
        tallies = self.tallies.items()
        return [row for name, tally in tallies for row in tally.shown(self.task, name, self.bounds)]

    @property
    def invented(self) -> list[Invented]:
        """What every method invents."""
        return [tally.inventions(self.task, name) for name, tally in self.tallies.items()]

    def figure(self, what: str, method: str, diameter: float, contrast: float) -> float:
        """A figure of one row of `shown`; NaN for lesions that no slice has room for."""
        wanted = (method, diameter, contrast)
        rows = [row for row in self.shown if (row.method, row.diameter_mm, row.contrast_hu) == wanted]
        return float(getattr(rows[0], what)) if rows else math.nan


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Reconstruct slices with lesions and without them, and hold the figures against the bars.

    Args:
        quick: 3 patients instead of 9.
        progress: told the fraction that is done and the task.
        data: folder of slices; see `ctflow.experiments.patients`.
    """
    volumes = cases("validation", 3 if quick else 9, data)
    patients = [place_lesions(volume, seed) for seed, volume in enumerate(volumes)]
    found, results = Findings(), []
    for number, patient in enumerate(patients, start=1):
        found.rows += [Skipped(f"patient {number}, {refusal}") for refusal in patient.refusals]
    for number, (task, name) in enumerate(TASKS.items()):
        begin, share = number / len(TASKS), 1 / len(TASKS)
        protocol = Protocol.load(name).with_methods(_TUNED)
        alike = [Protocol.load(other) for other in _ALIKE.get(task, ())]
        results.append(run_task(task, protocol, patients, _within(progress, task, begin, 0.7 * share), alike))
        drawn = _within(progress, task, begin + 0.7 * share, 0.3 * share)
        covered, mean = run_posterior(task, protocol, patients, drawn)
        found.rows += [*results[-1].shown, *results[-1].invented, mean, covered]
        found.rows += _measured(task, protocol, alike, patients)
        found.bars += covered.bars()
    found.bars += [*_bars_at_60(results[0]), *_bars_at_20(results[1])]
    return found


def _measured(
    task: str, protocol: Protocol, alike: Sequence[Protocol], patients: list[Patient]
) -> Iterator[Measured]:
    measurement = prepare(protocol, patients[0].volume)
    views, prior = measurement.A.range_shape[-2], measurement.prior("ct-256")
    needed = {name: method.needs_prior for name, method in protocol.methods().items()}
    for name, table in protocol.method_tables().items():
        key = key_of(protocol, table, prior.sha256 if needed[name] else "")
        yield Measured(task, name, views, name == protocol.main, key)
    for other in alike:
        assert key_of(other, {}, "") == key_of(protocol, {}, "")  # the same measurement
        key = key_of(other, other.method_tables()[other.main], prior.sha256)
        yield Measured(task, other.name, views, False, key)


def _within(progress: Progress, task: str, begin: float, share: float) -> FractionProgress:
    return lambda fraction: progress(begin + share * fraction, task)


def run_task(
    task: str,
    protocol: Protocol,
    patients: list[Patient],
    progress: FractionProgress = lambda fraction: None,
    alike: Sequence[Protocol] = (),
) -> Result:
    """Reconstruct every patient's slice by every method, without lesions and with each insertion.

    Args:
        task: its name in the results.
        protocol: measurement and methods.
        patients: slices with the places of their lesions.
        progress: told the fraction that is done.
        alike: protocols of the same measurement, whose own methods are run too, by the protocol's name.
    """
    result, methods = Result(task, protocol.main), protocol.methods()
    methods |= {other.name: other.methods()[other.main] for other in alike}
    for seed, patient in enumerate(patients):
        measurement = prepare(protocol, patient.volume)
        prior, twin = measurement.prior("ct-256"), measurement.problem(seed)
        _bound(result, measurement, patient)
        for number, (name, method) in enumerate(methods.items()):
            progress((seed + number / len(methods)) / len(patients))
            _add(result.tallies.setdefault(name, Tally()), measurement, twin, method, prior, patient)
    return result


def _add(
    tally: Tally,
    measurement: Measurement,
    twin: InverseProblem,
    method: Method,
    prior: Prior,
    patient: Patient,
) -> None:
    found = reconstruct(measurement, twin, method, prior)
    tally.psnr.append(found.figures["body"]["psnr"])
    images = {}
    for insertion in patient.insertions:
        # The twin's own noise: drawn anew, photons would differ at all rays behind the first that changed.
        added = twin.A(_attenuation(patient.added(insertion), measurement))
        problem = InverseProblem(twin.A, twin.y + added, twin.noise)
        images[insertion] = _slice(reconstruct(measurement, problem, method, prior).volume.data)
    tally.add(patient, measurement.masks[1][0], _slice(found.volume.data), images)


def _bound(result: Result, measurement: Measurement, patient: Patient) -> None:
    """AUC of the ideal observer for every lesion, with the weights that noiseless data have."""
    A, noise = measurement.A, measurement.noise
    noiseless = InverseProblem(A, A(measurement.mu.data), noise)
    for (tissue, diameter), site in patient.sites.items():
        at_1_hu = [ideal(noiseless, _attenuation(profile, measurement)) for profile in site.profiles]
        for insertion in patient.insertions:
            if insertion.tissue.name == tissue:
                bounds = [auc(abs(insertion.contrast_hu) * d) for d in at_1_hu]
                result.bounds.setdefault((diameter, insertion.contrast_hu), []).extend(bounds)


def _attenuation(added_hu: Floats, measurement: Measurement) -> torch.Tensor:
    """What is added to the attenuation, (1, Y, X), 1/mm."""
    return torch.from_numpy(added_hu)[None].float() * measurement.protocol.mu_water / 1000


def _slice(volume: torch.Tensor) -> Floats:
    found: Floats = volume[0].double().numpy()
    return found


def _bars_at_60(result: Result) -> Iterator[Bar]:
    figure, main = result.figure, result.main
    for diameter in (6.0, 8.0, 12.0):
        ours = figure("visibility", main, diameter, 60.0)
        for peer in ("tv", "fbp"):
            ratio = ours / figure("visibility", peer, diameter, 60.0)
            yield Bar(f"60 views: {diameter:g} mm, contrast over false signal, over {peer}'s", ratio, 1.0)
    for diameter, least in ((8.0, 0.5), (12.0, 0.7)):
        yield Bar(f"60 views: {diameter:g} mm, recovery", figure("recovery", main, diameter, 60.0), least)
    gain = statistics.fmean(result.tallies[main].psnr) - statistics.fmean(result.tallies["tv"].psnr)
    yield Bar("60 views: PSNR in the body above tv, dB", gain, 1.0)
    for peer in ("tv", "fbp"):
        difference = figure("auc", main, 8.0, 30.0) - figure("auc", peer, 8.0, 30.0)
        yield Bar(f"60 views: 8 mm, +30 HU, AUC above {peer}'s", difference, 0.0)
    ratio = figure("visibility", "ms-flow", 8.0, 60.0) / figure("visibility", "refinement", 8.0, 60.0)
    yield Bar("60 views: 8 mm, ms-flow's ratio over refinement's", ratio, 1.3)


def _bars_at_20(result: Result) -> Iterator[Bar]:
    off = {row.method: row.above_100 for row in result.invented}
    share = off[result.main] / off["tv"] if off["tv"] else math.nan
    yield Bar("20 views: 8 mm discs off by > 100 HU, over tv's", share, 0.5, at_most=True)
    ours, tv = (result.tallies[name].largest for name in (result.main, "tv"))
    largest = statistics.fmean(a / b for a, b in zip(ours, tv, strict=True))
    yield Bar("20 views: largest error of an 8 mm disc, over tv's", largest, 1.0, at_most=True)
