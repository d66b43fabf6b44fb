"""Statistics over patients: intervals, paired tests, multiplicity, agreement and equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ctflow.errors import UsageError

Floats = NDArray[np.float64]

FEW = 5
"""Below this number of patients an interval or a test says little, and reports note it."""

_RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        mean: mean over the patients.
        low: lower end, None where there are too few patients.
        high: upper end, None where there are too few patients.
        patients: number of patients.
        note: caveat for the reader; may be empty.
    """

    mean: float
    low: float | None
    high: float | None
    patients: int
    note: str


def by_patient(values: Sequence[float], patients: Sequence[str]) -> Floats:
    """Average the values of every patient, in the order of their names: patients are the sample, not scans.

    Raises:
        UsageError: the numbers of patients' names and of values differ.
    """
    if len(values) != len(patients):
        raise UsageError(f"{len(values)} values and {len(patients)} patients must be equal in number")
    names = np.asarray(patients)
    array = np.asarray(values, np.float64)
    return np.array([array[names == name].mean() for name in np.unique(names)])


def bootstrap(values: Floats, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean and its bias-corrected accelerated bootstrap interval, patients resampled.

    Args:
        values: one per patient, any unit; (patients,).
        level: level of confidence.
        seed: seed of the resampling.

    References:
        Efron, J. Am. Stat. Assoc. 82 (1987), as implemented in `scipy.stats.bootstrap`.
    """
    mean, n = float(np.mean(values)), len(values)
    note = f"{n} patients only" if n < FEW else ""
    if n < 2 or np.ptp(values) == 0:  # no spread: the acceleration would be 0 / 0
        return Interval(mean, mean if n > 1 else None, mean if n > 1 else None, n, note)
    generator = np.random.default_rng(seed)
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=_RESAMPLES, method="BCa", rng=generator
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), n, note)


def wilcoxon(first: Floats, second: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on pairs; 1 where no pair differs.

    It cannot fall below 2 / 2ⁿ for n pairs: p < 0.05 needs at least six patients.

    Args:
        first: one value per patient, (patients,).
        second: of the same patients in the same order.

    References:
        Wilcoxon, Biometrics Bulletin 1 (1945), as implemented in `scipy.stats.wilcoxon`.
    """
    if not np.any(first != second):
        return 1.0
    return float(stats.wilcoxon(first, second).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p, in the order given: below α it is significant at a family-wise error of α.

    References:
        Holm, Scand. J. Stat. 6 (1979).
    """
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Agreement:
    """Bland-Altman analysis of paired differences, in their unit; each with its 95 % interval.

    Args:
        bias: mean difference.
        bias_interval: interval of the bias, by Student's t.
        limits: bias ± 1.96 standard deviations.
        lower_interval: interval of the lower limit.
        upper_interval: interval of the upper limit.
        pairs: number of pairs.
        note: caveat for the reader; may be empty.
    """

    bias: float
    bias_interval: tuple[float, float]
    limits: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]
    pairs: int
    note: str


def bland_altman(differences: Floats) -> Agreement:
    """Bias and limits of agreement of paired measurements.

    Args:
        differences: first minus second, one per patient; (patients,).

    Raises:
        UsageError: there are fewer than two pairs.

    References:
        Bland and Altman, Stat. Methods Med. Res. 8 (1999), 2.1 and 3 (standard error of the limits).
    """
    n = len(differences)
    if n < 2:
        raise UsageError(f"limits of agreement need at least two patients and there are {n}; add patients")
    bias, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    t = float(stats.t.ppf(0.975, n - 1))
    of_bias, of_limit = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + 1.96**2 / (2 * (n - 1)))
    low, high = bias - 1.96 * sd, bias + 1.96 * sd
    return Agreement(
        bias,
        (bias - of_bias, bias + of_bias),
        (low, high),
        (low - of_limit, low + of_limit),
        (high - of_limit, high + of_limit),
        n,
        f"{n} patients only" if n < FEW else "",
    )


def equivalence(first: Floats, second: Floats, margin: float) -> float:
    """p of two one-sided paired t-tests: below α the mean difference lies within ± margin.

    Args:
        first: one value per patient, (patients,).
        second: of the same patients in the same order.
        margin: largest difference that does not matter, in the values' unit.

    Raises:
        UsageError: the margin is not positive, or there are fewer than two patients.

    References:
        Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987).
    """
    difference = np.asarray(first) - np.asarray(second)
    if not margin > 0 or len(difference) < 2:
        raise UsageError(f"equivalence needs a margin above 0 (it is {margin:g}) and at least two patients")
    if np.ptp(difference) <= 1e-9 * np.abs(first).max():  # no spread but rounding: t would be 0 / 0
        return 0.0 if abs(difference[0]) < margin else 1.0
    above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
    return float(max(above, below))
