"""What a method shows of lesions put into slices, and what it shows where none is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ctflow.benchmarks.inserted import INSERTIONS, Insertion, Kind, Patient, Size
from ctflow.errors import GeometryError
from ctflow.evidence.detectability import (
    auc,
    channel_outputs,
    hotelling_interval,
    hotelling_of_outputs,
    laguerre_gauss,
)
from ctflow.evidence.discs import disc_means, invented
from ctflow.evidence.statistics import by_patient
from ctflow.units import AIR_HU

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Skipped:
    """Lesions that a slice has no room for.

    Args:
        name: patient and reason.
    """

    name: str

    def __str__(self) -> str:
        return f"skipped: {self.name}"


@dataclass(frozen=True)
class Shown:
    """How a method shows lesions of one diameter and contrast.

    Args:
        task: key of `TASKS`.
        method: as the protocol's report names it.
        diameter_mm: diameter.
        contrast_hu: contrast.
        recovery: share of the contrast in the difference from the twin, mean over patients; 1 is ideal.
        false_signal_hu: standard deviation over places of the mean error of the twin in such a disc.
        auc: channelised Hotelling observer that knows the slice without lesions; NaN for too few lesions.
        low: lower end of its 95 % interval, which takes places as independent.
        high: upper end.
        ideal: AUC of the ideal observer of the data, mean over the lesions.
        lesions: their number.
    """

    task: str
    method: str
    diameter_mm: float
    contrast_hu: float
    recovery: float
    false_signal_hu: float
    auc: float
    low: float
    high: float
    ideal: float
    lesions: int

    @property
    def visibility(self) -> float:
        """Contrast that is shown over the false signal."""
        return (
            self.recovery * abs(self.contrast_hu) / self.false_signal_hu if self.false_signal_hu else np.inf
        )

    def __str__(self) -> str:
        return (
            f"{self.task:<9}{self.method:<22}{self.diameter_mm:3.0f} mm {self.contrast_hu:+4.0f} HU  "
            f"recovery {self.recovery:5.2f}  false signal {self.false_signal_hu:5.1f} HU  "
            f"ratio {self.visibility:6.2f}  AUC {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}], "
            f"ideal {self.ideal:.3f}, {self.lesions} lesions"
        )


@dataclass(frozen=True)
class Invented:
    """Discs of 8 mm in the body whose mean is wrong where no lesion is; means over patients.

    Args:
        task: key of `TASKS`.
        method: as the protocol's report names it.
        above_50: share of the discs off by more than 50 HU.
        above_100: share off by more than 100 HU.
        largest_hu: largest error of a disc.
        psnr: inside the body, dB.
    """

    task: str
    method: str
    above_50: float
    above_100: float
    largest_hu: float
    psnr: float

    def __str__(self) -> str:
        return (
            f"{self.task:<9}{self.method:<22}8 mm discs off by > 50 HU {100 * self.above_50:6.2f} %, "
            f"> 100 HU {100 * self.above_100:6.2f} %, largest {self.largest_hu:6.1f} HU, {self.psnr:6.2f} dB"
        )


@dataclass
class Tally:
    """What one method has made of the patients so far.

    Args:
        recovery: by kind, share of each lesion's contrast that is shown.
        patients: by kind, whose lesion each of them is.
        errors: by tissue and diameter, error of the twin's disc means wherever a lesion fits, HU.
        present: by kind, outputs of the observer's channels at the lesions.
        absent: by tissue and diameter, outputs at empty places of the twin.
        invented: for every patient, errors of the twin's disc means over the body, HU.
        psnr: for every patient, of the twin inside the body, dB.
    """

    recovery: dict[Kind, list[float]] = field(default_factory=dict)
    patients: dict[Kind, list[str]] = field(default_factory=dict)
    errors: dict[Size, list[Floats]] = field(default_factory=dict)
    present: dict[Kind, list[Floats]] = field(default_factory=dict)
    absent: dict[Size, list[Floats]] = field(default_factory=dict)
    invented: list[Floats] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def add(self, patient: Patient, body: Bools, twin: Floats, images: dict[Insertion, Floats]) -> None:
        """Take in one patient.

        Args:
            patient: slice and places.
            body: (Y, X).
            twin: reconstruction of the slice without lesions, (Y, X), HU.
            images: those with lesions, (Y, X), HU.
        """
        truth = patient.volume.data[0].double().numpy().clip(AIR_HU)
        self.invented.append(invented(twin - truth, body, patient.volume.geometry))
        self._add_twin(patient, twin - truth)
        for insertion, image in images.items():
            self._add_lesions(patient, insertion, image - twin, image - truth)

    def _add_twin(self, patient: Patient, error: Floats) -> None:
        for size, site in patient.sites.items():
            means = disc_means(error, patient.volume.geometry, size[1])
            self.errors.setdefault(size, []).append(means[site.fits])
            outputs = channel_outputs(_channels(patient, size[1]), error, site.empty)
            self.absent.setdefault(size, []).append(outputs)

    def _add_lesions(self, patient: Patient, insertion: Insertion, difference: Floats, seen: Floats) -> None:
        grid, true = patient.volume.geometry, patient.added(insertion)
        for (tissue, diameter), site in patient.sites.items():
            if tissue == insertion.tissue.name:
                kind, places = (diameter, insertion.contrast_hu), site.places
                at = places[:, 0], places[:, 1]
                shares = disc_means(difference, grid, diameter)[at] / disc_means(true, grid, diameter)[at]
                self.recovery.setdefault(kind, []).extend(shares.tolist())
                self.patients.setdefault(kind, []).extend([str(len(self.invented))] * len(places))
                outputs = channel_outputs(_channels(patient, diameter), seen, places)
                self.present.setdefault(kind, []).append(outputs)

    def shown(self, task: str, method: str, bounds: dict[Kind, list[float]]) -> Iterator[Shown]:
        """Rows of all kinds.

        Args:
            task: key of `TASKS`.
            method: name of the method.
            bounds: by kind, AUC of the ideal observer for every lesion.
        """
        for insertion in INSERTIONS:
            for diameter in insertion.diameters_mm:
                kind, size = (diameter, insertion.contrast_hu), (insertion.tissue.name, diameter)
                if kind in self.recovery:
                    shares = by_patient(self.recovery[kind], self.patients[kind])
                    false = float(np.concatenate(self.errors[size]).std(ddof=1))
                    areas = _areas(np.concatenate(self.present[kind]), np.concatenate(self.absent[size]))
                    bound, number = statistics.fmean(bounds[kind]), len(bounds[kind])
                    yield Shown(task, method, *kind, float(shares.mean()), false, *areas, bound, number)

    def inventions(self, task: str, method: str) -> Invented:
        """The row of what was invented.

        Args:
            task: key of `TASKS`.
            method: name of the method.
        """
        above = [statistics.fmean((np.abs(e) > hu).mean() for e in self.invented) for hu in (50, 100)]
        largest = statistics.fmean(self.largest)
        return Invented(task, method, above[0], above[1], largest, statistics.fmean(self.psnr))

    @property
    def largest(self) -> list[float]:
        """The largest error of a disc mean in every patient, HU."""
        return [float(np.abs(errors).max()) for errors in self.invented]


def _channels(patient: Patient, diameter: float) -> Floats:
    """Laguerre-Gauss channels as wide as the lesion, of unit energy in mm, whatever the pixels."""
    spacing = patient.volume.geometry.spacing[2]
    size = 2 * int(np.ceil(1.5 * diameter / spacing)) + 1
    return spacing * laguerre_gauss(size, diameter / spacing)


def _areas(present: Floats, absent: Floats) -> tuple[float, float, float]:
    """AUC of the Hotelling observer with its interval; NaN for too few lesions."""
    try:
        low, high = hotelling_interval(present, absent)
        return auc(hotelling_of_outputs(present, absent)), auc(low), auc(high)
    except GeometryError:
        return np.nan, np.nan, np.nan
