"""Intervals with guaranteed coverage: the spread of samples, calibrated on other patients."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ctflow.errors import UsageError
from ctflow.metrics import HU_CLASSES, hu_classes

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FLOOR_HU = 1.0
"""Added to every standard deviation: a few samples can agree by chance, and a score must stay finite."""

_FEW = 5  # posteriors: from fewer, the factors are not known well


def nominal(samples: int, level: float = 0.9) -> float:
    """Half-width, in standard deviations of the samples, of an interval that should hold without calibration.

    Student's prediction interval: where truth and samples are independent draws of one normal law, the truth
    lies within that many standard deviations of the samples' mean with probability `level`.

    Args:
        samples: number of samples.
        level: level of coverage.

    Raises:
        UsageError: there is one sample, or the level is not between 0 and 1.
    """
    if samples < 2:
        raise UsageError("one sample has no interval; draw more, as with samples=8")
    _require_level(level)
    return float(stdtrit(samples - 1, (1 + level) / 2)) * math.sqrt(1 + 1 / samples)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"a level of coverage must lie between 0 and 1 and is {level}; give 0.9")


@dataclass(frozen=True)
class Posterior:
    """Mean and standard deviation of the samples of one patient, with the truth.

    Args:
        truth: HU, (Z, Y, X).
        mean: mean of the samples, HU, (Z, Y, X).
        sd: standard deviation of the samples, HU, (Z, Y, X).
        mask: voxels that count, (Z, Y, X).
    """

    truth: Floats
    mean: Floats
    sd: Floats
    mask: Bools

    def scores(self) -> Floats:
        """|truth - mean| / (sd + floor), dimensionless, (Z, Y, X)."""
        found: Floats = np.abs(self.truth - self.mean) / (self.sd + FLOOR_HU)
        return found


@dataclass(frozen=True)
class Calibration:
    """Half-widths of intervals in standard deviations, for every class of CT numbers.

    Args:
        level: level of coverage.
        factors: by class of the samples' mean; infinite where too few voxels were seen for a guarantee.
        voxels: number of voxels seen of each class.
    """

    level: float
    factors: dict[str, float]
    voxels: dict[str, int]

    @classmethod
    def uncalibrated(cls, samples: int, level: float = 0.9) -> Calibration:
        """The `nominal` factor in every class, from no voxel.

        Raises:
            UsageError: there is one sample, or the level is not between 0 and 1.
        """
        return cls(level, dict.fromkeys(HU_CLASSES, nominal(samples, level)), dict.fromkeys(HU_CLASSES, 0))

    def half_width(self, mean: Floats, sd: Floats) -> Floats:
        """Half the width of every voxel's interval, HU.

        Args:
            mean: mean of the samples, HU, (Z, Y, X).
            sd: standard deviation of the samples, HU, (Z, Y, X).
        """
        factor = np.full(mean.shape, np.inf)
        for name, inside in hu_classes(mean).items():
            factor[inside] = self.factors[name]
        return factor * (sd + FLOOR_HU)

    def coverage(self, posterior: Posterior) -> dict[str, float]:
        """Share of the voxels whose truth lies in its interval: "all", and every class that occurs."""
        hit = np.abs(posterior.truth - posterior.mean) <= self.half_width(posterior.mean, posterior.sd)
        classes = {"all": np.ones_like(posterior.mask), **hu_classes(posterior.mean)}
        inside = {name: mask & posterior.mask for name, mask in classes.items()}
        return {name: float(hit[mask].mean()) for name, mask in inside.items() if mask.any()}


def exact_quantile(scores: Floats, level: float) -> float:
    """The ⌈(n + 1) level⌉-th smallest of n scores, below which the next one lies with probability `level`.

    Args:
        scores: (n,), exchangeable with the next.
        level: level of coverage, between 0 and 1.

    Returns:
        The score; infinite where n is too small for the level.

    Raises:
        UsageError: the level is not between 0 and 1.

    References:
        Lei et al., J. Am. Stat. Assoc. 113 (2018), theorem 2.1: coverage at least `level`, and no more than
        `level` + 1 / (n + 1) for scores without ties.
    """
    _require_level(level)
    # (n + 1) level is a whole number more often than binary fractions admit: 10 · 0.9.
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def calibrate(patients: Iterable[Posterior], level: float = 0.9) -> Calibration:
    """Calibrate the spread of samples by the split-conformal method, for every class of CT numbers by itself.

    It need not be the posterior's, only larger where errors are. Classes are those of the samples' mean,
    since the truth of a new patient is not known (Mondrian calibration). The guarantee holds for voxels
    exchangeable with those seen; voxels of another patient are so only as far as patients resemble each
    other, which `Calibration.coverage` on others measures.

    Fewer than five are logged as a warning, with the range of the factors that each of them alone would give.

    Args:
        patients: posteriors of patients used neither for training, nor for tuning, nor for testing.
        level: level of coverage.

    Returns:
        Factors for new patients.

    Raises:
        UsageError: there are no patients, or the level is not between 0 and 1.

    References:
        Lei et al., J. Am. Stat. Assoc. 113 (2018), 5.2 (normalised residuals); Vovk et al., Algorithmic
        Learning in a Random World (2005), 4.5 (Mondrian classes).
    """
    seen: dict[str, list[Floats]] = {}
    for patient in patients:
        scores = patient.scores()
        for name, inside in hu_classes(patient.mean).items():
            seen.setdefault(name, []).append(scores[inside & patient.mask])
    if not seen:
        raise UsageError("calibration needs at least one patient; give some that are not used for testing")
    if (number := max(map(len, seen.values()))) < _FEW:
        logger.warning("intervals are calibrated on %d posteriors alone; %s", number, _ranges(seen, level))
    pooled = {name: np.concatenate(parts) for name, parts in seen.items()}
    factors = {name: exact_quantile(scores, level) for name, scores in pooled.items()}
    return Calibration(level, factors, {name: len(scores) for name, scores in pooled.items()})


def _ranges(seen: dict[str, list[Floats]], level: float) -> str:
    """The factors that single posteriors give, in words."""
    words = []
    for name, parts in seen.items():
        alone = [factor for part in parts if math.isfinite(factor := exact_quantile(part, level))]
        if alone:
            words.append(f"{name} {min(alone):.2f} to {max(alone):.2f}")
    return f"each alone gives half-widths, in standard deviations, of: {', '.join(words) or 'nothing finite'}"
